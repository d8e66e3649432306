"""Metrics of predictions, with intervals that are resampled by case.

Dimensions: N slides or cases, C classes.
"""

from typing import Any

from mhimdist.prediction.sources import UNKNOWN
from mhimdist.prediction.verdicts import Verdicts
from mhimdist.statistics import metrics
from mhimdist.statistics.intervals import class_intervals

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
    num_classes = probabilities_NC.shape[1]
    by_class = class_intervals(
        [labels_N], [predicted_N], [cases], num_classes, num_resamples=NUM_RESAMPLES, level=LEVEL
    )
    intervals = {"auc": auc, "accuracy": by_class["accuracy"], "f1": by_class["f1"]}
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
