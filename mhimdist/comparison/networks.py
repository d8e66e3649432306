"""A network as tables and tests see it: its test slides, what is known of them, and what it says of them.

Dimensions: N slides, C classes, or predictions of another task, K targets.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mhimdist.errors import CheckpointError, ComparisonError, ConfigError
from mhimdist.statistics.metrics import Scores
from mhimdist.tasks import Judged, Task, restored


@dataclass(frozen=True)
class Network:
    """The test scores of one network, or of one ensemble.

    Attributes:
        keys: the slides that it was tested on.
        scores: their labels, probabilities and cases; of other tasks than those of classes, their strata and
            whatever is predicted, by the columns of the task.
        threshold: with two classes, the lowest probability of the second one that is called positive.
        fold, seed: its fold, counted from 1, and its seed; None for an ensemble.
        num_train, num_test: bags of its split that trained and that tested; None if there is no split.
        folder: its fold's folder; None for an ensemble.
        task: what it predicts; None for classes without an order, which its scores say all of.
        targets_NK: float64 targets, NaN where one is missing; None if the labels are classes.
        fitted: what the task has fitted on the bags that selected.
    """

    keys: tuple[str, ...]
    scores: Scores
    threshold: float | None
    fold: int | None = None
    seed: int | None = None
    num_train: int | None = None
    num_test: int | None = None
    folder: Path | None = None
    task: Task | None = None
    targets_NK: np.ndarray | None = None
    fitted: Mapping[str, Any] = field(default_factory=dict)

    @property
    def judged(self) -> Judged:
        """Its test slides as a task judges them."""
        scores, targets_NK = self.scores, self.targets_NK
        if targets_NK is None:
            targets_NK = np.zeros((len(scores.labels_N), 0))
        return Judged(scores.labels_N, targets_NK, scores.probabilities_NC, scores.cases)

    @property
    def truth(self) -> list[object]:
        """What is known of each slide, as it compares: its class, or its targets, None where one is missing.

        Strata are not: they depend on the other slides of a data set.
        """
        if self.targets_NK is None:
            return [int(label) for label in self.scores.labels_N]
        return [
            tuple(None if np.isnan(cell) else cell for cell in row_K) for row_K in self.targets_NK.tolist()
        ]

    def only(self, slides: Iterable[str]) -> "Network | None":
        """The same network on these of its slides; None if it tested none of them."""
        wanted = set(slides)
        rows = [i for i, key in enumerate(self.keys) if key in wanted]
        if not rows:
            return None
        scores = Scores(
            self.scores.labels_N[rows],
            self.scores.probabilities_NC[rows],
            [self.scores.cases[i] for i in rows],
        )
        targets_NK = None if self.targets_NK is None else self.targets_NK[rows]
        return replace(self, keys=tuple(self.keys[i] for i in rows), scores=scores, targets_NK=targets_NK)


@dataclass(frozen=True)
class Said:
    """What a file says of its task: the task, None for classes without an order, and what it has fitted."""

    task: Task | None
    fitted: Mapping[str, Any]

    @classmethod
    def of(cls, file: Path, record: Mapping[str, Any] | None) -> "Said":
        """Make the task of a record; None and empty stand for classification."""
        if not record:
            return cls(None, {})
        try:
            return cls(restored(record, ()), record.get("fitted") or {})
        except (CheckpointError, ConfigError) as error:
            raise ComparisonError(f"{file}: {error}") from None

    def targets(self, file: Path, rows: Sequence[Sequence[float | None]], num: int) -> np.ndarray | None:
        """Targets of slides as numbers, NaN for None; None if the labels are classes."""
        if self.task is None or self.task.info.of_classes:
            return None
        try:
            targets_NK = np.array(rows, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ComparisonError(f"{file}: its targets are not numbers: {error}") from None
        if targets_NK.shape != (num, len(self.task.info.columns)):
            raise ComparisonError(
                f"{file}: expected the {', '.join(self.task.info.columns)} of {num} slides, got targets of "
                f"shape {targets_NK.shape}"
            )
        return targets_NK


def scores_of(
    file: Path,
    keys: Sequence[str],
    labels: Sequence[int],
    probabilities: Sequence[Sequence[float]],
    cases: Sequence[str],
    task: Task | None = None,
) -> Scores:
    try:
        labels_N = np.array(labels, dtype=np.int64)
        probabilities_NC = np.array(probabilities, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ComparisonError(f"{file}: its labels and probabilities are not numbers: {error}") from None
    if probabilities_NC.ndim != 2 or not len(keys) == len(labels_N) == len(probabilities_NC) == len(cases):
        raise ComparisonError(
            f"{file}: expected a label, a case and the probabilities of every class per slide, got "
            f"{len(keys)} slides, {len(labels_N)} labels, {len(cases)} cases and probabilities of shape "
            f"{probabilities_NC.shape}"
        )
    if not np.isfinite(probabilities_NC).all():
        slide = keys[int(np.argwhere(~np.isfinite(probabilities_NC))[0][0])]
        raise ComparisonError(f"{file}: the probabilities of slide {slide!r} are not finite")
    if len(set(keys)) < len(keys):
        twice = next(key for i, key in enumerate(keys) if key in keys[:i])
        raise ComparisonError(f"{file}: expected each slide once, got {twice!r} twice")
    if task is not None and probabilities_NC.shape[1] != len(task.columns):
        raise ComparisonError(
            f"{file}: expected the columns {', '.join(task.columns)} for each slide, got "
            f"{probabilities_NC.shape[1]}"
        )
    if (task is None or task.has_classes) and not (
        0 <= labels_N.min() <= labels_N.max() < probabilities_NC.shape[1]
    ):
        raise ComparisonError(f"{file}: a label is none of the {probabilities_NC.shape[1]} classes")
    return Scores(labels_N, probabilities_NC, list(cases))
