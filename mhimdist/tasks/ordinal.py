"""Ordinal: a bag has a grade, one of several classes in ascending order.

Dimensions: B bags of a batch, N bags of a set, C grades, J = C - 1 steps between grades.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mhimdist.config.tasks import OrdinalTask
from mhimdist.data.bags import BagSource
from mhimdist.data.splits import Split
from mhimdist.statistics import ordinal
from mhimdist.statistics.bootstrap import Weighed
from mhimdist.tasks.interface import Fitted, Judged, Task, Truth

LEAST_GAP = 1e-3
"""Least distance between two cut points, so that every grade keeps some probability."""


class Ordinal(Task):
    """CORN or a cumulative link; the quadratic weighted kappa selects."""

    name = "ordinal"
    selection = "kappa"
    page = "mhimdist.pages.tasks.built_in:OrdinalPage"
    headings: ClassVar[Mapping[str, str]] = {"kappa": "kappa", "accuracy": "accuracy", "mae": "MAE (grades)"}
    has_classes = True
    settings: OrdinalTask

    @property
    def _is_corn(self) -> bool:
        return self.settings.ordinal_loss == "corn"

    @property
    def num_outputs(self) -> int:
        """See `Task.num_outputs`: one per step between grades, or one score."""
        return len(self.classes) - 1 if self._is_corn else 1

    @property
    def columns(self) -> tuple[str, ...]:
        """See `Task.columns`."""
        return tuple(f"probability_{name}" for name in self.classes)

    def learn(self, labels_N: np.ndarray, targets_NK: np.ndarray) -> dict[str, Any]:
        """See `Task.learn`: the share of the training bags above each step."""
        steps = range(len(self.classes) - 1)
        return {"shares_above": [float((labels_N > step).mean()) for step in steps]}

    def first_values(self) -> Sequence[float]:
        """See `Task.first_values`: the cut points at which a score of 0 gives the training bags' shares."""
        if self._is_corn:
            return ()
        shares = self.learnt.get("shares_above") or np.linspace(0.9, 0.1, len(self.classes) - 1).tolist()
        above_J = np.clip(np.array(shares), 1e-3, 1 - 1e-3)
        cuts_J = np.log1p(-above_J) - np.log(above_J)  # -logit
        gaps = np.maximum(np.diff(cuts_J) - LEAST_GAP, LEAST_GAP)
        return [float(cuts_J[0]), *np.log(np.expm1(gaps)).tolist()]

    def loss(self, outputs_BO: Tensor, truth: Truth, values_V: Tensor | None) -> Tensor:
        """See `Task.loss`.

        CORN: the mean over the C - 1 steps of the cross-entropies of "above step j, given at least j", each
        for the bags that have reached step j; summed over bags it is the published loss up to the number of
        terms. Cumulative link: -log P(grade). A class weight multiplies the loss of its grade's bags.
        """
        labels_B = truth.labels_B
        if self._is_corn:
            step_J = torch.arange(outputs_BO.shape[1], device=outputs_BO.device)
            terms_BJ = functional.binary_cross_entropy_with_logits(
                outputs_BO, (labels_B[:, None] > step_J).to(outputs_BO.dtype), reduction="none"
            )
            reached_BJ = labels_B[:, None] >= step_J
            loss_B = torch.where(reached_BJ, terms_BJ, 0).sum(1) / outputs_BO.shape[1]
        else:
            loss_B = -self._log_grades(outputs_BO, values_V).gather(1, labels_B[:, None]).squeeze(1)
        return loss_B if truth.class_weights_C is None else loss_B * truth.class_weights_C[labels_B]

    def predict(self, outputs_BO: Tensor, values_V: Tensor | None) -> Tensor:
        """See `Task.predict`: the probability of each grade."""
        if not self._is_corn:
            return self._log_grades(outputs_BO, values_V).exp()
        above_BJ = torch.sigmoid(outputs_BO).cumprod(1)
        ones_B1 = torch.ones_like(above_BJ[:, :1])
        return torch.cat([ones_B1, above_BJ], 1) - torch.cat([above_BJ, torch.zeros_like(ones_B1)], 1)

    def _log_grades(self, outputs_B1: Tensor, values_V: Tensor | None) -> Tensor:
        """Log P(grade) of each bag, B x C: P(grade <= j) = sigmoid(cut_j - score)."""
        assert values_V is not None, "the cut points are learnt values"
        gaps = functional.softplus(values_V[1:]) + LEAST_GAP
        cuts_J = torch.cat([values_V[:1], gaps]).cumsum(0)
        below_BJ = cuts_J - outputs_B1
        first_B1 = functional.logsigmoid(below_BJ[:, :1])
        last_B1 = functional.logsigmoid(-below_BJ[:, -1:])
        # log(sigmoid(b) - sigmoid(a)) = logsigmoid(b) + logsigmoid(-a) + log(1 - exp(a - b))
        low_BJ, high_BJ = below_BJ[:, :-1], below_BJ[:, 1:]
        inner = functional.logsigmoid(high_BJ) + functional.logsigmoid(-low_BJ)
        inner = inner + torch.log(-torch.expm1(low_BJ - high_BJ))
        return torch.cat([first_B1, inner, last_B1], 1)

    def of_case(self, predictions_SMP: np.ndarray, how: Literal["mean", "max"]) -> np.ndarray:
        """See `Task.of_case`; "max" is the slide of the highest expected grade, for each network."""
        if how == "mean":
            return predictions_SMP.mean(0)
        highest_M = (predictions_SMP @ np.arange(len(self.classes))).argmax(0)
        return predictions_SMP[highest_M, np.arange(predictions_SMP.shape[1])]

    def grades(self, predictions_NP: np.ndarray) -> np.ndarray:
        """The predicted grade, int64: the number of steps that a bag is above with at least 50 %."""
        above_NJ = predictions_NP[:, ::-1].cumsum(1)[:, ::-1][:, 1:]
        return (above_NJ >= 0.5).sum(1)

    def decide(self, predictions_NP: np.ndarray, fitted: Fitted) -> list[str]:
        """See `Task.decide`: the median grade."""
        return [self.classes[grade] for grade in self.grades(predictions_NP).tolist()]

    def weighed(self, judged: Judged, fitted: Fitted) -> Weighed:
        """See `Task.weighed` and `statistics.ordinal.measures`."""
        grades_N = self.grades(judged.predictions_NP)
        return ordinal.weighed(judged.labels_N, grades_N, judged.cases, len(self.classes))

    def check(self, bags: BagSource, split: Split, *, validates: bool = True) -> None:
        """See `Task.check`: every grade trains, and two grades select and test."""
        split.check(bags.keys, bags.cases, bags.labels_N, bags.classes, validates=validates)
