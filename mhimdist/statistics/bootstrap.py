"""The bootstrap over cases: whole patients are drawn, with all of their bags.

Draws depend on the seed and on the sorted names of the cases, so the order of the bags changes nothing.

Dimensions: N bags, K cases, R resamples, M bags of a resample.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from mhimdist.errors import UndefinedError
from mhimdist.statistics.results import Estimate, tails

LEAST_DEFINED = 0.1
"""The least share of the resamples in which a metric must be defined for an interval of it."""


def case_counts(num_cases: int, num_resamples: int, seed: int) -> np.ndarray:
    """How often each resample draws each case, with replacement: int64, shape (R, K)."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(num_cases, np.full(num_cases, 1 / num_cases), size=num_resamples)


def bootstrap(
    cases: Sequence[str],
    value: Callable[[np.ndarray], float | None],
    *,
    num_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    method: Literal["percentile", "bca"] = "percentile",
) -> Estimate:
    """The bootstrap interval of any metric, resampled by case.

    Args:
        cases: the case of each bag, N of them.
        value: returns the metric of the bags at rows_M (int64; a row occurs as often as its case was drawn),
            or None if these rows have none. A difference of two metrics makes the interval paired.
        num_resamples: number R of resamples.
        level: share of the resamples inside the interval, in (0, 1).
        seed: seed of the draws.
        method: "percentile", or "bca": corrected for bias and acceleration (Efron, 1987), where the
            acceleration comes from leaving out one case at a time.

    Returns:
        The metric of all bags, its interval, and the standard deviation over the resamples.

    Raises:
        UndefinedError: the metric of all bags is undefined, there is one case only, fewer than
            `LEAST_DEFINED` of the resamples have the metric, or the level is not in (0, 1).
    """
    names, place_N = np.unique(np.asarray(cases, dtype=str), return_inverse=True)
    if len(names) < 2:
        raise UndefinedError(f"expected at least two cases to resample, got {len(names)}")
    rows_of = np.split(
        np.argsort(place_N, kind="stable"), np.cumsum(np.bincount(place_N, minlength=len(names)))[:-1]
    )
    whole = value(np.arange(len(place_N)))
    if whole is None:
        raise UndefinedError("the metric of all bags is undefined")

    def of(counts_K: np.ndarray) -> float:
        drawn = [np.tile(rows, count) for rows, count in zip(rows_of, counts_K, strict=True) if count]
        found = value(np.concatenate(drawn))
        return np.nan if found is None else found

    values_R = np.array([of(counts_K) for counts_K in case_counts(len(names), num_resamples, seed)])
    defined_R = values_R[np.isfinite(values_R)]
    if len(defined_R) < max(2, LEAST_DEFINED * num_resamples):
        raise UndefinedError(
            f"the metric is defined in {len(defined_R)} of {num_resamples} resamples of {len(names)} cases: "
            "too few for an interval"
        )
    ends = tails(level)
    if method == "bca":
        places_K = np.arange(len(names))
        left_out_K = np.array([of((places_K != k).astype(np.int64)) for k in places_K])
        ends = _bca_ends(ends, whole, defined_R, left_out_K[np.isfinite(left_out_K)])
    low, high = np.quantile(defined_R, ends)
    return Estimate(whole, float(low), float(high), float(defined_R.std(ddof=1)))


def _bca_ends(ends: np.ndarray, whole: float, values_R: np.ndarray, left_out_K: np.ndarray) -> np.ndarray:
    """The shares of the resamples at which the corrected interval ends."""
    from scipy.stats import norm

    below = (np.count_nonzero(values_R < whole) + np.count_nonzero(values_R <= whole)) / (2 * len(values_R))
    if not 0 < below < 1 or not len(left_out_K):
        return ends  # all resamples lie on one side: there is nothing to correct by
    bias = norm.ppf(below)
    gaps_K = left_out_K.mean() - left_out_K
    spread = (gaps_K**2).sum() ** 1.5
    acceleration = (gaps_K**3).sum() / (6 * spread) if spread > 0 else 0.0
    shifted = bias + norm.ppf(ends)
    return norm.cdf(bias + shifted / (1 - acceleration * shifted))
