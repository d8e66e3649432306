"""Held to scikit-survival and lifelines, and to defined behaviour where they raise."""

import lifelines
import numpy as np
import pytest
from sksurv import metrics as theirs
from sksurv.nonparametric import CensoringDistributionEstimator
from sksurv.util import Surv

from mhimdist.errors import UndefinedError
from mhimdist.statistics import survival
from mhimdist.statistics.bootstrap import bootstrap, estimates

pytestmark = pytest.mark.numeric


def _cases(seed=0, num=120, step=0.25):
    """Times on a lattice, so that many are tied, events with censorings, too; some risks are tied."""
    draw = np.random.default_rng(seed)
    risks = draw.normal(size=num).round(1)
    until = draw.exponential(np.exp(-risks) * 4)
    last_seen = draw.exponential(6, num)
    times = np.ceil(np.minimum(until, last_seen) / step) * step
    return times, until <= last_seen, risks, [f"c{i}" for i in range(num)]


def _train(seed=100, num=200):
    """Training cases that are followed longer than any test case, the last one censored."""
    times, events, _, _ = _cases(seed, num)
    return np.append(times, 60.0), np.append(events, False)


def _survival(risks, grid, seed=3):
    noise = np.random.default_rng(seed).uniform(0.7, 1.3, len(risks))
    return np.exp(-grid * (np.exp(risks) * noise / 4)[:, None])


@pytest.mark.parametrize("seed", range(4))
def test_the_concordances_are_scikit_survivals(seed):
    times, events, risks, _ = _cases(seed)
    train_times, train_events = _train(seed + 100)
    train_events[-1] = True  # so that G stays above 0 until the end
    train, test = Surv.from_arrays(train_events, train_times), Surv.from_arrays(events, times)
    found = survival.measures(times, events, risks, train_times=train_times, train_events=train_events)
    assert found["harrell_c"] == pytest.approx(
        theirs.concordance_index_censored(events, times, risks)[0], abs=1e-9
    )
    assert found["uno_c"] == pytest.approx(theirs.concordance_index_ipcw(train, test, risks)[0], abs=1e-9)
    for tau in (2.0, 5.0):
        found = survival.measures(
            times, events, risks, train_times=train_times, train_events=train_events, tau=tau
        )
        assert found["uno_c"] == pytest.approx(
            theirs.concordance_index_ipcw(train, test, risks, tau=tau)[0], abs=1e-9
        )


def test_harrells_concordance_is_lifelines_without_tied_times():
    times, events, risks, _ = _cases(5, step=1e-9)
    train = {"train_times": times, "train_events": events}
    found = survival.measures(times, events, risks, **train)["harrell_c"]
    assert found == pytest.approx(lifelines.utils.concordance_index(times, -risks, events), abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_the_curves_over_time_are_scikit_survivals(seed):
    times, events, risks, _ = _cases(seed)
    train_times, train_events = _train()
    train, test = Surv.from_arrays(train_events, train_times), Surv.from_arrays(events, times)
    how = {"train_times": train_times, "train_events": train_events}
    grid = np.array([0.5, 1.0, 2.0, 2.1, 4.0])  # on the lattice and off it
    aucs, mean = theirs.cumulative_dynamic_auc(train, test, risks, grid)
    assert survival.dynamic_aucs(times, events, risks, grid, **how)[0] == pytest.approx(aucs, abs=1e-9)
    chances = _survival(risks, grid)
    scores = theirs.brier_score(train, test, chances, grid)[1]
    assert survival.brier_scores(times, events, chances, grid, **how)[0] == pytest.approx(scores, abs=1e-9)
    found = survival.measures(times, events, risks, grid_T=grid, survival_NT=chances, **how)
    assert found["dynamic_auc"] == pytest.approx(mean, abs=1e-9)
    assert found["ibs"] == pytest.approx(theirs.integrated_brier_score(train, test, chances, grid), abs=1e-9)


def test_the_censoring_is_scikit_survivals():
    train_times, train_events = _train()
    free = survival.censoring(train_times, train_events)
    estimator = CensoringDistributionEstimator().fit(Surv.from_arrays(train_events, train_times))
    look = np.linspace(0.1, 59.9, 50)
    assert free.at(look) == pytest.approx(estimator.predict_proba(look), abs=1e-12)
    assert free.at(np.array([60.0, 61.0])).tolist() == [0.0, 0.0]  # the last one is censored; then unknown


def test_by_hand():
    """Events at 1 and 3, censored at 2; the training cases lose one of three still followed at 2."""
    times, events = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1, 0, 1, 0])
    risks = np.array([4.0, 1.0, 2.0, 3.0])
    how = {"train_times": times, "train_events": events}
    found = survival.measures(times, events, risks, grid_T=np.array([3.5]), **how)
    assert found["harrell_c"] == pytest.approx(3 / 4)  # 3 before 4 is wrong
    # G(1) = 1, G(3) = 2/3: weights 1 for three pairs, 9/4 for the wrong one.
    assert found["uno_c"] == pytest.approx(3 / (3 + 9 / 4))
    # At 3.5 the bags of 1 and 3, weights 1 and 3/2, against the one of 4.
    assert found["dynamic_auc"] == pytest.approx(1 / (1 + 3 / 2))
    scores = survival.brier_scores(times, events, np.full((4, 1), 0.5), np.array([3.5]), **how)
    assert scores[0, 0] == pytest.approx((0.25 * 1 + 0.25 * 1.5 + 0.25 * 1.5) / 4)


def test_what_no_pair_decides_is_none():
    times, risks = np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0])
    none, last, first = np.zeros(3), np.array([0, 0, 1]), np.array([1, 0, 0])
    nothing = dict.fromkeys(("harrell_c", "uno_c", "dynamic_auc"))
    assert survival.measures(times, none, risks, train_times=times, train_events=none) == nothing
    assert survival.measures(times, last, risks, train_times=times, train_events=last) == nothing
    tied = survival.measures(np.ones(3), np.ones(3), risks, train_times=times, train_events=first)
    assert tied["harrell_c"] is None
    single = survival.measures(times[:1], [1], risks[:1], train_times=times, train_events=first)
    assert set(single.values()) == {None}
    one_event = survival.measures(times, first, risks, train_times=times, train_events=first)
    assert one_event == {"harrell_c": 1.0, "uno_c": 1.0, "dynamic_auc": 1.0}


def test_tied_times_and_identical_risks():
    """An event comes before a censoring at its time; two events at one time are no pair."""
    how = {"train_times": np.array([1.0, 5.0]), "train_events": np.array([1, 1])}
    found = survival.measures(np.array([2.0, 2.0]), np.array([1, 0]), np.array([1.0, 0.0]), **how)
    assert found["harrell_c"] == 1.0
    times, events, risks, _ = _cases()
    train_times, train_events = _train()
    grid = np.array([1.0, 2.0])
    equal = survival.measures(
        times,
        events,
        np.full(len(risks), 0.1),
        train_times=train_times,
        train_events=train_events,
        grid_T=grid,
        survival_NT=np.full((len(risks), 2), 0.5),
    )
    assert (equal["harrell_c"], equal["uno_c"], equal["dynamic_auc"]) == (0.5, 0.5, 0.5)
    assert 0 < equal["ibs"] < 0.5


def test_permuted_risks_give_one_half_and_true_ones_more():
    times, events, risks, _ = _cases()
    train_times, train_events = _train()
    how = {"train_times": train_times, "train_events": train_events}
    draw = np.random.default_rng(1)
    found = [survival.measures(times, events, draw.permutation(risks), **how) for _ in range(100)]
    for name in ("harrell_c", "uno_c", "dynamic_auc"):
        assert np.mean([each[name] for each in found]) == pytest.approx(0.5, abs=0.02)
        assert survival.measures(times, events, risks, **how)[name] > 0.65
        assert survival.measures(times, events, -risks, **how)[name] < 0.35


def test_events_beyond_the_training_follow_up_have_no_weight():
    """scikit-survival raises here; the measure is truncated as by tau."""
    times, events, risks, _ = _cases()
    train_times, train_events = _train()
    short = train_times <= 4
    how = {
        "train_times": np.append(train_times[short], 4.1),
        "train_events": np.append(train_events[short], 0),
    }
    found = survival.measures(times, events, risks, **how)
    assert found["uno_c"] == survival.measures(times, events, risks, tau=4.1, **how)["uno_c"]
    train = Surv.from_arrays(how["train_events"].astype(bool), how["train_times"])
    expected = theirs.concordance_index_ipcw(train, Surv.from_arrays(events, times), risks, tau=4.1)[0]
    assert found["uno_c"] == pytest.approx(expected, abs=1e-9)
    grid = np.array([2.0, 3.0, 5.0])
    scores = survival.brier_scores(times, events, _survival(risks, grid), grid, **how)[0]
    assert np.isfinite(scores).tolist() == [True, True, False]
    both = survival.measures(times, events, risks, grid_T=grid, survival_NT=_survival(risks, grid), **how)
    assert both["ibs"] == pytest.approx((scores[0] + scores[1]) / 2)


def test_the_grid_is_of_the_training_events_alone():
    train_times, train_events = _train()
    grid = survival.grid(train_times, train_events, num_points=5)
    first, last = np.quantile(train_times[train_events], [0.1, 0.9])
    assert grid == pytest.approx(np.linspace(first, last, 5))
    assert not len(survival.grid(train_times, np.zeros(len(train_times))))
    assert survival.grid(np.array([2.0, 3.0]), np.array([1, 0])).tolist() == [2.0]


def test_the_interval_is_the_general_bootstraps(monkeypatch):
    times, events, risks, _ = _cases(num=60)
    cases = [f"c{i // 2}" for i in range(60)]
    train_times, train_events = _train()
    grid = np.array([0.5, 1.0, 2.0])
    how = {"train_times": train_times, "train_events": train_events, "grid_T": grid}
    chances = _survival(risks, grid)

    def again(rows, name):
        found = survival.measures(times[rows], events[rows], risks[rows], survival_NT=chances[rows], **how)
        return found[name]

    monkeypatch.setattr(survival, "_MOST_PAIRS", 7 * 60)  # blocks of seven events
    weighed = survival.weighed(times, events, risks, cases, survival_NT=chances, **how)
    found = estimates([weighed], num_resamples=60)
    assert set(found) == {"harrell_c", "uno_c", "dynamic_auc", "ibs"}
    for name, estimate in found.items():
        expected = bootstrap(cases, lambda rows, name=name: again(rows, name), num_resamples=60)
        assert estimate.value == pytest.approx(expected.value)
        assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"times_N": np.array([1.0, 0.0])}, "times above 0, got 0.0 in row 1"),
        ({"events_N": np.array([1, 2])}, "events 0 or 1, got 2 in row 1"),
        ({"risks_N": np.array([np.nan, 1])}, "finite risks, got nan for bag 0"),
        ({"risks_N": np.array([1.0])}, "2 times, 1 risks"),
        ({"events_N": np.array([1])}, "2 times and 1 events"),
        ({"survival_NT": np.ones((2, 1))}, r"shape \(2, 2\), got \(2, 1\)"),
        ({"survival_NT": np.full((2, 2), 1.5)}, r"in \[0, 1\]"),
        ({"grid_T": np.array([2.0, 1.0])}, "ascending"),
    ],
)
def test_what_is_no_follow_up_is_refused(change, why):
    fine = {
        "times_N": np.array([1.0, 2.0]),
        "events_N": np.array([1, 0]),
        "risks_N": np.array([1.0, 0.0]),
        "train_times": np.array([1.0, 2.0]),
        "train_events": np.array([1, 0]),
        "grid_T": np.array([1.0, 1.5]),
        "survival_NT": np.ones((2, 2)),
    }
    assert survival.measures(**fine)["harrell_c"] == 1.0
    with pytest.raises(UndefinedError, match=why):
        survival.measures(**fine | change)
