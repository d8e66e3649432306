"""Models that were trained on one of several feature sets, or on standardised features."""

import json
from pathlib import Path

import pytest
from encoder_folders import ENCODED, shard_encoders, write_encoders
from trained_folds import config_of

from data_prep.shard import shard
from mhimdist.data.opening import open_bags
from mhimdist.data.shards import BagShards
from mhimdist.data.splits import Split
from mhimdist.errors import ConfigError, DataError
from mhimdist.prediction.members import find_members
from mhimdist.prediction.run import predict
from mhimdist.training.fold import run_fold
from mhimdist.training.folds import Fold, fold_folder
from mhimdist.training.model_card import card, read_trained


def train_fold(folder: Path, bags: BagShards, **changes: str) -> None:
    """Train one fold into `<folder>/folds`: two slides each train, select and test."""
    config, keys = config_of(epochs=1, **changes), sorted(bags.keys)
    split = Split(tuple(keys[:2]), tuple(keys[2:4]), tuple(keys[4:]))
    place = fold_folder(folder / "folds", 1, config.seed, "ab")
    run_fold(Fold("it", config, split, 1, place, is_tested=True), bags, folder / "cache", 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoders")
    write_encoders(folder, "uni", "virchow2", "gigapath")
    shard_encoders(folder, "uni", "virchow2", "gigapath")
    for features in ("uni", "uni+virchow2"):
        bags = open_bags(folder / "shards", None, features)
        train_fold(folder / features, bags, features=features)
    return folder


@pytest.mark.parametrize("features", ["uni", "uni+virchow2"])
def test_the_model_chooses_the_features_that_it_was_trained_on(
    features: str, folder: Path, tmp_path: Path
) -> None:
    out = predict(folder / features, folder / "shards", tmp_path / "out")
    said = json.loads((out / "prediction.json").read_text())
    assert said["data"]["encoder"] == features
    (member,) = find_members([folder / features])
    assert (member.name, member.feature_set) == (f"abmil, {features}", features)
    text = card([read_trained(member.folder)], "it")
    assert f"- feature set: {features}" in text


def test_other_features_are_refused_by_name(folder: Path, tmp_path: Path) -> None:
    # gigapath is as wide as uni, so nothing else would tell.
    with pytest.raises(DataError, match=r"expected features of 'uni', .* got features of 'gigapath'"):
        predict(folder / "uni", folder / "shards", tmp_path / "out", features="gigapath")
    shard(folder / "gigapath", folder / "labels.csv", tmp_path / "one", stated={"encoder": "gigapath"})
    with pytest.raises(DataError, match=r"expected features of 'uni', .* got features of 'gigapath'"):
        predict(folder / "uni", tmp_path / "one", tmp_path / "out")
    with pytest.raises(ConfigError, match=r"no feature set 'uny'.*did you mean uni"):
        predict(folder / "uni", folder / "shards", tmp_path / "out", features="uny")
    with pytest.raises(ConfigError, match=r"expected none for feature files, got 'uni'"):
        predict(folder / "uni", folder / "uni", tmp_path / "out", features="uni")


def test_a_data_set_without_the_models_features_is_refused(folder: Path, tmp_path: Path) -> None:
    write_encoders(tmp_path, "virchow2", "gigapath")
    shard_encoders(tmp_path, "virchow2", "gigapath")
    with pytest.raises(ConfigError, match=r"trained on uni, and .* the feature sets virchow2, gigapath"):
        predict(folder / "uni", tmp_path / "shards", tmp_path / "out")


def test_features_on_another_scale_are_refused(folder: Path, tmp_path: Path) -> None:
    shard(folder / "uni", folder / "labels.csv", tmp_path / "scaled", standardize=True)
    scaled = open_bags(tmp_path / "scaled")
    train_fold(tmp_path / "model", scaled)
    predict(tmp_path / "model", tmp_path / "scaled", tmp_path / "out")
    shard(folder / "uni", folder / "labels.csv", tmp_path / "raw")
    with pytest.raises(DataError, match=r"expected features standardised as those that .* got others"):
        predict(tmp_path / "model", tmp_path / "raw", tmp_path / "out2")
    with pytest.raises(DataError, match=r"its features are standardised .* as their encoder made them"):
        predict(folder / "uni", tmp_path / "scaled", tmp_path / "out3")
    more = tmp_path / "more"
    shard(folder / "uni", folder / "labels.csv", more, standardize_as=tmp_path / "scaled")
    assert len(open_bags(more)) == len(ENCODED)
    predict(tmp_path / "model", more, tmp_path / "out4")
