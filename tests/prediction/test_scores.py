"""What every instance says: one Parquet file per slide."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from feature_folders import coords_of
from trained_folds import config_of, train_folds

import mhimdist as mh
from mhimdist.data.bags import PackedBags
from mhimdist.prediction.scores import scores_file
from mhimdist.training.student import load_teacher


@pytest.fixture
def features(shards, tmp_path):
    """Three feature files, of which the first has coordinates and instance labels."""
    folder = tmp_path / "features"
    folder.mkdir()
    for row in range(3):
        features_ND = shards.load([row]).features_TD.numpy()
        np.save(folder / f"slide.{row}.npy", features_ND)
        if row == 0:
            np.save(folder / "slide.0.coords.npy", coords_of(len(features_ND)))
            np.save(folder / "slide.0.instance_labels.npy", np.arange(len(features_ND)) % 2)
    return folder


def test_the_scores_are_those_of_the_networks(trained, shards, features, tmp_path):
    out = mh.predict(
        trained, features, tmp_path / "out", scores=True, patch_size=256, encoder="resnet50", threads=2
    )
    assert sorted(path.name for path in (out / "scores").glob("*.parquet")) == [
        f"slide%2E{row}.parquet" for row in range(3)
    ]
    table = pq.read_table(out / "scores" / "slide%2E0.parquet")
    assert {field.name: field.type for field in table.schema} == {
        "x": pa.int32(),
        "y": pa.int32(),
        "attention": pa.float32(),
        "instance_class-0": pa.float32(),
        "instance_class-1": pa.float32(),
        "teacher_attention": pa.float32(),
        "instance_label": pa.uint8(),
    }
    bag = shards.load([0])
    networks = [mh.load_student(fold) for fold in sorted((trained / "folds").iterdir())]
    alone = PackedBags.from_list(list(bag.features_TD.split(1)))
    with torch.no_grad():
        attention_N = torch.stack([network(bag).scores_TH[:, 0].softmax(0) for network in networks]).mean(0)
        instance_NC = torch.stack([network.predictions(network(alone)) for network in networks]).mean(0)
    size = len(bag.features_TD)
    np.testing.assert_allclose(table["attention"], attention_N, atol=1e-6)
    assert sum(table["attention"].to_pylist()) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(table["instance_class-1"], instance_NC[:, 1], atol=1e-6)
    assert np.column_stack([table["x"], table["y"]]).tolist() == coords_of(size).tolist()
    assert table["instance_label"].to_pylist() == [i % 2 for i in range(size)]
    said = json.loads(table.schema.metadata[b"mhimdist"])
    row = pq.read_table(out / "predictions.parquet").to_pylist()[0]
    assert said["probability"] == {name: row[f"probability_{name}"] for name in ("class-0", "class-1")}
    assert (said["slide"], said["case"], said["label"]) == ("slide.0", "slide.0", None)
    assert (said["format"], said["predicted"], said["classes"]) == (
        1,
        row["predicted"],
        ["class-0", "class-1"],
    )
    assert (said["patch_size"], said["encoder"], said["level"]) == (256, "resnet50", None)
    assert said["models"] == [str(fold) for fold in sorted((trained / "folds").iterdir())]
    without = pq.read_table(out / "scores" / "slide%2E1.parquet")
    for name in ("x", "y", "instance_label", "teacher_attention"):
        assert without[name].null_count == len(without)


def test_what_a_model_does_not_define_is_null(shards, tmp_path):
    models = {
        "max_pooling": {"name": "max_pooling", "hidden_dim": 16},
        "transmil": {"name": "transmil", "hidden_dim": 16, "num_heads": 2, "num_landmarks": 4},
    }
    nulls = {}
    for name, model in models.items():
        train_folds(tmp_path / name, shards, config_of(model=model, epochs=1))
        out = mh.predict(tmp_path / name, shards.folder, tmp_path / f"{name}-out", scores=True)
        table = pq.read_table(scores_file(out / "scores", shards.slides[0]))
        nulls[name] = {
            column
            for column in ("attention", "instance_class-0", "instance_class-1")
            if table[column].null_count == len(table)
        }
    assert nulls == {"max_pooling": {"attention"}, "transmil": {"instance_class-0", "instance_class-1"}}


@pytest.mark.parametrize("kind", ["init_momentum", "student_copy"])
def test_the_teacher_of_the_selected_epoch_looks_too(kind, shards, tmp_path):
    momentum = {"momentum": {"start": 0.5}} if kind == "init_momentum" else {}
    config = config_of(
        teacher={"kind": kind, **momentum},
        masking={"high": 0.1, "random": 0.3},
        loss={"alpha": 0.5},
        epochs=3,
    )
    (fold, _) = train_folds(tmp_path / "cv", shards, config)
    teacher = load_teacher(fold)
    out = mh.predict(fold, shards.folder, tmp_path / "out", scores=True)
    table = pq.read_table(scores_file(out / "scores", shards.slides[4]))
    with torch.no_grad():
        expected_N = teacher(shards.load([4])).scores_TH[:, 0].softmax(0)
    np.testing.assert_allclose(table["teacher_attention"], expected_N, atol=1e-6)
    is_the_student = table["teacher_attention"].to_pylist() == table["attention"].to_pylist()
    assert is_the_student == (kind == "student_copy")


def test_networks_trained_anew_in_the_same_folder_are_read_again(shards, tmp_path):
    train_folds(tmp_path / "cv", shards, config_of(epochs=1))
    before = mh.predict(tmp_path / "cv", shards.folder, tmp_path / "before")
    shutil.rmtree(tmp_path / "cv" / "folds")
    train_folds(tmp_path / "cv", shards, config_of(epochs=5))
    after = mh.predict(tmp_path / "cv", shards.folder, tmp_path / "after")
    tables = [pq.read_table(out / "predictions.parquet") for out in (before, after)]
    assert tables[0]["probability_class-1"] != tables[1]["probability_class-1"]


@pytest.mark.faults(30)
def test_a_slide_of_the_longest_name_has_a_file(tmp_path):
    file = scores_file(tmp_path, "é" * 80)
    assert len(file.name) <= 255
    assert file != scores_file(tmp_path, "é" * 81)
    file.touch()


def test_scores_follow_the_threshold_and_the_labels(trained, shards, tmp_path):
    def predicted(out):
        files = sorted((out / "scores").glob("*.parquet"))
        said = [json.loads(pq.read_schema(file).metadata[b"mhimdist"]) for file in files]
        return {each["predicted"] for each in said}, {each["label"] for each in said}

    out = mh.predict(trained, shards.folder, tmp_path / "out", scores=True, threshold=0.0)
    assert predicted(out) == ({"class-1"}, {"class-0", "class-1"})
    mh.predict(trained, shards.folder, out, scores=True, threshold=1.0, ignore_labels=True)
    assert predicted(out) == ({"class-0"}, {None})
