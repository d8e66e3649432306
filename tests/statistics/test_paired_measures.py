import numpy as np
import pytest

from mhimdist.errors import UndefinedError
from mhimdist.statistics import bootstrap as module
from mhimdist.statistics import ordinal, regression, survival
from mhimdist.statistics.bootstrap import bootstrap, estimates, mean_of
from mhimdist.statistics.paired import bootstrap_tests

pytestmark = pytest.mark.numeric


def _two(seed=0, gap=0.0, num=40):
    """Two networks that err on the same cases; the second one errs by `gap` more."""
    draw = np.random.default_rng(seed)
    cases = [f"c{i // 2:02d}" for i in range(num)]
    truth = draw.normal(size=(num, 1))
    shared = np.repeat(draw.normal(size=(num // 2, 1)), 2, axis=0)
    first = truth + shared + draw.normal(scale=0.2, size=(num, 1))
    second = truth + shared + draw.normal(scale=0.2 + gap, size=(num, 1))
    return truth, first, second, cases


def test_the_interval_of_a_difference_is_the_general_bootstraps():
    truth, first, second, cases = _two()
    found = bootstrap_tests(
        [regression.weighed(truth, first, cases)],
        [regression.weighed(truth, second, cases)],
        num_resamples=200,
    )

    def gap(rows):
        one, other = (regression.measures(truth[rows], each[rows])["pearson"] for each in (first, second))
        return one - other

    expected = bootstrap(cases, gap, num_resamples=200)
    tested = found["pearson"]
    assert tested.difference == pytest.approx(expected.value)
    assert (tested.low, tested.high) == pytest.approx((expected.low, expected.high))
    assert tested.note == "bootstrap of 20 cases, 200 resamples"


def test_what_both_get_wrong_makes_no_difference_less_certain():
    truth, first, second, cases = _two()
    one, other = regression.weighed(truth, first, cases), regression.weighed(truth, second, cases)
    alone, tested = estimates([one])["pearson"], bootstrap_tests([one], [other])["pearson"]
    assert tested.high - tested.low < 0.3 * (alone.high - alone.low)


def test_equal_networks_differ_in_nothing_and_unlike_ones_in_much():
    truth, first, worse, cases = _two(gap=2.0)
    one = regression.weighed(truth, first, cases)
    same = bootstrap_tests([one], [one])["pearson"]
    assert (same.difference, same.low, same.high, same.p) == (0.0, 0.0, 0.0, 1.0)
    tested = bootstrap_tests([one], [regression.weighed(truth, worse, cases)], num_resamples=500)["rmse"]
    assert tested.high < 0
    assert tested.p == pytest.approx(2 / 501)
    back = bootstrap_tests([regression.weighed(truth, worse, cases)], [one], num_resamples=500)["rmse"]
    assert (back.difference, back.p) == (-tested.difference, tested.p)


def test_p_values_under_no_difference_are_not_too_small():
    found = []
    for seed in range(100):
        truth, first, second, cases = _two(seed)
        one, other = regression.weighed(truth, first, cases), regression.weighed(truth, second, cases)
        found.append(bootstrap_tests([one], [other], num_resamples=100)["mae"].p)
    assert np.mean(np.array(found) <= 0.1) < 0.2
    assert np.mean(found) == pytest.approx(0.5, abs=0.08)


def test_every_tasks_measures_can_be_tested():
    draw = np.random.default_rng(0)
    cases, grades = [f"c{i}" for i in range(30)], draw.integers(0, 3, 30)
    found = bootstrap_tests(
        [ordinal.weighed(grades, grades, cases, 3)],
        [ordinal.weighed(grades, draw.permutation(grades), cases, 3)],
        num_resamples=100,
    )
    assert found["kappa"].low > 0
    times, events = draw.exponential(size=30), draw.random(30) < 0.7
    how = {"train_times": times, "train_events": events}
    found = bootstrap_tests(
        [survival.weighed(times, events, -times, cases, **how)],
        [survival.weighed(times, events, draw.normal(size=30), cases, **how)],
        num_resamples=100,
    )
    assert list(found) == ["harrell_c", "uno_c", "dynamic_auc"]
    assert found["harrell_c"].low > 0


def test_networks_of_several_folds_are_averaged_in_the_same_resamples(monkeypatch):
    truth, first, _, cases = _two()
    parts = [
        regression.weighed(truth[rows], first[rows], [cases[i] for i in range(40)[rows]])
        for rows in (slice(0, 20), slice(20, 40))
    ]
    mean = mean_of(parts)["mae"]
    assert mean == pytest.approx(np.mean([part.once()["mae"] for part in parts]))
    whole = estimates(parts, num_resamples=101)
    assert whole["mae"].low < mean < whole["mae"].high
    monkeypatch.setattr(module, "MOST_WEIGHTS", 7 * 20)
    blocks = estimates(parts, num_resamples=101)
    assert (blocks["mae"].low, blocks["mae"].high) == pytest.approx((whole["mae"].low, whole["mae"].high))


def test_an_undefined_measure_has_no_interval_and_no_test():
    truth, first, _, cases = _two()
    constant = regression.weighed(np.ones_like(truth), first, cases)
    found = estimates([constant], num_resamples=50)
    assert found["pearson"] is None
    assert found["mae"].low < found["mae"].high
    assert mean_of([regression.weighed(truth, first, cases), constant])["pearson"] is None
    assert list(bootstrap_tests([constant], [constant], num_resamples=50)) == ["mae", "rmse"]
    one_case = regression.weighed(truth[:2], first[:2], cases[:2])
    assert set(estimates([one_case]).values()) == {None}
    rare = np.zeros_like(truth)
    rare[0] = 1  # in a third of the resamples all values are equal
    assert estimates([regression.weighed(rare, first, cases)], num_resamples=100)["pearson"] is not None


def test_networks_of_other_cases_are_refused():
    truth, first, _, cases = _two()
    one, part = (
        regression.weighed(truth, first, cases),
        regression.weighed(truth[:20], first[:20], cases[:20]),
    )
    with pytest.raises(UndefinedError, match="same cases for both and at least two, got 20 and 10"):
        bootstrap_tests([one], [part])
    with pytest.raises(UndefinedError, match="networks that tested bags"):
        estimates([])
    with pytest.raises(UndefinedError, match="level"):
        estimates([one], level=2)
