"""Metrics of predictions, with intervals that are resampled by case.

Dimensions: N slides or cases.
"""

from typing import Any

import numpy as np

from mhimdist.prediction.sources import UNKNOWN
from mhimdist.prediction.verdicts import Verdicts
from mhimdist.tasks import Judged, Task, restored
from mhimdist.tasks.interface import Fitted

NUM_RESAMPLES, LEVEL = 1000, 0.95


def measure(
    verdicts: Verdicts, threshold: float | None, task: Task | None = None, fitted: Fitted | None = None
) -> dict[str, Any] | None:
    """The task's metrics with their intervals, over the rows whose truth is known.

    Args:
        verdicts: the predictions.
        threshold: with two classes, the decision threshold.
        task: what is predicted; None for classification.
        fitted: what the task has fitted; None for the threshold alone.

    Returns:
        Each metric with the ends of its interval, and the number of rows and cases; None without labels.
    """
    width = verdicts.probabilities_NC.shape[1]
    task = task or restored(None, [str(c) for c in range(width)])
    known_N = verdicts.labels_N != UNKNOWN
    if not task.has_classes:
        known_N = np.isfinite(verdicts.targets_NK).any(axis=1)
    if not known_N.any():
        return None
    cases = [case for case, known in zip(verdicts.cases, known_N, strict=True) if known]
    judged = Judged(
        verdicts.labels_N[known_N], verdicts.targets_NK[known_N], verdicts.probabilities_NC[known_N], cases
    )
    fitted = {"threshold": threshold} if fitted is None else fitted
    shown = list(task.shown)
    values = task.metrics(judged, fitted)
    intervals = task.intervals(judged, fitted, num_resamples=NUM_RESAMPLES)
    return {
        "rows": int(known_N.sum()),
        "cases": len(set(cases)),
        "level": LEVEL,
        "resamples": NUM_RESAMPLES,
        **{
            name: {
                "value": values[name],
                "interval": None if (ends := intervals[name]) is None else list(ends),
            }
            for name in shown
        },
    }
