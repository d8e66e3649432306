import pytest
import torch

from mhimdist.config.models import AttentionMIL
from mhimdist.models import build
from mhimdist.training.evaluation import predict

pytestmark = pytest.mark.numeric


def test_denormals_are_flushed_while_bags_are_predicted(bags):
    """Evaluation comes after training, and training flushes denormals only while it trains."""
    settings = AttentionMIL(hidden_dim=8, attention_dim=4)
    network = build(settings, num_features=bags.num_features, num_classes=2, seed=0)
    halves = []
    network.register_forward_pre_hook(
        lambda *_: halves.append(float(torch.tensor(torch.finfo(torch.float32).tiny) / 2))
    )
    keys = bags.keys[:3]
    assert predict(network, bags, keys).keys == tuple(keys)
    assert halves == [0.0] * 3
    assert float(torch.tensor(torch.finfo(torch.float32).tiny) / 2) > 0
