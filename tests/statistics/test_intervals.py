import numpy as np
import pytest
from sklearn import metrics as sk

from mhimdist.errors import UndefinedError
from mhimdist.statistics.bootstrap import bootstrap
from mhimdist.statistics.curves import confusion
from mhimdist.statistics.intervals import METRICS, class_intervals, class_metrics


@pytest.mark.parametrize("num_classes", [2, 3])
def test_metrics_equal_those_of_scikit_learn(num_classes):
    draw = np.random.default_rng(num_classes)
    labels_N, predicted_N = draw.integers(0, num_classes, (2, 50))
    found = class_metrics(confusion(labels_N, predicted_N, num_classes)[None])
    how = {"average": "binary" if num_classes == 2 else "macro"}
    assert found["accuracy"][0] == pytest.approx(sk.accuracy_score(labels_N, predicted_N))
    assert found["f1"][0] == pytest.approx(sk.f1_score(labels_N, predicted_N, **how))
    assert found["precision"][0] == pytest.approx(sk.precision_score(labels_N, predicted_N, **how))
    assert found["recall"][0] == pytest.approx(sk.recall_score(labels_N, predicted_N, **how))
    if num_classes == 2:
        expected = sk.recall_score(labels_N, predicted_N, pos_label=0)
        assert found["specificity"][0] == pytest.approx(expected)


def test_a_class_without_bags_is_left_out_of_the_means():
    found = class_metrics(confusion(np.array([0, 0, 1]), np.array([0, 2, 1]), 3)[None])
    assert found["recall"][0] == pytest.approx((0.5 + 1) / 2)
    empty = class_metrics(np.zeros((1, 2, 2)))
    assert {name: float(value[0]) for name, value in empty.items()} == dict.fromkeys(METRICS, 0.0)


def test_an_interval_equals_the_general_bootstrap():
    draw = np.random.default_rng(0)
    labels_N = draw.integers(0, 2, 60)
    predicted_N = np.where(draw.random(60) < 0.8, labels_N, 1 - labels_N)
    cases = [f"case-{i // 2:02d}" for i in range(60)]
    found = class_intervals([labels_N], [predicted_N], [cases], 2, num_resamples=300, seed=4)
    for name, score in (("accuracy", sk.accuracy_score), ("f1", sk.f1_score), ("recall", sk.recall_score)):
        expected = bootstrap(
            cases,
            lambda rows, score=score: score(labels_N[rows], predicted_N[rows]),
            num_resamples=300,
            seed=4,
        )
        assert found[name] == pytest.approx((expected.low, expected.high))


def test_networks_share_the_draws_of_the_cases():
    """Two networks that tested the same bags move together; the mean of equal ones moves like one."""
    labels_N = np.array([0, 1] * 10)
    predicted_N = np.array([0, 1, 1, 1] * 5)
    cases = [str(i) for i in range(20)]
    one = class_intervals([labels_N], [predicted_N], [cases], 2)
    two = class_intervals([labels_N] * 2, [predicted_N] * 2, [cases] * 2, 2)
    assert one == two
    with pytest.raises(UndefinedError, match="at least one network"):
        class_intervals([], [], [], 2)
