"""What one network says of its test bags, by task: the plain arrays that the sections of a task are made of.

Dimensions: N bags, C grades, K targets or labels, T times of a grid, G risk groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from mhimdist.statistics import multilabel, ordinal, regression, survival
from mhimdist.statistics.bootstrap import Weighed


@dataclass(frozen=True, kw_only=True)
class Graded:
    """Grades of a network's test bags.

    Attributes:
        keys, cases: name and case of each bag.
        labels_N, predicted_N: int64 grades.
        probabilities_NC: probabilities of the grades; None if the network gives none.
        seed: the network's seed.
    """

    keys: Sequence[str]
    cases: Sequence[str]
    labels_N: np.ndarray
    predicted_N: np.ndarray
    num_classes: int
    probabilities_NC: np.ndarray | None = None
    seed: int | None = None

    @cached_property
    def weighed(self) -> Weighed:
        """Its measures, as functions of weights."""
        return ordinal.weighed(self.labels_N, self.predicted_N, self.cases, self.num_classes)


@dataclass(frozen=True, kw_only=True)
class Valued:
    """Values of a network's test bags.

    Attributes:
        keys, cases: name and case of each bag.
        targets_NK, predicted_NK: float64 values; a target may be NaN.
        columns: names of the K targets.
        seed: the network's seed.
    """

    keys: Sequence[str]
    cases: Sequence[str]
    targets_NK: np.ndarray
    predicted_NK: np.ndarray
    columns: Sequence[str]
    seed: int | None = None

    @cached_property
    def weighed(self) -> Weighed:
        """Its measures, as functions of weights."""
        return regression.weighed(self.targets_NK, self.predicted_NK, self.cases, self.columns)


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Labels of a network's test bags.

    Attributes:
        keys, cases: name and case of each bag.
        targets_NK: float64: 0, 1, or NaN for a missing cell.
        probabilities_NK: float64 probabilities of the labels.
        columns: names of the K labels.
        thresholds_K: the thresholds that validation bags chose; None without decisions.
        seed: the network's seed.
    """

    keys: Sequence[str]
    cases: Sequence[str]
    targets_NK: np.ndarray
    probabilities_NK: np.ndarray
    columns: Sequence[str]
    thresholds_K: np.ndarray | None = None
    seed: int | None = None

    @cached_property
    def weighed(self) -> Weighed:
        """Its measures, as functions of weights."""
        return multilabel.weighed(
            self.targets_NK,
            self.probabilities_NK,
            self.cases,
            self.columns,
            thresholds_K=self.thresholds_K,
        )


@dataclass(frozen=True, kw_only=True)
class Followed:
    """Follow-up of a network's test bags.

    Attributes:
        keys, cases: name and case of each bag.
        times_N, events_N: time until the event or until the case was last seen, and whether it happened.
        risks_N: the higher, the earlier the event.
        cuts: risks that divide the groups, from validation cases; empty without groups.
        grid_T: times at which to look; None takes those of the test cases' events.
        survival_NT: predicted probability of no event until each time of the grid; None if there is none.
        free: how likely it is not to be censored, by the training cases; None takes the test cases' own.
        seed: the network's seed.
    """

    keys: Sequence[str]
    cases: Sequence[str]
    times_N: np.ndarray
    events_N: np.ndarray
    risks_N: np.ndarray
    cuts: np.ndarray = field(default_factory=lambda: np.empty(0))
    grid_T: np.ndarray | None = None
    survival_NT: np.ndarray | None = None
    free: survival.Censoring | None = None
    seed: int | None = None

    @cached_property
    def censoring(self) -> survival.Censoring:
        """How likely it is not to be censored."""
        return self.free or survival.censoring(self.times_N, self.events_N)

    @cached_property
    def points_T(self) -> np.ndarray:
        """The times at which measures over time are looked at."""
        return survival.grid(self.times_N, self.events_N) if self.grid_T is None else self.grid_T

    @cached_property
    def weighed(self) -> Weighed:
        """Its measures, as functions of weights."""
        return survival.weighed(
            self.times_N,
            self.events_N,
            self.risks_N,
            self.cases,
            free=self.censoring,
            grid_T=self.points_T,
            survival_NT=self.survival_NT,
        )
