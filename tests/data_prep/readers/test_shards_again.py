"""Our shards as sources of further shards: only what is as it was written is read."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feature_folders import CLASSES, SLIDES, shard_folder, write_features

from data_prep.readers.folders import find_features
from data_prep.readers.sources import read_features
from data_prep.shard import shard
from data_prep.writing.skipped import BadBag, read_skipped
from mhimdist.data.manifest import ARRIVING_NAME, Manifest
from mhimdist.data.shards import BagShards
from mhimdist.errors import CorruptShard, DataError, LabelError, ManifestError


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_features(tmp_path)
    return shard_folder(tmp_path)


def flip(shards: Path, kind: str, at: int = 0) -> dict:
    """Flip a bit of a bag's member; return the bag's row of the manifest."""
    row = next(row for row in Manifest.read(shards).rows.to_pylist() if row[f"{kind}_offset"] is not None)
    path = shards / row["shard"]
    content = bytearray(path.read_bytes())
    content[row[f"{kind}_offset"] + at] ^= 4
    path.write_bytes(content)
    return row


@pytest.mark.faults(1)
@pytest.mark.parametrize("kind", ["features", "coords", "instance_labels"])
def test_a_flipped_bit_is_not_taken_for_another_value(kind: str, shards: Path, tmp_path: Path) -> None:
    row = flip(shards, kind, 128)
    start, end = row[f"{kind}_offset"], row[f"{kind}_offset"] + row[f"{kind}_bytes"]
    message = f"{row['shard']}: bytes {start} to {end}: expected crc32 {row[f'{kind}_crc32']:08x}, got"
    with pytest.raises(CorruptShard, match=message):
        shard(shards, None, tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.faults(2)
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
            "missing; shard-000099.tar: not in",
        ),
    ],
)
def test_shards_that_their_manifest_does_not_list_are_refused(harm, fault: str, shards: Path) -> None:
    harm(shards / "shard-000001.tar")
    with pytest.raises(
        ManifestError, match=f"not hold the shards of its manifest: shard-000001.tar: {fault}"
    ):
        find_features(shards)


def test_shards_that_an_append_did_not_list_are_passed_over(shards: Path) -> None:
    expected = find_features(shards)
    (shards / "shard-000099.tar").write_bytes((shards / "shard-000001.tar").read_bytes())
    (shards / ARRIVING_NAME).write_text("shard-000099.tar\n")
    assert find_features(shards) == expected


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


def shards_with_classes(folder: Path, classes: tuple[str, ...], *slides: str) -> Path:
    (folder / "features").mkdir(parents=True)
    lines = [f"{slide},{classes[i % 2]},case {slide}" for i, slide in enumerate(slides)]
    for slide in slides:
        np.save(folder / "features" / f"{slide}.npy", np.ones((3, 4), np.float32))
    (folder / "labels.csv").write_text("\n".join(["slide,label,case", *lines]))
    return shard_folder(folder, classes=classes)


def test_the_order_of_classes_is_that_of_the_shards(tmp_path: Path) -> None:
    first = shards_with_classes(tmp_path / "x", ("tumour", "normal", "rare"), "a", "b")
    shard(first, None, tmp_path / "again")
    one, two = (Manifest.read(folder) for folder in (first, tmp_path / "again"))
    assert one.info.classes == two.info.classes == ("tumour", "normal", "rare")
    labels = [
        dict(zip(*(m.rows[name].to_pylist() for name in ("slide", "label")), strict=True)) for m in (one, two)
    ]
    assert labels == [{"a": 0, "b": 1}] * 2
    shard(first, None, tmp_path / "renamed", class_map={"tumour": "bad", "normal": "good"})
    assert Manifest.read(tmp_path / "renamed").info.classes == ("bad", "good", "rare")
    shard(first, None, tmp_path / "given", classes=["normal", "tumour"])
    assert Manifest.read(tmp_path / "given").info.classes == ("normal", "tumour")


def test_shards_of_several_data_sets_must_agree_on_the_order(tmp_path: Path) -> None:
    shards_with_classes(tmp_path / "both/x", ("tumour", "normal"), "a", "b").rename(tmp_path / "x")
    shards_with_classes(tmp_path / "both/y", ("tumour", "normal", "rare"), "c", "d").rename(tmp_path / "y")
    shards_with_classes(tmp_path / "both/z", ("normal", "tumour"), "e", "f").rename(tmp_path / "z")
    for name in ("x", "y"):
        (tmp_path / "sets").mkdir(exist_ok=True)
        (tmp_path / name).rename(tmp_path / "sets" / name)
    shard(tmp_path / "sets", None, tmp_path / "again")
    info = Manifest.read(tmp_path / "again").info
    assert info.classes == ("tumour", "normal", "rare")
    assert sum(item.num_bags for item in info.shards) == 4
    (tmp_path / "z").rename(tmp_path / "sets/z")
    message = r"different orders, \('tumour', 'normal', 'rare'\) and \('normal', 'tumour'\); give --classes"
    with pytest.raises(LabelError, match=message):
        shard(tmp_path / "sets", None, tmp_path / "more")


@pytest.mark.parametrize("label", [float("nan"), "nan", None, ""])
def test_a_label_that_bags_do_not_say_is_missing(label: object, tmp_path: Path) -> None:
    (tmp_path / "features").mkdir()
    table = {"slide": ["a", "b"], "label": pa.array([1.0 if isinstance(label, float) else "x", label])}
    pq.write_table(pa.table(table | {"features": [[[1.0]], [[2.0]]]}), tmp_path / "features/bags.parquet")
    with pytest.raises(LabelError, match=r"bags\.parquet states no label for 'b'; give a table of labels"):
        shard(tmp_path / "features", None, tmp_path / "out")
    assert shard(tmp_path / "features", None, tmp_path / "out", skip_unmatched=True).num_new == 1
    assert read_skipped(tmp_path / "out") == [BadBag("b", "bags.parquet states no label")]


def test_a_case_that_is_a_mark_of_a_missing_value_is_no_patient(tmp_path: Path) -> None:
    (tmp_path / "features").mkdir()
    table = {
        "slide": ["a", "b", "NA"],
        "label": ["x"] * 3,
        "case": ["p", "NA", "NA"],
        "features": [[[1.0]]] * 3,
    }
    pq.write_table(pa.table(table), tmp_path / "features/bags.parquet")
    with pytest.raises(LabelError, match=r"bags\.parquet states no case for 'b'; give a table of labels"):
        shard(tmp_path / "features", None, tmp_path / "out")
    shard(tmp_path / "features", None, tmp_path / "out", skip_unmatched=True)
    assert sorted(BagShards(tmp_path / "out").cases) == ["NA", "p"]
