"""The result of a finished fold: `result.json`."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mhimdist import files
from mhimdist.config.protocols import Protocol
from mhimdist.config.sub_bags import sub_bags_text
from mhimdist.config.train import TrainConfig
from mhimdist.data.bags import BagSource
from mhimdist.errors import CheckpointError
from mhimdist.statistics.metrics import Scores
from mhimdist.tasks import Judged, Task, restored
from mhimdist.tasks.interface import Fitted

PAPER_WARNING = (
    "PAPER PROTOCOL: as in the authors' code, the test fold selects the epoch, stops the training and sets "
    "the threshold. The figures are therefore optimistic: use them only to reproduce the authors'."
)
STRICT_NOTE = (
    "Strict protocol: validation cases of the training fold select the epoch, stop the training and set what "
    "a decision needs, such as the threshold."
)
REFIT_NOTE = (
    "Refit protocol: inner folds of the training fold, by case, select the number of epochs on their mean "
    "validation curve, and their held-out scores set what a decision needs, such as the threshold; the "
    "network then trains again on the whole training fold for as many epochs and is tested once."
)
NESTED_NOTE = (
    "Nested protocol: inside each outer training fold a search on inner folds chooses the settings, and the "
    "same inner folds the number of epochs and what a decision needs, such as the threshold; the network "
    "then trains again on the whole outer training fold and is tested once, so that no figure has seen its "
    "own selection."
)
NOTES: Mapping[str, str] = {
    "strict": STRICT_NOTE,
    "paper": PAPER_WARNING,
    "refit": REFIT_NOTE,
    "nested": NESTED_NOTE,
}
"""What a reader of a protocol's figures must know, by the protocol."""
OUTSIDE_WEIGHTS = (
    "the teacher starts from outside weights (teacher.weights), which may have been trained on this run's "
    "test slides"
)
BAGS_ARE_CASES = "a bag is all slides of a case (bag_of case), so that all figures are by case"

_OF_TASKS = ("task", "validation_targets", "validation_predictions", "targets", "predictions")
_OF_REFIT = ("inner_runs", "validation_curve")


@dataclass(frozen=True)
class Result:
    """The result of one fold with one seed. A search never tests its folds: their test fields are empty.

    Attributes:
        protocol: "strict"; "paper" if the test bags selected; "refit" if inner folds did; "nested" if a
            search on the inner folds has chosen the configuration as well.
        seed, fold: the run's seed and its fold, counted from 1.
        config_digest, split_digest, data_digest: digests of the configuration, the split and the data set.
        num_epochs, best_epoch: number of epochs done, and the selected epoch, counted from 0; under refit the
            last one.
        epoch_s: median seconds per epoch with its validation.
        num_parameters: parameters of the student.
        validation: metrics of the selected epoch's student on the validation bags, with what the task fits on
            them: the threshold of two classes. Under refit, of the inner runs on the bags that each has held
            out, pooled; the mean over the inner runs if the task does not pool.
        test: the same student's metrics on the test bags, with the same.
        validation_keys, validation_cases, validation_labels, validation_probabilities: one entry per
            validation bag, such as for fitting a temperature; empty if an earlier release wrote the result.
            Under refit they are of the training bags, each scored by an inner run that held it out.
        keys, cases, labels, probabilities: one entry per test bag. Probabilities are those of classes or
            grades; other tasks have `predictions` in their place, and their labels are strata.
        missing_classes: classes without a bag in the validation or the test set, by the set's name; the
            metrics there are means over the other classes.
        note: what a reader of the figures must know apart from the protocol; may be empty.
        inner_runs: number of inner runs that chose the number of epochs and what the task fits, or 0.
        validation_curve: mean validation score of the inner runs after each epoch.
        task: `Task.record` of the task, with what it has fitted as "fitted"; empty for classification, as in
            the files of earlier releases.
        validation_targets, targets: targets of each bag, None where one is missing; empty for classes.
        validation_predictions, predictions: what is predicted of each bag, by the columns of the task; empty
            for classes.
        by_case: where bags are slides and a test case has several, metrics of the test cases by each rule of
            `tasks.cases`; otherwise empty.
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
    inner_runs: int = 0
    validation_curve: Sequence[float] = ()
    by_case: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    task: Mapping[str, Any] = field(default_factory=dict)
    validation_targets: Sequence[Sequence[float | None]] = ()
    validation_predictions: Sequence[Sequence[float]] = ()
    targets: Sequence[Sequence[float | None]] = ()
    predictions: Sequence[Sequence[float]] = ()

    def record(self) -> dict[str, Any]:
        """The content of `result.json`; what a run does not have is left out, as in earlier releases."""
        unused = {*(() if self.task else _OF_TASKS), *(() if self.inner_runs else _OF_REFIT)}
        unused |= set() if self.by_case else {"by_case"}
        return {name: value for name, value in asdict(self).items() if name not in unused}

    @cached_property
    def meaning(self) -> Task:
        """What the predictions mean."""
        width = len((self.probabilities or self.validation_probabilities or [()])[0])
        return restored(self.task, [str(label) for label in range(width)])

    @property
    def fitted(self) -> Fitted:
        """What the task has fitted on the bags that selected: the threshold of two classes."""
        return self.task.get("fitted") or {"threshold": {**self.validation, **self.test}.get("threshold")}

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
        expected = len(getattr(result, f"{prefix}keys"))
        names = [
            "cases",
            "labels",
            "predictions" if getattr(result, f"{prefix}predictions") else "probabilities",
        ]
        names += ["targets"] if getattr(result, f"{prefix}targets") else []
        for name in names:
            if (got := len(getattr(result, prefix + name))) != expected:
                raise ValueError(f"{prefix}{name} has {got} entries, expected {expected}, one per bag")
    tables = {"validation": result.validation, "test": result.test}
    tables |= {f"by_case.{how}": values for how, values in dict(result.by_case).items()}
    for name, table in tables.items():
        for metric, value in dict(table).items():
            if value is not None and not isinstance(value, int | float):
                raise TypeError(f"{name}.{metric} is {value!r:.40}, expected a number")


def note_on(config: TrainConfig, bags: BagSource) -> str:
    """What a reader of a run's figures must know apart from the protocol; may be empty.

    Args:
        config: the run's settings.
        bags: the data set.
    """
    outside = OUTSIDE_WEIGHTS if config.teacher.has_outside_weights else ""
    cases = BAGS_ARE_CASES if getattr(bags, "bag_of", "slide") == "case" else ""
    return "; ".join(filter(None, (outside, cases, sub_bags_text(config))))
