from mhimdist.config import load_config
from mhimdist.cost import measure


def _config(**changes):
    tree = {
        "model": {"name": "abmil"},
        "teacher": {"kind": "init_momentum"},
        "masking": {"high": 0.1},
        "device": "cpu",
    }
    return load_config(tree).override(changes)


def test_parameters_are_exact_and_a_larger_network_takes_more_memory(bags):
    split = bags.holdout()
    small = measure(_config(**{"model.hidden_dim": 8, "model.attention_dim": 4}), bags, split, 1)
    large = measure(_config(**{"model.hidden_dim": 2048, "model.attention_dim": 1024}), bags, split, 1)
    assert small.num_parameters == 8 * 8 + 8 + 8 * 4 + 4 + 8 * 2 + 2
    # The large one's weights, Adam's two moments, a gradient and the teacher are 5 x 8.6 MB.
    assert large.peak_bytes > small.peak_bytes + 25 * 2**20
    assert (small.device, small.num_threads) == ("cpu", 1)
    assert 0 < small.epoch_s < large.epoch_s
