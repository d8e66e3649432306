"""Max- and mean-pooling against their formulas and gradients, derived by hand in NumPy."""

import numpy as np
import pytest
import torch

from mhimdist.config.models import Pooling
from mhimdist.data.bags import PackedBags
from mhimdist.models import build
from mhimdist.tasks import Truth

pytestmark = pytest.mark.numeric


def _derived(name, x_ND, label, projection, projection_bias, head, head_bias):
    """The logits, the loss and the gradients of the four parameters for one bag."""
    hidden_NE = np.maximum(x_ND @ projection.T + projection_bias, 0)
    logits_NC = hidden_NE @ head.T + head_bias
    num_instances, num_classes = logits_NC.shape
    if name == "mean_pooling":
        share_NC = np.full((num_instances, num_classes), 1 / num_instances)
    else:  # the instance with the highest logit of a class has all of its share
        share_NC = np.zeros((num_instances, num_classes))
        share_NC[logits_NC.argmax(0), np.arange(num_classes)] = 1
    logits_C = (share_NC * logits_NC).sum(0)
    probabilities_C = np.exp(logits_C) / np.exp(logits_C).sum()
    error_C = probabilities_C - np.eye(num_classes)[label]
    to_logits_NC = share_NC * error_C
    to_hidden_NE = to_logits_NC @ head * (hidden_NE > 0)
    gradients = (
        to_hidden_NE.T @ x_ND,
        to_hidden_NE.sum(0),
        to_logits_NC.T @ hidden_NE,
        to_logits_NC.sum(0),
    )
    return logits_C, -np.log(probabilities_C[label]), gradients


@pytest.mark.parametrize("name", ["max_pooling", "mean_pooling"])
@pytest.mark.parametrize("sizes", [[1], [9], [4, 1, 17]])
def test_logits_loss_and_gradients_are_the_formulas(name, sizes):
    network = build(
        Pooling(name=name, hidden_dim=6, dropout=0), num_features=5, num_classes=3, seed=2
    ).double()
    generator = torch.Generator().manual_seed(len(sizes))
    features = [torch.randn(n, 5, dtype=torch.float64, generator=generator) for n in sizes]
    labels = [i % 3 for i in range(len(sizes))]
    bags = PackedBags.from_list(features, labels)
    output = network(bags)
    loss_B = network.loss(output, Truth(bags.labels_B))
    loss_B.sum().backward()

    parameters = [network.projection.linear.weight, network.projection.linear.bias]
    parameters += [network.head.weight, network.head.bias]
    assert len(parameters) == len(list(network.parameters()))
    values = [parameter.detach().numpy() for parameter in parameters]
    derived = [_derived(name, x.numpy(), y, *values) for x, y in zip(features, labels, strict=True)]
    np.testing.assert_allclose(output.logits_BC.detach(), [logits_C for logits_C, _, _ in derived])
    np.testing.assert_allclose(loss_B.detach(), [loss for _, loss, _ in derived])
    for place, parameter in enumerate(parameters):
        expected = sum(gradients[place] for _, _, gradients in derived)
        np.testing.assert_allclose(parameter.grad, expected, atol=1e-12)
