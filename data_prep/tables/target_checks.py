"""Whether targets can be learnt at all: constant ones, no events, and cases that say two things."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_prep.tables.labels import SlideLabel
from mhimdist.data.manifest import Manifest
from mhimdist.data.targets import CLASSIFICATION, TaskInfo, of_rows
from mhimdist.errors import LabelError


def targets_of(rows: Sequence[SlideLabel]) -> np.ndarray:
    """The targets of slides, float64 N x K, NaN where one is missing."""
    return np.array([row.targets for row in rows], np.float64).reshape(len(rows), -1)


def refuse_unlearnable(rows: Sequence[SlideLabel], task: TaskInfo, path: Path) -> None:
    """Refuse targets of which nothing can be learnt.

    Args:
        rows: the slides that will be used, at least one.
        task: the task, with targets.
        path: the table, for the message.

    Raises:
        LabelError: a column is constant, no event happened, or a patient has two survivals.
    """
    targets_NK = targets_of(rows)
    what = f"{path}: of the {len(rows):,} slides with features"
    if task.name == "survival":
        time, event = task.columns
        if not targets_NK[:, 1].any():
            raise LabelError(
                f"{what}, none has an event ({event!r}): nothing can be learnt from censored times alone; if "
                "the column says 1 for censored, name it `censored`, or give --class-map 0=1,1=0"
            )
        if len(rows) > 1 and len(np.unique(targets_NK[:, 0])) == 1:
            raise LabelError(
                f"{what}, all have the time {targets_NK[0, 0]:g} ({time!r}); nothing can be learnt"
            )
        if disagreeing := _disagreeing(rows):
            raise LabelError(f"{path}: {disagreeing[0]}; a patient has one time and one event")
        return
    for name, column_N in zip(task.columns, targets_NK.T, strict=True):
        values = np.unique(column_N[~np.isnan(column_N)])
        if len(rows) > 1 and len(values) < 2:
            said = f"holds {values[0]:g} or nothing" if len(values) else "holds nothing"
            raise LabelError(
                f"{what}, column {name!r} {said} in all: nothing to learn; leave it out of --target-column"
            )


def warning_of_cases(rows: Sequence[SlideLabel]) -> str | None:
    """A warning that slides of one case have different labels or targets; None if no case has."""
    found = _disagreeing(rows)
    if not found:
        return None
    several = f"{len(found)} cases have" if len(found) > 1 else "a case has"
    return (
        f"{several} slides with different labels, so that they cannot be one bag (such as {found[0]}); bags "
        "of one slide each are not concerned"
    )


def _disagreeing(rows: Sequence[SlideLabel]) -> list[str]:
    """The cases whose slides have different labels, each with two of them."""
    first: dict[str, SlideLabel] = {}
    found: dict[str, str] = {}
    for row in rows:
        one = first.setdefault(row.case, row)
        if row.case not in found and _differ(one, row):
            sides = (
                f"{each.slide!r}{each.where and f' ({each.where})'}: {each.label}" for each in (one, row)
            )
            found[row.case] = f"case {row.case!r} has {' and '.join(sides)}"
    return list(found.values())


def _differ(one: SlideLabel, other: SlideLabel) -> bool:
    """Whether two slides have different classes, or different targets where both have them."""
    if not one.targets:
        return one.label != other.label
    pairs = zip(one.targets, other.targets, strict=True)
    return any(first != second and None not in (first, second) for first, second in pairs)


def summary(manifest: Manifest) -> str:
    """What the bags of a data set are labelled with, for a line that a command prints."""
    task = manifest.info.task or CLASSIFICATION
    if not task.of_classes:
        return described(task, of_rows(next(iter(manifest.each.values())).rows, task))
    if task.name == "ordinal":
        return f"grades: {' < '.join(manifest.info.classes)}"
    return f"classes: {', '.join(manifest.info.classes)}"


def described(task: TaskInfo, targets_NK: np.ndarray) -> str:
    """A line about targets, such as "survival: 41 events, os_months .1 to 210 months"."""
    if task.name == "survival":
        events, unit = int(targets_NK[:, 1].sum()), f" {task.unit}" if task.unit else ""
        low, high = targets_NK[:, 0].min(), targets_NK[:, 0].max()
        return (
            f"survival: {events:,} of {len(targets_NK):,} with the event ({task.columns[1]}), time "
            f"({task.columns[0]}) {low:.4g} to {high:.4g}{unit}"
        )
    parts = []
    for name, column_N in zip(task.columns, targets_NK.T, strict=True):
        known_N = column_N[~np.isnan(column_N)]
        if task.name == "multilabel":
            parts.append(f"{name} {int(known_N.sum()):,} of {len(known_N):,}")
        else:
            unit = f" {task.unit}" if task.unit else ""
            parts.append(f"{name} {known_N.min():.4g} to {known_N.max():.4g}{unit}")
    return f"{task.name}: {', '.join(parts)}"
