"""The result of a finished fold: `result.json`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from mhimdist.statistics.metrics import Scores

Protocol = Literal["strict", "paper", "refit", "nested"]
PAPER_WARNING = (
    "PAPER PROTOCOL: as in the authors' code, the test fold selects the epoch, stops the training and sets "
    "the threshold. The figures are therefore optimistic: use them only to reproduce the authors'."
)
STRICT_NOTE = (
    "Strict protocol: validation cases of the training fold select the epoch, stop the training and set the "
    "threshold."
)
REFIT_NOTE = (
    "Refit protocol: inner folds of the training fold, by case, select the number of epochs on their mean "
    "validation curve and set the threshold on their pooled held-out scores; the network then trains again "
    "on the whole training fold for as many epochs and is tested once."
)
NESTED_NOTE = (
    "Nested protocol: inside each outer training fold a search on inner folds chooses the settings, and the "
    "same inner folds the number of epochs and the threshold; the network then trains again on the whole "
    "outer training fold and is tested once, so that no figure has seen its own selection."
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
        validation: metrics of the selected epoch's student on the validation bags, at their Youden threshold;
            under refit, of the inner runs on the bags that each has held out, pooled.
        test: the same student's metrics on the test bags, at the same threshold.
        validation_keys, validation_cases, validation_labels, validation_probabilities: one entry per
            validation bag, such as for fitting a temperature; empty if an earlier release wrote the result.
            Under refit they are of the training bags, each scored by an inner run that held it out.
        keys, cases, labels, probabilities: one entry per test bag.
        missing_classes: classes without a bag in the validation or the test set, by the set's name; the
            metrics there are means over the other classes.
        note: what may make the figures optimistic, apart from the protocol; empty if nothing does.
        inner_runs: number of inner runs that chose the number of epochs and the threshold; 0 without any.
        validation_curve: mean validation score of the inner runs after each epoch.
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
