import numpy as np
import pytest
import torch
import torchmetrics.functional.classification as tm
from sklearn import metrics as sk

from mhimdist.errors import UndefinedError
from mhimdist.statistics import multilabel
from mhimdist.statistics.bootstrap import bootstrap, estimates

pytestmark = pytest.mark.numeric
NAMES = ["KRAS", "MSI", "TP53"]


def _labels(seed=0, num=90):
    draw = np.random.default_rng(seed)
    targets = (draw.random((num, 3)) < [0.3, 0.5, 0.6]).astype(np.float64)
    scores = np.clip(0.3 * targets + draw.random((num, 3)) * 0.7, 0, 1).round(2)  # rounded: some are tied
    targets[draw.random((num, 3)) < 0.2] = np.nan
    return targets, scores, [f"c{i // 2}" for i in range(num)]


def test_each_label_is_scikit_learns_without_the_missing_cells():
    targets, scores, _ = _labels()
    thresholds = np.array([0.4, 0.5, 0.6])
    found = multilabel.measures(targets, scores, NAMES, thresholds_K=thresholds)
    for k, name in enumerate(NAMES):
        known = ~np.isnan(targets[:, k])
        truth, score = targets[known, k], scores[known, k]
        called = score >= thresholds[k]
        assert found[f"auc {name}"] == pytest.approx(sk.roc_auc_score(truth, score), abs=1e-9)
        assert found[f"ap {name}"] == pytest.approx(sk.average_precision_score(truth, score), abs=1e-9)
        assert found[f"f1 {name}"] == pytest.approx(sk.f1_score(truth, called), abs=1e-9)
        assert found[f"accuracy {name}"] == pytest.approx(sk.accuracy_score(truth, called), abs=1e-9)
    for measure in ("auc", "ap", "f1", "accuracy"):
        assert found[measure] == pytest.approx(np.mean([found[f"{measure} {name}"] for name in NAMES]))
    assert found["labels"] == 3


def test_macro_means_are_torchmetrics():
    targets, scores, _ = _labels(4)
    truth = torch.from_numpy(np.nan_to_num(targets, nan=-1)).long()
    found, given = multilabel.measures(targets, scores), torch.from_numpy(scores)
    assert found["auc"] == pytest.approx(
        tm.multilabel_auroc(given, truth, 3, ignore_index=-1).item(), abs=1e-6
    )
    theirs = tm.multilabel_average_precision(given, truth, 3, ignore_index=-1)
    assert found["ap"] == pytest.approx(theirs.item(), abs=1e-6)


def test_a_label_of_one_kind_is_left_out_and_told():
    targets, scores, _ = _labels()
    targets[:, 1] = np.where(np.isnan(targets[:, 1]), np.nan, 1.0)
    found = multilabel.measures(targets, scores, NAMES)
    assert (found["auc MSI"], found["ap MSI"]) == (None, None)
    assert found["auc"] == pytest.approx((found["auc KRAS"] + found["auc TP53"]) / 2)
    assert found["labels"] == 2
    targets[:] = np.nan
    nothing = multilabel.measures(targets, scores, NAMES, thresholds_K=np.full(3, 0.5))
    assert nothing.pop("labels") == 0
    assert set(nothing.values()) == {None}


def test_permuted_labels_give_one_half():
    draw = np.random.default_rng(1)
    targets, scores, _ = _labels()
    found = [multilabel.measures(draw.permutation(targets), scores) for _ in range(200)]
    assert np.mean([each["auc"] for each in found]) == pytest.approx(0.5, abs=0.02)
    equal = multilabel.measures(targets, np.full(scores.shape, 0.3))
    assert equal["auc"] == 0.5
    shares = np.nanmean(targets, axis=0)
    assert equal["ap"] == pytest.approx(shares.mean())


def test_the_interval_is_the_general_bootstraps():
    targets, scores, cases = _labels()
    chosen = np.array([0.4, 0.5, 0.6])
    found = estimates(
        [multilabel.weighed(targets, scores, cases, NAMES, thresholds_K=chosen)], num_resamples=100
    )
    for name in ("auc", "ap", "ap MSI", "f1"):
        expected = bootstrap(
            cases,
            lambda rows, name=name: multilabel.measures(
                targets[rows], scores[rows], NAMES, thresholds_K=chosen
            )[name],
            num_resamples=100,
        )
        assert (found[name].low, found[name].high) == pytest.approx((expected.low, expected.high))


def test_a_rare_label_narrows_no_resample_to_the_others():
    """One positive bag is missing from a third of the resamples, in which the macro mean is undefined."""
    targets, scores, cases = _labels()
    targets[:, 0] = 0
    targets[0, 0] = 1
    weights = np.ones((2, len(cases)))
    weights[1, 0] = 0
    found = multilabel.weighed(targets, scores, cases).values(weights)
    assert np.isfinite(found["auc"]).tolist() == [True, False]
    assert estimates([multilabel.weighed(targets, scores, cases)], num_resamples=50)["auc"] is not None


def test_thresholds_are_of_each_label():
    targets = np.array([[1, 1], [0, 1], [1, np.nan], [0, 1.0]])
    scores = np.array([[0.9, 0.1], [0.2, 0.4], [0.7, 0.3], [0.3, 0.9]])
    assert multilabel.thresholds(targets, scores).tolist() == [0.7, 0.5]


def test_unfit_targets_are_refused():
    targets, scores, _ = _labels()
    targets[3, 2] = 2
    with pytest.raises(UndefinedError, match=r"0, 1 or NaN, got 2.0 for bag 3, label 2"):
        multilabel.measures(targets, scores)
