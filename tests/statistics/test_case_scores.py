"""From the scores of slides to those of cases, by hand."""

import numpy as np
import pytest

from mhimdist.statistics.cases import by_case, case_metrics, of_case
from mhimdist.statistics.metrics import Scores

PROBABILITIES = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.7, 0.3], [0.5, 0.5]])
SCORES = Scores(np.array([0, 0, 1, 1, 1]), PROBABILITIES, ["p", "p", "q", "r", "r"])


def test_two_classes() -> None:
    means, largest = by_case(SCORES, "mean"), by_case(SCORES, "max")
    assert means.cases == largest.cases == ["p", "q", "r"]
    assert means.labels_N.tolist() == [0, 1, 1]
    np.testing.assert_allclose(means.probabilities_NC[:, 1], [0.35, 0.8, 0.4])
    np.testing.assert_allclose(largest.probabilities_NC[:, 1], [0.6, 0.8, 0.5])
    np.testing.assert_allclose(largest.probabilities_NC.sum(1), 1)


def test_more_classes_and_more_networks() -> None:
    slides_SC = np.array([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1]])
    np.testing.assert_allclose(of_case(slides_SC, "max"), np.array([0.5, 0.8, 0.2]) / 1.5)
    slides_SMC = np.stack([PROBABILITIES[:2], PROBABILITIES[2:4]], axis=1)
    for how in ("mean", "max"):
        each = [of_case(slides_SMC[:, m], how) for m in range(2)]
        np.testing.assert_allclose(of_case(slides_SMC, how), each)


def test_a_case_of_two_labels_is_left_out() -> None:
    torn = Scores(np.array([0, 1, 1, 1, 1]), PROBABILITIES, SCORES.cases)
    assert by_case(torn, "mean").cases == ["q", "r"]
    assert case_metrics(SCORES, torn) == {}  # all others are of one class


def test_metrics_at_the_threshold_of_the_validation_cases() -> None:
    found = case_metrics(SCORES, SCORES)
    assert {how: (each["auc"], each["cases"]) for how, each in found.items()} == {
        "mean": (1.0, 3.0),
        "max": (0.5, 3.0),
    }
    assert found["mean"]["threshold"] == pytest.approx(0.4)
    assert found["mean"]["accuracy"] == 1
    alone = Scores(SCORES.labels_N, PROBABILITIES, list("abcde"))
    assert case_metrics(SCORES, alone) == {}
