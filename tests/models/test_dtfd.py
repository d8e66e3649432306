from dataclasses import replace

import numpy as np
import pytest
import torch
from as_on_a_gpu import AsOnAGpu
from hypothesis import given
from hypothesis import strategies as st

from mhimdist.config.models import DTFD
from mhimdist.data.bags import PackedBags
from mhimdist.models import build
from mhimdist.models.dtfd import cut
from mhimdist.ops.draws import Draws
from mhimdist.tasks import Truth

pytestmark = pytest.mark.numeric
DISTILLATIONS = ["MaxS", "MaxMinS", "AFS"]


def _bags(sizes: list[int]) -> PackedBags:
    generator = torch.Generator().manual_seed(sum(sizes))
    features = [torch.randn(n, 5, dtype=torch.float64, generator=generator) for n in sizes]
    return PackedBags.from_list(features, [i % 3 for i in range(len(sizes))])


def _network(distillation: str, **settings):
    settings = DTFD(hidden_dim=6, attention_dim=4, distillation=distillation, **settings)
    return build(settings, num_features=5, num_classes=3, seed=2).double()


def test_parameter_count():
    network = build(DTFD(), num_features=1024, num_classes=2, seed=0)
    attention = 2 * (512 * 128 + 128) + 128 + 1
    assert sum(p.numel() for p in network.parameters()) == 1024 * 512 + 2 * (attention + 512 * 2 + 2)


@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=5), parts=st.integers(1, 6))
def test_a_cut_is_a_partition_into_parts_as_equal_as_can_be(sizes, parts):
    bags = _bags(sizes)
    pseudo = cut(bags, parts, Draws(0, 0).keys(bags.ids_B, "pseudo_bags"))
    assert pseudo.order_T.sort().values.tolist() == list(range(sum(sizes)))
    expected = [len(part) for n in sizes for part in np.array_split(np.arange(n), parts) if len(part)]
    assert pseudo.offsets_P1.diff().tolist() == expected
    assert pseudo.offsets_B1.diff().tolist() == [min(n, parts) for n in sizes]
    for start, stop in zip(bags.offsets_B1[:-1], bags.offsets_B1[1:], strict=True):  # bags stay in place
        assert set(pseudo.order_T[start:stop].tolist()) == set(range(start, stop))


@given(sizes=st.lists(st.integers(1, 12), min_size=1, max_size=5), parts=st.integers(1, 6))
def test_a_cut_on_a_gpu_is_that_of_a_cpu_and_padding(sizes, parts):
    """There the host knows no size: it makes room for all parts, and rows without a bag stay last."""
    bags, padding = _bags(sizes), 3
    keys_B = Draws(0, 0).keys(bags.ids_B, "pseudo_bags")
    on_cpu = cut(bags, parts, keys_B)
    features_TD = torch.cat([bags.features_TD, torch.zeros(padding, 5, dtype=torch.float64)])
    with AsOnAGpu():
        padded = replace(bags, features_TD=features_TD, host_sizes=None)
        on_gpu = cut(padded, parts, keys_B)
    total, num_parts = sum(sizes), len(on_cpu.offsets_P1) - 1
    assert torch.equal(on_gpu.order_T[:total], on_cpu.order_T)
    assert set(on_gpu.order_T[total:].tolist()) == set(range(total, total + padding))
    assert torch.equal(on_gpu.offsets_B1, on_cpu.offsets_B1)
    assert torch.equal(on_gpu.offsets_P1[: num_parts + 1], on_cpu.offsets_P1)
    assert on_gpu.offsets_P1[num_parts:].tolist() == [total] * (len(sizes) * parts - num_parts + 1)


def test_a_cut_is_new_in_every_epoch_and_fixed_in_evaluation():
    network, bags = _network("AFS"), _bags([40])
    logits = [
        network(bags, Draws(0, epoch).keys(bags.ids_B, "student_dropout")).pseudo_logits_PC
        for epoch in (0, 0, 1)
    ]
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])
    assert torch.equal(network(bags).pseudo_logits_PC, network(bags).pseudo_logits_PC)


def _gated(attention, z):
    branch = torch.tanh(z @ attention.branch.weight.T + attention.branch.bias)
    gate = torch.sigmoid(z @ attention.gate.weight.T + attention.gate.bias)
    scores = ((branch * gate) @ attention.score.weight.T + attention.score.bias)[:, 0]
    return scores.exp() / scores.exp().sum()


def _by_the_formula(network, parts, label: int, distillation: str):
    """The bag's logits and loss, computed from the features of its pseudo-bags."""
    pseudo_losses, distilled = [], []
    for features in parts:
        z = torch.relu(features @ network.projection.linear.weight.T)
        attended = _gated(network.pseudo_attention, z)[:, None] * z
        logits = network.pseudo_head.weight @ attended.sum(0) + network.pseudo_head.bias
        pseudo_losses.append(-torch.log_softmax(logits, 0)[label])
        activation = torch.softmax(attended @ network.pseudo_head.weight.T, dim=1)[:, -1]
        distilled += {
            "MaxS": [z[activation.argmax()]],
            "MaxMinS": [z[activation.argmax()], z[activation.argmin()]],
            "AFS": [attended.sum(0)],
        }[distillation]
    d = torch.stack(distilled)
    logits = network.head.weight @ (_gated(network.attention, d) @ d) + network.head.bias
    return logits, sum(pseudo_losses) / len(pseudo_losses) - torch.log_softmax(logits, 0)[label]


@pytest.mark.parametrize("distillation", DISTILLATIONS)
@pytest.mark.parametrize("size", [1, 3, 17])
def test_loss_and_gradients_are_those_of_the_formula(distillation, size):
    network, bag = _network(distillation), _bags([size])
    keys = Draws(0, 0).keys(bag.ids_B, "pseudo_bags")  # the cut of evaluation
    pseudo = cut(bag, 4, keys)
    parts = bag.features_TD[pseudo.order_T].split(pseudo.offsets_P1.diff().tolist())
    logits, expected = _by_the_formula(network, parts, 0, distillation)

    output = network(bag)
    loss = network.loss(output, Truth(bag.labels_B))[0]
    torch.testing.assert_close(output.logits_BC[0], logits)
    torch.testing.assert_close(loss, expected)
    parameters = list(network.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("distillation", DISTILLATIONS)
def test_the_second_tiers_loss_reaches_the_projection(distillation):
    network, bag = _network(distillation), _bags([17])
    network(bag).logits_BC.sum().backward()
    assert network.projection.linear.weight.grad.abs().sum() > 0
