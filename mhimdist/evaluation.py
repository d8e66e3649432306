"""A network's predictions of whole bags, and how good they are.

Dimensions: N bags, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mhimdist import metrics
from mhimdist.data.bags import BagSource
from mhimdist.data.splits import Split
from mhimdist.errors import NonFiniteError
from mhimdist.models import BagModel


@dataclass(frozen=True)
class Predictions:
    """What a network makes of whole bags.

    Attributes:
        keys: of the bags.
        labels_N: int64 class indices.
        probabilities_NC: float64 class probabilities.
        loss: mean classification loss.
    """

    keys: tuple[str, ...]
    labels_N: np.ndarray
    probabilities_NC: np.ndarray
    loss: float

    @property
    def auc(self) -> float | None:
        """See `metrics.auc`."""
        return metrics.auc(self.labels_N, self.probabilities_NC)


@torch.inference_mode()
def predict(network: BagModel, bags: BagSource, keys: Sequence[str]) -> Predictions:
    """Predict whole bags, one at a time, without dropout.

    Raises:
        NonFiniteError: a bag's probabilities are not finite; the message names it.
    """
    device = next(network.parameters()).device
    probabilities, losses, labels = [], [], []
    for row in bags.rows_of(keys).tolist():
        packed = bags.load([row]).to(device)
        output = network(packed)
        probabilities.append(network.probabilities(output))
        losses.append(network.classification_loss(output, packed.labels_B))
        labels.append(packed.labels_B)
    probabilities_NC = torch.cat(probabilities).double().cpu().numpy()
    finite_N = np.isfinite(probabilities_NC).all(axis=1)
    if not finite_N.all():
        raise NonFiniteError(f"the scores of bag {keys[int(finite_N.argmin())]} are not finite")
    return Predictions(
        keys=tuple(keys),
        labels_N=torch.cat(labels).cpu().numpy(),
        probabilities_NC=probabilities_NC,
        loss=torch.cat(losses).mean().item(),
    )


def evaluate(network: BagModel, bags: BagSource, split: Split) -> dict[str, dict[str, float | None]]:
    """Metrics of the validation and the test bags, both at the Youden threshold of the validation scores."""
    validation, test = predict(network, bags, split.validation), predict(network, bags, split.test)
    threshold = None
    if len(bags.classes) == 2:
        threshold = metrics.youden_threshold(validation.labels_N, validation.probabilities_NC[:, 1])
    return {
        name: metrics.classification(p.labels_N, p.probabilities_NC, threshold)
        for name, p in (("validation", validation), ("test", test))
    }
