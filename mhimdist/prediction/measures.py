"""Metrics of predictions, with intervals that are resampled by case.

Dimensions: N slides or cases, C classes, K cases, R resamples.
"""

from typing import Any

import numpy as np

from mhimdist.prediction.sources import UNKNOWN
from mhimdist.prediction.verdicts import Verdicts
from mhimdist.statistics import metrics
from mhimdist.statistics.bootstrap import case_counts

NUM_RESAMPLES, LEVEL = 1000, 0.95


def measure(verdicts: Verdicts, threshold: float | None) -> dict[str, Any] | None:
    """AUC, accuracy and F1 with their intervals, over the rows whose label is known.

    Args:
        verdicts: the predictions.
        threshold: with two classes, the decision threshold.

    Returns:
        Each metric with the ends of its interval, and the number of rows and cases; None without labels.
    """
    known_N = verdicts.labels_N != UNKNOWN
    if not known_N.any():
        return None
    labels_N, probabilities_NC = verdicts.labels_N[known_N], verdicts.probabilities_NC[known_N]
    predicted_N = verdicts.predicted_N[known_N]
    cases = [case for case, known in zip(verdicts.cases, known_N, strict=True) if known]
    values = metrics.classification(labels_N, probabilities_NC, threshold)
    auc = metrics.auc_interval(
        [metrics.Scores(labels_N, probabilities_NC, cases)], num_resamples=NUM_RESAMPLES, level=LEVEL
    )
    weights_RN = _weights(cases)
    accuracy_R, f1_R = _resampled(labels_N, predicted_N, probabilities_NC.shape[1], weights_RN)
    intervals = {"auc": auc, "accuracy": _interval(accuracy_R), "f1": _interval(f1_R)}
    return {
        "rows": int(known_N.sum()),
        "cases": len(set(cases)),
        "level": LEVEL,
        "resamples": NUM_RESAMPLES,
        **{
            name: {"value": values[name], "interval": None if ends is None else list(ends)}
            for name, ends in intervals.items()
        },
    }


def _weights(cases: list[str], seed: int = 0) -> np.ndarray:
    """How often each row is drawn in each resample of whole cases, float64 R x N."""
    names, case_N = np.unique(np.array(cases), return_inverse=True)
    return case_counts(len(names), NUM_RESAMPLES, seed)[:, case_N].astype(np.float64)


def _resampled(
    labels_N: np.ndarray, predicted_N: np.ndarray, num_classes: int, weights_RN: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy and F1 of each resample, both of shape R; F1 as in `metrics.classification`."""
    accuracy_R = weights_RN @ (labels_N == predicted_N) / weights_RN.sum(1)
    classes = [1] if num_classes == 2 else sorted({*labels_N.tolist(), *predicted_N.tolist()})
    f1s = []
    for c in classes:
        hits_R = weights_RN @ ((labels_N == c) & (predicted_N == c))
        both_R = weights_RN @ ((labels_N == c).astype(float) + (predicted_N == c))
        f1s.append(np.divide(2 * hits_R, both_R, out=np.zeros(len(hits_R)), where=both_R > 0))
    return accuracy_R, np.mean(f1s, axis=0)


def _interval(values_R: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
