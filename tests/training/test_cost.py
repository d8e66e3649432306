"""Measured costs, in fresh processes: training would first reuse memory that other tests have freed."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from mhimdist.config.train import load_config
from mhimdist.training.cost import measure


def _config(**changes):
    tree = {
        "model": {"name": "abmil"},
        "teacher": {"kind": "init_momentum"},
        "masking": {"high": 0.1},
        "device": "cpu",
    }
    return load_config(tree).override(changes)


@pytest.mark.slow
def test_parameters_are_exact_and_a_larger_network_takes_more_memory(bags):
    split = bags.holdout()
    configs = [
        _config(**{"model.hidden_dim": hidden_dim, "model.attention_dim": hidden_dim // 2})
        for hidden_dim in (8, 2048)
    ]
    with ProcessPoolExecutor(2, get_context("spawn"), max_tasks_per_child=1) as fresh:
        costs = [fresh.submit(measure, config, bags, split, 1) for config in configs]
        small, large = (cost.result() for cost in costs)
    assert small.num_parameters == 8 * 8 + 8 + 8 * 4 + 4 + 8 * 2 + 2
    # The large network's weights, Adam's two moments, a gradient and the teacher take 5 x 8.6 MB.
    assert large.peak_bytes > small.peak_bytes + 25 * 2**20
    assert (small.device, small.num_threads) == ("cpu", 1)
    assert 0 < small.train_s < large.train_s < large.epoch_s
