import numpy as np
import pytest
from scipy import stats

from mhimdist.errors import UndefinedError
from mhimdist.statistics import metrics
from mhimdist.statistics.bootstrap import bootstrap, case_counts
from mhimdist.statistics.metrics import Scores, auc, auc_difference_interval, auc_interval

pytestmark = pytest.mark.numeric


def test_counts_draw_as_many_cases_as_there_are():
    counts = case_counts(7, 50, seed=3)
    assert counts.shape == (50, 7)
    assert (counts.sum(axis=1) == 7).all()
    assert (counts == case_counts(7, 50, seed=3)).all()
    assert (counts != case_counts(7, 50, seed=4)).any()


def _bags(seed=0, num_cases=25):
    generator = np.random.default_rng(seed)
    cases = [f"c{i // 2}" for i in range(2 * num_cases)]
    labels = generator.integers(0, 2, len(cases))
    scores = 1 / (1 + np.exp(-generator.normal(size=len(cases)) - labels))
    return cases, labels, np.stack([1 - scores, scores], axis=1)


def test_any_metric_has_the_interval_that_the_auc_has():
    cases, labels, probabilities = _bags()
    found = bootstrap(cases, lambda rows: auc(labels[rows], probabilities[rows]), num_resamples=200)
    whole = auc_interval([Scores(labels, probabilities, cases)], num_resamples=200)
    assert (found.low, found.high) == pytest.approx(whole)
    assert found.value == auc(labels, probabilities)


def test_the_order_of_the_bags_changes_nothing():
    cases, labels, probabilities = _bags()
    order = np.random.default_rng(9).permutation(len(cases))
    mixed_cases, mixed_labels, mixed = [cases[i] for i in order], labels[order], probabilities[order]
    here = bootstrap(cases, lambda rows: auc(labels[rows], probabilities[rows]), num_resamples=100)
    there = bootstrap(mixed_cases, lambda rows: auc(mixed_labels[rows], mixed[rows]), num_resamples=100)
    assert (here.value, here.low, here.high) == pytest.approx((there.value, there.low, there.high))


def test_corrected_ends_are_scipys():
    values = np.random.default_rng(4).lognormal(size=40)
    cases = [f"{i:02d}" for i in range(40)]
    found = bootstrap(cases, lambda rows: float(values[rows].mean()), num_resamples=8000, method="bca")
    theirs = stats.bootstrap((values,), np.mean, n_resamples=8000, method="BCa", rng=0).confidence_interval
    spread = theirs.high - theirs.low
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.05 * spread)
    plain = bootstrap(cases, lambda rows: float(values[rows].mean()), num_resamples=8000)
    assert found.high > plain.high + 0.02 * spread  # a skewed mean


def test_a_paired_difference_is_narrower_than_two_intervals():
    cases, labels, probabilities = _bags()
    near = np.clip(probabilities + np.array([-0.01, 0.01]) * (labels[:, None] * 2 - 1), 0, 1)
    first, second = (Scores(labels, each, cases) for each in (near, probabilities))
    low, high = auc_difference_interval([first], [second], num_resamples=200)
    alone = auc_interval([second])
    assert high - low < 0.5 * (alone[1] - alone[0])
    assert low <= auc(labels, near) - auc(labels, probabilities) <= high
    found = bootstrap(
        cases,
        lambda rows: auc(labels[rows], near[rows]) - auc(labels[rows], probabilities[rows]),
        num_resamples=200,
    )
    assert (low, high) == pytest.approx((found.low, found.high))
    assert auc_difference_interval([first, second], [second, first]) == pytest.approx((0, 0))
    one_class = Scores(np.ones(2, int), np.full((2, 2), 0.5), ["a", "b"])
    assert auc_difference_interval([first], [one_class]) is None
    assert auc_difference_interval([], [first]) is None


def test_blocks_of_resamples_change_nothing(monkeypatch):
    cases, labels, probabilities = _bags()
    first, second = Scores(labels, probabilities, cases), Scores(labels, probabilities**2, cases)
    whole = auc_difference_interval([first], [second], num_resamples=101)
    monkeypatch.setattr(metrics, "MOST_WEIGHTS", 7 * len(cases))
    assert auc_difference_interval([first], [second], num_resamples=101) == whole


def test_undefined_inputs_say_why():
    with pytest.raises(UndefinedError, match="level"):
        bootstrap(["a", "b"], lambda rows: 1.0, level=1.0)
    with pytest.raises(UndefinedError, match="two cases"):
        bootstrap(["a", "a"], lambda rows: 1.0)
    with pytest.raises(UndefinedError, match="all bags is undefined"):
        bootstrap(["a", "b"], lambda rows: None)
    with pytest.raises(UndefinedError, match="too few for an interval"):
        bootstrap(list("abcdefghijkl"), lambda rows: 1.0 if len(set(rows.tolist())) == 12 else None)


def test_a_constant_metric_has_an_interval_without_width():
    for method in ("percentile", "bca"):
        found = bootstrap(["a", "b", "c"], lambda rows: 0.5, method=method)
        assert (found.low, found.high, found.error) == (0.5, 0.5, 0.0)
