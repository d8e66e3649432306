"""What a statistic returns, and the checks that all of them share.

Dimensions: N bags, C classes, R rows of amounts, U different values.
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


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """`part / whole`, float64; NaN where the whole is not above 0."""
    whole = np.asarray(whole, dtype=np.float64)
    shape = np.broadcast_shapes(np.shape(part), whole.shape)
    return np.divide(part, whole, out=np.full(shape, np.nan), where=np.broadcast_to(whole > 0, shape))


def sums_by_value(values_N: np.ndarray, *amounts_RN: np.ndarray) -> list[np.ndarray]:
    """The sums of amounts over the bags of each different value, ascending: each of shape (R, U)."""
    values_U, place_N = np.unique(values_N, return_inverse=True)
    order_N = np.argsort(place_N, kind="stable")
    starts_U = np.searchsorted(place_N[order_N], np.arange(len(values_U)))
    return [np.add.reduceat(each_RN[:, order_N], starts_U, axis=1) for each_RN in amounts_RN]


def tails(level: float) -> np.ndarray:
    """The shares below the two ends of an interval of this level, such as 0.025 and 0.975.

    Raises:
        UndefinedError: the level is not in (0, 1).
    """
    if not 0 < level < 1:
        raise UndefinedError(f"expected the level of an interval in (0, 1), got {level}")
    return np.array([(1 - level) / 2, (1 + level) / 2])


def quantile(level: float, degrees: int | None = None) -> float:
    """How many standard errors a two-sided interval of this level reaches, such as 1.96.

    Args:
        level: confidence level, in (0, 1).
        degrees: degrees of freedom of Student's t; None takes the normal distribution.

    Raises:
        UndefinedError: the level is not in (0, 1).
    """
    from scipy.stats import norm, t  # a second to import, which training does not need

    upper = tails(level)[1]
    return float(norm.ppf(upper) if degrees is None else t.ppf(upper, degrees))


def wald(difference: float, error: float, level: float, degrees: int | None = None) -> Tested:
    """The test of a difference with a standard error; without any spread there is no p unless it is 0.

    Args:
        difference, error: the difference and its standard error.
        level, degrees: as in `quantile`.

    Raises:
        UndefinedError: see `quantile`.
    """
    from scipy.stats import norm, t

    reach = quantile(level, degrees) * error
    if error > 0:
        statistic = difference / error
        tail = norm.sf(abs(statistic)) if degrees is None else t.sf(abs(statistic), degrees)
        note = "" if degrees is None else f"clustered by case, {degrees} degrees of freedom"
        return Tested(difference, difference - reach, difference + reach, statistic, float(2 * tail), note)
    if difference == 0:
        return Tested(0.0, 0.0, 0.0, 0.0, 1.0)
    why = "no p: the scores leave no variance, because each classifier orders all pairs the same way"
    return Tested(difference, None, None, None, None, why)


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
