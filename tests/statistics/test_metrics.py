import json

import numpy as np
import pytest

from mhimdist.statistics import metrics

pytestmark = pytest.mark.numeric


def _binary(scores):
    scores = np.array(scores)
    return np.stack([1 - scores, scores], axis=1)


def test_auc_is_the_share_of_pairs_in_order():
    labels = np.array([0, 1, 0, 1])
    assert metrics.auc(labels, _binary([0.1, 0.4, 0.5, 0.9])) == 0.75


def test_auc_of_one_class_is_undefined():
    assert metrics.auc(np.array([1, 1]), _binary([0.2, 0.3])) is None
    three = np.full((3, 3), 1 / 3)
    assert metrics.auc(np.array([1, 1, 1]), three) is None


def test_a_class_without_bags_is_left_out_of_the_macro_mean():
    labels = np.array([0, 0, 1, 1])
    probabilities = np.array([[0.6, 0.1, 0.3], [0.2, 0.3, 0.5], [0.3, 0.2, 0.5], [0.1, 0.5, 0.4]])
    # Class 0 against the rest: 3 of 4 pairs in order. Class 1: 3 of 4, too. Class 2 has no bag.
    assert metrics.auc(labels, probabilities) == (3 / 4 + 3 / 4) / 2
    found = metrics.classification(labels, probabilities, None)
    # Predicted: 0, 2, 2, 1. Precision 1 and 1, recall 1/2 and 1/2; a bag called class 2 counts as missed.
    assert (found["auc"], found["accuracy"]) == (0.75, 0.5)
    assert (found["precision"], found["recall"], found["f1"]) == (1.0, 0.5, pytest.approx(2 / 3))


def test_the_interval_of_bags_that_lack_a_class_is_that_of_the_others():
    labels = np.array([0, 1] * 15)
    scores = np.random.default_rng(3).random(30)
    two = metrics.Scores(labels, _binary(scores), [str(i) for i in range(30)])
    three = metrics.Scores(labels, np.c_[_binary(scores), np.zeros(30)], two.cases)
    assert metrics.auc(three.labels_N, three.probabilities_NC) == metrics.auc(labels, two.probabilities_NC)
    assert metrics.auc_interval([three]) == pytest.approx(metrics.auc_interval([two]))


def test_there_is_no_interval_if_nearly_every_resample_lacks_a_class():
    labels = np.arange(12)
    part = metrics.Scores(labels, np.eye(12), [str(label) for label in labels])
    assert metrics.auc(part.labels_N, part.probabilities_NC) == 1.0
    assert metrics.auc_interval([part], num_resamples=50) is None  # one of them has all twelve


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


def test_where_nothing_should_be_positive_the_threshold_is_finite_and_no_probability_reaches_it():
    labels, probabilities = np.array([1, 1, 0, 0]), _binary([0.1, 0.2, 0.9, 1.0])
    threshold = metrics.youden_threshold(labels, probabilities[:, 1])
    assert threshold == 2.0
    found = metrics.classification(labels, probabilities, threshold)
    assert (found["recall"], found["accuracy"]) == (0.0, 0.5)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_more_classes_take_the_most_probable():
    labels = np.array([0, 1, 2, 2])
    probabilities = np.eye(3)[[0, 1, 2, 0]]
    found = metrics.classification(labels, probabilities, None)
    assert found["accuracy"] == 0.75
    assert found["threshold"] is None
    assert found["recall"] == pytest.approx((1 + 1 + 0.5) / 3)


def _scores(num_cases=30, bags_a_case=4, seed=0, num_classes=2):
    """Bags with scores that follow their case, so that the bags of a case are not independent evidence."""
    generator = np.random.default_rng(seed)
    of_case = generator.normal(size=num_cases)
    labels = generator.integers(0, num_classes, num_cases * bags_a_case)
    raw = generator.normal(size=(len(labels), num_classes)) * 0.3
    raw[np.arange(len(labels)), labels] += 1 + np.repeat(of_case, bags_a_case)
    probabilities = np.exp(raw) / np.exp(raw).sum(1, keepdims=True)
    return metrics.Scores(labels, probabilities, [f"c{i // bags_a_case}" for i in range(len(labels))])


@pytest.mark.parametrize("num_classes", [2, 3])
def test_a_weighted_auc_is_the_auc_of_repeated_bags(num_classes):
    part = _scores(num_classes=num_classes)
    part.probabilities_NC[:40] = part.probabilities_NC[40:80]  # ties
    weights_RN = np.random.default_rng(1).integers(0, 4, (5, len(part.labels_N)))
    for weights_N, value in zip(weights_RN, metrics._resampled_auc(part, weights_RN), strict=True):
        repeated = np.repeat(np.arange(len(part.labels_N)), weights_N)
        assert value == pytest.approx(metrics.auc(part.labels_N[repeated], part.probabilities_NC[repeated]))


def test_the_interval_is_that_of_a_plain_loop_over_resampled_cases():
    part, names = _scores(), [f"c{i}" for i in range(30)]
    low, high = metrics.auc_interval([part], num_resamples=2000)
    generator, values = np.random.default_rng(5), []
    bags_of = {name: [i for i, case in enumerate(part.cases) if case == name] for name in names}
    for _ in range(2000):
        rows = [i for name in generator.choice(names, len(names)) for i in bags_of[name]]
        values.append(metrics.auc(part.labels_N[rows], part.probabilities_NC[rows]))
    assert (low, high) == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=0.01)
    assert low < metrics.auc(part.labels_N, part.probabilities_NC) < high
    assert (low, high) == metrics.auc_interval([part], num_resamples=2000)


def test_bags_of_one_case_make_the_interval_wider_than_if_they_were_independent():
    part = _scores()
    alone = metrics.Scores(part.labels_N, part.probabilities_NC, [str(i) for i in range(len(part.labels_N))])
    (low, high), (low_alone, high_alone) = metrics.auc_interval([part]), metrics.auc_interval([alone])
    assert high - low > 1.3 * (high_alone - low_alone)


def test_several_parts_share_their_cases_and_an_undefined_one_has_no_interval():
    part = _scores()
    assert metrics.auc_interval([part, part]) == pytest.approx(metrics.auc_interval([part]))
    one_class = metrics.Scores(np.ones(2, int), np.full((2, 2), 0.5), ["a", "b"])
    assert metrics.auc_interval([part, one_class]) is None
    tiny = metrics.Scores(np.array([0, 1]), _binary([0.2, 0.7]), ["a", "b"])
    assert metrics.auc_interval([tiny]) == (1.0, 1.0)  # half of its resamples lack a class


def test_pooled_scores_are_one_set():
    first, second = _scores(seed=0), _scores(seed=1)
    both = metrics.pooled([first, second])
    assert len(both.labels_N) == len(both.cases) == 240
    assert metrics.auc(both.labels_N, both.probabilities_NC) is not None


def test_the_deviation_is_the_papers():
    assert metrics.mean_and_std([[0.958], [0.957], [0.969]]) == pytest.approx((0.9614, 0.0052), abs=5e-4)
    assert metrics.mean_and_std([[0.8, 1.0], [0.9, 0.9]]) == pytest.approx((0.9, 0.0))
    assert metrics.mean_and_std([[0.8, 1.0]]) == pytest.approx((0.9, 0.1))
    assert metrics.mean_and_std([[0.8]]) == (0.8, None)
