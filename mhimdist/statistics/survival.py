"""How well risks and survival probabilities foretell events, where some cases are censored.

Own code, not a library's: scikit-survival has all of these, but its licence, GPL-3, would become that of
every program that is shipped with ours, and it pins one minor version of scikit-learn; lifelines (MIT) has
neither Uno's concordance nor the time-dependent AUC, and brings autograd and formulaic. The formulas are
short, and as functions of weights they answer for hundreds of resamples in one call. The tests hold them to
both libraries.

What is true of all: a larger risk means an earlier event. A censoring at the time of an event counts as later
than the event; two events at one time are no pair. `G` is the Kaplan-Meier estimate of not being censored,
from the training cases; the resamples keep it as it is. Where G is 0, or after the last training time, it
says nothing: an event there gets no weight, which truncates a measure at the training cases' follow-up (Uno
et al., 2011).

Dimensions: N bags, T times of a grid, U different times, E events, R rows of weights (resamples).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mhimdist.errors import UndefinedError
from mhimdist.statistics.bootstrap import Weighed
from mhimdist.statistics.metrics import share_in_order
from mhimdist.statistics.results import ratio, sums_by_value

_MOST_PAIRS = 2**20
"""How many pairs of bags are looked at in one go."""


@dataclass(frozen=True)
class Censoring:
    """The probability of not being censored up to a time, estimated on training cases.

    Attributes:
        times_U: float64, ascending: the training times, or those of the steps and the last one.
        free_U: G at these times.
    """

    times_U: np.ndarray
    free_U: np.ndarray

    @property
    def steps(self) -> "Censoring":
        """The same curve by its steps alone, the times at which it falls, and the last time."""
        falls_U = np.diff(self.free_U, prepend=1.0) < 0
        falls_U[-1] = True
        return Censoring(self.times_U[falls_U], self.free_U[falls_U])

    def at(self, times: np.ndarray) -> np.ndarray:
        """G at these times, float64; 0 after the last training time, where it is unknown."""
        place = np.searchsorted(self.times_U, times, side="right")
        free = np.concatenate([[1.0], self.free_U])[place]
        return np.where(np.asarray(times) > self.times_U[-1], 0.0, free)


def censoring(train_times: np.ndarray, train_events: np.ndarray) -> Censoring:
    """The Kaplan-Meier estimate of not being censored; events at a time come before censorings at it.

    Args:
        train_times: times of the training cases, > 0.
        train_events: whether a case had its event (bool, or 0 and 1); otherwise it is censored then.

    Raises:
        UndefinedError: there is no case, a time is not positive, or an event is not 0 or 1.
    """
    check_times(train_times, train_events)
    times_U, place_N = np.unique(train_times, return_inverse=True)
    happened_U = np.bincount(place_N, train_events.astype(bool), minlength=len(times_U))
    left_U = np.bincount(place_N, minlength=len(times_U))
    at_risk_U = left_U[::-1].cumsum()[::-1] - happened_U
    stays_U = 1 - np.nan_to_num(ratio(left_U - happened_U, at_risk_U))
    return Censoring(times_U, stays_U.cumprod())


def check_times(times_N: np.ndarray, events_N: np.ndarray) -> None:
    """Refuse what is no follow-up.

    Raises:
        UndefinedError: there is no case, the lengths differ, a time is not positive and finite, or an event
            is not 0 or 1.
    """
    if not len(times_N) or len(times_N) != len(events_N):
        raise UndefinedError(
            f"expected a time and an event per case, got {len(times_N)} times and {len(events_N)} events"
        )
    if not (fine := np.isfinite(times_N) & (np.asarray(times_N) > 0)).all():
        row = int(np.argmin(fine))
        raise UndefinedError(f"expected times above 0, got {times_N[row]} in row {row}")
    if not (fine := np.isin(events_N, (0, 1))).all():
        row = int(np.argmin(fine))
        raise UndefinedError(f"expected events 0 or 1, got {events_N[row]} in row {row}")


def grid(train_times: np.ndarray, train_events: np.ndarray, num_points: int = 20) -> np.ndarray:
    """Times at which to look, from training cases alone: between a tenth and nine tenths of their events.

    Args:
        train_times, train_events: as in `censoring`.
        num_points: the most times.

    Returns:
        float64, ascending, evenly spaced, at each of which G is above 0; one time if all events are at once,
        none without events.

    Raises:
        UndefinedError: see `censoring`.
    """
    free = censoring(train_times, train_events)
    happened = train_times[train_events.astype(bool)]
    if not len(happened):
        return np.empty(0)
    first, last = np.quantile(happened, [0.1, 0.9])
    points_T = np.unique(np.linspace(first, last, num_points))
    return points_T[free.at(points_T) > 0]


def measures(
    times_N: np.ndarray,
    events_N: np.ndarray,
    risks_N: np.ndarray,
    *,
    train_times: np.ndarray,
    train_events: np.ndarray,
    tau: float | None = None,
    grid_T: np.ndarray | None = None,
    survival_NT: np.ndarray | None = None,
) -> dict[str, float | None]:
    """How well risks foretell events, and how well survival probabilities do.

    Args:
        times_N: times until the event or until a case was last seen, > 0.
        events_N: whether the event happened (bool, or 0 and 1).
        risks_N: float64, the higher, the earlier the event; only their order counts.
        train_times, train_events: of the training cases, for G.
        tau: Uno's C counts events before this time; None takes all at which G is above 0.
        grid_T: times at which to look, ascending; None takes `grid` of the training cases.
        survival_NT: the predicted probability of no event until each time of the grid, in [0, 1]; None leaves
            out the Brier score.

    Returns:
        "harrell_c", the share of the comparable pairs in the right order, a tied risk counting half; "uno_c",
        the same with the weights 1 / G(t)^2; "dynamic_auc", the mean of the cumulative/dynamic AUC over the
        grid, weighted by the events of each step; "ibs", the Brier score integrated over the grid, divided by
        its length. Each is None if it is undefined: no comparable pair, or no time with both kinds of bags.

    Raises:
        UndefinedError: lengths or shapes differ, a value is out of its range, or there is no bag.
    """
    return weighed(
        times_N,
        events_N,
        risks_N,
        [""] * len(times_N),
        train_times=train_times,
        train_events=train_events,
        tau=tau,
        grid_T=grid_T,
        survival_NT=survival_NT,
    ).once()


def weighed(
    times_N: np.ndarray,
    events_N: np.ndarray,
    risks_N: np.ndarray,
    cases: Sequence[str],
    *,
    train_times: np.ndarray | None = None,
    train_events: np.ndarray | None = None,
    free: Censoring | None = None,
    tau: float | None = None,
    grid_T: np.ndarray | None = None,
    survival_NT: np.ndarray | None = None,
) -> Weighed:
    """The measures as functions of weights, for `bootstrap.estimates` and `paired.bootstrap_tests`.

    Args:
        times_N, events_N, risks_N, train_times, train_events, tau, grid_T, survival_NT: as in `measures`.
        cases: the case of each bag. Two bags of a case have one time, so they never form a pair.
        free: G itself, where it is known and the training cases are not; then `grid_T` is needed.

    Raises:
        UndefinedError: see `measures`.
    """
    _check(times_N, events_N, risks_N, cases)
    happened_N = np.asarray(events_N).astype(bool)
    if grid_T is None:
        grid_T = grid(*_cases(train_times, train_events))
    points_T = np.asarray(grid_T, dtype=np.float64)
    free = _known(free, train_times, train_events)
    if survival_NT is not None:
        _check_survival(survival_NT, len(times_N), points_T)
    weight_N = _inverse(free.at(times_N)) * happened_N
    before_N = np.ones(len(times_N), bool) if tau is None else times_N < tau

    def values(weights_RN: np.ndarray) -> dict[str, np.ndarray]:
        found = {
            "harrell_c": _concordance(times_N, happened_N, risks_N, happened_N * 1.0, weights_RN),
            "uno_c": _concordance(times_N, happened_N, risks_N, weight_N**2 * before_N, weights_RN),
        }
        aucs_RT = _dynamic_aucs(times_N, risks_N, weight_N, points_T, weights_RN)
        found["dynamic_auc"] = _mean_auc(aucs_RT, times_N, happened_N, points_T, weights_RN)
        if survival_NT is not None:
            losses_NT = _brier_terms(times_N, weight_N, survival_NT, points_T, free.at(points_T))
            found["ibs"] = _integral(weights_RN @ losses_NT, weights_RN, points_T)
        return found

    return Weighed(cases, values)


def dynamic_aucs(
    times_N: np.ndarray,
    events_N: np.ndarray,
    risks_N: np.ndarray,
    grid_T: np.ndarray,
    *,
    train_times: np.ndarray | None = None,
    train_events: np.ndarray | None = None,
    free: Censoring | None = None,
    weights_RN: np.ndarray | None = None,
) -> np.ndarray:
    """The cumulative/dynamic AUC at each time: bags with an event until then against those still at risk.

    Args:
        times_N, events_N, risks_N, train_times, train_events: as in `measures`.
        grid_T: times at which to look.
        free: G itself, where it is known and the training cases are not.
        weights_RN: how often each bag counts, for intervals; None counts each once.

    Returns:
        float64, shape (R, T), R = 1 without weights; NaN where there is no bag of one kind.

    Raises:
        UndefinedError: see `measures`.
    """
    _check(times_N, events_N, risks_N, [""] * len(times_N))
    free = _known(free, train_times, train_events)
    weight_N = _inverse(free.at(times_N)) * np.asarray(events_N).astype(bool)
    weights_RN = np.ones((1, len(times_N))) if weights_RN is None else weights_RN
    return _dynamic_aucs(times_N, risks_N, weight_N, grid_T, weights_RN)


def brier_scores(
    times_N: np.ndarray,
    events_N: np.ndarray,
    survival_NT: np.ndarray,
    grid_T: np.ndarray,
    *,
    train_times: np.ndarray | None = None,
    train_events: np.ndarray | None = None,
    free: Censoring | None = None,
    weights_RN: np.ndarray | None = None,
) -> np.ndarray:
    """The Brier score under censoring at each time (Graf et al., 1999); 0 is best, 0.25 says one half always.

    Args:
        times_N, events_N, survival_NT, train_times, train_events: as in `measures`.
        grid_T: the times of survival_NT.
        free: G itself, where it is known and the training cases are not.
        weights_RN: how often each bag counts, for intervals; None counts each once.

    Returns:
        float64, shape (R, T), R = 1 without weights; NaN where G is 0 or unknown.

    Raises:
        UndefinedError: see `measures`.
    """
    check_times(times_N, events_N)
    _check_survival(survival_NT, len(times_N), grid_T)
    free = _known(free, train_times, train_events)
    weight_N = _inverse(free.at(times_N)) * np.asarray(events_N).astype(bool)
    losses_NT = _brier_terms(times_N, weight_N, survival_NT, grid_T, free.at(grid_T))
    weights_RN = np.ones((1, len(times_N))) if weights_RN is None else weights_RN
    return ratio(weights_RN @ losses_NT, weights_RN.sum(axis=1)[:, None])


def _known(
    free: Censoring | None, train_times: np.ndarray | None, train_events: np.ndarray | None
) -> Censoring:
    return censoring(*_cases(train_times, train_events)) if free is None else free


def _cases(train_times: np.ndarray | None, train_events: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    if train_times is None or train_events is None:
        raise UndefinedError("expected times and events of training cases, or G and a grid, got neither")
    return train_times, train_events


def _check(times_N: np.ndarray, events_N: np.ndarray, risks_N: np.ndarray, cases: Sequence[str]) -> None:
    check_times(times_N, events_N)
    if not len(times_N) == len(risks_N) == len(cases):
        sizes = f"{len(times_N)} times, {len(risks_N)} risks and {len(cases)} cases"
        raise UndefinedError(f"expected a risk and a case per time, got {sizes}")
    if not (finite := np.isfinite(risks_N)).all():
        row = int(np.argmin(finite))
        raise UndefinedError(f"expected finite risks, got {risks_N[row]} for bag {row}")


def _check_survival(survival_NT: np.ndarray, num_bags: int, grid_T: np.ndarray) -> None:
    if survival_NT.shape != (num_bags, len(grid_T)):
        raise UndefinedError(
            f"expected survival probabilities of shape {(num_bags, len(grid_T))}, got {survival_NT.shape}"
        )
    if (np.diff(grid_T) <= 0).any():
        raise UndefinedError(f"expected ascending times, got {np.asarray(grid_T).tolist()}")
    if not ((survival_NT >= 0) & (survival_NT <= 1)).all():
        raise UndefinedError("expected survival probabilities in [0, 1], got one outside or not finite")


def _inverse(free: np.ndarray) -> np.ndarray:
    """1 / G, and 0 where G is 0."""
    return np.nan_to_num(ratio(np.ones_like(free), free))


def _concordance(
    times_N: np.ndarray,
    happened_N: np.ndarray,
    risks_N: np.ndarray,
    weight_N: np.ndarray,
    weights_RN: np.ndarray,
) -> np.ndarray:
    """The weighted share of the comparable pairs in the right order, shape R; a tied risk counts half.

    Args:
        times_N, happened_N, risks_N: as in `measures`.
        weight_N: the weight of the pairs whose earlier bag this is.
        weights_RN: how often each bag counts.
    """
    right_R, all_R = np.zeros(len(weights_RN)), np.zeros(len(weights_RN))
    rows_E = np.flatnonzero(happened_N & (weight_N > 0))
    step = max(1, _MOST_PAIRS // len(times_N))
    for start in range(0, len(rows_E), step):
        block_E = rows_E[start : start + step]
        time_E1, risk_E1 = times_N[block_E, None], risks_N[block_E, None]
        later_EN = (times_N > time_E1) | ((times_N == time_E1) & ~happened_N)
        credit_EN = later_EN * ((risks_N < risk_E1) + 0.5 * (risks_N == risk_E1))
        first_RE = weights_RN[:, block_E] * weight_N[block_E]
        right_R += (first_RE * (weights_RN @ credit_EN.T)).sum(axis=1)
        all_R += (first_RE * (weights_RN @ later_EN.T.astype(np.float64))).sum(axis=1)
    return ratio(right_R, all_R)


def _dynamic_aucs(
    times_N: np.ndarray,
    risks_N: np.ndarray,
    weight_N: np.ndarray,
    grid_T: np.ndarray,
    weights_RN: np.ndarray,
) -> np.ndarray:
    aucs_RT = np.full((len(weights_RN), len(grid_T)), np.nan)
    for t, time in enumerate(grid_T):
        until_N = times_N <= time
        aucs_RT[:, t] = share_in_order(risks_N, weights_RN * (weight_N * until_N), weights_RN * ~until_N)
    return aucs_RT


def _mean_auc(
    aucs_RT: np.ndarray,
    times_N: np.ndarray,
    happened_N: np.ndarray,
    grid_T: np.ndarray,
    weights_RN: np.ndarray,
) -> np.ndarray:
    """The mean over the times that have an AUC, weighted by the fall of the survival curve, shape R."""
    times_U = np.unique(times_N)
    left_RU, dead_RU = sums_by_value(times_N, weights_RN, weights_RN * happened_N)
    at_risk_RU = left_RU[:, ::-1].cumsum(axis=1)[:, ::-1]
    falls_RU = np.nan_to_num(ratio(dead_RU, at_risk_RU))
    survival_RU = np.concatenate([np.ones((len(weights_RN), 1)), (1 - falls_RU).cumprod(axis=1)], axis=1)
    survival_RT = survival_RU[:, np.searchsorted(times_U, grid_T, side="right")]
    steps_RT = -np.diff(survival_RT, axis=1, prepend=1.0)
    defined_RT = np.isfinite(aucs_RT)
    return ratio((np.nan_to_num(aucs_RT) * steps_RT).sum(axis=1), (steps_RT * defined_RT).sum(axis=1))


def _brier_terms(
    times_N: np.ndarray, weight_N: np.ndarray, survival_NT: np.ndarray, grid_T: np.ndarray, free_T: np.ndarray
) -> np.ndarray:
    """What each bag adds to the score at each time, shape (N, T); NaN where G is 0 or unknown."""
    until_NT = times_N[:, None] <= grid_T
    losses_NT = np.where(
        until_NT, survival_NT**2 * weight_N[:, None], (1 - survival_NT) ** 2 * _inverse(free_T)
    )
    return np.where(free_T > 0, losses_NT, np.nan)


def _integral(sums_RT: np.ndarray, weights_RN: np.ndarray, grid_T: np.ndarray) -> np.ndarray:
    """The trapezoidal mean over the times at which the score is defined, shape R; NaN with fewer than two."""
    scores_RT = ratio(sums_RT, weights_RN.sum(axis=1)[:, None])
    known_T = np.isfinite(sums_RT).all(axis=0)
    if known_T.sum() < 2:
        return np.full(len(weights_RN), np.nan)
    points_T = grid_T[known_T]
    return np.trapezoid(scores_RT[:, known_T], points_T, axis=1) / (points_T[-1] - points_T[0])
