import copy

import pytest
import torch
from torch import nn

from mhimdist.method.flat_parameters import ALIGNMENT, Gradients, flatten_parameters
from mhimdist.models.layers.linear import Linear

pytestmark = pytest.mark.numeric


def _network():
    return nn.Sequential(Linear(5, 3), nn.ReLU(), Linear(3, 2))


def test_parameters_become_views_with_their_values():
    network = _network()
    before = copy.deepcopy(network.state_dict())
    parameters = flatten_parameters(network)
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.storage_offset() % ALIGNMENT == 0
    parameters.values.fill_(7.0)
    assert all((parameter == 7).all() for parameter in network.parameters())
    assert list(network.state_dict()) == list(before)


def test_the_buffer_is_made_once_and_anew_where_parameters_have_moved():
    network = _network()
    first = flatten_parameters(network)
    assert flatten_parameters(network) is first
    twin = copy.deepcopy(network)
    flatten_parameters(twin).values.zero_()
    assert all((parameter == 0).all() for parameter in twin.parameters())
    assert not any((parameter == 0).all() for parameter in network.parameters())
    network[0].weight.data = network[0].weight.data.clone()
    assert flatten_parameters(network) is not first


def test_loading_a_state_dict_reaches_the_buffer():
    network, other = _network(), _network()
    values = flatten_parameters(network).values
    network.load_state_dict(other.state_dict())
    assert torch.equal(values[: other[0].weight.numel()], other[0].weight.flatten())


def test_the_buffer_can_be_asked_for_first_in_inference_mode():
    network = _network()
    with torch.inference_mode():
        flatten_parameters(network)
    flatten_parameters(network).values.add_(1.0)
    network[0](torch.ones(1, 5)).sum().backward()
    assert network[0].weight.grad is not None


def test_gradients_and_their_loss_are_one_buffer_that_stays_where_it_is():
    network, generator = _network(), torch.Generator().manual_seed(0)
    gradients = Gradients(network)
    for _ in range(2):  # the second step replaces the gradients, and adds nothing to them
        loss = network(torch.randn(4, 5, generator=generator)).square().sum()
        expected = torch.autograd.grad(loss, list(network.parameters()), retain_graph=True)
        place = gradients.shared.data_ptr()
        gradients.of(loss)
        for parameter, grad in zip(network.parameters(), expected, strict=True):
            assert torch.equal(parameter.grad, grad)
        assert gradients.shared[-1] == gradients.own_loss == loss
        assert gradients.shared.data_ptr() == place
    gradients.shared.mul_(2)  # as two workers with equal bags add up
    assert all(torch.equal(p.grad, 2 * g) for p, g in zip(network.parameters(), expected, strict=True))
    assert (gradients.loss, gradients.own_loss) == (2 * loss, loss)
    gradients.clear()
    assert not gradients.shared.any()
    assert all((parameter.grad == 0).all() for parameter in network.parameters())
