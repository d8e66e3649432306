"""What a model says of single instances: attention weights and class probabilities."""

import pytest
import torch
from test_models import SETTINGS, _build

from mhimdist import ops
from mhimdist.data.bags import PackedBags

pytestmark = pytest.mark.numeric
SIZES = (1, 9, 30)
WITHOUT_WEIGHTS = {"mean_pooling", "max_pooling"}
WITHOUT_PROBABILITIES = {"transmil", "transmil layer 1"}
BY_A_BAG_OF_ONE = SETTINGS.keys() - WITHOUT_PROBABILITIES - {"dsmil"}


@pytest.fixture
def bags() -> PackedBags:
    generator = torch.Generator().manual_seed(3)
    return PackedBags.from_list([torch.randn(n, 6, dtype=torch.float64, generator=generator) for n in SIZES])


@pytest.mark.parametrize("name", SETTINGS)
@torch.no_grad()
def test_the_weights_of_a_bag_add_up_to_one(name, bags):
    network = _build(name)
    weights_TH = network.attention_weights(bags, network(bags))
    if name in WITHOUT_WEIGHTS:
        assert weights_TH is None
        return
    assert len(weights_TH) == sum(SIZES)
    assert (weights_TH >= 0).all()
    for part_NH in weights_TH.split(SIZES):
        assert part_NH.sum(0).tolist() == pytest.approx([1.0] * part_NH.shape[1])


@pytest.mark.parametrize("name", ["abmil", "abmil gated", "clam_sb", "clam_mb subtyping", "dtfd AFS"])
@torch.no_grad()
def test_the_weights_make_the_embedding(name, bags):
    """They are what the bag's embedding is made of, whatever tiers and branches a model has."""
    network = _build(name)
    output = network(bags)
    hidden_TE = network.projection(bags, None)
    weights_TH = network.attention_weights(bags, output)
    for head, weights_T in enumerate(weights_TH.unbind(1)):
        parts = (weights_T[:, None] * hidden_TE).split(SIZES)
        torch.testing.assert_close(
            torch.stack([part.sum(0) for part in parts]), output.embeddings_BME[:, head]
        )


@pytest.mark.parametrize("name", ["dtfd MaxS", "dtfd MaxMinS"])
@torch.no_grad()
def test_only_distilled_instances_have_a_weight_in_dtfd(name, bags):
    network = _build(name)
    output = network(bags)
    weights_TH = network.attention_weights(bags, output)
    hidden_TE = network.projection(bags, None)
    parts = (weights_TH * hidden_TE).split(SIZES)
    torch.testing.assert_close(torch.stack([part.sum(0) for part in parts]), output.embeddings_BME[:, 0])
    most = network.settings.num_pseudo_bags * network._num_distilled
    assert 1 <= int((weights_TH.split(SIZES)[2] > 0).sum()) <= most < 30


@torch.no_grad()
def test_dsmil_attends_to_the_top_instance_of_each_class(bags):
    network = _build("dsmil")
    output = network(bags)
    values_TE = torch.relu(network.value(network.projection(bags, None)))
    pooled_BCE = torch.stack(
        [
            weights_NC.T @ values_NE
            for weights_NC, values_NE in zip(
                network.attention_weights(bags, output).split(SIZES), values_TE.split(SIZES), strict=True
            )
        ]
    )
    torch.testing.assert_close(pooled_BCE, output.embeddings_BME)


@pytest.mark.parametrize("name", sorted(BY_A_BAG_OF_ONE))
@torch.no_grad()
def test_an_instance_is_as_probable_as_a_bag_of_it_alone(name, bags):
    network = _build(name)
    alone = PackedBags.from_list(list(bags.features_TD.split(1)))
    torch.testing.assert_close(network.instance_probabilities(bags), network.predictions(network(alone)))


@torch.no_grad()
def test_dsmil_classifies_instances_in_a_stream_of_its_own(bags):
    network = _build("dsmil")
    probabilities_TC = network.instance_probabilities(bags)
    largest_BC = ops.segment_max(network.instance_head(network.projection(bags, None)), bags.offsets_B1)
    torch.testing.assert_close(largest_BC, network(bags).instance_logits_BC)
    torch.testing.assert_close(
        probabilities_TC, network.instance_head(network.projection(bags, None)).softmax(1)
    )


@pytest.mark.parametrize("name", sorted(WITHOUT_PROBABILITIES))
def test_transmil_says_nothing_of_a_single_instance(name, bags):
    assert _build(name).instance_probabilities(bags) is None
