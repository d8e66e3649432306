import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as reference
from statsmodels.stats.multitest import multipletests

from mhimdist.errors import UndefinedError
from mhimdist.statistics.paired import accuracy_test, clustered_mcnemar, corrected_t, holm, mcnemar

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize(("first", "second"), [(12, 5), (5, 12), (8, 8), (1, 0), (40, 22)])
def test_mcnemar_is_that_of_statsmodels(first, second):
    table = [[50, first], [second, 20]]
    exact = reference(table, exact=True)
    assert mcnemar(first, second) == pytest.approx((exact.statistic, exact.pvalue), abs=1e-9)
    chi2 = reference(table, exact=False, correction=False)
    assert mcnemar(first, second, "chi2") == pytest.approx((chi2.statistic, chi2.pvalue), abs=1e-9)
    n, fewer = first + second, min(first, second)
    mid = 2 * (stats.binom.cdf(fewer, n, 0.5) - stats.binom.pmf(fewer, n, 0.5) / 2)
    assert mcnemar(first, second, "mid-p")[1] == pytest.approx(mid, abs=1e-9)


def test_mcnemars_published_example():
    """Agresti (1990), p. 350: approval of a president's performance, 150 against 86."""
    statistic, p = mcnemar(150, 86, "chi2")
    assert statistic == pytest.approx(17.3559322, abs=1e-6)
    assert p == pytest.approx(3.099e-05, rel=1e-3)


def test_classifiers_that_agree_on_everything_differ_in_nothing():
    assert mcnemar(0, 0) == (0.0, 1.0)
    assert clustered_mcnemar(np.zeros(5)) == (0.0, 1.0)
    right = np.array([True, False, True])
    found = accuracy_test(right, right, ["a", "b", "c"])
    assert (found.difference, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_one_bag_per_case_is_mcnemars_own_test():
    generator = np.random.default_rng(0)
    first, second = generator.random(200) < 0.8, generator.random(200) < 0.7
    cases = [str(i) for i in range(200)]
    found = accuracy_test(first, second, cases)
    gains = first.astype(int) - second
    only_first, only_second = (gains > 0).sum(), (gains < 0).sum()
    assert found.p == mcnemar(only_first, only_second)[1]
    assert clustered_mcnemar(gains) == pytest.approx(mcnemar(only_first, only_second, "chi2"))
    n = 200
    wald = ((only_first + only_second) - (only_first - only_second) ** 2 / n) / n**2 * n / (n - 1)
    assert found.high - found.difference == pytest.approx(1.959963985 * np.sqrt(wald), abs=1e-9)
    assert f"only the first is right on {only_first} bags, only the second on {only_second}" in found.note


def test_bags_of_a_case_are_one_observation():
    """Ten copies of every case say no more than one."""
    generator = np.random.default_rng(1)
    first, second = generator.random(60) < 0.8, generator.random(60) < 0.7
    cases = [str(i) for i in range(60)]
    found = accuracy_test(np.repeat(first, 10), np.repeat(second, 10), np.repeat(cases, 10).tolist())
    once = accuracy_test(first, second, cases)
    assert found.p == pytest.approx(clustered_mcnemar(first.astype(int) - second)[1])
    widened = stats.t.ppf(0.975, 59) / stats.norm.ppf(0.975)
    assert found.difference == pytest.approx(once.difference)
    assert found.high - found.difference == pytest.approx(widened * (once.high - once.difference))
    assert "clustered by case" in found.note


def test_permuted_classifiers_give_uniform_p_values():
    generator = np.random.default_rng(2)
    p_values = []
    for _ in range(300):
        # Within a case the bags go one way, and cases of many sizes leave few ties among the p-values.
        gains = generator.choice([-1, 1], 150) * generator.integers(1, 12, 150)
        p_values.append(clustered_mcnemar(gains)[1])
    assert stats.kstest(p_values, "uniform").pvalue > 0.01
    p_values = [corrected_t(generator.normal(size=9), 1e-12).p for _ in range(300)]
    assert stats.kstest(p_values, "uniform").pvalue > 0.01


def test_the_exact_p_is_never_too_small_and_the_mid_p_is_nearly_uniform():
    n = 40
    chances = stats.binom.pmf(np.arange(n + 1), n, 0.5)
    exact, mid = (np.array([mcnemar(k, n - k, how)[1] for k in range(n + 1)]) for how in ("exact", "mid-p"))
    for level in (0.01, 0.05, 0.2):
        assert chances[exact <= level].sum() <= level
        assert chances[mid <= level].sum() == pytest.approx(level, rel=0.6)


def test_the_corrected_t_is_formed_as_published():
    """Without the correction it is the paired t-test; with it the variance grows by n * ratio."""
    differences = [0.02, 0.01, -0.01, 0.03, 0.015, 0.005]
    plain = stats.ttest_1samp(differences, 0)
    found = corrected_t(differences, 1e-15)
    assert (found.statistic, found.p) == pytest.approx((plain.statistic, plain.pvalue), abs=1e-6)
    interval = plain.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=1e-6)
    corrected = corrected_t(differences, 0.5)
    shrunk = plain.statistic / np.sqrt(1 + 6 * 0.5)
    assert corrected.statistic == pytest.approx(shrunk, abs=1e-9)
    assert corrected.p == pytest.approx(2 * stats.t.sf(shrunk, 5), abs=1e-9)
    assert corrected.note == "5 degrees of freedom, test / train 0.5"


def test_the_corrected_t_refuses_what_it_cannot_test():
    assert corrected_t([0.0, 0.0], 0.5).p == 1.0
    for differences, ratio, why in (
        ([0.1], 0.5, "at least two folds"),
        ([0.1, np.nan], 0.5, "finite"),
        ([0.1, 0.1], 0.5, "no spread"),
        ([0.1, 0.2], 0.0, "> 0"),
    ):
        with pytest.raises(UndefinedError, match=why):
            corrected_t(differences, ratio)


def test_holm_is_that_of_statsmodels():
    p_values = [0.04, 0.001, 0.03, 0.5, 0.02]
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1], abs=1e-12)
    assert holm([0.04, None, 0.01]) == [0.04, None, 0.02]
    assert holm([]) == []
    assert holm([0.6, 0.7]) == [1.0, 1.0]


def test_accuracies_of_other_bags_or_of_one_case_are_refused():
    right = np.array([True, False])
    with pytest.raises(UndefinedError, match="same bags"):
        accuracy_test(right, right[:1], ["a", "b"])
    with pytest.raises(UndefinedError, match="two cases"):
        accuracy_test(right, right, ["a", "a"])
    with pytest.raises(UndefinedError, match="numbers of bags"):
        mcnemar(-1, 3)
