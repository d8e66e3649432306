"""Survival curves of groups of cases: Kaplan-Meier, numbers at risk, the log-rank test, and the groups.

Here a row is a case: several slides of a patient are one observation, see `by_case`. The tests hold the
curves and the test to lifelines' and scikit-survival's; `survival` says why the code is ours.

Dimensions: N cases, U different times, G groups, T marks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mhimdist.errors import UndefinedError
from mhimdist.statistics.results import quantile, ratio
from mhimdist.statistics.survival import check_times


@dataclass(frozen=True)
class KaplanMeier:
    """A Kaplan-Meier curve: it falls at events, and is flat in between.

    Attributes:
        times_U: float64, ascending; 0, then each different time.
        survival_U: the probability of no event until and at the time.
        low_U, high_U: Greenwood's interval on the log-log scale, which stays within [0, 1]; NaN where the
            curve is 0, because its variance is unbounded there.
        at_risk_U: number of cases that are followed until the time, or longer.
        events_U, censored_U: number of events and of censorings at the time.
    """

    times_U: np.ndarray
    survival_U: np.ndarray
    low_U: np.ndarray
    high_U: np.ndarray
    at_risk_U: np.ndarray
    events_U: np.ndarray
    censored_U: np.ndarray

    def at(self, times: np.ndarray) -> np.ndarray:
        """The curve at these times, float64; NaN after the last one, unless it has reached 0."""
        found = self.survival_U[np.maximum(np.searchsorted(self.times_U, times, side="right") - 1, 0)]
        return np.where((np.asarray(times) > self.times_U[-1]) & (found > 0), np.nan, found)

    @property
    def median(self) -> float | None:
        """The first time at which half of the cases have had their event; None if that is never seen."""
        # Rounded: a curve that is a product of shares misses one half by its last bit.
        reached = np.flatnonzero(np.round(self.survival_U, 12) <= 0.5)
        return float(self.times_U[reached[0]]) if len(reached) else None


def kaplan_meier(times_N: np.ndarray, events_N: np.ndarray, *, level: float = 0.95) -> KaplanMeier:
    """The Kaplan-Meier curve of these cases.

    Args:
        times_N: times until the event or until a case was last seen, > 0.
        events_N: whether the event happened (bool, or 0 and 1).
        level: confidence level of the interval at each time, in (0, 1).

    Raises:
        UndefinedError: there is no case, the lengths differ, a time is not positive, an event is not 0 or 1,
            or the level is not in (0, 1).
    """
    check_times(times_N, events_N)
    times_U, place_N = np.unique(times_N, return_inverse=True)
    events_U = np.bincount(place_N, np.asarray(events_N).astype(np.float64), minlength=len(times_U))
    left_U = np.bincount(place_N, minlength=len(times_U))
    at_risk_U = left_U[::-1].cumsum()[::-1]
    survival_U = (1 - events_U / at_risk_U).cumprod()
    variance_U = ratio(events_U, at_risk_U * (at_risk_U - events_U))
    variance_U = np.where(events_U == 0, 0.0, variance_U).cumsum()  # NaN from the time on at which all died
    low_U, high_U = _log_log(survival_U, variance_U, quantile(level))
    return KaplanMeier(
        np.concatenate([[0.0], times_U]),
        np.concatenate([[1.0], survival_U]),
        np.concatenate([[1.0], low_U]),
        np.concatenate([[1.0], high_U]),
        np.concatenate([[len(times_N)], at_risk_U]),
        np.concatenate([[0], events_U.astype(np.int64)]),
        np.concatenate([[0], left_U - events_U.astype(np.int64)]),
    )


def _log_log(survival_U: np.ndarray, variance_U: np.ndarray, z: float) -> tuple[np.ndarray, np.ndarray]:
    low_U, high_U = np.full(len(survival_U), np.nan), np.full(len(survival_U), np.nan)
    low_U[variance_U == 0] = high_U[variance_U == 0] = 1.0
    inside_U = (variance_U > 0) & (survival_U > 0) & (survival_U < 1)
    log_U = np.log(survival_U[inside_U])
    reach_U = z * np.sqrt(variance_U[inside_U]) / log_U
    low_U[inside_U], high_U[inside_U] = np.exp(log_U * np.exp(-reach_U)), np.exp(log_U * np.exp(reach_U))
    return low_U, high_U


def numbers_at_risk(times_N: np.ndarray, marks_T: np.ndarray) -> np.ndarray:
    """How many cases are followed until each mark, or longer: int64, shape T."""
    return (times_N[:, None] >= marks_T).sum(axis=0)


@dataclass(frozen=True)
class LogRank:
    """The log-rank test of whether groups have the same hazard.

    Attributes:
        statistic: chi-square.
        degrees: its degrees of freedom, one fewer than the groups compared.
        p: the p-value.
        observed_G, expected_G: events of each group, and how many there would be if all had the same hazard.
    """

    statistic: float
    degrees: int
    p: float
    observed_G: np.ndarray
    expected_G: np.ndarray


def log_rank(times_N: np.ndarray, events_N: np.ndarray, groups_N: np.ndarray) -> LogRank:
    """The log-rank test of two or more groups (Mantel, 1966; Peto and Peto, 1972).

    Args:
        times_N, events_N: as in `kaplan_meier`.
        groups_N: the group of each case, int64 from 0. A group none of whose cases is followed until an event
            says nothing and is left out.

    Raises:
        UndefinedError: fewer than two groups say something, there is no event, all events happen when one
            group alone is followed, or `kaplan_meier` would refuse the times.
    """
    from scipy.stats import chi2

    check_times(times_N, events_N)
    happened_N = np.asarray(events_N).astype(bool)
    times_U = np.unique(times_N[happened_N])
    groups_G = np.arange(int(groups_N.max()) + 1)
    member_NG = groups_N[:, None] == groups_G
    at_risk_UG = (times_N >= times_U[:, None]).astype(np.float64) @ member_NG
    dead_UG = ((times_N == times_U[:, None]) & happened_N).astype(np.float64) @ member_NG
    at_risk_U, dead_U = at_risk_UG.sum(axis=1), dead_UG.sum(axis=1)
    share_UG = ratio(at_risk_UG, at_risk_U[:, None])
    observed_G, expected_G = dead_UG.sum(axis=0), dead_U @ share_UG
    # The hypergeometric variance; with one case at risk nothing can vary.
    spread_U = np.nan_to_num(dead_U * ratio(at_risk_U - dead_U, at_risk_U - 1))
    variance_GG = np.diag(spread_U @ share_UG) - (share_UG * spread_U[:, None]).T @ share_UG
    kept = np.flatnonzero(expected_G > 0)
    if len(kept) < 2:
        raise UndefinedError(
            f"expected two groups that are followed until an event, got {len(kept)} with "
            f"{int(observed_G.sum())} events"
        )
    free = kept[:-1]  # the last one's difference follows from the others'
    variance = variance_GG[np.ix_(free, free)]
    if np.linalg.matrix_rank(variance) < len(free):
        raise UndefinedError(
            "the log-rank statistic has no variance: events and groups do not overlap in time"
        )
    gap = (observed_G - expected_G)[free]
    statistic = float(gap @ np.linalg.solve(variance, gap))
    return LogRank(statistic, len(free), float(chi2.sf(statistic, len(free))), observed_G, expected_G)


def cut_points(validation_risks: np.ndarray, num_groups: int = 2) -> np.ndarray:
    """Risks that divide validation cases into groups of one size: the median, or the terciles.

    Args:
        validation_risks: risks of validation cases. Cut points from the test cases would fit the groups to
            what they are tested on.
        num_groups: number G of groups, at least 2.

    Returns:
        float64, shape G - 1, ascending; all equal if all risks are.

    Raises:
        UndefinedError: there is no risk, one is not finite, or there are fewer than two groups.
    """
    if num_groups < 2 or not len(validation_risks) or not np.isfinite(validation_risks).all():
        raise UndefinedError(
            f"expected finite validation risks and at least two groups, got {len(validation_risks)} risks "
            f"and {num_groups} groups"
        )
    return np.quantile(validation_risks, np.arange(1, num_groups) / num_groups)


def risk_groups(risks_N: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """The group of each case: 0 for risks up to the first cut point, and so on; int64, shape N."""
    return np.searchsorted(cuts, risks_N, side="left")


def by_case(
    cases: Sequence[str], times_N: np.ndarray, events_N: np.ndarray, risks_N: np.ndarray
) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    """One row per case, sorted by name: its time, its event, and the mean risk of its bags.

    Args:
        cases: the case of each bag.
        times_N, events_N, risks_N: of each bag.

    Raises:
        UndefinedError: a case has two times or both an event and none, or the lengths differ.
    """
    if not len(cases) == len(times_N) == len(events_N) == len(risks_N):
        raise UndefinedError(f"expected as many times, events and risks as cases, got {len(cases)} cases")
    names, first, place_N = np.unique(np.asarray(cases, dtype=str), return_index=True, return_inverse=True)
    for what, values_N in (("times", times_N), ("events", events_N)):
        if (odd := values_N != values_N[first][place_N]).any():
            row = int(np.argmax(odd))
            one, other = values_N[first[place_N[row]]], values_N[row]
            raise UndefinedError(f"case {cases[row]} has two {what}, {one} and {other}")
    risks_K = np.bincount(place_N, risks_N) / np.bincount(place_N)
    return names.tolist(), times_N[first], events_N[first], risks_K
