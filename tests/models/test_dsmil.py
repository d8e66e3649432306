import math

import golden_values
import pytest
import torch

from mhimdist.config.models import DSMIL
from mhimdist.data.bags import PackedBags
from mhimdist.models import build
from mhimdist.tasks import Truth

pytestmark = pytest.mark.numeric


def test_parameter_count_is_the_papers_without_the_unused_predictor():
    network = build(DSMIL(), num_features=1024, num_classes=2, seed=0)
    assert sum(p.numel() for p in network.parameters()) == 872_708


@pytest.mark.parametrize("size", golden_values.sizes("dsmil"))
def test_golden_forward(size):
    network = build(DSMIL(), num_features=1024, num_classes=2, seed=0)
    golden_values.fill(network, "dsmil", base_seed=1000)
    with torch.no_grad():
        output = network(golden_values.bag(size, seed=size))
    ours = {
        "logits_bag": output.logits_BC,
        "logits_instance_max": output.instance_logits_BC,
        "embedding": output.embeddings_BME,
        "scores": output.scores_TH.T,
    }
    for name, value in ours.items():
        golden = torch.from_numpy(golden_values.ARRAYS[f"dsmil/n{size}/{name}"])
        error = (value - golden.reshape(value.shape)).abs().max() / golden.abs().max()
        assert error < 1e-4, (name, error)


def test_three_classes_are_what_the_formula_gives_and_so_are_its_gradients():
    network = build(DSMIL(hidden_dim=6, query_dim=4), num_features=5, num_classes=3, seed=2).double()
    features = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    output = network(PackedBags.from_list([features], [2]))

    def queries(z):
        hidden = torch.relu(z @ network.query[0].weight.T + network.query[0].bias)
        return torch.tanh(hidden @ network.query[2].weight.T + network.query[2].bias)

    z = torch.relu(features @ network.projection.linear.weight.T + network.projection.linear.bias)
    instance_logits = z @ network.instance_head.weight.T + network.instance_head.bias
    values = torch.relu(z @ network.value.weight.T + network.value.bias)
    embeddings = []
    for c in range(3):
        top = z[instance_logits[:, c].argmax()]
        attention = torch.exp(queries(z) @ queries(top) / math.sqrt(4))
        embeddings.append((attention / attention.sum()) @ values)
    logits = [
        sum(network.head.weight[o, c] @ embeddings[c] for c in range(3)) + network.head.bias[o]
        for o in range(3)
    ]
    streams = [torch.stack(logits), instance_logits.amax(0)]
    expected = sum(-torch.log_softmax(stream, 0)[2] for stream in streams) / 2

    loss = network.loss(output, Truth(torch.tensor([2])))[0]
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(output.embeddings_BME[0], torch.stack(embeddings))
    torch.testing.assert_close(
        network.predictions(output)[0], (streams[0].softmax(0) + streams[1].softmax(0)) / 2
    )
    parameters = list(network.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_a_class_weight_multiplies_both_streams():
    network = build(DSMIL(hidden_dim=6, query_dim=4), num_features=5, num_classes=2, seed=2)
    bags = PackedBags.from_list([torch.rand(4, 5), torch.rand(3, 5)], [0, 1])
    output = network(bags)
    plain = network.loss(output, Truth(bags.labels_B))
    weighted = network.loss(output, Truth(bags.labels_B, class_weights_C=torch.tensor([1.0, 3.0])))
    torch.testing.assert_close(weighted, plain * torch.tensor([1.0, 3.0]))


def test_only_the_top_instances_logits_have_a_gradient_and_it_is_that_of_all():
    """One of the two bags has the same top instance for both classes."""
    network = build(DSMIL(hidden_dim=6, query_dim=4), num_features=5, num_classes=2, seed=2).double()
    hidden = torch.randn(9, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    hidden.requires_grad_()
    top_BC = torch.tensor([[3, 3], [5, 8]])
    logits_BC = network._top_logits(hidden, top_BC)
    head = network.instance_head
    expected_BC = (hidden @ head.weight.T + head.bias).gather(0, top_BC)
    torch.testing.assert_close(logits_BC, expected_BC)
    inputs, probe = [hidden, head.weight, head.bias], torch.tensor([[1.0, -2.0], [3.0, 0.5]]).double()
    ours = torch.autograd.grad(logits_BC, inputs, probe)
    for found, expected in zip(ours, torch.autograd.grad(expected_BC, inputs, probe), strict=True):
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(network._logits(hidden).gather(0, top_BC), logits_BC.detach())
