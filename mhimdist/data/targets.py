"""What the label of a bag means: the task of a data set, and the numbers that its bags are labelled with.

Dimensions: N bags, K targets of a bag, S slides of a case.
"""

from collections.abc import Iterator
from typing import Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, model_validator

TARGETS = "targets"
"""The manifest's column of targets; only data sets whose task has columns have it."""

TARGETS_FIELD = pa.field(TARGETS, pa.list_(pa.field("element", pa.float64())), nullable=False)

TaskName = Literal["classification", "ordinal", "multilabel", "regression", "survival"]


class TaskInfo(BaseModel):
    """What the bags of a data set are labelled with.

    Attributes:
        name: "classification" and "ordinal" label a bag with one of the classes, which ordinal data have in
            ascending order. The others label it with `targets`: "multilabel" with 0 or 1 for each label,
            "regression" with one or more numbers, "survival" with a time above 0 and whether the event
            happened then (1) or the bag was last seen then (0).
        columns: names of the targets, as the label table has them; of survival the time and the event.
        unit: unit of the targets, such as "months"; may be empty.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: TaskName = "classification"
    columns: tuple[str, ...] = ()
    unit: str = ""

    @model_validator(mode="after")
    def _check(self) -> Self:
        of_classes = self.name in ("classification", "ordinal")
        expected = "no" if of_classes else "two" if self.name == "survival" else "one or more"
        num_columns = len(self.columns)
        if num_columns != {"no": 0, "two": 2}.get(expected, max(num_columns, 1)):
            raise ValueError(f"{self.name} has {expected} columns of targets, got {list(self.columns)}")
        if len(set(self.columns)) < num_columns or not all(map(str.strip, self.columns)):
            raise ValueError(f"expected columns whose names differ and are not empty, got {self.columns}")
        if of_classes and self.unit:
            raise ValueError(f"{self.name} has no unit, got {self.unit!r}")
        return self

    @property
    def of_classes(self) -> bool:
        """Whether a bag is labelled with a class; otherwise it is labelled with targets."""
        return not self.columns


CLASSIFICATION = TaskInfo()
"""The task of data sets whose manifest names none."""


def of_rows(rows: pa.Table, task: TaskInfo) -> np.ndarray:
    """The targets of the bags of a manifest.

    Args:
        rows: the rows of the manifest; each list has as many numbers as the task has columns.
        task: the task of the manifest.

    Returns:
        float64, N x K, NaN where a target is missing; N x 0 if the task labels bags with classes.
    """
    if task.of_classes:
        return np.zeros((len(rows), 0))
    values = rows[TARGETS].combine_chunks().flatten().fill_null(np.nan)
    return values.to_numpy(zero_copy_only=False).reshape(len(rows), len(task.columns))


def united(targets_SK: np.ndarray) -> np.ndarray | None:
    """The targets of a case by those of its slides, float64, K: of each what any slide knows, else NaN.

    Args:
        targets_SK: targets of each slide, NaN where one is missing.

    Returns:
        The targets; None if two slides have different ones.
    """
    low_K, high_K = np.fmin.reduce(targets_SK), np.fmax.reduce(targets_SK)
    return None if (low_K < high_K).any() else low_K


def as_cells(targets_K: np.ndarray) -> list[float | None]:
    """The targets of a bag as the manifest and JSON hold them: None for one that is missing."""
    return [None if np.isnan(target) else float(target) for target in targets_K]


def wrong(rows: pa.Table, task: TaskInfo) -> Iterator[tuple[np.ndarray, str]]:
    """The rules that the targets of a manifest must keep, one after the other.

    Args:
        rows: the rows of the manifest, with the column of targets.
        task: its task, which has columns.

    Yields:
        Whether each bag keeps the rule, bool, N; and what is wrong with a bag that does not.
    """
    count_N = pc.fill_null(pc.list_value_length(rows[TARGETS]), -1).to_numpy()
    num_columns = len(task.columns)
    yield count_N == num_columns, f"has not {num_columns} targets, one for each of {list(task.columns)}"
    values = rows[TARGETS].combine_chunks().flatten()
    missing_NK = values.is_null().to_numpy(zero_copy_only=False).reshape(-1, num_columns)
    targets_NK = of_rows(rows, task)
    yield (np.isfinite(targets_NK) | missing_NK).all(axis=1), "has a target that is not a finite number"
    if task.name == "multilabel":
        yield (np.isin(targets_NK, (0, 1)) | missing_NK).all(axis=1), "has a label other than 0 and 1"
        yield ~missing_NK.all(axis=1), "has no label at all"
    else:
        yield ~missing_NK.any(axis=1), f"lacks a target, and {task.name} needs all of them"
    if task.name == "survival":
        yield targets_NK[:, 0] > 0, f"has a time ({task.columns[0]!r}) that is not above 0"
        yield np.isin(targets_NK[:, 1], (0, 1)), f"has an event ({task.columns[1]!r}) that is not 0 or 1"
