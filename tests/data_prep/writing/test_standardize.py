import json
from pathlib import Path

import numpy as np
import pytest
import torch
from encoder_folders import ENCODED, folders_of, shard_encoders, write_encoders

from data_prep.checks.faults import verify
from data_prep.checks.repair import repair
from data_prep.merge import merge
from data_prep.shard import shard
from mhimdist.data.manifest import Manifest
from mhimdist.data.shards import BagShards
from mhimdist.data.standardization import Standardization
from mhimdist.errors import ConfigError, DataError, ManifestError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_encoders(tmp_path, "uni")
    return tmp_path


def make(folder: Path, name: str = "shards", **options: object) -> Path:
    options = {"dtype": "float32", **options}
    shard(folder / "uni", folder / "labels.csv", folder / name, **options)
    return folder / name


def stacked(folder: Path) -> np.ndarray:
    return np.concatenate([np.load(folder / "uni" / f"{slide}.npy") for slide in ENCODED]).astype(np.float64)


def test_every_feature_has_mean_0_and_deviation_1_over_all_instances(folder: Path) -> None:
    bags = BagShards(make(folder, standardize=True))
    values = bags.load(range(len(bags))).features_TD.double().numpy()
    np.testing.assert_allclose(values.mean(0), 0, atol=1e-7)
    np.testing.assert_allclose(values.std(0), 1, atol=1e-6)
    raw = stacked(folder)
    scale = Manifest.read(folder / "shards").info.standardized[""]
    np.testing.assert_allclose(scale.mean, raw.mean(0), rtol=1e-12)
    np.testing.assert_allclose(scale.deviation, raw.std(0), rtol=1e-12)
    assert (scale.num_bags, scale.num_instances) == (6, len(raw))
    assert bags.details(0)["standardized"] == scale.digest
    assert verify(folder / "shards") == []


def test_the_bytes_do_not_depend_on_the_workers(folder: Path) -> None:
    crc32s = {
        tuple(
            Manifest.read(make(folder, f"{n}", standardize=True, workers=n))
            .rows["features_crc32"]
            .to_pylist()
        )
        for n in (1, 2, 3)
    }
    assert len(crc32s) == 1


def test_a_large_mean_loses_no_digits_and_a_constant_becomes_0(folder: Path) -> None:
    for slide in ENCODED:
        values = np.load(folder / "uni" / f"{slide}.npy").astype(np.float64)
        values[:, 0] = 7
        np.save(folder / "uni" / f"{slide}.npy", values + 1e6)
    bags = BagShards(make(folder, standardize=True))
    values = bags.load(range(len(bags))).features_TD.double().numpy()
    assert (values[:, 0] == 0).all()
    np.testing.assert_allclose(values[:, 1:].std(0), 1, atol=1e-6)


def test_appended_slides_and_repaired_shards_get_the_same_scale(folder: Path) -> None:
    (folder / "uni" / "slide-5.npy").rename(folder / "slide-5")
    (folder / "uni" / "slide-5.coords.npy").rename(folder / "coords")
    shards = make(folder, standardize=True, skip_unmatched=True, shard_bytes=1)
    scale = Manifest.read(shards).info.standardized[""]
    (folder / "slide-5").rename(folder / "uni" / "slide-5.npy")
    (folder / "coords").rename(folder / "uni" / "slide-5.coords.npy")
    other = make(folder, "other", standardize=True)
    with pytest.raises(ConfigError, match="new ones get the same scale"):
        make(folder, append=True, standardize_as=other)
    make(folder, append=True)
    assert Manifest.read(shards).info.standardized == {"": scale}
    bags = BagShards(shards)
    row = bags.slides.index("slide-5")
    raw = torch.from_numpy(np.load(folder / "uni" / "slide-5.npy"))
    torch.testing.assert_close(bags.load([row]).features_TD, scale.apply(raw))
    expected = (shards / "shard-000001.tar").read_bytes()
    (shards / "shard-000001.tar").write_bytes(bytes(len(expected)))
    assert repair(shards, verify(shards), folder / "uni")[0] == ["shard-000001.tar"]
    assert (shards / "shard-000001.tar").read_bytes() == expected


def test_another_data_set_can_be_put_on_the_same_scale(folder: Path) -> None:
    first = make(folder, standardize=True)
    second = make(folder, "second", standardize_as=first)
    assert Manifest.read(second).info.standardized == Manifest.read(first).info.standardized
    raw = make(folder, "raw")
    with pytest.raises(DataError, match="its features are not standardised"):
        make(folder, "third", standardize_as=raw)
    with pytest.raises(ConfigError, match="got both"):
        make(folder, "third", standardize_as=first, standardize=True)
    with pytest.raises(ManifestError, match="no manifest"):
        make(folder, "third", standardize_as=folder)
    with pytest.raises(ConfigError, match="are not standardised; new ones get the same scale"):
        make(folder, "raw", append=True, standardize=True)


def test_data_sets_of_different_scales_are_not_merged(folder: Path) -> None:
    one, two = make(folder, "one", standardize=True), folder / "two"
    (folder / "more").mkdir()
    np.save(folder / "more" / "new.npy", np.ones((3, 8), np.float32))
    (folder / "more.csv").write_text("slide,label\nnew,tumour\n")
    shard(folder / "more", folder / "more.csv", two, dtype="float32")
    with pytest.raises(DataError, match=r"expected features of scale 'by feature, over .* got 'unchanged'"):
        merge([one, two], folder / "both")
    shard(folder / "more", folder / "more.csv", folder / "like", dtype="float32", standardize_as=one)
    merge([one, folder / "like"], folder / "both")
    assert Manifest.read(folder / "both").info.standardized == Manifest.read(one).info.standardized


def test_values_that_are_not_finite_are_named_or_left_out(folder: Path) -> None:
    values = np.load(folder / "uni" / "slide-1.npy")
    values[0, 0] = np.inf
    np.save(folder / "uni" / "slide-1.npy", values)
    with pytest.raises(DataError, match=r"slide-1.npy: features are NaN or infinite"):
        make(folder, standardize=True)
    shards = make(folder, standardize=True, skip_bad=True)
    assert Manifest.read(shards).info.standardized[""].num_bags == 5
    assert "slide-1" not in BagShards(shards).slides


def test_each_feature_set_has_its_own_scale(tmp_path: Path) -> None:
    write_encoders(tmp_path, "uni", "virchow2")
    shard_encoders(tmp_path, "uni", "virchow2", standardize=True)
    scales = Manifest.open(tmp_path / "shards").info.standardized
    assert {name: len(scale.mean) for name, scale in scales.items()} == {"uni": 8, "virchow2": 12}
    assert verify(tmp_path / "shards") == []
    (tmp_path / "shards" / "shard-000000.tar").unlink()
    assert repair(tmp_path / "shards", verify(tmp_path / "shards"), folders_of(tmp_path, "uni"))[1] == []


@pytest.mark.parametrize(
    "change", [{"deviation": [0.0] * 8}, {"mean": [0.0]}, {"mean": [float("nan")] * 8}, {"num_bags": 0}]
)
def test_a_scale_that_cannot_be_is_refused(change: dict) -> None:
    made = {"mean": [0.0] * 8, "deviation": [1.0] * 8, "num_bags": 1, "num_instances": 1}
    Standardization.model_validate_json(json.dumps(made))
    with pytest.raises(ValueError, match="Standardization"):
        Standardization.model_validate_json(json.dumps(made | change))
