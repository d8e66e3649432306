"""Bootstrap intervals of the metrics that follow from predicted classes: accuracy, F1, precision, recall.

Dimensions: N bags, C classes, K cases, R bootstrap resamples.
"""

from collections.abc import Sequence

import numpy as np

from mhimdist.errors import UndefinedError
from mhimdist.statistics.bootstrap import case_counts

METRICS = ("accuracy", "f1", "precision", "recall", "specificity")


def class_metrics(counts_RCC: np.ndarray) -> dict[str, np.ndarray]:
    """Metrics of confusion matrices, each of shape (R); with two classes the second one is positive.

    With more classes F1, precision, recall and specificity are means over the classes that have bags. What
    divides by zero is 0, as in `metrics.classification`.

    Args:
        counts_RCC: bags by class, then by predicted class.
    """
    right_RC = np.diagonal(counts_RCC, axis1=1, axis2=2)
    true_RC, called_RC = counts_RCC.sum(axis=2), counts_RCC.sum(axis=1)
    total_R = counts_RCC.sum(axis=(1, 2))
    without_RC = total_R[:, None] - true_RC
    each = {
        "f1": _share(2 * right_RC, true_RC + called_RC),
        "precision": _share(right_RC, called_RC),
        "recall": _share(right_RC, true_RC),
        "specificity": _share(without_RC - called_RC + right_RC, without_RC),
    }
    if counts_RCC.shape[1] == 2:
        found = {name: value_RC[:, 1] for name, value_RC in each.items()}
    else:
        present_RC = true_RC > 0
        found = {name: _share((v * present_RC).sum(1), present_RC.sum(1)) for name, v in each.items()}
    return {"accuracy": _share(right_RC.sum(axis=1), total_R), **found}


def class_intervals(
    labels: Sequence[np.ndarray],
    predicted: Sequence[np.ndarray],
    cases: Sequence[Sequence[str]],
    num_classes: int,
    *,
    num_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of the mean metrics over several networks, resampled by case as in `auc_interval`.

    Args:
        labels, predicted, cases: of each network, one entry per bag; classes are int64 indices.
        num_classes: number C of classes.
        num_resamples: number R of resamples.
        level: share of the resamples inside the interval, in (0, 1).
        seed: seed of the draws.

    Returns:
        The ends of the interval of each of `METRICS`.

    Raises:
        UndefinedError: there is no network.
    """
    if not labels:
        raise UndefinedError("expected the predictions of at least one network, got none")
    names = sorted({case for part in cases for case in part})
    place = {name: i for i, name in enumerate(names)}
    counts_RK = case_counts(len(names), num_resamples, seed)
    values: dict[str, list[np.ndarray]] = {name: [] for name in METRICS}
    for labels_N, predicted_N, cases_N in zip(labels, predicted, cases, strict=True):
        place_N = np.array([place[case] for case in cases_N])
        # Bags by case, class and predicted class: a resample is a weighted sum over the cases.
        cells_KCC = np.zeros((len(names), num_classes, num_classes))
        np.add.at(cells_KCC, (place_N, labels_N, predicted_N), 1)
        counts_RCC = np.tensordot(counts_RK, cells_KCC, axes=1)
        has_bags_R = counts_RCC.sum(axis=(1, 2)) > 0
        for name, value_R in class_metrics(counts_RCC).items():
            values[name].append(np.where(has_bags_R, value_R, np.nan))
    ends = [(1 - level) / 2, (1 + level) / 2]
    found = {}
    for name, parts in values.items():
        stacked_PR = np.stack(parts)
        means_R = np.nanmean(stacked_PR[:, np.isfinite(stacked_PR).any(axis=0)], axis=0)
        low, high = np.quantile(means_R, ends)
        found[name] = (float(low), float(high))
    return found


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros(np.shape(whole)), where=np.asarray(whole) > 0)
