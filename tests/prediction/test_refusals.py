"""What a model was not made for is refused by name, before anything runs."""

import json

import numpy as np
import pytest
from feature_folders import shards_of
from memory_bags import gaussian_bags
from trained_folds import config_of, make_shards, train_folds

import mhimdist as mh
from data_prep.readers.stated import Stated
from data_prep.shard import shard
from mhimdist.data.shards import BagShards
from mhimdist.errors import ConfigError, CorruptShard, DataError, LabelError


def _files(folder, *widths):
    folder.mkdir()
    for number, width in enumerate(widths):
        np.save(folder / f"s{number}.npy", np.ones((3, width), np.float32))
    return folder


@pytest.fixture(scope="module")
def of_resnet(tmp_path_factory):
    """Shards that say their encoder, and a cross-validation trained on them."""
    folder = tmp_path_factory.mktemp("resnet")
    made = shards_of(gaussian_bags(20), folder)
    shard(
        folder / "features",
        folder / "labels.csv",
        folder / "named",
        stated=Stated(encoder="resnet50", patch_size=256),
    )
    assert made != folder / "named"
    bags = BagShards(folder / "named")
    train_folds(folder / "cv", bags, config_of(epochs=1))
    return folder


def test_a_student_knows_what_it_was_trained_on(of_resnet):
    fold = next((of_resnet / "cv" / "folds").iterdir())
    state = json.loads((fold / "best_student" / "state.json").read_text())["state"]
    assert state["features"] == {
        "encoder": "resnet50",
        "patch_size": 256,
        "level": None,
        "magnification": None,
        "coords_unit": None,
    }
    result = json.loads((fold / "result.json").read_text())
    assert state["threshold"] == result["validation"]["threshold"]
    assert state["threshold_from"] == "Youden's J on the validation bags"


def test_a_corrupt_description_of_a_bag_is_named(of_resnet, tmp_path):
    bags = BagShards(of_resnet / "named")
    assert bags.details(0)["encoder"] == "resnet50"
    row = next(iter(bags._members["json"]["offset"]))
    path = tmp_path / "copy"
    path.mkdir()
    for file in (of_resnet / "named").iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    tar = path / bags.shards[0].name
    content = bytearray(tar.read_bytes())
    content[int(row) + 3] ^= 1
    tar.write_bytes(content)
    with pytest.raises(CorruptShard, match=r"\.json: expected crc32"):
        BagShards(path).details(0)


def test_another_width_is_refused(trained, tmp_path):
    with pytest.raises(DataError, match=r"slide 's0' of .*: expected 8 features per instance.* got 5"):
        mh.predict(trained, _files(tmp_path / "narrow", 5, 5), tmp_path / "out")
    mixed = _files(tmp_path / "mixed", 5, 8)
    with pytest.raises(DataError, match=r"1 of 2 slides cannot be predicted .*slide 's0': expected 8"):
        mh.predict(trained, mixed, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    out = mh.predict(trained, mixed, tmp_path / "out", skip_bad=True)
    assert list(json.loads((out / "prediction.json").read_text())["left_out"]) == ["s0"]
    wide = make_shards(tmp_path / "wide", num_features=9)
    with pytest.raises(DataError, match=r"expected 8 features per instance.* got 9"):
        mh.predict(trained, wide.folder, tmp_path / "other")


def test_another_encoder_is_refused(of_resnet, shards, tmp_path):
    models, features = of_resnet / "cv", _files(tmp_path / "features", 8)
    with pytest.raises(DataError, match=r"--encoder says 'uni', but the model .* with 'resnet50'"):
        mh.predict(models, shards.folder, tmp_path / "out", encoder="uni")  # they do not say it themselves
    with pytest.raises(
        DataError, match=r"slide 's0'.*expected features of 'resnet50'.* got features of 'uni'"
    ):
        mh.predict(models, features, tmp_path / "out", encoder="uni")
    shard(of_resnet / "features", of_resnet / "labels.csv", tmp_path / "uni", stated=Stated(encoder="uni"))
    with pytest.raises(DataError, match=r"expected features of 'resnet50'.* got features of 'uni'"):
        mh.predict(models, tmp_path / "uni", tmp_path / "out")
    with pytest.raises(DataError, match=r"its encoder is 'uni', but --encoder says 'resnet50'"):
        mh.predict(models, tmp_path / "uni", tmp_path / "out", encoder="resnet50")
    trident = tmp_path / "trident" / "features_uni"
    trident.parent.mkdir()
    _files(trident, 8)
    with pytest.raises(DataError, match=r"slide 's0'.*got features of 'uni'"):
        mh.predict(models, trident.parent, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_not_known_is_a_warning(of_resnet, trained, tmp_path):
    def warnings(models, data, name, **options):
        out = mh.predict(models, data, tmp_path / name, **options)
        return json.loads((out / "prediction.json").read_text())["warnings"]

    features = _files(tmp_path / "features", 8)
    assert warnings(of_resnet / "cv", features, "a") == [
        "the features do not say which encoder made them; only their width was compared"
    ]
    assert warnings(of_resnet / "cv", features, "b", encoder="resnet50", patch_size=224) == [
        "the model was trained with patches of 256 pixels, the patches here have 224"
    ]
    assert warnings(trained, features, "c", encoder="uni") == [
        "the model does not say which encoder it was trained with; only the width was compared"
    ]


def test_labels_that_are_not_classes_are_refused(trained, tmp_path):
    features, labels = _files(tmp_path / "features", 8, 8), tmp_path / "labels.csv"
    labels.write_text("slide,label\ns0,class-0\ns1,metastasis\n")
    with pytest.raises(LabelError, match=r"slide 's1' has the label 'metastasis'.* class-0, class-1"):
        mh.predict(trained, features, tmp_path / "out", labels=labels)
    labels.write_text("slide,label\nother,class-0\n")
    with pytest.raises(LabelError, match="none of its 1 slides has features"):
        mh.predict(trained, features, tmp_path / "out", labels=labels)
    labels.write_text("slide,label\ns0.svs,class-0\nother,class-1\n")
    out = mh.predict(trained, features, tmp_path / "out", labels=labels)
    said = json.loads((out / "prediction.json").read_text())["warnings"]
    assert any("1 of 2 slides have no label" in warning and "'s1'" in warning for warning in said)
    assert any("1 slides of" in warning and "'other'" in warning for warning in said)


def test_networks_that_do_not_belong_together_are_refused(trained, of_resnet, tmp_path, shards):
    wide = make_shards(tmp_path / "wide", num_features=9)
    train_folds(tmp_path / "cv-wide", wide, config_of(epochs=1))
    with pytest.raises(ConfigError, match=r"models of the same features per instance, got 8 in .* and 9 in"):
        mh.predict([trained, tmp_path / "cv-wide"], shards.folder, tmp_path / "out")
    three = gaussian_bags(20)
    three.labels_N[::4] = 2
    three.classes = ("class-0", "class-1", "class-2")
    bags = BagShards(shards_of(three, tmp_path / "three"))
    train_folds(tmp_path / "cv-three", bags, config_of(epochs=1))
    with pytest.raises(ConfigError, match="models of the same classes"):
        mh.predict([trained, tmp_path / "cv-three"], shards.folder, tmp_path / "out")
    together = mh.predict([trained, of_resnet / "cv"], shards.folder, tmp_path / "out")
    assert len(json.loads((together / "prediction.json").read_text())["models"]) == 4


def test_several_classes_have_no_threshold(tmp_path):
    import pyarrow.parquet as pq

    three = gaussian_bags(20)
    three.labels_N[::4] = 2
    three.classes = ("class-0", "class-1", "class-2")
    bags = BagShards(shards_of(three, tmp_path / "three"))
    train_folds(tmp_path / "cv", bags, config_of(epochs=1))
    out = mh.predict(tmp_path / "cv", bags.folder, tmp_path / "out", cases="max")
    for row in pq.read_table(out / "predictions.parquet").to_pylist():
        assert (row["threshold"], row["threshold_from"]) == (None, "the most probable class")
        likely = max(bags.classes, key=lambda name: row[f"probability_{name}"])
        assert row["predicted"] == likely
    for row in pq.read_table(out / "cases.parquet").to_pylist():
        assert sum(row[f"probability_{name}"] for name in bags.classes) == pytest.approx(1)
    metrics = json.loads((out / "prediction.json").read_text())["metrics"]["slides"]
    for name in ("auc", "accuracy", "f1"):
        low, high = metrics[name]["interval"]
        assert 0 <= low <= metrics[name]["value"] + 1e-9
        assert metrics[name]["value"] <= high + 1e-9 <= 1.1
