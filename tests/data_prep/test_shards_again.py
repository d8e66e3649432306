"""Shards of ours as sources of further shards: nothing of them is taken that is not as it was written."""

from pathlib import Path

import numpy as np
import pytest
from feature_folders import CLASSES, SLIDES, shard_folder, write_features

from data_prep.folders import find_features
from data_prep.shard import shard
from data_prep.sources import read_features
from mhimdist.data.manifest import Manifest
from mhimdist.errors import CorruptShard, DataError


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_features(tmp_path)
    return shard_folder(tmp_path)


def flip(shards: Path, kind: str, at: int = 0) -> dict:
    """Flip a bit of a bag's member; its row of the manifest."""
    row = next(row for row in Manifest.read(shards).rows.to_pylist() if row[f"{kind}_offset"] is not None)
    path = shards / row["shard"]
    content = bytearray(path.read_bytes())
    content[row[f"{kind}_offset"] + at] ^= 4
    path.write_bytes(content)
    return row


@pytest.mark.parametrize("kind", ["features", "coords", "instance_labels"])
def test_a_flipped_bit_is_not_taken_for_another_value(kind: str, shards: Path, tmp_path: Path) -> None:
    row = flip(shards, kind, 128)
    start, end = row[f"{kind}_offset"], row[f"{kind}_offset"] + row[f"{kind}_bytes"]
    message = f"{row['shard']}: bytes {start} to {end}: expected crc32 {row[f'{kind}_crc32']:08x}, got"
    with pytest.raises(CorruptShard, match=message):
        shard(shards, None, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_flipped_bit_of_a_header_or_a_description_is_noticed(shards: Path, tmp_path: Path) -> None:
    flip(shards, "features", 60)
    with pytest.raises(DataError, match=r"shard-000000\.tar"):
        shard(shards, None, tmp_path / "again")
    row = flip(shards, "json")
    with pytest.raises(CorruptShard, match=rf"{row['key']}\.json: expected crc32"):
        find_features(shards)


@pytest.mark.parametrize(
    ("harm", "fault"),
    [
        (lambda path: path.unlink(), "missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-512]), r"expected \d+ bytes, got \d+"),
        (
            lambda path: path.rename(path.with_name("shard-000099.tar")),
            "missing', 'shard-000099.tar: not in",
        ),
    ],
)
def test_shards_that_their_manifest_does_not_list_are_refused(harm, fault: str, shards: Path) -> None:
    harm(shards / "shard-000001.tar")
    with pytest.raises(CorruptShard, match=f"is not what its manifest lists: 'shard-000001.tar: {fault}"):
        find_features(shards)


def test_one_shard_alone_is_checked_against_the_manifest_beside_it(shards: Path) -> None:
    row = flip(shards, "features", 128)
    found = find_features(shards / row["shard"])
    assert set(found) == {bag["slide"] for bag in Manifest.read(shards).rows_of_shard(row["shard"])}
    with pytest.raises(CorruptShard, match="expected crc32"):
        _ = read_features(found[row["slide"]]).features_ND


def test_a_manifest_that_was_changed_is_not_passed_over(shards: Path) -> None:
    path = shards / "manifest.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"manifest\.parquet cannot be read as Parquet"):
        find_features(shards)


def test_bags_are_found_with_what_the_manifest_says(shards: Path, tmp_path: Path) -> None:
    found = find_features(shards)
    assert set(found) == set(SLIDES)
    for i, slide in enumerate(SLIDES):
        said = found[slide].details
        assert (said["label"], said["case"], said["classes"]) == (CLASSES[i % 2], f"case {i // 2}", CLASSES)
        expected = np.load(tmp_path / "features" / f"{slide}.npy")
        assert np.array_equal(read_features(found[slide]).features_ND.float().numpy(), expected)
