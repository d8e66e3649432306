"""What the labels of bags mean, as manifests and shards of ours say it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep.readers.sources import Source
from data_prep.tables.labels import SlideLabel
from data_prep.tables.target_cells import text_of
from mhimdist.data.manifest import DatasetInfo, Manifest
from mhimdist.data.targets import CLASSIFICATION, TaskInfo, TaskName
from mhimdist.errors import LabelError
from mhimdist.tables.columns import plain

_OF_CLASSES = {"classification", "ordinal"}


def task_of(sources: Mapping[str, Source], asked: TaskName | None) -> TaskInfo:
    """The task of the labels that bundles state: that of our shards, otherwise classification.

    Args:
        sources: the bags by slide.
        asked: the task that the user asked for, if any; classes may be taken as grades, and vice versa.

    Raises:
        LabelError: the shards are of different tasks, or of another one than the user asked for.
    """
    said = {source.details.get("task") for source in sources.values()}
    # Only the reader of our shards gives tuples.
    tasks = {_task(text) if isinstance(text, tuple) else CLASSIFICATION for text in said} or {CLASSIFICATION}
    if len(tasks) > 1:
        raise LabelError(f"the shards are of different tasks: {' and '.join(sorted(map(in_words, tasks)))}")
    (task,) = tasks
    if asked is None or asked == task.name:
        return task
    if {asked, task.name} == _OF_CLASSES:
        return TaskInfo(name=asked)
    raise LabelError(
        f"--task {asked} needs a table of labels (--labels): the bags themselves state {in_words(task)}"
    )


def _task(said: tuple[Any, ...]) -> TaskInfo:
    name, unit, *columns = said
    return TaskInfo(name=name, columns=tuple(columns), unit=unit)


def in_words(task: TaskInfo) -> str:
    """A task with its columns and unit, for messages."""
    columns = f" of {', '.join(map(repr, task.columns))}" if task.columns else ""
    return f"{task.name}{columns}{f' in {task.unit}' if task.unit else ''}"


def refuse_another_task(task: TaskInfo, before: Manifest, out: Path) -> TaskInfo:
    """Refuse labels that mean something else than those of a data set, and return the data set's task.

    Raises:
        LabelError: task, columns or unit differ.
    """
    old = before.info.task or CLASSIFICATION
    alike = list(map(plain, task.columns)) == list(map(plain, old.columns))
    if task.name != old.name or not alike or (task.unit and task.unit != old.unit):
        raise LabelError(f"{out}: expected labels of {in_words(old)} as it has, got {in_words(task)}")
    return old


def label_of(row: Mapping[str, Any], info: DatasetInfo) -> SlideLabel:
    """The slide of a row of a manifest, as a label table would name it."""
    task = info.task or CLASSIFICATION
    if task.of_classes:
        return SlideLabel(row["slide"], row["case"], info.classes[row["label"]])
    targets = tuple(row["targets"])
    return SlideLabel(row["slide"], row["case"], text_of(task, targets), targets=targets)


def stated_label(row: SlideLabel, task: TaskInfo) -> dict[str, Any]:
    """What the JSON member of a bag says of its label: its class, or its targets by name."""
    if task.of_classes:
        return {"label": row.label}
    return {"targets": dict(zip(task.columns, row.targets, strict=True))}
