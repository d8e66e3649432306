import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from encoder_folders import ENCODED, shard_encoders, write_encoders

from mhimdist.config.train import Loading
from mhimdist.data.opening import open_bags, with_features
from mhimdist.data.read_ahead import read_ahead
from mhimdist.data.resident import RamBags
from mhimdist.data.shards import BagShards
from mhimdist.errors import ConfigError, DataError


@pytest.fixture
def features(tmp_path: Path) -> dict[str, dict[str, np.ndarray]]:
    found = write_encoders(tmp_path, "uni", "virchow2", "gigapath")
    shard_encoders(tmp_path, "uni", "virchow2", "gigapath")
    return found


def test_features_stand_side_by_side_instance_by_instance(features: dict, tmp_path: Path) -> None:
    bags = open_bags(tmp_path / "shards", None, "virchow2+uni")
    assert bags.num_features == 20
    batch = bags.load(range(len(bags)))
    expected = [
        np.concatenate([features["virchow2"][slide], features["uni"][slide]], 1) for slide in bags.slides
    ]
    np.testing.assert_array_equal(batch.features_TD.numpy(), np.concatenate(expected))
    alone = bags.load([2], torch.float16)
    np.testing.assert_array_equal(alone.features_TD.float().numpy(), expected[2])
    assert bags.details(0)["encoder"] == "virchow2+uni"
    assert bags.stored_dtypes == ("float16",)


def test_a_copy_in_another_process_reads_the_same(features: dict, tmp_path: Path) -> None:
    bags = open_bags(tmp_path / "shards", None, "uni+virchow2")
    again = pickle.loads(pickle.dumps(bags))
    assert again.digest == bags.digest
    torch.testing.assert_close(again.load([0, 1]).features_TD, bags.load([0, 1]).features_TD, rtol=0, atol=0)


def test_digests_tell_features_apart(features: dict, tmp_path: Path) -> None:
    names = ("uni", "virchow2", "uni+virchow2", "virchow2+uni")
    bags = open_bags(tmp_path / "shards", None, "uni")
    assert len({with_features(bags, name).digest for name in names}) == len(names)
    assert with_features(bags, "uni") is bags
    assert with_features(bags, "uni+virchow2") is with_features(bags, "uni+virchow2")
    # In shared memory, too, they are files of their own.
    both, one = RamBags(with_features(bags, "uni+virchow2")), RamBags(bags)
    assert both.load([0]).features_TD.shape[1] == 20
    assert one.load([0]).features_TD.shape[1] == 8


def test_only_the_shards_of_the_chosen_set_are_touched(features: dict, tmp_path: Path) -> None:
    others = {shard.name for shard in BagShards(tmp_path / "shards", features="virchow2").shards}
    for name in others:
        path = tmp_path / "shards" / name
        path.write_bytes(bytes(path.stat().st_size))  # of the right length, which is all that is looked at
    bags = BagShards(tmp_path / "shards", features="uni")
    assert len(bags.load(range(len(bags)))) == len(ENCODED)
    assert not others & {shard.name for shard in bags.shards}


def test_sets_of_other_patches_are_refused_by_bag(features: dict, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"slide 'slide-\d' has \d+ instances in uni and \d+ in gigapath.*more"
    ):
        open_bags(tmp_path / "shards", None, "uni+gigapath")
    with pytest.raises(ConfigError, match="different feature sets side by side"):
        open_bags(tmp_path / "shards", None, "uni+uni")
    with pytest.raises(ConfigError, match="no feature set 'conch'; it has uni, virchow2, gigapath"):
        open_bags(tmp_path / "shards", None, "uni+conch")


@pytest.mark.parametrize("change", ["order", "missing"])
def test_coordinates_that_do_not_agree_are_refused(change: str, tmp_path: Path) -> None:
    write_encoders(tmp_path, "uni", "virchow2")
    path = tmp_path / "virchow2" / "slide-3.coords.npy"
    if change == "order":
        np.save(path, np.load(path)[::-1])
        message = "slide 'slide-3' has other coordinates in uni than in virchow2, or in another order;"
    else:
        path.unlink()
        message = "slide 'slide-3' has no coordinates in virchow2"
    shard_encoders(tmp_path, "uni", "virchow2")
    with pytest.raises(DataError, match=message):
        open_bags(tmp_path / "shards", None, "uni+virchow2")


def test_dtypes_that_differ_are_read_in_one_that_holds_both(tmp_path: Path) -> None:
    features = write_encoders(tmp_path, "uni", "virchow2")
    shard_encoders(tmp_path, "uni")
    shard_encoders(tmp_path, "virchow2", append=True, dtype="bfloat16")
    bags = open_bags(tmp_path / "shards", None, "uni+virchow2")
    assert bags.dtype == torch.float32
    assert bags.dtypes_of([0]) == {torch.float32}
    one = bags.load([0]).features_TD.numpy()
    np.testing.assert_array_equal(one[:, :8], features["uni"][bags.slides[0]])


@pytest.mark.parametrize("how", [{"read_ahead": False}, {"cache": "ram"}, {}])
def test_every_reader_gives_the_same(how: dict, features: dict, tmp_path: Path) -> None:
    bags = open_bags(tmp_path / "shards", None, "uni+virchow2")
    source = RamBags(bags) if how.pop("cache", None) else bags
    with read_ahead(source, [[0, 3], [1], [2, 4, 5]], loading=Loading(**how)) as batches:
        for rows, batch in zip([[0, 3], [1], [2, 4, 5]], batches, strict=True):
            torch.testing.assert_close(batch.features_TD, bags.load(rows).features_TD, rtol=0, atol=0)


def test_dali_reads_one_set_only(features: dict, tmp_path: Path) -> None:
    bags = open_bags(tmp_path / "shards", None, "uni+virchow2")
    with pytest.raises(ConfigError, match="dali reads the files of one feature set"):
        bags.payload(0)


def test_a_bag_is_compared_itself_on_its_first_read(features: dict, tmp_path: Path) -> None:
    bags = open_bags(tmp_path / "shards", None, "uni+virchow2")
    changed = bags._sets[1].coords
    bags._sets[1].coords = lambda row: changed(row) + 1  # as if two checksums had met by chance
    with pytest.raises(DataError, match="their features cannot be put side by side"):
        bags.load([0])
