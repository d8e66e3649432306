"""Metrics with intervals that are resampled by case."""

import numpy as np
import pytest
from sklearn import metrics as sk

from mhimdist.prediction.measures import measure
from mhimdist.prediction.verdicts import Threshold, judge
from mhimdist.statistics.intervals import class_metrics

CLASSES = ("a", "b", "c")


def _verdicts(num_classes, *, cases=None, unknown=()):
    generator = np.random.default_rng(0)
    size = 60
    labels = [CLASSES[i % num_classes] for i in range(size)]
    scores_NMC = generator.random((size, 2, num_classes))
    scores_NMC[np.arange(size), :, np.arange(size) % num_classes] += 0.4
    scores_NMC /= scores_NMC.sum(2, keepdims=True)
    labels = [None if i in unknown else label for i, label in enumerate(labels)]
    names = [f"s{i}" for i in range(size)]
    threshold = Threshold(0.5 if num_classes == 2 else None, "")
    return judge(names, cases or names, labels, scores_NMC, CLASSES[:num_classes], threshold), threshold


@pytest.mark.parametrize("num_classes", [2, 3])
def test_a_resample_has_the_metrics_of_its_rows(num_classes):
    verdicts, _ = _verdicts(num_classes)
    labels_N, predicted_N = verdicts.labels_N, verdicts.predicted_N
    weights_RN = np.random.default_rng(1).integers(0, 3, (20, len(labels_N))).astype(float)
    counts_RCC = np.zeros((len(weights_RN), num_classes, num_classes))
    np.add.at(counts_RCC, (slice(None), labels_N, predicted_N), weights_RN)
    found = class_metrics(counts_RCC)
    accuracy_R, f1_R = found["accuracy"], found["f1"]
    how = {"average": "binary" if num_classes == 2 else "macro", "zero_division": 0.0}
    for weights_N, accuracy, f1 in zip(weights_RN, accuracy_R, f1_R, strict=True):
        drawn_N = np.repeat(np.arange(len(labels_N)), weights_N.astype(int))
        assert accuracy == pytest.approx(sk.accuracy_score(labels_N[drawn_N], predicted_N[drawn_N]))
        assert f1 == pytest.approx(sk.f1_score(labels_N[drawn_N], predicted_N[drawn_N], **how))


@pytest.mark.parametrize("num_classes", [2, 3])
def test_the_values_are_those_of_the_known_rows(num_classes):
    verdicts, threshold = _verdicts(num_classes, unknown={0, 1, 7})
    found = measure(verdicts, threshold.value)
    known_N = verdicts.labels_N >= 0
    assert (found["rows"], found["cases"]) == (57, 57)
    accuracy = (verdicts.labels_N == verdicts.predicted_N)[known_N].mean()
    assert found["accuracy"]["value"] == pytest.approx(accuracy)
    for name in ("auc", "accuracy", "f1"):
        low, high = found[name]["interval"]
        assert low < found[name]["value"] < high


def test_slides_of_the_same_case_widen_the_interval():
    """Ten copies of a slide say no more than one."""

    def width(verdicts, threshold):
        low, high = measure(verdicts, threshold.value)["accuracy"]["interval"]
        return high - low

    assert width(*_verdicts(2, cases=[f"c{i % 6}" for i in range(60)])) != width(*_verdicts(2))
    verdicts, threshold = _verdicts(2)
    copies = judge(
        [f"{name}-{i}" for name in verdicts.names for i in range(10)],
        [name for name in verdicts.names for _ in range(10)],
        [label for label in verdicts.labels for _ in range(10)],
        verdicts.probabilities_NC.repeat(10, axis=0)[:, None],
        CLASSES[:2],
        threshold,
    )
    assert width(copies, threshold) == pytest.approx(width(verdicts, threshold), rel=1e-9)


def test_without_a_label_nothing_is_measured():
    verdicts, threshold = _verdicts(2, unknown=set(range(60)))
    assert measure(verdicts, threshold.value) is None
