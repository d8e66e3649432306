import golden_values
import pytest
import torch

from mhimdist.model_settings import AttentionMIL
from mhimdist.models import build

BASELINES = {"attn": AttentionMIL(), "attn_gated": AttentionMIL(gated=True)}


def _golden_network(baseline: str):
    network = build(BASELINES[baseline], num_features=1024, num_classes=2, seed=0)
    golden_values.fill(network, baseline, base_seed=1000)
    return network


@pytest.mark.parametrize("baseline", BASELINES)
def test_parameter_count_is_the_papers(baseline):
    network = build(BASELINES[baseline], num_features=1024, num_classes=2, seed=0)
    assert sum(p.numel() for p in network.parameters()) == golden_values.FACTS[baseline]["num_parameters"]


@pytest.mark.parametrize(
    ("baseline", "size"), [(name, size) for name in BASELINES for size in golden_values.sizes(name)]
)
def test_golden_forward(baseline, size):
    with torch.no_grad():
        output = _golden_network(baseline)(golden_values.bag(size, seed=size))
    ours = {
        "logits": output.logits_BC,
        "embedding": output.embeddings_BME[:, 0],
        "scores": output.scores_TH.T.softmax(dim=1),
    }
    for name, value in ours.items():
        golden = torch.from_numpy(golden_values.ARRAYS[f"{baseline}/n{size}/{name}"])
        error = (value - golden.reshape(value.shape)).abs().max() / golden.abs().max()
        assert error < 1e-4, (name, error)
