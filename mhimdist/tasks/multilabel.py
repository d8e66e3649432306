"""Multilabel: each of several labels is present, absent or unknown.

Dimensions: B bags of a batch, N bags of a set, K labels.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mhimdist.statistics import multilabel
from mhimdist.statistics.bootstrap import Weighed
from mhimdist.tasks.interface import Fitted, Judged, Task, Truth


class Multilabel(Task):
    """Cross-entropy of a sigmoid per label, over the known labels; the mean AUC over the labels selects."""

    name = "multilabel"
    selection = "auc"
    fits_by = "Youden's J"
    page = "mhimdist.pages.tasks.built_in:MultilabelPage"
    headings: ClassVar[Mapping[str, str]] = {"auc": "macro AUC", "ap": "macro AP", "f1": "macro F1"}

    @property
    def num_outputs(self) -> int:
        """See `Task.num_outputs`: a logit per label."""
        return len(self.info.columns)

    @property
    def columns(self) -> tuple[str, ...]:
        """See `Task.columns`."""
        return tuple(f"probability_{name}" for name in self.info.columns)

    def loss(self, outputs_BO: Tensor, truth: Truth, values_V: Tensor | None) -> Tensor:
        """See `Task.loss`: the sum over the known labels, divided by the number of all labels.

        So a label that is known weighs the same in every bag.
        """
        targets_BK = truth.targets.to(outputs_BO.dtype)
        known_BK = ~targets_BK.isnan()
        # An unknown label must not reach the loss: the gradient of 0 x NaN is NaN.
        terms_BK = functional.binary_cross_entropy_with_logits(
            outputs_BO, torch.where(known_BK, targets_BK, 0), reduction="none"
        )
        return torch.where(known_BK, terms_BK, 0).sum(1) / outputs_BO.shape[1]

    def predict(self, outputs_BO: Tensor, values_V: Tensor | None) -> Tensor:
        """See `Task.predict`: the probability of each label."""
        return torch.sigmoid(outputs_BO)

    def fit(self, judged: Judged) -> dict[str, Any]:
        """See `Task.fit`: a threshold per label by Youden's J; 0.5 for a label of one kind only."""
        return {"thresholds": multilabel.thresholds(judged.targets_NK, judged.predictions_NP).tolist()}

    def decide(self, predictions_NP: np.ndarray, fitted: Fitted) -> list[str]:
        """See `Task.decide`: the labels from their threshold on, 0.5 if nothing was fitted."""
        thresholds_K = np.array(fitted.get("thresholds") or [0.5] * predictions_NP.shape[1])
        return [
            ", ".join(name for name, is_on in zip(self.info.columns, row_K, strict=True) if is_on)
            for row_K in (predictions_NP >= thresholds_K).tolist()
        ]

    def weighed(self, judged: Judged, fitted: Fitted) -> Weighed:
        """See `Task.weighed` and `statistics.multilabel.measures`."""
        thresholds = fitted.get("thresholds")
        return multilabel.weighed(
            judged.targets_NK,
            judged.predictions_NP,
            judged.cases,
            self.info.columns,
            thresholds_K=None if thresholds is None else np.array(thresholds),
        )

    def fault(self, judged: Judged, is_train: bool) -> str | None:
        """See `Task.fault`: each label needs both kinds to train; one label needs them to be judged."""
        names = self.info.columns
        both = multilabel.defined_labels(judged.targets_NK).tolist()
        if is_train and not all(both):
            lacking = ", ".join(name for name, is_there in zip(names, both, strict=True) if not is_there)
            return (
                f"expected bags with and without each label, got bags of one kind only for {lacking}; give "
                "another split, or write the shards without that label"
            )
        if not any(both):
            return "expected a label with bags of both kinds, got none: no AUC is defined; give another split"
        return None
