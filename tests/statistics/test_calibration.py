import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss
from statsmodels.stats.proportion import proportion_confint

from mhimdist.errors import UndefinedError
from mhimdist.statistics.calibration import (
    brier,
    ece,
    fit_temperature,
    negative_log_likelihood,
    reliability,
    scale_by_temperature,
    wilson,
)

pytestmark = pytest.mark.numeric


def _drawn(num_classes=2, size=300, seed=0, temperature=1.0):
    """Labels drawn from probabilities, which are then made sharper by the inverse of a temperature."""
    generator = np.random.default_rng(seed)
    true = generator.dirichlet(np.ones(num_classes), size)
    labels = np.array([generator.choice(num_classes, p=row) for row in true])
    return labels, scale_by_temperature(true, 1 / temperature)


def test_brier_and_likelihood_are_those_of_sklearn():
    labels, probabilities = _drawn()
    assert brier(labels, probabilities) == pytest.approx(
        brier_score_loss(labels, probabilities[:, 1]), abs=1e-9
    )
    assert negative_log_likelihood(labels, probabilities) == pytest.approx(log_loss(labels, probabilities))
    labels, probabilities = _drawn(4)
    theirs = brier_score_loss(labels, probabilities, scale_by_half=False, labels=range(4))
    assert brier(labels, probabilities) == pytest.approx(theirs, abs=1e-9)
    assert brier(np.array([0, 1]), np.eye(2)) == 0.0
    assert brier(np.array([1, 0]), np.eye(2)) == 1.0


@pytest.mark.parametrize(("binning", "strategy"), [("equal_width", "uniform"), ("equal_mass", "quantile")])
def test_the_bins_are_those_of_sklearn(binning, strategy):
    labels, probabilities = _drawn(size=400)
    bins = reliability(labels, probabilities, num_bins=8, binning=binning)
    frequency, confidence = calibration_curve(labels, probabilities[:, 1], n_bins=8, strategy=strategy)
    assert [each.frequency for each in bins] == pytest.approx(frequency, abs=1e-9)
    assert [each.confidence for each in bins] == pytest.approx(confidence, abs=1e-9)
    assert sum(each.count for each in bins) == 400
    by_count = sum(b.count * abs(b.confidence - b.frequency) for b in bins) / 400
    assert ece(labels, probabilities, num_bins=8, binning=binning) == pytest.approx(by_count)
    for each in bins:
        assert each.low <= each.confidence <= each.high
        assert each.frequency_low <= each.frequency <= each.frequency_high


def test_equal_mass_bins_have_as_many_bags_each():
    labels, probabilities = _drawn(size=400)
    assert [b.count for b in reliability(labels, probabilities, num_bins=8, binning="equal_mass")] == [50] * 8


def test_an_error_worked_out_by_hand():
    labels = np.array([0, 1, 1, 1, 0, 1])
    positive = np.array([0.1, 0.2, 0.6, 0.7, 0.9, 1.0])
    probabilities = np.stack([1 - positive, positive], axis=1)
    # Two bins: (0.15 against 1/2) for 2 bags, (0.8 against 3/4) for 4.
    assert ece(labels, probabilities, num_bins=2) == pytest.approx((2 * 0.35 + 4 * 0.05) / 6, abs=1e-9)
    # Three classes: the most probable one's probability against whether it is right.
    three = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4], [0.2, 0.2, 0.6]])
    assert ece(np.array([0, 2, 2, 2]), three, num_bins=1) == pytest.approx(abs(0.65 - 0.75), abs=1e-9)


def test_wilsons_interval_is_that_of_statsmodels():
    for hits, count in ((3, 10), (0, 7), (7, 7), (120, 400)):
        theirs = proportion_confint(hits, count, method="wilson")
        assert wilson(hits / count, count) == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize("num_classes", [2, 4])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_was_put_in_is_found(num_classes, temperature):
    labels, probabilities = _drawn(num_classes, size=4000, temperature=temperature)
    found = fit_temperature(labels, probabilities)
    assert found == pytest.approx(temperature, rel=0.1)
    calibrated = scale_by_temperature(probabilities, found)
    assert (calibrated.argmax(1) == probabilities.argmax(1)).all()
    best = negative_log_likelihood(labels, calibrated)
    for near in (0.99, 1.01):
        assert best < negative_log_likelihood(labels, scale_by_temperature(probabilities, near * found))
    if temperature == 3.0:
        assert ece(labels, calibrated) < 0.4 * ece(labels, probabilities)


def test_a_temperature_of_one_changes_nothing():
    _, probabilities = _drawn(3)
    assert scale_by_temperature(probabilities, 1.0) == pytest.approx(probabilities, abs=1e-12)


def test_there_is_no_best_temperature_of_perfect_or_useless_probabilities():
    labels, probabilities = _drawn(size=50)
    perfect = np.clip(np.eye(2)[labels], 0.2, 0.8)
    with pytest.raises(UndefinedError, match="classified correctly"):
        fit_temperature(labels, perfect)
    with pytest.raises(UndefinedError, match="no more than chance"):
        fit_temperature(1 - labels, perfect)
    with pytest.raises(UndefinedError, match="above 0"):
        scale_by_temperature(probabilities, 0.0)


def test_undefined_inputs_say_why():
    labels, probabilities = _drawn(size=4)
    for call in (brier, ece, reliability, fit_temperature, negative_log_likelihood):
        with pytest.raises(UndefinedError, match="at least one bag"):
            call(labels[:0], probabilities[:0])
        with pytest.raises(UndefinedError, match="finite"):
            call(labels, np.full((4, 2), np.nan))
        with pytest.raises(UndefinedError, match="labels from 0 to 1"):
            call(labels + 5, probabilities)
    with pytest.raises(UndefinedError, match="at least one bin"):
        ece(labels, probabilities, num_bins=0)
    with pytest.raises(UndefinedError, match=r"in \[0, 1\]"):
        ece(labels, 2 * probabilities + 1)


def test_one_bag_and_constant_probabilities_have_a_calibration():
    half = np.full((6, 2), 0.5)
    for binning in ("equal_width", "equal_mass"):
        (only,) = reliability(np.arange(6) % 2, half, binning=binning)
        assert (only.count, only.confidence, only.frequency) == (6, 0.5, 0.5)
        assert ece(np.array([1]), half[:1], binning=binning) == 0.5
