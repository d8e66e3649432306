import numpy as np
import pytest
import torch
import torchmetrics.functional as tm
from scipy import stats
from sklearn import metrics as sk

from mhimdist.errors import UndefinedError
from mhimdist.statistics import regression
from mhimdist.statistics.bootstrap import bootstrap, estimates

pytestmark = pytest.mark.numeric


def _values(seed=0, num=60, columns=1):
    draw = np.random.default_rng(seed)
    truth = draw.normal(3, 2, (num, columns)).round(1)  # rounded: some values are tied
    predicted = (0.7 * truth + draw.normal(0, 1, (num, columns))).round(1)
    return truth, predicted, [f"c{i // 3}" for i in range(num)]


def test_agreement_is_that_of_the_libraries():
    truth, predicted, _ = _values()
    found, x, y = regression.measures(truth, predicted), truth[:, 0], predicted[:, 0]
    assert found["pearson"] == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-9)
    assert found["spearman"] == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-9)
    assert found["r2"] == pytest.approx(sk.r2_score(x, y), abs=1e-9)
    assert found["mae"] == pytest.approx(sk.mean_absolute_error(x, y), abs=1e-9)
    assert found["rmse"] == pytest.approx(sk.root_mean_squared_error(x, y), abs=1e-9)
    theirs = tm.pearson_corrcoef(torch.from_numpy(y), torch.from_numpy(x))
    assert found["pearson"] == pytest.approx(theirs.item(), abs=1e-6)
    theirs = tm.spearman_corrcoef(torch.from_numpy(y), torch.from_numpy(x))
    assert found["spearman"] == pytest.approx(theirs.item(), abs=1e-6)


def test_several_columns_are_averaged_and_listed_and_missing_cells_left_out():
    truth, predicted, _ = _values(columns=2)
    truth[::4, 1] = np.nan
    found = regression.measures(truth, predicted, ["TMB", "HRD"])
    known = np.isfinite(truth[:, 1])
    second = stats.pearsonr(truth[known, 1], predicted[known, 1]).statistic
    assert found["pearson HRD"] == pytest.approx(second, abs=1e-9)
    assert found["pearson"] == pytest.approx((found["pearson TMB"] + second) / 2)
    assert len(found) == 15
    truth[:, 0] = np.nan
    nothing = regression.measures(truth, predicted, ["TMB", "HRD"])
    assert (nothing["mae TMB"], nothing["mae"]) == (None, None)
    assert nothing["mae HRD"] == found["mae HRD"]


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6 / 3])
def test_equal_values_have_no_correlation(value):
    """A mean of equal numbers rounds, so that their variance is not quite 0."""
    draw = np.random.default_rng(0)
    spread, equal = draw.normal(size=(31, 1)), np.full((31, 1), value)
    constant_truth = regression.measures(equal, spread)
    assert (constant_truth["pearson"], constant_truth["spearman"], constant_truth["r2"]) == (None, None, None)
    assert constant_truth["mae"] == pytest.approx(np.abs(spread - value).mean())
    constant_prediction = regression.measures(spread, equal)
    assert (constant_prediction["pearson"], constant_prediction["spearman"]) == (None, None)
    assert constant_prediction["r2"] <= 0
    assert regression.measures(spread[:1], spread[:1])["pearson"] is None


def test_values_far_from_zero_keep_their_correlation():
    draw = np.random.default_rng(5)
    truth = draw.normal(size=(40, 1))
    predicted = truth + draw.normal(size=(40, 1))
    near, far = regression.measures(truth, predicted), regression.measures(truth + 1e6, predicted + 1e6)
    assert far["pearson"] == pytest.approx(near["pearson"], abs=1e-8)
    tiny = regression.measures(truth * 1e-170, predicted * 1e-170)
    assert tiny["spearman"] == pytest.approx(near["spearman"])


def test_permuted_values_do_not_correlate():
    draw = np.random.default_rng(1)
    truth, predicted, _ = _values(2)
    found = [regression.measures(draw.permutation(truth), predicted) for _ in range(300)]
    assert np.mean([each["pearson"] for each in found]) == pytest.approx(0, abs=0.03)
    assert np.mean([each["spearman"] for each in found]) == pytest.approx(0, abs=0.03)


def test_the_interval_is_the_general_bootstraps():
    truth, predicted, cases = _values()
    found = estimates([regression.weighed(truth, predicted, cases)], num_resamples=150, seed=3)
    for name in regression.MEASURES:
        expected = bootstrap(
            cases,
            lambda rows, name=name: regression.measures(truth[rows], predicted[rows])[name],
            num_resamples=150,
            seed=3,
        )
        assert (found[name].low, found[name].high) == pytest.approx((expected.low, expected.high))
        assert found[name].error == pytest.approx(expected.error)


def test_unfit_predictions_are_refused():
    truth, predicted, _ = _values(columns=2)
    with pytest.raises(UndefinedError, match=r"shape \(60, 2\), predictions of shape \(60, 1\)"):
        regression.measures(truth, predicted[:, :1])
    with pytest.raises(UndefinedError, match="bags by columns"):
        regression.measures(truth[:0], predicted[:0])
    with pytest.raises(UndefinedError, match="a name per column"):
        regression.measures(truth, predicted, ["TMB"])
    predicted[7, 1] = np.inf
    with pytest.raises(UndefinedError, match="inf for bag 7, column 1"):
        regression.measures(truth, predicted)
