"""Targets in the manifest, and on their way into batches."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from feature_folders import forge_manifest, normal_shards
from late_gpu import same_bits

from mhimdist.config.train import Loading
from mhimdist.data import manifest as manifest_module
from mhimdist.data.bags import PackedBags
from mhimdist.data.manifest import Manifest, rows_schema
from mhimdist.data.read_ahead import read_ahead
from mhimdist.data.resident import resident
from mhimdist.data.shards import BagShards
from mhimdist.data.targets import TaskInfo, as_cells, of_rows
from mhimdist.errors import ManifestError

SURVIVAL = TaskInfo(name="survival", columns=("os_months", "os_event"), unit="months")
MULTILABEL = TaskInfo(name="multilabel", columns=("tp53", "kras", "egfr"))
REGRESSION = TaskInfo(name="regression", columns=("til_score",))
VALUES: dict[TaskInfo, list[list[float | None]]] = {
    SURVIVAL: [[12.1, 1], [0.1, 0], [3, 0], [7, 1]],
    MULTILABEL: [[1, 0, None], [0, None, 0], [0, 1, 1], [1, 1, 1]],
    REGRESSION: [[-1.5], [1 / 3], [1e30], [0]],
}
STEPS = [[1, 0], [2], [], [3], [1, 2, 3], [2, 2], [0]]


def with_targets(folder: Path, task: TaskInfo, change: Callable[[list[dict]], None] | None = None) -> Path:
    """Four bags, whose manifest gets targets in the order of its rows."""
    shards = normal_shards(folder, "float16")

    def rows(rows: list[dict]) -> None:
        for row, targets in zip(rows, VALUES[task], strict=True):
            row["targets"] = targets
        if change is not None:
            change(rows)

    forge_manifest(shards, rows=rows, info=lambda info: info.update(task=task.model_dump()))
    return shards


@pytest.mark.parametrize("task", VALUES, ids=lambda task: task.name)
def test_targets_are_read_as_they_were_written(task: TaskInfo, tmp_path: Path) -> None:
    bags = BagShards(with_targets(tmp_path, task))
    expected_NK = np.array(VALUES[task], np.float64)
    assert bags.task == task
    np.testing.assert_array_equal(bags.targets_NK, expected_NK)
    assert bags.targets_NK.dtype == np.float64
    assert [as_cells(row) for row in bags.targets_NK] == VALUES[task]
    read = Manifest.read(Path(bags.folder))
    assert read.content_sha256 == bags.digest
    assert read.rows["targets"].to_pylist() == VALUES[task]


def test_data_of_classes_have_no_targets(tmp_path: Path) -> None:
    bags = BagShards(normal_shards(tmp_path, "float16"))
    assert bags.task == TaskInfo()
    assert bags.task.of_classes
    assert bags.targets_NK.shape == (4, 0)
    assert bags.load([0, 1]).targets_BK is None
    assert "targets" not in Manifest.read(Path(bags.folder)).rows.column_names
    assert "task" not in Manifest.read(Path(bags.folder)).info.model_dump()


def test_grades_are_classes_with_a_task(tmp_path: Path) -> None:
    shards = normal_shards(tmp_path, "float16")
    before = BagShards(shards)
    forge_manifest(shards, info=lambda info: info.update(task={"name": "ordinal"}))
    after = BagShards(shards)
    assert (after.task.name, after.classes) == ("ordinal", before.classes)
    assert after.digest != before.digest
    assert after.load([0]).targets_BK is None


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"name": "counting"}, "task.name"),
        ({"name": "survival", "columns": ["time"]}, "two columns of targets, got .*time"),
        ({"name": "regression"}, "one or more columns"),
        ({"name": "multilabel", "columns": ["a", "a"]}, "names differ"),
        ({"name": "multilabel", "columns": ["a", " "]}, "not empty"),
        ({"name": "ordinal", "columns": ["grade"]}, "no columns of targets"),
        ({"name": "ordinal", "unit": "grades"}, "no unit"),
        ({"name": "classification"}, "says classification by no task"),
        ({"name": "regression", "columns": ["a"], "units": "mm"}, "task.units"),
        ({"name": "regression", "columns": "a"}, "task.columns"),
        ("survival", "task"),
    ],
)
def test_a_forged_task_is_refused(said: object, message: str, tmp_path: Path) -> None:
    shards = normal_shards(tmp_path, "float16")
    manifest = Manifest.read(shards)
    document = json.dumps(manifest.info.model_dump() | {"task": said}).encode()
    with pytest.raises(ManifestError, match=message):
        manifest_module._parse_info(document, shards / "manifest.parquet")


@pytest.mark.parametrize(
    ("task", "targets", "message"),
    [
        (SURVIVAL, [1.0], "has not 2 targets"),
        (SURVIVAL, [1.0, 1.0, 1.0], "has not 2 targets"),
        (SURVIVAL, None, "has not 2 targets"),
        (SURVIVAL, [0.0, 1.0], r"has a time \('os_months'\) that is not above 0"),
        (SURVIVAL, [-3.0, 1.0], r"has a time \('os_months'\) that is not above 0"),
        (SURVIVAL, [3.0, 0.5], r"has an event \('os_event'\) that is not 0 or 1"),
        (SURVIVAL, [None, 1.0], "lacks a target, and survival needs all of them"),
        (SURVIVAL, [float("inf"), 1.0], "has a target that is not a finite number"),
        (REGRESSION, [float("nan")], "has a target that is not a finite number"),
        (REGRESSION, [None], "lacks a target, and regression needs all"),
        (MULTILABEL, [1.0, 2.0, None], "has a label other than 0 and 1"),
        (MULTILABEL, [None, None, None], "has no label at all"),
    ],
)
def test_forged_targets_are_neither_written_nor_read(
    task: TaskInfo, targets: object, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = with_targets(tmp_path, task)
    manifest = Manifest.read(shards)
    rows = manifest.rows.to_pylist()
    rows[2]["targets"] = targets
    schema = rows_schema(task)
    column = pa.array([row["targets"] for row in rows], schema.field("targets").type)
    forged = Manifest(manifest.info, manifest.rows.set_column(len(schema) - 1, "targets", column))
    forged = Manifest(manifest.info, forged.rows.cast(schema) if targets is not None else forged.rows)
    with pytest.raises(ManifestError, match=f"'float16-[0-9]' {message}"):
        forged.write(tmp_path)
    if targets is None:
        return  # Parquet itself keeps a column that says it has no nulls from having any
    with monkeypatch.context() as patch:
        patch.setattr(manifest_module, "_check_rows", lambda rows, info: None)
        forged.write(shards)
    with pytest.raises(ManifestError, match=message):
        Manifest.read(shards)


def test_a_column_of_targets_and_a_task_need_each_other(tmp_path: Path) -> None:
    manifest = Manifest.read(with_targets(tmp_path, SURVIVAL))
    without = Manifest(manifest.info.model_copy(update={"task": None}), manifest.rows)
    with pytest.raises(ManifestError, match="expected the columns"):
        without.write(tmp_path)
    with pytest.raises(ManifestError, match="expected the columns"):
        Manifest(manifest.info, manifest.rows.drop_columns(["targets"])).write(tmp_path)


@pytest.mark.parametrize("value", [[12.1, 0.0], [12.0, 1.0]])
def test_an_edit_of_a_target_is_noticed(value: list[float], tmp_path: Path) -> None:
    manifest = Manifest.read(with_targets(tmp_path, SURVIVAL))
    rows = manifest.rows.to_pylist()
    rows[0]["targets"] = value
    edited = Manifest(manifest.info, pa.Table.from_pylist(rows, rows_schema(SURVIVAL)))
    assert edited.content_sha256 != manifest.content_sha256


def test_a_missing_label_is_not_a_label_of_0(tmp_path: Path) -> None:
    manifest = Manifest.read(with_targets(tmp_path, MULTILABEL))
    rows = manifest.rows.to_pylist()
    rows[0]["targets"][2] = 0.0
    filled = Manifest(manifest.info, pa.Table.from_pylist(rows, rows_schema(MULTILABEL)))
    assert filled.content_sha256 != manifest.content_sha256


@pytest.mark.parametrize("cache", ["none", "ram", "device"])
@pytest.mark.parametrize(
    "loading", [Loading(), Loading(read_ahead=False), Loading(reader="dali")], ids=["ahead", "plain", "dali"]
)
def test_every_reader_brings_the_targets(cache: str, loading: Loading, tmp_path: Path) -> None:
    if loading.reader == "dali":
        pytest.importorskip("nvidia.dali")
    shards = BagShards(with_targets(tmp_path, MULTILABEL))
    bags = resident(shards, cache, "cpu")  # type: ignore[arg-type]
    assert (bags.task, bags.targets_NK.shape) == (MULTILABEL, (4, 3))
    with read_ahead(bags, STEPS, loading=loading) as batches:
        for batch, rows in zip(batches, STEPS, strict=True):
            assert batch.targets_BK is not None
            assert batch.targets_BK.dtype == torch.float32
            np.testing.assert_array_equal(
                batch.targets_BK.numpy(), shards.targets_NK[rows].astype(np.float32)
            )


def test_batches_keep_their_targets() -> None:
    targets = [[1.5, 1.0], [np.nan, 0.0]]
    bags = PackedBags.from_list([torch.ones(2, 3), torch.zeros(1, 3)], targets=targets)
    assert bags.targets_BK is not None
    expected_BK = torch.tensor(targets)
    masked = bags.select(torch.tensor([0, 2]), torch.tensor([0, 1, 2]))
    for same in (masked, masked.without_padding(), bags.to("cpu")):
        assert same.targets_BK is not None
        assert same_bits(same.targets_BK, expected_BK)
    assert PackedBags.from_list([torch.ones(2, 3)]).to("cpu").targets_BK is None


def test_the_targets_of_no_bags_are_empty(tmp_path: Path) -> None:
    empty = BagShards(with_targets(tmp_path, SURVIVAL)).load([]).targets_BK
    assert empty is not None
    assert empty.shape == (0, 2)
    assert of_rows(pa.table({"key": pa.array([], pa.string())}), TaskInfo()).shape == (0, 0)
