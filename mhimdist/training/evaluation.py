"""A network's predictions for whole bags, and their metrics.

Dimensions: N bags, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from mhimdist.data.bags import BagSource
from mhimdist.data.read_ahead import read_ahead
from mhimdist.data.splits import Split
from mhimdist.errors import NonFiniteError
from mhimdist.models import BagModel
from mhimdist.statistics import metrics
from mhimdist.training import denormals

PREDICTIONS = "predictions"
"""In a checkpoint, the file of the predictions after each epoch."""


@dataclass(frozen=True)
class Predictions:
    """A network's predictions for whole bags.

    Attributes:
        keys: the bags' keys.
        labels_N: int64 class indices.
        probabilities_NC: float64 class probabilities.
        losses_N: float64 classification losses.
    """

    keys: tuple[str, ...]
    labels_N: np.ndarray
    probabilities_NC: np.ndarray
    losses_N: np.ndarray

    @classmethod
    def merge(cls, parts: Sequence["Predictions"], keys: Sequence[str]) -> "Predictions":
        """Join the parts, in the order of `keys`."""
        place_of = {key: i for i, key in enumerate(key for part in parts for key in part.keys)}
        order = [place_of[key] for key in keys]
        joined = cls.pooled(parts)
        return cls(tuple(keys), **{name: getattr(joined, name)[order] for name in _arrays(cls)})

    @classmethod
    def pooled(cls, parts: Sequence["Predictions"]) -> "Predictions":
        """Lay the parts end to end; a bag that several networks have predicted counts as often."""
        return cls(
            tuple(chain.from_iterable(part.keys for part in parts)),
            **{name: np.concatenate([getattr(part, name) for part in parts]) for name in _arrays(cls)},
        )

    @property
    def loss(self) -> float:
        """Mean classification loss."""
        return float(self.losses_N.mean())

    @property
    def auc(self) -> float | None:
        """See `metrics.auc`."""
        return metrics.auc(self.labels_N, self.probabilities_NC)


def _arrays(cls: type[Predictions]) -> list[str]:
    """The names of the fields that hold a value per bag."""
    return [field.name for field in fields(cls) if field.name != "keys"]


def stacked(epochs: Sequence[Predictions]) -> dict[str, Tensor]:
    """The predictions for the same bags after each epoch as tensors, epochs first."""
    names = _arrays(type(epochs[0]))
    return {name: torch.from_numpy(np.stack([getattr(each, name) for each in epochs])) for name in names}


def unstacked(tensors: Mapping[str, Tensor], keys: Sequence[str]) -> list[Predictions]:
    """What `stacked` was given; `keys` are those of the bags."""
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    num_epochs = len(next(iter(arrays.values())))
    return [
        Predictions(tuple(keys), **{name: array[epoch] for name, array in arrays.items()})
        for epoch in range(num_epochs)
    ]


@torch.inference_mode()
@denormals.flushed()
def predict(network: BagModel, bags: BagSource, keys: Sequence[str]) -> Predictions:
    """Predict whole bags, one at a time, without dropout.

    Args:
        network: predicts on its current device.
        bags: the data set.
        keys: keys of the bags to predict, at least one.

    Raises:
        NonFiniteError: a bag's probabilities are not finite; the message names it.
    """
    device = next(network.parameters()).device
    probabilities, losses, labels = [], [], []
    with read_ahead(bags, [[row] for row in bags.rows_of(keys).tolist()], device=device) as batches:
        for packed in batches:
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
        losses_N=torch.cat(losses).double().cpu().numpy(),
    )


def evaluate(network: BagModel, bags: BagSource, split: Split) -> dict[str, dict[str, float | None]]:
    """Metrics on the validation and the test bags, both at the Youden threshold of the validation scores.

    Args:
        network: predicts on its current device.
        bags: the data set.
        split: names the validation and the test bags.

    Raises:
        NonFiniteError: a bag's probabilities are not finite; the message names it.
    """
    return judge(predict(network, bags, split.validation), predict(network, bags, split.test))


def judge(validation: Predictions, test: Predictions | None) -> dict[str, dict[str, float | None]]:
    """Metrics of each given set of predictions, at the Youden threshold of the validation scores."""
    threshold = None
    if validation.probabilities_NC.shape[1] == 2:
        threshold = metrics.youden_threshold(validation.labels_N, validation.probabilities_NC[:, 1])
    return {
        name: metrics.classification(p.labels_N, p.probabilities_NC, threshold)
        for name, p in (("validation", validation), ("test", test))
        if p is not None
    }
