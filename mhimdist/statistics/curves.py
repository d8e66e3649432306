"""ROC, precision-recall and threshold curves, their bands over folds, and confusion matrices.

Dimensions: N bags, C classes, G points of a grid, F folds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mhimdist.errors import UndefinedError
from mhimdist.statistics.results import check


@dataclass(frozen=True)
class Curve:
    """A curve through points, from left to right.

    Attributes:
        x_G, y_G: float64, in [0, 1].
        area: the area under a ROC curve, or the average precision.
    """

    x_G: np.ndarray
    y_G: np.ndarray
    area: float


@dataclass(frozen=True)
class Band:
    """The mean of the curves of several folds, and how far they spread.

    Attributes:
        x_G: the common grid, float64.
        mean_G: the mean over the folds at each point.
        deviation_G: standard deviation over the folds (division by n, as in the tables); 0 for one fold.
        areas: the area of each fold's own curve.
    """

    x_G: np.ndarray
    mean_G: np.ndarray
    deviation_G: np.ndarray
    areas: tuple[float, ...]


def roc(positive_N: np.ndarray, scores_N: np.ndarray) -> Curve:
    """True-positive rate over false-positive rate; the area is the AUC.

    Args:
        positive_N: bool.
        scores_N: the higher, the more positive.

    Raises:
        UndefinedError: all bags have the same class, there is none, or a score is not finite.
    """
    from sklearn import metrics as sk

    check(positive_N.astype(np.int64), scores_N, classes=2)
    false_positive, true_positive, _ = sk.roc_curve(positive_N, scores_N, drop_intermediate=False)
    return Curve(false_positive, true_positive, float(sk.auc(false_positive, true_positive)))


def precision_recall(positive_N: np.ndarray, scores_N: np.ndarray) -> Curve:
    """Precision over recall; the area is the average precision, without interpolation between points.

    Args:
        positive_N: bool.
        scores_N: the higher, the more positive.

    Raises:
        UndefinedError: all bags have the same class, there is none, or a score is not finite.
    """
    from sklearn import metrics as sk

    check(positive_N.astype(np.int64), scores_N, classes=2)
    precision, recall, _ = sk.precision_recall_curve(positive_N, scores_N)
    area = float(sk.average_precision_score(positive_N, scores_N))
    return Curve(recall[::-1], precision[::-1], area)


def roc_band(curves: Sequence[Curve], *, num_points: int = 101) -> Band:
    """The mean ROC curve: true-positive rates at the same false-positive rates, linear between points.

    Raises:
        UndefinedError: there is no curve.
    """
    grid = _grid(curves, num_points)
    rates_FG = []
    for curve in curves:
        # At a vertical step this takes the step's highest point; the curve itself begins at (0, 0).
        rates_FG.append(np.concatenate([[0.0], np.interp(grid, curve.x_G, curve.y_G)]))
    return _band(np.concatenate([[0.0], grid]), rates_FG, curves)


def precision_recall_band(curves: Sequence[Curve], *, num_points: int = 101) -> Band:
    """The mean precision at the same recalls.

    A recall between two points takes the precision of the next point to the right, the threshold that reaches
    it: a straight line would promise precisions that no threshold has (Davis and Goadrich, 2006).

    Raises:
        UndefinedError: there is no curve.
    """
    grid = _grid(curves, num_points)
    precisions_FG = []
    for curve in curves:
        reached = np.searchsorted(curve.x_G, grid - 1e-12, side="left")
        precisions_FG.append(curve.y_G[np.minimum(reached, len(curve.y_G) - 1)])
    return _band(grid, precisions_FG, curves)


def _grid(curves: Sequence[Curve], num_points: int) -> np.ndarray:
    if not curves:
        raise UndefinedError("expected the curve of at least one fold, got none")
    return np.linspace(0, 1, num_points)


def _band(grid_G: np.ndarray, values_FG: Sequence[np.ndarray], curves: Sequence[Curve]) -> Band:
    stacked_FG = np.stack(values_FG)
    return Band(
        grid_G, stacked_FG.mean(axis=0), stacked_FG.std(axis=0), tuple(curve.area for curve in curves)
    )


@dataclass(frozen=True)
class ThresholdCurve:
    """What each decision threshold does; a bag with a score at or above it is called positive.

    Attributes:
        thresholds_G: float64, ascending.
        sensitivity_G, specificity_G, accuracy_G, f1_G: at each threshold, in [0, 1].
    """

    thresholds_G: np.ndarray
    sensitivity_G: np.ndarray
    specificity_G: np.ndarray
    accuracy_G: np.ndarray
    f1_G: np.ndarray


def threshold_curve(
    positive_N: np.ndarray, scores_N: np.ndarray, thresholds_G: np.ndarray | None = None
) -> ThresholdCurve:
    """Sensitivity, specificity, accuracy and F1 over decision thresholds.

    Args:
        positive_N: bool.
        scores_N: the higher, the more positive.
        thresholds_G: the thresholds, ascending; None takes 0, 0.01, ..., 1.

    Raises:
        UndefinedError: all bags have the same class, there is none, or a score is not finite.
    """
    check(positive_N.astype(np.int64), scores_N, classes=2)
    grid_G = np.linspace(0, 1, 101) if thresholds_G is None else np.asarray(thresholds_G, dtype=np.float64)
    positives, negatives = np.sort(scores_N[positive_N]), np.sort(scores_N[~positive_N])
    hit_G = len(positives) - np.searchsorted(positives, grid_G, side="left")
    false_G = len(negatives) - np.searchsorted(negatives, grid_G, side="left")
    return ThresholdCurve(
        grid_G,
        hit_G / len(positives),
        1 - false_G / len(negatives),
        (hit_G + len(negatives) - false_G) / len(scores_N),
        2 * hit_G / (hit_G + false_G + len(positives)),
    )


def predicted_classes(probabilities_NC: np.ndarray, threshold: float | None) -> np.ndarray:
    """The class that each bag is called, int64.

    Args:
        probabilities_NC: class probabilities.
        threshold: for two classes, the lowest probability called positive; None, and more classes, take the
            most probable class.
    """
    if probabilities_NC.shape[1] == 2 and threshold is not None:
        return (probabilities_NC[:, 1] >= threshold).astype(np.int64)
    return probabilities_NC.argmax(axis=1)


def confusion(labels_N: np.ndarray, predicted_N: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts of bags by class (rows) and predicted class (columns): int64, shape (C, C).

    Raises:
        UndefinedError: there is no bag, or the lengths differ.
    """
    from sklearn import metrics as sk

    check(labels_N, predicted_N)
    return sk.confusion_matrix(labels_N, predicted_N, labels=range(num_classes))
