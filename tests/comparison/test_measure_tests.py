import numpy as np
import pytest

from mhimdist.comparison.measures import Measured, measure_tests
from mhimdist.errors import ComparisonError
from mhimdist.statistics import ordinal, survival
from mhimdist.statistics.bootstrap import mean_of
from mhimdist.statistics.paired import FoldValue, bootstrap_tests, corrected_t, folds_test

pytestmark = pytest.mark.numeric


def _side(noise: float, *, folds: int = 3, num: int = 40) -> list[Measured]:
    """Survival of 40 cases per fold; the risk is the true one with some noise."""
    found = []
    for fold in range(folds):
        draw = np.random.default_rng(fold)
        risks, cases = draw.normal(size=num), [f"case-{fold}-{i}" for i in range(num)]
        times, events = draw.exponential(np.exp(-risks)), draw.random(num) < 0.7
        given = risks + noise * draw.normal(size=num)
        weighed = survival.weighed(times, events, given, cases, train_times=times, train_events=events)
        found.append(Measured(1, fold + 1, cases, weighed, num_train=2 * num))
    return found


def test_a_better_risk_is_found_better_by_both_tests():
    first, second = _side(0.1), _side(3.0)
    found = measure_tests(first, second, {"harrell_c": "C-index"}, num_resamples=200)
    assert [(each.test, each.metric) for each in found] == [
        ("bootstrap", "C-index"),
        ("corrected t", "C-index"),
    ]
    means = [mean_of([each.weighed for each in side])["harrell_c"] for side in (first, second)]
    for each in found:
        assert (each.first, each.second) == tuple(means)
        assert each.tested.difference == pytest.approx(means[0] - means[1])
    assert found[0].p < 0.05
    boot = bootstrap_tests([e.weighed for e in first], [e.weighed for e in second], num_resamples=200)
    assert found[0].tested == boot["harrell_c"]
    gaps = [a.values["harrell_c"] - b.values["harrell_c"] for a, b in zip(first, second, strict=True)]
    expected = corrected_t(gaps, 0.5)
    assert (found[1].tested.low, found[1].p) == pytest.approx((expected.low, expected.p))


def test_equal_sides_do_not_differ():
    for each in measure_tests(_side(0.5), _side(0.5), {"uno_c": "Uno's C"}, num_resamples=50):
        assert (each.tested.difference, each.p) == (0, 1)


def test_what_cannot_be_tested_says_why():
    cases = [f"c{i}" for i in range(6)]
    equal = ordinal.weighed(np.ones(6, int), np.ones(6, int), cases, 3)
    sides = [[Measured(1, 1, cases, equal)], [Measured(1, 1, cases, equal)]]
    boot, over_folds = measure_tests(*sides, {"kappa": "kappa"}, num_resamples=20)
    assert (boot.tested, boot.first) == (None, None)
    assert boot.note.startswith("not made: the measure of a network is undefined")
    assert "fewer than two folds" in over_folds.note
    one_case = ordinal.weighed(np.array([0, 1]), np.array([0, 1]), ["a", "a"], 3)
    sides = [[Measured(1, 1, ["s", "t"], one_case)]] * 2
    assert "at least two, got 1 and 1 cases" in measure_tests(*sides, {"kappa": "kappa"})[0].note


def test_sides_of_other_slides_are_refused():
    with pytest.raises(ComparisonError, match="got 120 and 80, of which 40 are in one only"):
        measure_tests(_side(0.1), _side(0.1, folds=2), {"harrell_c": "C-index"})


def test_folds_are_matched_by_seed_number_and_slides():
    first = {(1, fold): FoldValue(frozenset([f"s{fold}"]), 0.8 + fold / 10, 10, 40) for fold in (1, 2, 3)}
    second = {(1, fold): FoldValue(frozenset([f"s{fold}"]), 0.7, 10, 40) for fold in (1, 2)}
    second[1, 3] = FoldValue(frozenset(["other"]), 0.0, 10, 40)
    found = folds_test(first, second)
    expected = corrected_t([0.2, 0.3], 0.25)
    assert (found.difference, found.p) == pytest.approx((expected.difference, expected.p))
