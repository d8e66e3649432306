import numpy as np
import pytest

from mhimdist import metrics


def _binary(scores):
    scores = np.array(scores)
    return np.stack([1 - scores, scores], axis=1)


def test_auc_is_the_share_of_pairs_in_order():
    labels = np.array([0, 1, 0, 1])
    assert metrics.auc(labels, _binary([0.1, 0.4, 0.5, 0.9])) == 0.75


def test_auc_of_one_class_is_undefined():
    assert metrics.auc(np.array([1, 1]), _binary([0.2, 0.3])) is None
    three = np.full((3, 3), 1 / 3)
    assert metrics.auc(np.array([0, 1, 1]), three) is None


def test_multiclass_auc_is_the_macro_mean_of_one_against_the_rest():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 60)
    probabilities = generator.dirichlet(np.ones(3), 60)
    each = [metrics.auc((labels == c).astype(int), _binary(probabilities[:, c])) for c in range(3)]
    assert metrics.auc(labels, probabilities) == pytest.approx(np.mean(each))


def test_youden_threshold_and_what_follows_from_it():
    labels, probabilities = np.array([0, 0, 1, 0, 1, 1]), _binary([0.1, 0.2, 0.3, 0.35, 0.6, 0.9])
    threshold = metrics.youden_threshold(labels, probabilities[:, 1])
    assert threshold == 0.6
    found = metrics.classification(labels, probabilities, threshold)
    assert found["accuracy"] == pytest.approx(5 / 6)
    assert (found["precision"], found["recall"]) == (1.0, pytest.approx(2 / 3))
    assert found["f1"] == pytest.approx(0.8)


def test_more_classes_take_the_most_probable():
    labels = np.array([0, 1, 2, 2])
    probabilities = np.eye(3)[[0, 1, 2, 0]]
    found = metrics.classification(labels, probabilities, None)
    assert found["accuracy"] == 0.75
    assert found["threshold"] is None
    assert found["recall"] == pytest.approx((1 + 1 + 0.5) / 3)
