"""The result of a finished fold: `result.json`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from mhimdist.config.sub_bags import sub_bags_text
from mhimdist.config.train import TrainConfig
from mhimdist.data.bags import BagSource
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
BAGS_ARE_CASES = "a bag is all slides of a case (bag_of case), so that all figures are by case"


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
        note: what a reader of the figures must know apart from the protocol; may be empty.
        by_case: where bags are slides and a test case has several, metrics of the test cases by each rule of
            `statistics.cases`; otherwise empty.
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
    by_case: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)

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


def note_on(config: TrainConfig, bags: BagSource) -> str:
    """What a reader of a run's figures must know apart from the protocol; may be empty.

    Args:
        config: the run's settings.
        bags: the data set.
    """
    outside = OUTSIDE_WEIGHTS if config.teacher.has_outside_weights else ""
    cases = BAGS_ARE_CASES if getattr(bags, "bag_of", "slide") == "case" else ""
    return "; ".join(filter(None, (outside, cases, sub_bags_text(config))))
