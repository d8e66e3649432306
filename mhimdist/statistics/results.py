"""What a statistic returns, and the checks that all of them share.

Dimensions: N bags, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mhimdist.errors import UndefinedError


@dataclass(frozen=True)
class Estimate:
    """A value and its interval.

    Attributes:
        value: the estimate.
        low, high: the interval's ends.
        error: standard error of the value.
    """

    value: float
    low: float
    high: float
    error: float


@dataclass(frozen=True)
class Tested:
    """A difference, its interval, and the test of whether it is zero.

    Attributes:
        difference: the first value minus the second.
        low, high: the interval's ends; None if the method has none.
        statistic: the test's statistic; None if the method has none.
        p: two-sided p-value; None if the method has none for these inputs, see `note`.
        note: how it was formed, or why `p` is None.
    """

    difference: float
    low: float | None
    high: float | None
    statistic: float | None
    p: float | None
    note: str = ""


def normal_quantile(level: float) -> float:
    """The standard normal's quantile that a two-sided interval of this level reaches, such as 1.96.

    Raises:
        UndefinedError: the level is not in (0, 1).
    """
    from scipy.stats import norm  # a second to import, which training does not need

    if not 0 < level < 1:
        raise UndefinedError(f"expected the level of an interval in (0, 1), got {level}")
    return float(norm.ppf((1 + level) / 2))


def wald(difference: float, error: float, level: float, note: str = "") -> Tested:
    """The z-test of a difference with a standard error; without any spread there is no p unless it is 0."""
    from scipy.stats import norm

    reach = normal_quantile(level) * error
    if error > 0:
        z = difference / error
        return Tested(difference, difference - reach, difference + reach, z, float(2 * norm.sf(abs(z))), note)
    if difference == 0:
        return Tested(0.0, 0.0, 0.0, 0.0, 1.0, note)
    why = "no p: the scores leave no variance, because each classifier orders all pairs the same way"
    return Tested(difference, None, None, None, None, "; ".join(filter(None, (note, why))))


def check(
    labels_N: np.ndarray, scores: np.ndarray, cases: Sequence[str] | None = None, *, classes: int = 1
) -> None:
    """Refuse inputs that no statistic is defined for.

    Args:
        labels_N: int64 class indices.
        scores: a score per bag, shape (N), or class probabilities, shape (N, C).
        cases: the case of each bag, if there are cases.
        classes: the fewest different labels that are needed.

    Raises:
        UndefinedError: there is no bag, the lengths differ, a score is not finite, a label has no column, or
            too few classes have bags.
    """
    if not len(labels_N):
        raise UndefinedError("expected at least one bag, got none")
    if len(scores) != len(labels_N) or (cases is not None and len(cases) != len(labels_N)):
        sizes = f"{len(labels_N)} labels, {len(scores)} scores"
        raise UndefinedError(f"expected one score and one case per label, got {sizes}")
    if not (finite := np.isfinite(scores)).all():
        row = int(np.argwhere(~finite)[0][0])
        raise UndefinedError(f"expected finite scores, got {scores[row]} for bag {row}")
    if scores.ndim == 2 and not 0 <= labels_N.min() <= labels_N.max() < scores.shape[1]:
        raise UndefinedError(
            f"expected labels from 0 to {scores.shape[1] - 1}, one per column of probabilities, got "
            f"{labels_N.min()} to {labels_N.max()}"
        )
    found = np.unique(labels_N)
    if len(found) < classes:
        raise UndefinedError(f"expected bags of at least {classes} classes, got only class {found[0]}")
