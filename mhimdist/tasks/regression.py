"""Regression: a bag has one or several numbers.

Dimensions: B bags of a batch, N bags of a set, K targets.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mhimdist.config.tasks import RegressionTask
from mhimdist.statistics import regression
from mhimdist.statistics.bootstrap import Weighed
from mhimdist.tasks.interface import Fitted, Judged, Task, Truth


class Regression(Task):
    """Huber loss of standardised targets; R2, the mean over the targets, selects.

    A network puts out standard deviations from the training bags' mean; predictions are in the targets' unit.
    """

    name = "regression"
    selection = "r2"
    page = "mhimdist.pages.tasks.built_in:RegressionPage"
    headings: ClassVar[Mapping[str, str]] = {"r2": "R2", "pearson": "Pearson r", "mae": "MAE"}
    settings: RegressionTask

    @property
    def num_outputs(self) -> int:
        """See `Task.num_outputs`: one per target."""
        return len(self.info.columns)

    @property
    def columns(self) -> tuple[str, ...]:
        """See `Task.columns`."""
        return tuple(f"predicted_{name}" for name in self.info.columns)

    def learn(self, labels_N: np.ndarray, targets_NK: np.ndarray) -> dict[str, Any]:
        """See `Task.learn`: mean and standard deviation of each target."""
        return {"mean": targets_NK.mean(0).tolist(), "std": targets_NK.std(0).tolist()}

    def loss(self, outputs_BO: Tensor, truth: Truth, values_V: Tensor | None) -> Tensor:
        """See `Task.loss`: the mean over the targets."""
        mean_K, std_K = self._scale(outputs_BO)
        # Float32 cannot hold a large target and its difference from the mean at once.
        wanted_BK = ((truth.targets.double() - mean_K) / std_K).to(outputs_BO.dtype)
        loss_BK = functional.huber_loss(
            outputs_BO, wanted_BK, reduction="none", delta=self.settings.huber_delta
        )
        return loss_BK.mean(1)

    def predict(self, outputs_BO: Tensor, values_V: Tensor | None) -> Tensor:
        """See `Task.predict`: the targets, float64, in their unit."""
        mean_K, std_K = self._scale(outputs_BO)
        return outputs_BO.double() * std_K + mean_K

    def _scale(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the training bags' targets, float64, on a tensor's device."""
        found = [self.learnt.get("mean", [0.0] * self.num_outputs), self.learnt.get("std", [1.0])]
        mean_K, std_K = (_on_device(values, like) for values in found)
        return mean_K, std_K

    def weighed(self, judged: Judged, fitted: Fitted) -> Weighed:
        """See `Task.weighed` and `statistics.regression.measures`."""
        return regression.weighed(judged.targets_NK, judged.predictions_NP, judged.cases, self.info.columns)

    def fault(self, judged: Judged, is_train: bool) -> str | None:
        """See `Task.fault`: each target must vary."""
        for name, target_N in zip(self.info.columns, judged.targets_NK.T, strict=True):
            if len(np.unique(target_N)) < 2:
                why = "there is nothing to learn" if is_train else "its R2 is undefined"
                return (
                    f"expected different values of {name}, got {target_N[0]:g} for all {len(target_N)} bags: "
                    f"{why}; give another split, or another column"
                )
        return None


def _on_device(values: list[float], like: Tensor) -> Tensor:
    """A few constants on a tensor's device, made there: a copy from the host would wait for the device."""
    return torch.stack([torch.full((), value, dtype=torch.float64, device=like.device) for value in values])
