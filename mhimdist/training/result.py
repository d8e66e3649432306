"""The result of a finished fold: `result.json`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from mhimdist import files
from mhimdist.errors import CheckpointError
from mhimdist.statistics.metrics import Scores

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
        validation: metrics of the selected epoch's student on the validation bags, at their Youden threshold.
        test: the same student's metrics on the test bags, at the same threshold.
        validation_keys, validation_cases, validation_labels, validation_probabilities: one entry per
            validation bag, such as for fitting a temperature; empty if an earlier release wrote the result.
        keys, cases, labels, probabilities: one entry per test bag.
        missing_classes: classes without a bag in the validation or the test set, by the set's name; the
            metrics there are means over the other classes.
        note: what may make the figures optimistic, apart from the protocol; empty if nothing does.
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

    @property
    def scores(self) -> Scores:
        """The test bags' scores."""
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
        lists = [getattr(result, prefix + name) for name in ("keys", "cases", "labels", "probabilities")]
        if len({len(each) for each in lists}) != 1:
            raise ValueError(f"{prefix}keys, cases, labels and probabilities differ in length")
    for name in ("validation", "test"):
        for metric, value in dict(getattr(result, name)).items():
            if value is not None and not isinstance(value, int | float):
                raise TypeError(f"{name}.{metric} is {value!r:.40}, expected a number")
