"""Paired tests beside DeLong's: of two classifiers, of any measures; and the adjustment for several pairs.

Dimensions: N bags, K cases, J folds x seeds, R resamples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mhimdist.errors import UndefinedError
from mhimdist.statistics.bootstrap import LEAST_DEFINED, Weighed, mean_of, resampled_means
from mhimdist.statistics.results import Tested, quantile, tails


def mcnemar(
    only_first: int, only_second: int, method: Literal["exact", "mid-p", "chi2"] = "exact"
) -> tuple[float, float]:
    """McNemar's test of two classifiers on the same independent bags.

    Args:
        only_first: number of bags that only the first one classifies correctly.
        only_second: number of bags that only the second one classifies correctly.
        method: "exact" (binomial), "mid-p" (the binomial, less conservative), or "chi2" without continuity
            correction. Fagerland et al. (2013) compare them.

    Returns:
        The statistic, which is the smaller number unless the method is "chi2", and the two-sided p-value.

    Raises:
        UndefinedError: a number is negative.
    """
    from scipy.stats import binom, chi2

    if min(only_first, only_second) < 0:
        raise UndefinedError(f"expected numbers of bags, got {only_first} and {only_second}")
    fewer, both = min(only_first, only_second), only_first + only_second
    if both == 0:
        return 0.0, 1.0
    if method == "chi2":
        statistic = (only_first - only_second) ** 2 / both
        return statistic, float(chi2.sf(statistic, 1))
    tail = binom.cdf(fewer, both, 0.5) - (0.5 * binom.pmf(fewer, both, 0.5) if method == "mid-p" else 0)
    return float(fewer), float(min(1.0, 2 * tail))


def clustered_mcnemar(gains_K: np.ndarray) -> tuple[float, float]:
    """McNemar's test where a case may have several bags (Yang, Sun and Hardin, 2010).

    With one bag per case it is McNemar's chi-square without continuity correction.

    Args:
        gains_K: per case, the number of bags that only the first classifies correctly minus the number that
            only the second does.

    Returns:
        The chi-square statistic with one degree of freedom, and the p-value.
    """
    from scipy.stats import chi2

    spread = float((gains_K.astype(np.float64) ** 2).sum())
    if spread == 0:
        return 0.0, 1.0
    statistic = float(gains_K.sum()) ** 2 / spread
    return statistic, float(chi2.sf(statistic, 1))


def accuracy_test(
    first_N: np.ndarray, second_N: np.ndarray, cases: Sequence[str], *, level: float = 0.95
) -> Tested:
    """The test of the difference of two accuracies on the same bags.

    The p-value is exact McNemar's if every case has one bag, otherwise `clustered_mcnemar`'s. The interval is
    Obuchowski's (1998): cases are the observations. If some have several bags, Student's t replaces the
    normal distribution, as in `delong`.

    Args:
        first_N, second_N: bool; whether each classifies a bag correctly.
        cases: the case of each bag.
        level: confidence level of the difference's interval, in (0, 1).

    Raises:
        UndefinedError: there are fewer than two cases, or the lengths differ.
    """
    if not len(first_N) == len(second_N) == len(cases):
        sizes = f"{len(first_N)}, {len(second_N)} and {len(cases)}"
        raise UndefinedError(f"expected the same bags for both and a case per bag, got {sizes}")
    gains_N = first_N.astype(np.int64) - second_N.astype(np.int64)
    names, place_N = np.unique(np.asarray(cases, dtype=str), return_inverse=True)
    if len(names) < 2:
        raise UndefinedError(f"expected at least two cases, got {len(names)}")
    bags_K, gains_K = np.bincount(place_N), np.bincount(place_N, gains_N)
    difference = float(gains_N.mean())
    residual = ((gains_K - bags_K * difference) ** 2).sum() * len(names) / (len(names) - 1)
    is_clustered = bags_K.max() > 1
    degrees = len(names) - 1 if is_clustered else None
    reach = quantile(level, degrees) * np.sqrt(residual) / len(gains_N)
    only_first, only_second = int((gains_N > 0).sum()), int((gains_N < 0).sum())
    statistic, p = clustered_mcnemar(gains_K) if is_clustered else mcnemar(only_first, only_second)
    how = "clustered by case" if is_clustered else "exact"
    note = f"{how}; only the first is right on {only_first} bags, only the second on {only_second}"
    return Tested(difference, difference - float(reach), difference + float(reach), statistic, p, note)


def corrected_t(differences_J: Sequence[float], test_to_train: float, *, level: float = 0.95) -> Tested:
    """The corrected resampled t-test of Nadeau and Bengio (2003), over folds and their repetitions.

    Folds share training data, so their differences are not independent; the correction adds the ratio of the
    test set's size to the training set's (Bouckaert and Frank, 2004, for repeated folds).

    Args:
        differences_J: the difference of the metric on each fold and seed, at least two.
        test_to_train: bags that test divided by bags that train.
        level: confidence level of the mean's interval, in (0, 1).

    Raises:
        UndefinedError: there are fewer than two folds, a difference is not finite, all of them are equal but
            not zero, or the ratio is not positive.
    """
    from scipy.stats import t

    values_J = np.asarray(differences_J, dtype=np.float64)
    if len(values_J) < 2 or not np.isfinite(values_J).all():
        raise UndefinedError(f"expected finite differences of at least two folds, got {values_J.tolist()}")
    if not test_to_train > 0:
        raise UndefinedError(f"expected test bags / training bags > 0, got {test_to_train}")
    mean, spread = float(values_J.mean()), float(values_J.std(ddof=1))
    degrees = len(values_J) - 1
    note = f"{degrees} degrees of freedom, test / train {test_to_train:.3g}"
    if spread <= 1e-12:
        if abs(mean) <= 1e-12:
            return Tested(0.0, 0.0, 0.0, 0.0, 1.0, note)
        raise UndefinedError(
            f"all {len(values_J)} differences are {mean:.3g}: they have no spread to test by"
        )
    error = spread * np.sqrt(1 / len(values_J) + test_to_train)
    statistic, reach = mean / error, quantile(level, degrees) * error
    p = float(2 * t.sf(abs(statistic), degrees))
    return Tested(mean, float(mean - reach), float(mean + reach), float(statistic), p, note)


@dataclass(frozen=True)
class FoldValue:
    """A measure on one fold with one seed.

    Attributes:
        keys: names of the test bags.
        value: the measure; None if it is undefined.
        num_test, num_train: numbers of test bags and of training bags.
    """

    keys: frozenset[str]
    value: float | None
    num_test: int
    num_train: int


Place = tuple[int | None, int | None]
"""Seed and fold."""


def folds_test(
    first: Mapping[Place, FoldValue], second: Mapping[Place, FoldValue], *, level: float = 0.95
) -> Tested:
    """The corrected resampled t-test over the folds and seeds that both sides have.

    Args:
        first, second: a measure of each side by seed and fold.
        level: as in `corrected_t`.

    Raises:
        UndefinedError: they share fewer than two folds, all shared ones test the same bags, a value is
            undefined, or `corrected_t` refuses the differences.
    """
    shared = [place for place in first if place in second and first[place].keys == second[place].keys]
    if len(shared) < 2:
        raise UndefinedError("the two sides share fewer than two folds with the same seed and test slides")
    if len({first[place].keys for place in shared}) < 2:
        raise UndefinedError("all runs test the same slides: their seeds differ, and their data do not")
    differences = []
    for place in shared:
        one, other = first[place].value, second[place].value
        if one is None or other is None:
            raise UndefinedError(f"the measure of fold {place[1]} with seed {place[0]} is undefined")
        differences.append(one - other)
    ratios = [
        side[place].num_test / (side[place].num_train or 1) for side in (first, second) for place in shared
    ]
    return corrected_t(differences, float(np.mean(ratios)), level=level)


def bootstrap_tests(
    first: Sequence[Weighed],
    second: Sequence[Weighed],
    *,
    num_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Tested]:
    """Test the differences of measures of the same bags, such as two kappas or two concordances.

    A resample draws cases for both, so what makes a case hard for both leaves the difference alone. The
    p-value is the one at which the percentile interval would just reach 0: twice the smaller share of the
    resamples on one side of it, which counts as one resample more (Davison and Hinkley, 1997), so it is never
    below 2 / (R + 1).

    Args:
        first, second: networks of the one and of the other, one or one per fold and seed; their means are
            compared.
        num_resamples: number R of resamples.
        level: confidence level of the differences' intervals, in (0, 1).
        seed: seed of the draws.

    Returns:
        A test for each measure that both have and that is defined for all networks and in enough resamples.

    Raises:
        UndefinedError: there is no network, one has no bag, the cases differ or are fewer than two, or the
            level is not in (0, 1).
    """
    ends = tails(level)
    cases = [{case for network in networks for case in network.cases} for networks in (first, second)]
    if cases[0] != cases[1] or len(cases[0]) < 2:
        sizes = f"{len(cases[0])} and {len(cases[1])}"
        raise UndefinedError(f"expected the same cases for both and at least two, got {sizes} cases")
    one, other = mean_of(first), mean_of(second)
    ones, others = resampled_means([first, second], num_resamples=num_resamples, seed=seed)
    found = {}
    for name in one.keys() & other.keys():
        gaps_R = ones[name] - others[name]
        gaps_R = gaps_R[np.isfinite(gaps_R)]
        if (here := one[name]) is None or (there := other[name]) is None:
            continue
        if len(gaps_R) < max(2, LEAST_DEFINED * num_resamples):
            continue
        low, high = np.quantile(gaps_R, ends)
        # What is equal but for rounding lies on both sides.
        beyond = min(np.count_nonzero(gaps_R <= 1e-12), np.count_nonzero(gaps_R >= -1e-12))
        p = float(min(1.0, 2 * (beyond + 1) / (len(gaps_R) + 1)))
        note = f"bootstrap of {len(cases[0])} cases, {len(gaps_R)} resamples"
        found[name] = Tested(here - there, float(low), float(high), None, p, note)
    return {name: found[name] for name in one if name in found}


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's (1979) adjusted p-values, in the given order; a missing one stays None and is not counted."""
    order = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, i) in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p))
        adjusted[i] = highest
    return adjusted
