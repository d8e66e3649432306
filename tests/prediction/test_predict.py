"""Predictions from shards and from feature files, by hand and by the job."""

import csv
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from job_scripts import run_here

import mhimdist as mh
from mhimdist.data.bags import PackedBags
from mhimdist.data.shards import BagShards
from mhimdist.errors import ConfigError
from mhimdist.statistics import metrics


def _by_hand(folders, bags):
    """Probabilities of every network, N x M x C."""
    networks = [mh.load_student(folder) for folder in folders]
    rows = []
    for row in range(len(bags)):
        bag = bags.load([row])
        rows.append([n.predictions(n(bag))[0].detach().double().numpy() for n in networks])
    return np.array(rows)


def _folds(trained):
    return sorted((trained / "folds").iterdir())


def _rows(out, name="predictions"):
    return pq.read_table(out / f"{name}.parquet").to_pylist()


def test_an_ensemble_is_the_mean_of_its_networks(trained, shards, tmp_path):
    out = mh.predict(trained, shards.folder, tmp_path / "out", threads=2)
    by_hand_NMC = _by_hand(_folds(trained), shards)
    table = pq.read_table(out / "predictions.parquet")
    assert table.column_names == [
        *("slide", "case", "label", "probability_class-0", "probability_class-1", "predicted"),
        *("threshold", "threshold_from", "spread_class-0", "spread_class-1"),
    ]
    rows = table.to_pylist()
    assert [row["slide"] for row in rows] == list(shards.slides)
    assert [row["case"] for row in rows] == list(shards.cases)
    assert [row["label"] for row in rows] == [shards.classes[c] for c in shards.labels_N]
    for c, name in enumerate(shards.classes):
        got_N = [row[f"probability_{name}"] for row in rows]
        np.testing.assert_allclose(got_N, by_hand_NMC[:, :, c].mean(1), rtol=0, atol=1e-6)
        spread_N = [row[f"spread_{name}"] for row in rows]
        np.testing.assert_allclose(spread_N, by_hand_NMC[:, :, c].std(1), rtol=0, atol=1e-6)
    results = [json.loads((fold / "result.json").read_text()) for fold in _folds(trained)]
    threshold = np.mean([min(result["validation"]["threshold"], 1.0) for result in results])
    for row in rows:
        assert row["threshold"] == pytest.approx(threshold)
        assert row["predicted"] == shards.classes[int(row["probability_class-1"] >= threshold)]
        assert row["threshold_from"] == "mean over 2 models of Youden's J on the validation bags"
    document = json.loads((out / "prediction.json").read_text())
    assert [each["fold"] for each in document["models"]] == [1, 2]
    assert document["data"]["digest"] == shards.digest
    auc = metrics.auc(shards.labels_N, by_hand_NMC.mean(1))
    assert document["metrics"]["slides"]["auc"]["value"] == pytest.approx(auc)
    low, high = document["metrics"]["slides"]["auc"]["interval"]
    assert 0 <= low <= auc <= high <= 1
    assert any("20 of 20 slides have the names of slides that trained" in w for w in document["warnings"])


def test_one_network_has_no_spread_and_its_own_threshold(trained, shards, tmp_path):
    fold = _folds(trained)[0]
    out = mh.predict(fold, shards.folder, tmp_path / "out")
    rows = _rows(out)
    assert {row["spread_class-1"] for row in rows} == {0.0}
    result = json.loads((fold / "result.json").read_text())
    assert rows[0]["threshold"] == result["validation"]["threshold"]
    assert rows[0]["threshold_from"] == "Youden's J on the validation bags"
    own = mh.predict(fold, shards.folder, tmp_path / "own", threshold=0.25)
    assert {row["threshold_from"] for row in _rows(own)} == {"given by --threshold"}


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_feature_files_give_what_their_shards_give(dtype, trained, shards, tmp_path):
    """float64 is stored as float32 there; float16 loses bits in either."""
    from data_prep.shard import shard

    folder = tmp_path / "features"
    folder.mkdir()
    lines = ["slide,label,case"]
    for row, slide in enumerate(shards.slides):
        features_ND = shards.load([row]).features_TD.numpy().astype(dtype)
        np.save(folder / f"{slide}.npy", features_ND)
        lines.append(f"{slide},{shards.classes[shards.labels_N[row]]},{shards.cases[row]}")
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(lines))
    shard(folder, labels, tmp_path / "sharded", dtype="float32")
    from_files = mh.predict(trained, folder, tmp_path / "files", labels=labels)
    from_shards = mh.predict(trained, tmp_path / "sharded", tmp_path / "out")
    expected = {row["slide"]: row for row in _rows(from_shards)}
    assert {row["slide"]: row for row in _rows(from_files)} == expected
    assert sorted(expected) == sorted(shards.slides)


def test_without_labels_there_are_no_metrics(trained, shards, tmp_path):
    folder = tmp_path / "features"
    folder.mkdir()
    for row in range(3):
        np.save(folder / f"{shards.slides[row]}.npy", shards.load([row]).features_TD.numpy())
    out = mh.predict(trained, folder, tmp_path / "out")
    document = json.loads((out / "prediction.json").read_text())
    assert document["metrics"] == {}
    assert [row["label"] for row in _rows(out)] == [None] * 3
    assert [row["case"] for row in _rows(out)] == [row["slide"] for row in _rows(out)]
    assert not (out / "cases.parquet").exists()
    ignored = mh.predict(trained, shards.folder, tmp_path / "ignored", ignore_labels=True)
    assert json.loads((ignored / "prediction.json").read_text())["metrics"] == {}


@pytest.mark.parametrize("how", ["mean", "max", "union"])
def test_a_case_has_its_own_row(how, trained, shards, tmp_path):
    out = mh.predict(trained, shards.folder, tmp_path / "out", cases=how, ignore_labels=True)
    rows = {row["case"]: row for row in _rows(out, "cases")}
    assert list(rows) == list(dict.fromkeys(shards.cases))
    assert {(row["slides"], row["how"]) for row in rows.values()} == {(4, how)}
    by_hand_NMC = _by_hand(_folds(trained), shards)
    for case, row in rows.items():
        places = [i for i, other in enumerate(shards.cases) if other == case]
        if how == "union":
            bag = PackedBags.from_list([shards.load(places).features_TD], keys=[case])
            networks = map(mh.load_student, _folds(trained))
            expected_MC = np.array([n.predictions(n(bag))[0].detach().double().numpy() for n in networks])
        else:
            expected_MC = getattr(by_hand_NMC[places], how)(0)
        assert row["probability_class-1"] == pytest.approx(expected_MC[:, 1].mean(), abs=1e-6)
        assert row["spread_class-1"] == pytest.approx(expected_MC[:, 1].std(), abs=1e-6)
        assert row["probability_class-0"] + row["probability_class-1"] == pytest.approx(1)


def test_another_rule_for_cases_computes_no_slide_again(trained, shards, tmp_path, monkeypatch):
    out = mh.predict(trained, shards.folder, tmp_path / "out")
    monkeypatch.setattr(BagShards, "load", None)
    mh.predict(trained, shards.folder, tmp_path / "out", cases="max", threshold=0.9)
    assert {row["how"] for row in _rows(out, "cases")} == {"max"}
    assert {row["threshold"] for row in _rows(out)} == {0.9}


def test_the_number_of_threads_changes_no_bit(trained, shards, tmp_path):
    one = mh.predict(trained, shards.folder, tmp_path / "one", threads=1)
    four = mh.predict(trained, shards.folder, tmp_path / "four", threads=4)
    assert _rows(one) == _rows(four)


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(300)
def test_ray_tasks_give_the_same_bits(trained, shards, tmp_path):
    here = mh.predict(trained, shards.folder, tmp_path / "here", cases="union", scores=True)
    try:
        there = mh.predict(trained, shards.folder, tmp_path / "there", cases="union", scores=True, workers=2)
    finally:
        ray.shutdown()
    for name in ("predictions", "cases"):
        assert _rows(here, name) == _rows(there, name)
    assert len(list((there / "scores").glob("*.parquet"))) == len(shards)


def test_csv_says_what_parquet_says(trained, shards, tmp_path):
    out = mh.predict(trained, shards.folder, tmp_path / "out")
    with (out / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for got, expected in zip(rows, _rows(out), strict=True):
        assert got["slide"] == expected["slide"]
        assert float(got["probability_class-1"]) == expected["probability_class-1"]


def test_the_job_predicts_and_says_what_it_found(trained, shards, tmp_path):
    arguments = ["--models", str(trained), "--data", str(shards.folder), "--out", str(tmp_path / "out")]
    done = run_here("predict.py", *arguments, "--scores", home=tmp_path)
    assert done.returncode == 0, done.stderr
    for words in (
        "20 slides by 2 models: ",
        "threshold 0.",
        "slides: AUC ",
        "WARNING: ",
        "predictions.parquet, .csv",
    ):
        assert words in done.stdout
    assert len(list((tmp_path / "out" / "scores").glob("*.parquet"))) == 20


def test_the_job_explains_every_option(tmp_path):
    done = run_here("predict.py", "--help-all", home=tmp_path)
    assert done.returncode == 0
    options = done.stdout.split("\n  --")[1:]
    assert len(options) > 20
    for option in options:
        assert len(option.split("\n\n")[0].split("(default")[0].split()) > 2, option


def test_bad_options_are_one_line(trained, tmp_path):
    with pytest.raises(ConfigError, match="threads"):
        mh.predict(trained, tmp_path, tmp_path / "out", threads=0)
    with pytest.raises(ConfigError, match="thread"):
        mh.predict(trained, tmp_path, tmp_path / "out", thread=1)
    done = run_here("predict.py", "--models", "none", "--data", str(tmp_path), "--out", "o", home=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "holds no trained model" in done.stderr


def test_a_moved_model_predicts_the_same(trained, shards, tmp_path):
    """The record knows a network by its content and not by its place."""
    out = mh.predict(trained, shards.folder, tmp_path / "out")
    before = _rows(out)
    shutil.copytree(trained, tmp_path / "moved")
    assert _rows(mh.predict(tmp_path / "moved", shards.folder, tmp_path / "out")) == before
