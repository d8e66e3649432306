import lifelines
import numpy as np
import pytest
from sksurv.compare import compare_survival
from sksurv.nonparametric import kaplan_meier_estimator
from sksurv.util import Surv

from mhimdist.errors import UndefinedError
from mhimdist.statistics.survival_curves import (
    by_case,
    cut_points,
    kaplan_meier,
    log_rank,
    numbers_at_risk,
    risk_groups,
)

pytestmark = pytest.mark.numeric


def _times(seed=0, num=80):
    draw = np.random.default_rng(seed)
    groups = draw.integers(0, 3, num)
    until, last_seen = draw.exponential(4 + groups), draw.exponential(8, num)
    return np.ceil(np.minimum(until, last_seen) * 2) / 2, until <= last_seen, groups


@pytest.mark.parametrize("seed", range(3))
def test_the_curve_and_its_interval_are_those_of_both_libraries(seed):
    times, events, _ = _times(seed)
    found = kaplan_meier(times, events)
    fitter = lifelines.KaplanMeierFitter().fit(times, events)
    assert found.times_U == pytest.approx(fitter.survival_function_.index.to_numpy())
    assert found.survival_U == pytest.approx(fitter.survival_function_.to_numpy()[:, 0], abs=1e-9)
    known = found.survival_U > 0
    theirs = fitter.confidence_interval_.to_numpy()[known]
    assert found.low_U[known] == pytest.approx(theirs[:, 0], abs=1e-9)
    assert found.high_U[known] == pytest.approx(theirs[:, 1], abs=1e-9)
    assert found.median == fitter.median_survival_time_
    _, survival_U, ends = kaplan_meier_estimator(events, times, conf_type="log-log")
    assert found.survival_U[1:] == pytest.approx(survival_U, abs=1e-9)
    assert found.high_U[1:][known[1:]] == pytest.approx(ends[1][known[1:]], abs=1e-9)
    table = fitter.event_table
    assert found.at_risk_U.tolist() == table["at_risk"].tolist()
    assert found.events_U.tolist() == table["observed"].tolist()
    assert found.censored_U.tolist() == table["censored"].tolist()


def test_the_end_of_a_curve():
    """After the last case nothing is known, unless all have died; where the curve is 0 it has no interval."""
    alive = kaplan_meier(np.array([1.0, 2.0]), np.array([1, 0]))
    assert alive.at(np.array([0.5, 1.0, 2.0, 2.1])) == pytest.approx([1, 0.5, 0.5, np.nan], nan_ok=True)
    assert alive.median == 1.0
    dead = kaplan_meier(np.array([1.0, 2.0]), np.array([1, 1]))
    assert dead.at(np.array([1.5, 2.0, 9.0])).tolist() == [0.5, 0.0, 0.0]
    assert np.isnan([dead.low_U[-1], dead.high_U[-1]]).all()
    assert np.isfinite([dead.low_U[-2], dead.high_U[-2]]).all()
    censored = kaplan_meier(np.array([1.0, 2.0]), np.array([0, 0]))
    assert censored.survival_U.tolist() == censored.low_U.tolist() == [1, 1, 1]
    assert censored.median is None
    tenths = kaplan_meier(np.arange(1.0, 11), np.ones(10))
    assert tenths.median == 5.0  # though the product of the shares is not .5 to the last bit


def test_numbers_at_risk_count_those_followed_at_the_mark():
    times, events, _ = _times()
    curve = kaplan_meier(times, events)
    assert numbers_at_risk(times, curve.times_U).tolist() == curve.at_risk_U.tolist()
    assert numbers_at_risk(np.array([1.0, 2.0, 2.0]), np.array([0, 1, 1.5, 2, 3])).tolist() == [3, 3, 2, 2, 0]


@pytest.mark.parametrize("num_groups", [2, 3])
def test_the_log_rank_test_is_scikit_survivals(num_groups):
    times, events, groups = _times(1)
    groups = np.minimum(groups, num_groups - 1)
    found = log_rank(times, events, groups)
    statistic, p, table, covariance = compare_survival(
        Surv.from_arrays(events, times), groups, return_stats=True
    )
    assert (found.statistic, found.p) == pytest.approx((statistic, p), abs=1e-9)
    assert found.degrees == len(covariance) - 1 == num_groups - 1
    assert found.observed_G == pytest.approx(table["observed"].to_numpy())
    assert found.expected_G == pytest.approx(table["expected"].to_numpy())


def test_the_log_rank_test_by_hand():
    """Group 0 dies at 1, group 1 at 2: one of two is expected at 1, all of one at 2, where nothing varies."""
    found = log_rank(np.array([1.0, 2.0]), np.array([1, 1]), np.array([0, 1]))
    assert found.expected_G.tolist() == [0.5, 1.5]
    assert found.statistic == pytest.approx((1 - 0.5) ** 2 / 0.25)


def test_a_group_that_is_never_followed_until_an_event_is_left_out():
    times, events, groups = _times(1)
    two = groups < 2
    whole = log_rank(times[two], events[two], groups[two])
    early = log_rank(np.append(times[two], 0.1), np.append(events[two], False), np.append(groups[two], 2))
    assert (early.statistic, early.degrees, early.p) == pytest.approx((whole.statistic, 1, whole.p))
    assert early.expected_G[2] == 0


@pytest.mark.parametrize(
    ("times", "events", "groups"),
    [
        ([1.0, 2.0], [1, 1], [0, 0]),
        ([1.0, 2.0], [0, 0], [0, 1]),
        ([1.0, 2.0], [0, 1], [0, 1]),
    ],
)
def test_a_log_rank_test_of_nothing_is_refused(times, events, groups):
    with pytest.raises(UndefinedError, match="two groups that are followed until an event"):
        log_rank(np.array(times), np.array(events), np.array(groups))


def test_all_events_at_one_time_leave_no_variance():
    with pytest.raises(UndefinedError, match="no variance"):
        log_rank(np.array([1.0, 1.0]), np.array([1, 1]), np.array([0, 1]))


def test_random_groups_give_uniform_p_values():
    draw = np.random.default_rng(0)
    times, events, _ = _times(2, num=150)
    found = [log_rank(times, events, draw.integers(0, 3, 150)).p for _ in range(200)]
    assert np.mean(np.array(found) < 0.1) == pytest.approx(0.1, abs=0.06)
    assert np.mean(found) == pytest.approx(0.5, abs=0.07)


def test_groups_are_cut_at_validation_risks():
    validation = np.array([1.0, 2.0, 3.0, 4.0])
    assert cut_points(validation).tolist() == [2.5]
    terciles = cut_points(validation, 3)
    assert terciles.tolist() == pytest.approx([2, 3])
    assert risk_groups(np.array([0.0, 2.0, 2.1, 3.5]), np.array([2.0, 3.0])).tolist() == [0, 0, 1, 2]
    equal = np.full(3, 0.7)
    assert risk_groups(equal, cut_points(equal)).tolist() == [0, 0, 0]
    for risks, num_groups in ((validation[:0], 2), (validation, 1), (np.array([np.nan]), 2)):
        with pytest.raises(UndefinedError, match="at least two groups"):
            cut_points(risks, num_groups)


def test_slides_of_a_case_are_one_row():
    names, times, events, risks = by_case(
        ["b", "a", "b"], np.array([2.0, 1.0, 2.0]), np.array([1, 0, 1]), np.array([1.0, 5.0, 3.0])
    )
    assert (names, times.tolist(), events.tolist(), risks.tolist()) == (["a", "b"], [1, 2], [0, 1], [5, 2])
    with pytest.raises(UndefinedError, match=r"case b has two times, 2.0 and 3.0"):
        by_case(["b", "b"], np.array([2.0, 3.0]), np.array([1, 1]), np.zeros(2))
    with pytest.raises(UndefinedError, match="case b has two events, 1 and 0"):
        by_case(["b", "b"], np.array([2.0, 2.0]), np.array([1, 0]), np.zeros(2))
    with pytest.raises(UndefinedError, match="as many"):
        by_case(["b"], np.array([2.0, 2.0]), np.array([1, 0]), np.zeros(2))
