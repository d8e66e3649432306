"""The result of a finished fold: `result.json`."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mhimdist import files
from mhimdist.errors import CheckpointError
from mhimdist.statistics.metrics import Scores
from mhimdist.tasks import Judged, Task, restored

Protocol = Literal["strict", "paper"]
PAPER_WARNING = (
    "PAPER PROTOCOL: as in the authors' code, the test fold selects the epoch, stops the training and sets "
    "the threshold. The figures are therefore optimistic: use them only to reproduce the authors'."
)
STRICT_NOTE = (
    "Strict protocol: validation cases of the training fold select the epoch, stop the training and set the "
    "threshold."
)
OUTSIDE_WEIGHTS = (
    "the teacher starts from outside weights (teacher.weights), which may have been trained on this run's "
    "test slides"
)

_OF_TASKS = ("task", "validation_targets", "validation_predictions", "targets", "predictions")


@dataclass(frozen=True)
class Result:
    """The result of one fold with one seed. A search never tests its folds: their test fields are empty.

    Attributes:
        protocol: "strict", or "paper" if the test bags selected.
        seed, fold: the run's seed and its fold, counted from 1.
        config_digest, split_digest, data_digest: digests of the configuration, the split and the data set.
        num_epochs, best_epoch: number of epochs done, and the selected epoch, counted from 0.
        epoch_s: median seconds per epoch with its validation.
        num_parameters: parameters of the student.
        validation: metrics of the selected epoch's student on the validation bags, with what the task fits on
            them: the threshold of two classes.
        test: the same student's metrics on the test bags, with the same.
        validation_keys, validation_cases, validation_labels, validation_probabilities: one entry per
            validation bag, such as for fitting a temperature; empty if an earlier release wrote the result.
        keys, cases, labels, probabilities: one entry per test bag. Probabilities are those of classes or
            grades; other tasks have `predictions` in their place, and their labels are strata.
        missing_classes: classes without a bag in the validation or the test set, by the set's name; the
            metrics there are means over the other classes.
        note: what may make the figures optimistic, apart from the protocol; empty if nothing does.
        task: `Task.record` of the task, with what it has fitted as "fitted"; empty for classification, as in
            the files of earlier releases.
        validation_targets, targets: targets of each bag, None where one is missing; empty for classes.
        validation_predictions, predictions: what is predicted of each bag, by the columns of the task; empty
            for classes.
    """

    protocol: Protocol
    seed: int
    fold: int
    config_digest: str
    split_digest: str
    data_digest: str
    num_epochs: int
    best_epoch: int
    epoch_s: float
    num_parameters: int
    validation: Mapping[str, float | None]
    test: Mapping[str, float | None]
    keys: Sequence[str]
    cases: Sequence[str]
    labels: Sequence[int]
    probabilities: Sequence[Sequence[float]]
    validation_keys: Sequence[str] = ()
    validation_cases: Sequence[str] = ()
    validation_labels: Sequence[int] = ()
    validation_probabilities: Sequence[Sequence[float]] = ()
    note: str = ""
    missing_classes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    task: Mapping[str, Any] = field(default_factory=dict)
    validation_targets: Sequence[Sequence[float | None]] = ()
    validation_predictions: Sequence[Sequence[float]] = ()
    targets: Sequence[Sequence[float | None]] = ()
    predictions: Sequence[Sequence[float]] = ()

    def record(self) -> dict[str, Any]:
        """The content of `result.json`; of classification the fields that earlier releases know."""
        found = asdict(self)
        return found if self.task else {k: value for k, value in found.items() if k not in _OF_TASKS}

    @cached_property
    def meaning(self) -> Task:
        """What the predictions mean."""
        width = len((self.probabilities or self.validation_probabilities or [()])[0])
        return restored(self.task, [str(label) for label in range(width)])

    @property
    def judged(self) -> Judged:
        """The test bags as the task judges them."""
        predictions = self.predictions or self.probabilities
        return Judged.of(
            np.array(self.labels),
            np.array(self.targets, dtype=np.float64).reshape(len(self.labels), -1),
            np.array(predictions, dtype=np.float64).reshape(len(self.labels), -1),
            self.cases,
        )

    @property
    def scores(self) -> Scores:
        """The test bags' class scores."""
        return Scores(np.array(self.labels), np.array(self.probabilities), self.cases)

    @property
    def validation_scores(self) -> Scores | None:
        """The validation bags' scores; None if an earlier release wrote the result."""
        if not self.validation_keys:
            return None
        labels_N, probabilities_NC = np.array(self.validation_labels), np.array(self.validation_probabilities)
        return Scores(labels_N, probabilities_NC, self.validation_cases)


def read_result(file: Path) -> Result:
    """Read a fold's result.

    Raises:
        CheckpointError: the file is damaged, or another release wrote it.
    """
    try:
        result = Result(**files.parse_json(file.read_text(encoding="utf-8")))
        _check(result)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"{file} is not a result of this release ({error}); delete the file and run the same command "
            "again to judge the fold again"
        ) from error
    return result


def _check(result: Result) -> None:
    """Refuse sets whose lists differ in length, and metrics that are no numbers."""
    for prefix in ("", "validation_"):
        names = ["keys", "cases", "labels", "probabilities"]
        if getattr(result, f"{prefix}predictions"):
            names[3:] = ["targets", "predictions"]
        if len({len(getattr(result, prefix + name)) for name in names}) != 1:
            raise ValueError(f"{prefix}{', '.join(names[:-1])} and {names[-1]} differ in length")
    for name in ("validation", "test"):
        for metric, value in dict(getattr(result, name)).items():
            if value is not None and not isinstance(value, int | float):
                raise TypeError(f"{name}.{metric} is {value!r:.40}, expected a number")
