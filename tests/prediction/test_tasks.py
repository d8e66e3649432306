"""Trained networks of every task, applied to shards as an ensemble."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyarrow import parquet
from task_bags import TASKS, config, task_bags
from trained_folds import train_folds

import mhimdist as mh
from data_prep.shard import shard
from mhimdist.data.shards import BagShards
from mhimdist.errors import ComparisonError, ConfigError
from mhimdist.training.student import load_student

OPTIONS: dict[str, dict[str, Any]] = {
    "ordinal": {"classes": ("low", "mid", "top")},
    "multilabel": {"target_column": ("mutated", "invasive")},
    "regression": {"target_column": ("score", "size")},
    "survival": {"time_column": ("time",), "event_column": "event"},
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
    scores = parquet.read_table(next((out / "scores").glob("*.parquet")))
    assert [name for name in scores.column_names if name.startswith("instance_")][:-1] == [
        f"instance_{column.removeprefix('probability_')}" for column in kind.columns
    ]


def test_what_only_classes_have_is_refused_by_name(tmp_path: Path):
    bags = _shards(tmp_path, "survival")
    (first, _) = train_folds(tmp_path / "cv", bags, config("abmil", "nll", epochs=1))
    with pytest.raises(ConfigError, match="expected a model for classification, got one for survival"):
        mh.export_model(first, tmp_path / "export")
    with pytest.raises(ComparisonError, match=r"got a run for survival; its metrics are in result.json"):
        mh.compare(first, first)
