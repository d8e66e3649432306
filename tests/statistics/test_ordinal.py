import numpy as np
import pytest
from sklearn import metrics as sk

from mhimdist.errors import UndefinedError
from mhimdist.statistics import ordinal
from mhimdist.statistics.bootstrap import bootstrap, estimates

pytestmark = pytest.mark.numeric


def _grades(seed=0, num=80, num_classes=4):
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, num_classes, num)
    predicted = np.clip(labels + draw.integers(-1, 2, num), 0, num_classes - 1)
    return labels, predicted, [f"c{i // 2}" for i in range(num)]


@pytest.mark.parametrize("num_classes", [2, 3, 6])
def test_agreement_is_scikit_learns(num_classes):
    labels, predicted, _ = _grades(num_classes, num_classes=num_classes)
    found = ordinal.measures(labels, predicted, num_classes)
    kappa = sk.cohen_kappa_score(labels, predicted, weights="quadratic")
    assert found["kappa"] == pytest.approx(kappa, abs=1e-9)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(labels, predicted), abs=1e-9)
    assert found["mae"] == pytest.approx(sk.mean_absolute_error(labels, predicted), abs=1e-9)
    assert found["adjacent_accuracy"] == pytest.approx((np.abs(labels - predicted) <= 1).mean())


def test_kappa_by_hand():
    """One of two bags of grade 2 is called 0."""
    found = ordinal.measures(np.array([0, 1, 2, 2]), np.array([0, 1, 2, 0]), 3)
    # Sum of squared gaps: 4. By chance: rows 1 1 2, columns 2 1 1, over 4.
    by_chance = (1 * (1 + 4) + 1 * (2 + 1) + 2 * (2 * 4 + 1)) / 4
    assert found["kappa"] == pytest.approx(1 - 4 / by_chance)
    assert (found["accuracy"], found["adjacent_accuracy"], found["mae"]) == (0.75, 0.75, 0.5)


def test_what_agrees_by_chance_or_not_at_all():
    labels = np.array([0, 1, 2, 0, 1, 2])
    assert ordinal.measures(labels, labels, 3)["kappa"] == 1.0
    assert ordinal.measures(labels, np.ones(6, int), 3)["kappa"] == pytest.approx(0)
    assert ordinal.measures(np.array([0, 2]), np.array([2, 0]), 3)["kappa"] == pytest.approx(-1)
    one_grade = ordinal.measures(np.ones(3, int), np.ones(3, int), 3)
    assert one_grade == {"kappa": None, "accuracy": 1.0, "adjacent_accuracy": 1.0, "mae": 0.0}


def test_permuted_grades_have_no_kappa():
    draw = np.random.default_rng(1)
    labels, predicted, _ = _grades(2)
    kappas = [ordinal.measures(draw.permutation(labels), predicted, 4)["kappa"] for _ in range(300)]
    assert np.mean(kappas) == pytest.approx(0, abs=0.02)


def test_the_interval_is_the_general_bootstraps():
    labels, predicted, cases = _grades()
    found = estimates([ordinal.weighed(labels, predicted, cases, 4)], num_resamples=200, seed=3)
    for name in ("kappa", "mae"):
        expected = bootstrap(
            cases,
            lambda rows, name=name: ordinal.measures(labels[rows], predicted[rows], 4)[name],
            num_resamples=200,
            seed=3,
        )
        assert found[name].value == pytest.approx(expected.value)
        assert (found[name].low, found[name].high) == pytest.approx((expected.low, expected.high))
        assert found[name].error == pytest.approx(expected.error)


def test_grades_out_of_range_are_refused():
    with pytest.raises(UndefinedError, match="predicted grades from 0 to 2, got 0 to 3"):
        ordinal.measures(np.array([0, 1]), np.array([0, 3]), 3)
    with pytest.raises(UndefinedError, match="true grades"):
        ordinal.measures(np.array([-1, 1]), np.array([0, 1]), 3)
    with pytest.raises(UndefinedError, match="at least one bag"):
        ordinal.measures(np.array([], int), np.array([], int), 3)
