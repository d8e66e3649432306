"""Properties that every bag model has."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mhimdist.config import models as model_settings
from mhimdist.data.bags import PackedBags
from mhimdist.models import build
from mhimdist.ops.draws import Draws
from mhimdist.tasks import Truth

pytestmark = pytest.mark.numeric
SETTINGS = {
    "abmil": model_settings.AttentionMIL(hidden_dim=20, attention_dim=8),
    "abmil gated": model_settings.AttentionMIL(hidden_dim=20, attention_dim=8, gated=True, activation="tanh"),
    "dsmil": model_settings.DSMIL(hidden_dim=20, query_dim=8),
    "transmil": model_settings.TransMIL(hidden_dim=16, num_heads=2, num_landmarks=4),
    "transmil layer 1": model_settings.TransMIL(hidden_dim=16, num_heads=2, num_landmarks=4, score_layer=1),
    "clam_sb": model_settings.CLAM(hidden_dim=20, attention_dim=8, num_clustered=3),
    "clam_mb subtyping": model_settings.CLAM(
        name="clam_mb",
        hidden_dim=20,
        attention_dim=8,
        num_clustered=3,
        instance_loss="cross_entropy",
        subtyping=True,
    ),
    "dtfd MaxS": model_settings.DTFD(hidden_dim=20, attention_dim=8, distillation="MaxS", dropout=0.25),
    "dtfd MaxMinS": model_settings.DTFD(hidden_dim=20, attention_dim=8, distillation="MaxMinS"),
    "dtfd AFS": model_settings.DTFD(hidden_dim=20, attention_dim=8, num_pseudo_bags=3),
    "mean_pooling": model_settings.Pooling(name="mean_pooling", hidden_dim=20),
    "max_pooling": model_settings.Pooling(name="max_pooling", hidden_dim=20),
}


def _build(name: str):
    return build(SETTINGS[name], num_features=6, num_classes=3, seed=1).double()


def _bags(sizes: list[int]) -> PackedBags:
    generator = torch.Generator().manual_seed(sum(sizes))
    return PackedBags.from_list(
        [torch.randn(n, 6, generator=generator, dtype=torch.float64) for n in sizes],
        keys=[f"bag-{i}-{n}" for i, n in enumerate(sizes)],
        labels=[i % 3 for i in range(len(sizes))],
    )


def _single(bags: PackedBags, b: int) -> PackedBags:
    rows = torch.arange(int(bags.offsets_B1[b]), int(bags.offsets_B1[b + 1]))
    return PackedBags.from_list([bags.features_TD[rows]], [int(bags.labels_B[b])], [bags.keys[b]])


@pytest.mark.parametrize("name", SETTINGS)
@given(sizes=st.lists(st.integers(1, 12), min_size=1, max_size=5))
@settings(max_examples=25, deadline=None)
def test_a_batch_gives_what_single_bags_give_with_dropout_on(name, sizes):
    network, bags, draws = _build(name), _bags(sizes), Draws(seed=3, epoch=2)
    packed = network(bags, draws.keys(bags.ids_B, "student_dropout"))
    losses_B = network.loss(packed, Truth(bags.labels_B))
    for b in range(len(sizes)):
        single = _single(bags, b)
        alone = network(single, draws.keys(single.ids_B, "student_dropout"))
        torch.testing.assert_close(packed.logits_BC[b], alone.logits_BC[0])
        torch.testing.assert_close(packed.embeddings_BME[b], alone.embeddings_BME[0])
        torch.testing.assert_close(losses_B[b], network.loss(alone, Truth(single.labels_B))[0])
        torch.testing.assert_close(network.predictions(packed)[b], network.predictions(alone)[0])
        if packed.scores_TH is not None:
            torch.testing.assert_close(
                packed.scores_TH[bags.offsets_B1[b] : bags.offsets_B1[b + 1]], alone.scores_TH
            )


@pytest.mark.parametrize("name", SETTINGS)
def test_padding_behind_the_last_bag_changes_nothing(name):
    network, bags = _build(name), _bags([5, 1, 7])
    padding = torch.full((4, 6), 1e3, dtype=torch.float64)
    padded = replace(bags, features_TD=torch.cat([bags.features_TD, padding]), host_sizes=None)
    dropout_keys_B = Draws(seed=3, epoch=2).keys(bags.ids_B, "student_dropout")
    found = []
    for each in (bags, padded):
        output = network(each, dropout_keys_B)
        losses_B = network.loss(output, Truth(each.labels_B))
        gradients = torch.autograd.grad(losses_B.sum(), list(network.parameters()), allow_unused=True)
        found.append([output.logits_BC, output.embeddings_BME, losses_B, *gradients])
    for alone, with_padding in zip(*found, strict=True):
        torch.testing.assert_close(with_padding, alone)


@pytest.mark.parametrize(("name", "num_reads"), [("transmil", 1), ("clam_sb", 0)])
def test_the_sizes_of_whole_bags_are_never_read_and_those_of_masked_ones_once(name, num_reads, monkeypatch):
    network, bags, reads = _build(name), _bags([5, 1, 7]), []
    # Reads for which a GPU would have to be waited for; only the paths on a CPU read offsets freely.
    monkeypatch.setattr(
        PackedBags, "sizes_B", property(lambda self: reads.append(self) or self.offsets_B1.diff())
    )
    network(bags)
    assert not reads
    network(replace(bags, host_sizes=None))
    assert len(reads) == num_reads


@pytest.mark.parametrize("name", SETTINGS)
def test_a_bags_gradient_does_not_reach_the_others(name):
    network, bags = _build(name), _bags([4, 1, 7])
    features_TD = bags.features_TD.clone().requires_grad_()
    output = network(PackedBags(features_TD, bags.offsets_B1, bags.labels_B, bags.ids_B, bags.keys))
    output.logits_BC[1].sum().backward()
    touched_T = features_TD.grad.abs().sum(1) > 0
    assert touched_T.tolist() == [False] * 4 + [True] + [False] * 7


@pytest.mark.parametrize("name", SETTINGS)
def test_the_loss_of_a_bag_reaches_every_parameter(name):
    network, bags = _build(name), _bags([9])
    network.loss(network(bags), Truth(bags.labels_B)).sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("name", SETTINGS)
def test_weights_follow_the_seed_and_leave_the_global_generator_alone(name):
    before = torch.get_rng_state()
    first, again = _build(name).state_dict(), _build(name).state_dict()
    other = build(SETTINGS[name], num_features=6, num_classes=3, seed=2).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    for key, value in first.items():
        assert torch.equal(value, again[key])
        if "norm" in key:  # normalisation starts as the identity for every seed
            assert torch.equal(value, torch.full_like(value, key.endswith("weight")))
        elif key.endswith("weight"):
            assert not torch.equal(value.float(), other[key])


def test_mean_and_max_pooling_are_the_mean_and_max_of_instance_logits():
    for name, pool in (("mean_pooling", lambda x: x.mean(0)), ("max_pooling", lambda x: x.amax(0))):
        network, bags = _build(name), _bags([5])
        w, b = network.projection.linear.weight, network.projection.linear.bias
        hidden = torch.relu(bags.features_TD @ w.T + b)
        expected = pool(hidden @ network.head.weight.T + network.head.bias)
        torch.testing.assert_close(network(bags).logits_BC[0], expected)


def test_abmil_is_equation_1():
    network, bags = _build("abmil"), _bags([5])
    w, b = network.projection.linear.weight, network.projection.linear.bias
    z = torch.relu(bags.features_TD @ w.T + b)
    a = torch.relu(z @ network.attention.branch.weight.T) @ network.attention.score.weight.T
    a = a.exp() / a.exp().sum()
    torch.testing.assert_close(network(bags).embeddings_BME[0, 0], (a * z).sum(0))
