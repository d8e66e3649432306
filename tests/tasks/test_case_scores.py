"""From the predictions of slides to those of cases, by hand."""

import numpy as np
import pytest

from mhimdist.config import tasks as settings
from mhimdist.data.targets import TaskInfo
from mhimdist.tasks import Judged, classification
from mhimdist.tasks.cases import by_case, case_metrics
from mhimdist.tasks.multilabel import Multilabel
from mhimdist.tasks.regression import Regression
from mhimdist.tasks.survival import Survival

PROBABILITIES = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.7, 0.3], [0.5, 0.5]])
LABELS, CASES = np.array([0, 0, 1, 1, 1]), ["p", "p", "q", "r", "r"]
NO_TARGETS = np.zeros((5, 0))
SLIDES = Judged(LABELS, NO_TARGETS, PROBABILITIES, CASES)
TASK = classification(2)


def test_two_classes() -> None:
    means, largest = by_case(TASK, SLIDES, "mean"), by_case(TASK, SLIDES, "max")
    assert means.cases == largest.cases == ["p", "q", "r"]
    assert means.labels_N.tolist() == [0, 1, 1]
    np.testing.assert_allclose(means.predictions_NP[:, 1], [0.35, 0.8, 0.4])
    np.testing.assert_allclose(largest.predictions_NP[:, 1], [0.6, 0.8, 0.5])
    np.testing.assert_allclose(largest.predictions_NP.sum(1), 1)


def test_more_classes_and_more_networks() -> None:
    slides_SMC = np.array([[[0.5, 0.3, 0.2]], [[0.1, 0.8, 0.1]]])
    largest_MC = classification(3).of_case(slides_SMC, "max")
    np.testing.assert_allclose(largest_MC, [np.array([0.5, 0.8, 0.2]) / 1.5])
    slides_SMC = np.stack([PROBABILITIES[:2], PROBABILITIES[2:4]], axis=1)
    for how in ("mean", "max"):
        each = [TASK.of_case(slides_SMC[:, m : m + 1], how)[0] for m in range(2)]
        np.testing.assert_allclose(TASK.of_case(slides_SMC, how), each)


def test_a_case_of_two_labels_is_left_out() -> None:
    torn = Judged(np.array([0, 1, 1, 1, 1]), NO_TARGETS, PROBABILITIES, CASES)
    assert by_case(TASK, torn, "mean").cases == ["q", "r"]
    assert case_metrics(TASK, [SLIDES], torn) == {}  # all others are of one class


def test_metrics_at_the_threshold_of_the_validation_cases() -> None:
    found = case_metrics(TASK, [SLIDES], SLIDES)
    assert {how: (each["auc"], each["cases"]) for how, each in found.items()} == {
        "mean": (1.0, 3.0),
        "max": (0.5, 3.0),
    }
    assert found["mean"]["threshold"] == pytest.approx(0.4)
    assert found["mean"]["accuracy"] == 1
    alone = Judged(LABELS, NO_TARGETS, PROBABILITIES, list("abcde"))
    assert case_metrics(TASK, [SLIDES], alone) == {}


def test_numbers_of_cases() -> None:
    task = Regression(TaskInfo(name="regression", columns=("age",)), [], settings.RegressionTask())
    ages_N1, said_N1 = np.array([[1.0], [1], [4], [2], [3]]), np.array([[0.0], [2], [3], [9], [9]])
    slides = Judged(LABELS, ages_N1, said_N1, CASES)
    found = by_case(task, slides, "max")
    assert found.cases == ["p", "q"]  # two slides of r differ, although their stratum is one
    assert found.targets_NK.tolist() == [[1.0], [4.0]]
    assert found.predictions_NP.tolist() == [[2.0], [3.0]]
    whole = Judged(LABELS, np.array([[1.0], [1], [4], [2], [2]]), said_N1, CASES)
    of_cases = case_metrics(task, [whole], whole)
    assert of_cases["mean"]["mae"] == pytest.approx((0 + 1 + 7) / 3)
    assert of_cases["max"]["mae"] == pytest.approx((1 + 1 + 7) / 3)
    assert case_metrics(task, [whole], slides.at([0, 1])) == {}  # of one case, no R2 is defined


def test_a_label_that_one_slide_knows_is_known_of_its_case() -> None:
    task = Multilabel(TaskInfo(name="multilabel", columns=("a", "b")), [], settings.MultilabelTask())
    targets_NK = np.array([[1.0, np.nan], [np.nan, np.nan], [0, 1], [1, 0], [0, 0]])
    found = by_case(task, Judged(LABELS, targets_NK, PROBABILITIES, CASES), "mean")
    assert found.cases == ["p", "q"]  # the slides of r differ in a
    np.testing.assert_array_equal(found.targets_NK, [[1, np.nan], [0, 1]])


def test_the_slide_of_the_highest_risk_is_the_risk_of_the_case() -> None:
    info = TaskInfo(name="survival", columns=("months", "died"), unit="months")
    task = Survival(info, [], settings.SurvivalTask(survival_loss="cox"))
    times_N2 = np.array([[5.0, 1], [5, 1], [9, 0], [2, 1], [2, 1]])
    learnt = task.learn(LABELS, times_N2)
    task = Survival(info, [], settings.SurvivalTask(survival_loss="cox"), learnt)
    slides = Judged(LABELS, times_N2, np.array([[0.0], [0.4], [-1.0], [0.2], [0.3]]), CASES)
    assert by_case(task, slides, "max").predictions_NP[:, 0].tolist() == [0.4, -1.0, 0.3]
    found = case_metrics(task, [slides], slides)
    # Of the three pairs only r before p can be wrong: by the largest risk, 0.3 against 0.4.
    selecting = {how: each[task.selection] for how, each in found.items()}
    assert selecting == pytest.approx({"mean": 1.0, "max": 2 / 3})
    # Risks of two networks are not on one scale: each fits, as for slides.
    shifted = Judged(slides.labels_N, slides.targets_NK, slides.predictions_NP + 5, slides.cases)
    both = case_metrics(task, [slides, shifted], slides)
    for how, each in both.items():
        fits = [task.fit(by_case(task, part, how)) for part in (slides, shifted)]
        assert each.items() >= task.metrics(by_case(task, slides, how), task.fitted_of(fits)).items()
        assert each["ibs"] != case_metrics(task, [Judged.pooled([slides, shifted])], slides)[how]["ibs"]
