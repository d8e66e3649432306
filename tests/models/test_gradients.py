"""Every parameter of every model has a gradient in every step: workers exchange all of them in one buffer."""

import pytest
import torch
from test_models import SETTINGS, _bags, _build

from mhimdist.ops.draws import Draws
from mhimdist.tasks import Truth

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("sizes", [[30], [1], [7, 1, 12]])
def test_every_parameter_has_a_gradient_in_every_step(name, sizes):
    network, bags = _build(name), _bags(sizes)
    output = network(bags, Draws(0, 0).keys(bags.ids_B, "student_dropout"))
    network.loss(output, Truth(bags.labels_B)).sum().backward()
    without = [key for key, parameter in network.named_parameters() if parameter.grad is None]
    assert without == []
    assert all(torch.isfinite(parameter.grad).all() for parameter in network.parameters())
