"""What a finished fold leaves: `result.json`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mhimdist.training.metrics import Scores

Protocol = Literal["strict", "paper"]
OUTSIDE_WEIGHTS = (
    "teacher from outside weights (teacher.weights): they may have been trained on this run's test slides"
)


@dataclass(frozen=True)
class Result:
    """What one fold with one seed left. A fold of a search is never tested: it leaves the test fields empty.

    Attributes:
        protocol: "strict", or "paper" where the test bags selected.
        seed, fold: of the run; folds count from 1.
        config_digest, split_digest, data_digest: of what it was made of.
        num_epochs, best_epoch: epochs done, and the selected one, counted from 0.
        epoch_s: median seconds of an epoch with its validation.
        num_parameters: of the student.
        validation: metrics of the selected epoch's student on the validation bags, at their Youden threshold.
        test: the same student's metrics on the test bags, at the same threshold.
        keys, cases, labels, probabilities: of the test bags.
        note: what may make the figures optimistic, except the protocol; empty where nothing does.
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
    note: str = ""

    @property
    def scores(self) -> Scores:
        """The test bags' scores."""
        return Scores(np.array(self.labels), np.array(self.probabilities), self.cases)
