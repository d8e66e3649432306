"""DeLong's variance against the paper's own data, the definition, and what must hold of any p-value."""

import numpy as np
import pytest
from scipy.stats import kstest

from mhimdist.errors import UndefinedError
from mhimdist.statistics.delong import auc_influence, delong_interval, delong_test, placements
from mhimdist.statistics.metrics import Scores, auc

pytestmark = pytest.mark.numeric

# The patients of DeLong, DeLong and Clarke-Pearson (1988): albumin, total protein, K-G score, and whether
# surgery was no benefit, as SAS/STAT's example "Comparing Receiver Operating Characteristic Curves" has them.
PATIENTS = """3.0 5.8 10 0 3.2 6.3 5 1 3.9 6.8 3 1 2.8 4.8 6 0 3.2 5.8 3 1 0.9 4.0 5 0 2.5 5.7 8 0 1.6 5.6 5 1
    3.8 5.7 5 1 3.7 6.7 6 1 3.2 5.4 4 1 3.8 6.6 6 1 4.1 6.6 5 1 3.6 5.7 5 1 4.3 7.0 4 1 3.6 6.7 4 0
    2.3 4.4 6 1 4.2 7.6 4 0 4.0 6.6 6 0 3.5 5.8 6 1 3.8 6.8 7 1 3.0 4.7 8 0 4.5 7.4 5 1 3.7 7.4 5 1
    3.1 6.6 6 1 4.1 8.2 6 1 4.3 7.0 5 1 4.3 6.5 4 1 3.2 5.1 5 1 2.6 4.7 6 1 3.3 6.8 6 0 1.7 4.0 7 0
    3.7 6.1 5 1 3.3 6.3 7 1 4.2 7.7 6 1 3.5 6.2 5 1 2.9 5.7 9 0 2.1 4.8 7 1 2.8 6.2 8 0 4.0 7.0 7 1
    3.3 5.7 6 1 3.7 6.9 5 1 3.6 6.6 5 1"""


def _scores(labels, scores, cases=None):
    scores = np.asarray(scores, dtype=float)
    named = cases if cases is not None else [str(i) for i in range(len(labels))]
    return Scores(np.asarray(labels, dtype=np.int64), np.stack([-scores, scores], axis=1), named)


@pytest.fixture
def patients():
    albumin, protein, kg, labels = np.array([float(word) for word in PATIENTS.split()]).reshape(-1, 4).T
    columns = {"albumin": albumin, "protein": protein, "kg": 10 - kg}
    return {name: [_scores(labels, column)] for name, column in columns.items()}


def test_the_papers_patients_have_the_published_areas(patients):
    published = {"albumin": (0.7366, 0.0927), "kg": (0.7258, 0.1028), "protein": (0.6478, 0.1000)}
    for name, (area, error) in published.items():
        found = delong_interval(patients[name])
        assert (found.value, found.error) == pytest.approx((area, error), abs=5e-5)
    assert (delong_interval(patients["kg"]).low, delong_interval(patients["kg"]).high) == pytest.approx(
        (0.5243, 0.9273), abs=1e-4
    )


def test_the_papers_patients_have_the_published_differences(patients):
    for name, (difference, chi_square, p) in {
        "albumin": (0.0108, 0.0127, 0.9102),
        "protein": (-0.0780, 0.5554, 0.4561),
    }.items():
        found = delong_test(patients[name], patients["kg"])
        assert found.difference == pytest.approx(difference, abs=5e-5)
        assert (found.statistic**2, found.p) == pytest.approx((chi_square, p), abs=5e-5)
        assert found.low < difference < found.high


def _kernel(labels, scores):
    """Every pair of a positive (row) and a negative (column): 1 in order, 1/2 tied, 0 otherwise."""
    gaps = scores[labels == 1][:, None] - scores[labels == 0][None, :]
    return (gaps > 0) + 0.5 * (gaps == 0)


def _brute_covariance(labels, first, second):
    """DeLong's covariance of two AUCs by the definition, over all pairs."""
    pairs = [_kernel(labels, scores) for scores in (first, second)]
    positive, negative = pairs[0].shape
    rows, columns = [each.mean(1) for each in pairs], [each.mean(0) for each in pairs]
    return np.cov(*rows)[0, 1] / positive + np.cov(*columns)[0, 1] / negative


@pytest.mark.parametrize("seed", range(5))
def test_variance_and_covariance_are_those_of_all_pairs(seed):
    generator = np.random.default_rng(seed)
    labels = np.concatenate([[0, 0, 1, 1], generator.integers(0, 2, 60)])
    first = np.round(generator.normal(size=64) + labels, 1)  # ties
    second = np.round(0.5 * first + generator.normal(size=64), 1)
    placed = placements(labels == 1, first)
    assert placed[labels == 1] == pytest.approx(_kernel(labels, first).mean(1), abs=1e-12)
    assert placed[labels == 0] == pytest.approx(_kernel(labels, first).mean(0), abs=1e-12)
    found = auc_influence([_scores(labels, first)])
    assert found.value == pytest.approx(auc(labels, np.stack([-first, first], 1)), abs=1e-12)
    assert found.error**2 == pytest.approx(_brute_covariance(labels, first, first), abs=1e-9)
    variance = (
        _brute_covariance(labels, first, first)
        + _brute_covariance(labels, second, second)
        - 2 * _brute_covariance(labels, first, second)
    )
    test = delong_test([_scores(labels, first)], [_scores(labels, second)])
    assert (test.difference / test.statistic) ** 2 == pytest.approx(variance, abs=1e-9)


def test_bags_of_a_case_are_one_observation():
    """Obuchowski's (1997) variance, written out with its sums over cases."""
    generator = np.random.default_rng(2)
    cases = [f"c{i // 3}" for i in range(90)]
    labels = generator.integers(0, 2, 90)
    scores = generator.normal(size=90) + labels + np.repeat(generator.normal(size=30), 3)
    pairs = _kernel(labels, scores)
    area, (positive, negative) = pairs.mean(), pairs.shape
    names = sorted(set(cases))
    of = np.array(cases)
    x = np.array([(pairs.mean(1) - area)[of[labels == 1] == name].sum() for name in names])
    y = np.array([(pairs.mean(0) - area)[of[labels == 0] == name].sum() for name in names])
    with_positive, with_negative = len(set(of[labels == 1])), len(set(of[labels == 0]))
    s10 = with_positive / ((with_positive - 1) * positive) * (x**2).sum()
    s01 = with_negative / ((with_negative - 1) * negative) * (y**2).sum()
    s11 = len(names) / (len(names) - 1) * (x * y).sum()
    variance = s10 / positive + s01 / negative + 2 * s11 / (positive * negative)
    found = delong_interval([_scores(labels, scores, cases)])
    assert found.error**2 == pytest.approx(variance, abs=1e-12)


def test_copies_of_a_case_say_no_more_than_one():
    part = _folds(4, num_folds=1)[0]
    once, labels, scores = delong_interval([part]), part.labels_N, part.probabilities_NC[:, 1]
    copied = _scores(np.repeat(labels, 5), np.repeat(scores, 5), np.repeat(part.cases, 5).tolist())
    found = delong_interval([copied])
    assert (found.value, found.error) == pytest.approx((once.value, once.error), abs=1e-12)
    alone = delong_interval([_scores(copied.labels_N, copied.probabilities_NC[:, 1])])
    assert found.error > 2 * alone.error


def _folds(seed, shift=1.0, num_folds=3, size=60):
    """Scores of folds whose networks have scales of their own, and whose cases differ."""
    generator = np.random.default_rng(seed)
    parts = []
    for fold in range(num_folds):
        labels = np.arange(size) % 2
        scores = (generator.normal(size=size) + shift * labels) * 10**fold
        parts.append(_scores(labels, scores, [f"{fold}-{i}" for i in range(size)]))
    return parts


def test_disjoint_folds_add_their_variances_and_seeds_do_not():
    folds = _folds(0)
    each = [delong_interval([part]) for part in folds]
    together = delong_interval(folds)
    assert together.value == pytest.approx(np.mean([one.value for one in each]))
    assert together.error**2 == pytest.approx(sum(one.error**2 for one in each) / 9)
    assert delong_interval(folds * 4).error == pytest.approx(together.error)  # the same patients again


def test_the_order_of_bags_and_networks_changes_nothing():
    folds = _folds(1)
    order = np.random.default_rng(0).permutation(60)
    mixed = [
        Scores(part.labels_N[order], part.probabilities_NC[order], [part.cases[i] for i in order])
        for part in reversed(folds)
    ]
    assert delong_test(folds, mixed).difference == pytest.approx(0, abs=1e-12)
    assert delong_test(folds, mixed).p == 1.0
    assert delong_interval(folds).error == pytest.approx(delong_interval(mixed).error)


def test_more_classes_are_the_mean_of_each_against_the_rest():
    generator = np.random.default_rng(3)
    labels = generator.integers(0, 3, 80)
    probabilities = generator.dirichlet(np.ones(3), 80)
    part = Scores(labels, probabilities, [str(i) for i in range(80)])
    found = auc_influence([part])
    assert found.value == pytest.approx(auc(labels, probabilities))
    # The sampling spread of many such sets is what the error estimates.
    values = []
    for _ in range(400):
        rows = generator.integers(0, 80, 80)
        values.append(auc(labels[rows], probabilities[rows]))
    assert found.error == pytest.approx(np.std(values), rel=0.15)


def test_few_cases_of_many_bags_are_not_called_different_too_often():
    generator = np.random.default_rng(1)
    cases = [f"c{i // 10}" for i in range(150)]
    p_values = []
    for _ in range(400):
        labels = generator.integers(0, 2, 150)
        sides = [
            generator.normal(size=150) + labels + np.repeat(generator.normal(size=15), 10) for _ in range(2)
        ]
        found = delong_test(*([_scores(labels, scores, cases)] for scores in sides))
        p_values.append(found.p)
    assert found.note == "clustered by case, 14 degrees of freedom"
    assert np.mean(np.array(p_values) < 0.05) < 0.08
    assert kstest(p_values, "uniform").pvalue > 0.01


@pytest.mark.parametrize("bags_a_case", [1, 3])
def test_permuted_labels_give_uniform_p_values(bags_a_case):
    generator = np.random.default_rng(11)
    p_values = []
    for _ in range(300):
        shared = np.repeat(generator.normal(size=80), bags_a_case)
        cases = [str(i // bags_a_case) for i in range(len(shared))]
        labels = np.repeat(generator.permutation(np.arange(80) % 2), bags_a_case)
        first, second = (shared + generator.normal(size=len(shared)) for _ in range(2))
        p_values.append(delong_test([_scores(labels, first, cases)], [_scores(labels, second, cases)]).p)
    assert kstest(p_values, "uniform").pvalue > 0.01


def test_the_interval_covers_as_often_as_it_says():
    truth, generator = 0.760249938906524, np.random.default_rng(5)  # Phi(1 / sqrt 2)
    inside = 0
    for _ in range(400):
        labels = np.arange(100) % 2
        found = delong_interval([_scores(labels, generator.normal(size=100) + labels)])
        inside += found.low <= truth <= found.high
    assert 0.92 <= inside / 400 <= 0.98


def test_undefined_inputs_say_why():
    one_class = _scores([1, 1, 1], [0.1, 0.2, 0.3])
    one_case = _scores([0, 1, 1], [0.1, 0.2, 0.3], ["a", "b", "b"])
    nan = _scores([0, 1, 1], [0.1, np.nan, 0.3])
    for parts, why in (
        ([], "at least one network"),
        ([one_class], "only class 1"),
        ([one_case], "of class 1 are of one case"),
        ([nan], "finite scores"),
    ):
        with pytest.raises(UndefinedError, match=why):
            delong_interval(parts)
    with pytest.raises(UndefinedError, match="level"):
        delong_interval(_folds(0), level=1.0)


def test_constant_and_perfect_scores():
    labels = np.arange(20) % 2
    constant, perfect = _scores(labels, np.zeros(20)), _scores(labels, labels)
    assert delong_interval([constant]).value == 0.5
    same = delong_test([constant], [constant])
    assert (same.difference, same.p) == (0.0, 1.0)
    apart = delong_test([perfect], [constant])
    assert (apart.difference, apart.p, apart.low) == (0.5, None, None)
    assert "no variance" in apart.note
