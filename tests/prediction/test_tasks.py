"""Trained networks of every task, applied to shards as an ensemble."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from html_pages import Page
from pyarrow import parquet
from task_bags import TASKS, config, task_bags
from trained_folds import train_folds

import mhimdist as mh
from data_prep.shard import shard
from mhimdist.data.shards import BagShards
from mhimdist.errors import ComparisonError, ConfigError, LabelError, ReportError
from mhimdist.export.load_model import load
from mhimdist.report import formats
from mhimdist.tasks import Task
from mhimdist.training.student import load_student

OPTIONS: dict[str, dict[str, Any]] = {
    "ordinal": {"classes": ("low", "mid", "top")},
    "multilabel": {"target_column": ("mutated", "invasive")},
    "regression": {"target_column": ("score", "size")},
    "survival": {"time_column": ("time",), "event_column": "event", "unit": "months"},
}


def _shards(folder: Path, task: str) -> BagShards:
    """Bags of a task as shards that `data_prep` has made, with a table as people write it."""
    bags = task_bags(task, num_bags=40)
    (folder / "features").mkdir(parents=True)
    columns = bags.task.columns or ("label",)
    lines = [",".join(["slide", *columns])]
    for row, key in enumerate(bags.keys):
        np.save(folder / "features" / f"{key}.npy", bags.features[row].numpy())
        cells = ["" if np.isnan(value) else f"{value:.9g}" for value in bags.targets_NK[row]]
        lines.append(",".join([key, *(cells or [("low", "mid", "top")[bags.labels_N[row]]])]))
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    shard(folder / "features", folder / "labels.csv", folder / "shards", task=task, **OPTIONS[task])
    return BagShards(folder / "shards")


@pytest.mark.parametrize("key", [key for key in TASKS if key != "cox of a step"])
def test_an_ensemble_predicts_tables_and_measures_its_task(tmp_path: Path, key: str):
    task = TASKS[key][0]
    bags = _shards(tmp_path, task)
    folds = train_folds(tmp_path / "cv", bags, config("abmil", key, epochs=3))
    out = mh.predict(tmp_path / "cv", bags.folder, tmp_path / "out", scores=True)
    table, about = (
        parquet.read_table(out / "predictions.parquet").to_pydict(),
        json.loads((out / "prediction.json").read_text()),
    )
    students = [load_student(fold) for fold in folds]
    kind = students[0].task
    assert set(kind.columns) <= table.keys()
    # Each row is the mean of both networks, as the first one means it.
    for place, slide in list(enumerate(table["slide"]))[:5]:
        (row,) = (r for r, name in enumerate(bags.slides) if name == slide)
        with torch.inference_mode():
            found = [s.predictions(s(bags.load([row]))).double().numpy() for s in students]
        aligned = [s.task.aligned(each, kind) for s, each in zip(students, found, strict=True)]
        ours = [table[column][place] for column in kind.columns]
        np.testing.assert_allclose(ours, np.mean(aligned, axis=0)[0], rtol=1e-5, atol=1e-6)
        for column, truth in zip(kind.info.columns, bags.targets_NK[row], strict=True):
            told = table[f"true_{column}"][place]
            assert (told is None) == np.isnan(truth)
            assert told is None or told == truth
    values = about["metrics"]["slides"]
    assert values["rows"] == 40
    low, high = values[kind.selection]["interval"]
    assert low <= values[kind.selection]["value"] <= high
    assert ("label" in table) == (task == "ordinal")
    assert ("predicted" in table) == (task != "regression")
    _export_says_the_same(tmp_path / "cv", bags, tmp_path / "export", kind, table)
    _pages_and_tests_agree(tmp_path / "cv", folds, out, kind)
    scores = parquet.read_table(next((out / "scores").glob("*.parquet")))
    assert [name for name in scores.column_names if name.startswith("instance_")][:-1] == [
        f"instance_{column.removeprefix('probability_')}" for column in kind.columns
    ]


def _export_says_the_same(run: Path, bags: BagShards, out: Path, kind: Task, table: dict[str, Any]) -> None:
    model = load(mh.export_model(run, out))
    assert {path.name for path in out.iterdir()} >= {"load_model.py", "load_task.py", "model_card.md"}
    assert model.columns == list(kind.columns)
    for row in (0, 7, 20):
        found = model(bags.load([row]).features_TD.float(), bags.keys[row])[0].double().numpy()
        place = table["slide"].index(bags.slides[row])
        units = kind.learnt.get("std", 1.0)
        ours = np.array([table[column][place] for column in kind.columns])
        assert (np.abs(found - ours) / units).max() < 1e-5
    (first, _) = sorted(out.glob("*.safetensors"))
    (fold,) = run.glob(f"folds/{first.stem}")
    with torch.inference_mode():
        told = [each.predictions(each(bags.load([3]))) for each in map(mh.load_student, (first, fold))]
    assert torch.equal(*told)


def _pages_and_tests_agree(run: Path, folds: list[Path], predictions: Path, kind: Task) -> None:
    result = json.loads((folds[0] / "result.json").read_text())
    page = Page(mh.write_report(folds[0], folds[0].parent / "report.html").read_text())
    shown = page.rows["folds"][1][2 : 2 + len(kind.headings)]
    assert shown == [formats.auc(result["test"][name]) for name in kind.headings], "as result.json has them"
    assert f"Validation {kind.title} of the student" in page.text
    for folder in (run, predictions):
        text = Page(mh.write_report(folder, run / "all.html").read_text()).text
        ours = {"AUC over time", "dynamic AUC", "macro AUC"} if kind.name != "ordinal" else set()
        left = text
        for each in ours:
            left = left.replace(each, "")
        found = left.find("validation AUC" if "macro AUC" in text else "AUC")
        assert found < 0, left[max(0, found - 80) : found + 80]
    compared = mh.compare(run, predictions, common=True, protocol="strict", num_resamples=100)
    (pair,) = compared.pairs
    assert [each.metric for each in pair.outcomes[::2]] == list(kind.headings.values())
    assert f"{predictions.name}" in compared.sentences[0]
    assert f"reached {kind.title}" in compared.sentences[0]
    assert "DeLong" not in compared.markdown()


def test_pages_tests_and_exports_refuse_what_is_not_of_their_task(tmp_path: Path):
    bags = _shards(tmp_path, "survival")
    folds = train_folds(tmp_path / "cv", bags, config("abmil", "nll", epochs=2))
    of_targets = mh.predict(folds[0], bags.folder, tmp_path / "risk")
    with pytest.raises(ReportError, match=r"temperature: .* is of survival"):
        mh.write_report(folds[0], temperature=True)
    with pytest.raises(ReportError, match="risk_groups: 3 groups of risk need the validation bags' risks"):
        mh.write_report(of_targets, risk_groups=3)
    text = mh.write_report(tmp_path / "cv", risk_groups=3).read_text()
    assert "medium risk" in text
    groups = tmp_path / "sites.csv"
    groups.write_text("slide,site\n" + "".join(f"{key},{'ab'[i % 2]}\n" for i, key in enumerate(bags.slides)))
    (_, a, b) = Page(mh.write_report(tmp_path / "cv", subgroups=[f"{groups}:site"]).read_text()).rows[
        "subgroups-table"
    ]
    assert [a[1:4], b[1:4]] == [["a", "20", "20"], ["b", "20", "20"]]
    other = _shards(tmp_path / "other", "regression")
    numbers = train_folds(tmp_path / "numbers", other, config("abmil", "regression", epochs=1))
    with pytest.raises(
        ComparisonError, match=r"expected one task, got survival of time, event .* regression"
    ):
        mh.compare(folds[0], numbers[0])


def test_a_table_of_targets_judges_features_that_state_none(tmp_path: Path):
    bags = _shards(tmp_path, "survival")
    (fold, _) = train_folds(tmp_path / "cv", bags, config("abmil", "nll", epochs=2))
    features, table = tmp_path / "features", tmp_path / "labels.csv"
    out = mh.predict(fold, features, tmp_path / "with", labels=table)
    again = mh.predict(fold, bags.folder, tmp_path / "shards")
    found, wanted = (json.loads((each / "prediction.json").read_text()) for each in (out, again))
    one, other = (
        [each["metrics"]["slides"][name]["value"] for name in ("harrell_c", "uno_c")]
        for each in (found, wanted)
    )
    assert one == pytest.approx(other)
    assert found["metrics"]["slides"]["harrell_c"]["interval"] is not None
    lines = table.read_text().splitlines()
    table.write_text("\n".join(["slide,weeks,dead", *lines[1:20]]))
    options = {"labels": table, "time_column": "weeks", "event_column": "dead"}
    out = mh.predict(fold, features, tmp_path / "some", **options)
    about = json.loads((out / "prediction.json").read_text())
    assert about["metrics"]["slides"]["rows"] == 19
    assert "21 of 40 slides have no label" in " ".join(about["warnings"])
    with pytest.raises(LabelError, match="time"):
        mh.predict(fold, features, tmp_path / "none", labels=table)
    with pytest.raises(ConfigError, match=r"--target-column is not for the model .* which predicts survival"):
        mh.predict(fold, features, tmp_path / "none", labels=table, target_column="weeks")
    with pytest.raises(ConfigError, match="--time-column names a column of a table of labels"):
        mh.predict(fold, features, tmp_path / "none", time_column="weeks")
    table.write_text("\n".join(["slide,time_days,dead", *lines[1:20]]))
    with pytest.raises(LabelError, match=r"expected time in months, .*, got time_days in days"):
        mh.predict(fold, features, tmp_path / "none", **options | {"time_column": "time_days"})
