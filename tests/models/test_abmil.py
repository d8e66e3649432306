import golden_values
import pytest
import torch

from mhimdist import ops
from mhimdist.config.models import AttentionMIL
from mhimdist.models import build
from mhimdist.models.abmil import Attention

pytestmark = pytest.mark.numeric
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


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
def test_attention_and_pooling_in_one_are_the_two_in_float64(monkeypatch, gated, activation, dtype, error):
    """Blocks of 16 rows end inside bags, and bags end inside blocks."""
    monkeypatch.setattr("mhimdist.ops._attention_cpu._ROWS", 16)
    generator = torch.Generator().manual_seed(0)
    settings = AttentionMIL(hidden_dim=12, attention_dim=6, gated=gated, activation=activation)
    offsets = torch.tensor([0, 1, 38, 48, 53])
    values, towards_pooled, towards_scores = (
        torch.randn(shape, generator=generator) for shape in ((53, 12), (4, 1, 12), (53, 1))
    )
    found = []
    for exact in (False, True):
        layer = Attention(settings)
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(parameter.numel()))
        layer = layer.to(dtype).to(torch.float64 if exact else dtype)
        hidden = values.to(dtype).to(torch.float64 if exact else dtype).detach().requires_grad_()
        if exact:
            scores = layer(hidden)
            pooled = ops.segment_softmax_pool(scores, hidden, offsets)
        else:
            pooled, scores = layer.pool(hidden, offsets)
        ((pooled * towards_pooled).sum() + (scores * towards_scores).sum()).backward()
        found.append([pooled, scores, hidden.grad, *(parameter.grad for parameter in layer.parameters())])
    for ours, double in zip(*found, strict=True):
        assert (ours - double).norm() <= error * double.norm()
