"""Classification: a bag has one of several classes.

Dimensions: B bags of a batch, C classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mhimdist.data.bags import BagSource
from mhimdist.data.splits import Split
from mhimdist.statistics import metrics
from mhimdist.statistics.bootstrap import Weighed
from mhimdist.statistics.curves import predicted_classes
from mhimdist.statistics.intervals import class_metrics
from mhimdist.tasks.interface import Fitted, Judged, Metrics, Task, Truth


class Classification(Task):
    """Cross-entropy of a softmax over the classes; the AUC selects."""

    name = "classification"
    selection = "auc"
    headings: ClassVar[Mapping[str, str]] = {
        "auc": "AUC",
        "accuracy": "accuracy",
        "f1": "F1",
        "precision": "precision",
        "recall": "recall",
    }
    num_shown = 3
    fits_by = "Youden's J"
    has_classes = True

    @property
    def num_outputs(self) -> int:
        """See `Task.num_outputs`: a logit per class."""
        return len(self.classes)

    @property
    def columns(self) -> tuple[str, ...]:
        """See `Task.columns`."""
        return tuple(f"probability_{name}" for name in self.classes)

    def loss(self, outputs_BO: Tensor, truth: Truth, values_V: Tensor | None) -> Tensor:
        """See `Task.loss`: the cross-entropy (paper, equation 8)."""
        return functional.cross_entropy(outputs_BO, truth.labels_B, truth.class_weights_C, reduction="none")

    def predict(self, outputs_BO: Tensor, values_V: Tensor | None) -> Tensor:
        """See `Task.predict`: class probabilities."""
        return torch.softmax(outputs_BO, dim=1)

    def of_case(self, predictions_SMP: np.ndarray, how: Literal["mean", "max"]) -> np.ndarray:
        """See `Task.of_case`.

        With "max" and two classes, the case is as positive as its most positive slide. With more classes,
        each class has its largest probability over the slides, and these are divided by their sum.
        """
        if how == "mean":
            return predictions_SMP.mean(0)
        largest_MC = predictions_SMP.max(0)
        if largest_MC.shape[1] == 2:
            return np.stack([1 - largest_MC[:, 1], largest_MC[:, 1]], axis=1)
        return largest_MC / largest_MC.sum(1, keepdims=True)

    def decide(self, predictions_NP: np.ndarray, fitted: Fitted) -> list[str]:
        """See `Task.decide`: a class, by the threshold if there are two."""
        predicted_N = predicted_classes(predictions_NP, fitted.get("threshold"))
        return [self.classes[label] for label in predicted_N.tolist()]

    def fit(self, judged: Judged) -> dict[str, Any]:
        """See `Task.fit`: with two classes, the threshold that Youden's J chooses."""
        if judged.predictions_NP.shape[1] != 2:
            return {"threshold": None}
        return {"threshold": metrics.youden_threshold(judged.labels_N, judged.predictions_NP[:, 1])}

    def weighed(self, judged: Judged, fitted: Fitted) -> Weighed:
        """See `Task.weighed`; with two classes the second one is positive."""
        labels_N, scores_NC = judged.labels_N, judged.predictions_NP
        num_classes = scores_NC.shape[1]
        predicted_N = predicted_classes(scores_NC, fitted.get("threshold"))
        cells_NX = np.eye(num_classes**2)[labels_N * num_classes + predicted_N]
        positive = [1] if num_classes == 2 else np.unique(labels_N).tolist()

        def values(weights_RN: np.ndarray) -> dict[str, np.ndarray]:
            aucs = [metrics.weighted_auc(labels_N == c, scores_NC[:, c], weights_RN) for c in positive]
            counts_RCC = (weights_RN @ cells_NX).reshape(-1, num_classes, num_classes)
            has_bags_R = counts_RCC.sum(axis=(1, 2)) > 0
            of_classes = {
                name: np.where(has_bags_R, value_R, np.nan)
                for name, value_R in class_metrics(counts_RCC).items()
            }
            return {"auc": np.mean(aucs, axis=0), **of_classes}

        return Weighed(judged.cases, values)

    def metrics(self, judged: Judged, fitted: Fitted) -> Metrics:
        """See `Task.metrics` and `statistics.metrics.classification`."""
        return metrics.classification(judged.labels_N, judged.predictions_NP, fitted["threshold"])

    def score(self, judged: Judged) -> float | None:
        """See `Task.score`: the AUC."""
        return metrics.auc(judged.labels_N, judged.predictions_NP)

    def interval(self, parts: Sequence[Judged], *, num_resamples: int = 1000) -> tuple[float, float] | None:
        """See `Task.interval`."""
        scores = [metrics.Scores(part.labels_N, part.predictions_NP, part.cases) for part in parts]
        return metrics.auc_interval(scores, num_resamples=num_resamples)

    def check(self, bags: BagSource, split: Split, *, validates: bool = True) -> None:
        """See `Task.check`: every class trains, and two classes select and test."""
        split.check(bags.keys, bags.cases, bags.labels_N, bags.classes, validates=validates)

    def record(self) -> dict[str, Any]:
        """See `Task.record`: the classes say it all."""
        return {}
