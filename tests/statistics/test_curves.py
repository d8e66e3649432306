import numpy as np
import pytest
from sklearn import metrics as sk

from mhimdist.errors import UndefinedError
from mhimdist.statistics.curves import (
    confusion,
    precision_recall,
    precision_recall_band,
    predicted_classes,
    roc,
    roc_band,
    threshold_curve,
)

pytestmark = pytest.mark.numeric


def _bags(seed=0, size=80):
    generator = np.random.default_rng(seed)
    positive = generator.random(size) < 0.4
    positive[:2] = True, False
    return positive, np.round(1 / (1 + np.exp(-generator.normal(size=size) - positive)), 2)


def test_areas_are_those_of_sklearn():
    positive, scores = _bags()
    assert roc(positive, scores).area == pytest.approx(sk.roc_auc_score(positive, scores), abs=1e-12)
    curve = precision_recall(positive, scores)
    assert curve.area == pytest.approx(sk.average_precision_score(positive, scores), abs=1e-12)
    assert (np.diff(curve.x_G) >= 0).all()


def test_the_band_of_one_fold_is_its_curve():
    positive, scores = _bags()
    curve = roc(positive, scores)
    band = roc_band([curve], num_points=2001)
    assert (band.x_G[0], band.mean_G[0], band.mean_G[-1]) == (0, 0, 1)
    assert np.trapezoid(band.mean_G, band.x_G) == pytest.approx(curve.area, abs=1e-3)
    assert not band.deviation_G.any()
    curve = precision_recall(positive, scores)
    band = precision_recall_band([curve], num_points=4001)
    assert band.mean_G.mean() == pytest.approx(curve.area, abs=2e-3)
    # At a recall of the curve, the band has the precision of the highest threshold that reaches it.
    for recall in np.unique(curve.x_G)[1:]:
        highest = curve.y_G[np.argmax(curve.x_G >= recall - 1e-12)]
        at = np.searchsorted(band.x_G, recall - 1e-9)
        if abs(band.x_G[at] - recall) < 1e-9:
            assert band.mean_G[at] == highest


def test_a_band_is_mean_and_deviation_of_its_folds():
    perfect = roc(np.array([True, False]), np.array([0.9, 0.1]))
    useless = roc(np.array([True, False]), np.array([0.5, 0.5]))
    band = roc_band([perfect, useless], num_points=11)
    assert band.mean_G[1:] == pytest.approx((1 + np.linspace(0, 1, 11)) / 2)
    assert band.deviation_G[1:] == pytest.approx((1 - np.linspace(0, 1, 11)) / 2)
    assert band.areas == (1.0, 0.5)
    folds = [precision_recall(*_bags(seed)) for seed in range(3)]
    band = precision_recall_band(folds)
    assert band.mean_G == pytest.approx(np.mean([precision_recall_band([f]).mean_G for f in folds], axis=0))


def test_a_threshold_does_what_sklearn_counts():
    positive, scores = _bags()
    curve = threshold_curve(positive, scores)
    assert len(curve.thresholds_G) == 101
    for i in (0, 37, 50, 80, 100):
        called = scores >= curve.thresholds_G[i]
        assert curve.sensitivity_G[i] == pytest.approx(sk.recall_score(positive, called))
        assert curve.specificity_G[i] == pytest.approx(sk.recall_score(~positive, ~called))
        assert curve.accuracy_G[i] == pytest.approx(sk.accuracy_score(positive, called))
        assert curve.f1_G[i] == pytest.approx(sk.f1_score(positive, called))
    own = threshold_curve(positive, scores, np.array([0.5]))
    assert own.accuracy_G == curve.accuracy_G[50]


def test_confusion_at_a_threshold():
    probabilities = np.array([[0.7, 0.3], [0.4, 0.6], [0.2, 0.8], [0.9, 0.1]])
    labels = np.array([0, 0, 1, 1])
    assert confusion(labels, predicted_classes(probabilities, 0.5), 2).tolist() == [[1, 1], [1, 1]]
    assert confusion(labels, predicted_classes(probabilities, 0.7), 2).tolist() == [[2, 0], [1, 1]]
    assert predicted_classes(probabilities, None).tolist() == [0, 1, 1, 0]
    three = np.eye(3)[[2, 1]]
    assert confusion(np.array([2, 2]), predicted_classes(three, None), 3)[2].tolist() == [0, 1, 1]


def test_undefined_inputs_say_why():
    scores = np.array([0.2, 0.4])
    for call in (roc, precision_recall, threshold_curve):
        with pytest.raises(UndefinedError, match="only class 1"):
            call(np.array([True, True]), scores)
        with pytest.raises(UndefinedError, match="at least one bag"):
            call(np.zeros(0, bool), scores[:0])
        with pytest.raises(UndefinedError, match="finite"):
            call(np.array([True, False]), np.array([0.1, np.inf]))
    for call in (roc_band, precision_recall_band):
        with pytest.raises(UndefinedError, match="at least one fold"):
            call([])
    with pytest.raises(UndefinedError, match="at least one bag"):
        confusion(np.zeros(0, int), np.zeros(0, int), 2)
