import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import planted_bags
from benchmarks.packs import Packing, Packs, PackTrainer, embeddings, first_fit
from benchmarks.peers import NaiveAttentionMIL
from mhimdist.config.presets import digits_preset
from mhimdist.config.train import TrainConfig
from mhimdist.data.shards import BagShards
from mhimdist.models import build


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30))
def test_every_sample_is_in_one_pack_that_has_room_for_it(sizes: list[int]) -> None:
    packs = first_fit(sizes, 40)
    assert sorted(position for members in packs for position in members) == list(range(len(sizes)))
    loads = [sum(sizes[position] for position in members) for members in packs]
    assert max(loads) <= 40
    # First fit never opens a pack for a sample that an earlier pack has room for.
    for place, members in enumerate(packs):
        assert all(load + sizes[members[0]] > 40 for load in loads[:place])


def test_what_is_sampled_of_a_slide() -> None:
    packing = Packing(length=2400, share=0.6, smallest=128)
    assert [packing.sample_size(size) for size in (1, 127, 128, 1000, 4000, 44_402)] == [
        1,
        127,
        76,
        600,
        2400,
        2400,
    ]


def test_a_slide_in_a_pack_is_embedded_as_if_it_were_alone() -> None:
    torch.manual_seed(0)
    network = NaiveAttentionMIL(6, 2, width=5).eval()
    samples = [torch.randn(size, 6) for size in (7, 12, 3, 9, 1)]
    packs = Packs.of(samples, length=12)
    assert packs.features_PLD.shape == (3, 12, 6)
    assert sorted(packs.order) == [0, 1, 2, 3, 4]
    together_BE = embeddings(network, packs)
    for place, position in enumerate(packs.order):
        alone_1E, _, _ = network.encode(network.projection(samples[position]))
        torch.testing.assert_close(together_BE[place : place + 1], alone_1E)


@pytest.fixture(scope="module")
def bags(tmp_path_factory: pytest.TempPathFactory) -> BagShards:
    folder = tmp_path_factory.mktemp("planted") / "bags"
    return BagShards(planted_bags.build(folder, bags=12, features=8, scale=0.01, strength=6.0))


def _config() -> TrainConfig:
    changes = {"model.hidden_dim": 8, "epochs": 10, "bags_per_step": 4, "device": "cpu"}
    return digits_preset("c16", "abmil").first_stage().override(changes)


def test_planted_bags_are_what_the_arguments_say(bags: BagShards) -> None:
    assert (len(bags), bags.num_features, bags.classes) == (12, 8, ("normal", "tumor"))
    assert bags.labels_N.sum() == 6
    assert bags.sizes_N.max() == 444
    assert bags.sizes_N.min() >= 2 * planted_bags.FEWEST
    assert bags.synthetic


def test_packs_train_a_network_of_ours(bags: BagShards) -> None:
    config, rows_N = _config(), np.arange(len(bags))
    start = build(config.model, num_features=8, num_classes=2, seed=0)
    trainer = PackTrainer(config, start, bags, Packing(length=100, smallest=8))
    written = trainer.write_to(build(config.model, num_features=8, num_classes=2, seed=1))
    batch = bags.load([0, 5])
    torch.testing.assert_close(written(batch).logits_BC, start(batch).logits_BC)

    def loss() -> float:
        network, everything = trainer.write_to(start), bags.load(rows_N)
        logits_BC = network(everything).logits_BC
        return torch.nn.functional.cross_entropy(logits_BC, everything.labels_B).item()

    before = loss()
    for epoch in range(config.epochs):
        trainer.train_epoch(rows_N, epoch)
    assert loss() < before - 0.01


def test_packs_refuse_another_network(bags: BagShards) -> None:
    config = _config().override({"model.gated": True})
    start = build(config.model, num_features=8, num_classes=2, seed=0)
    with pytest.raises(ValueError, match="without a gate"):
        PackTrainer(config, start, bags, Packing())
