"""A network's predictions for bags, whole or by the mean over samples of them, and their metrics.

Dimensions: N bags, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch

from mhimdist.config.train import TrainConfig
from mhimdist.data.bags import BagSource
from mhimdist.data.read_ahead import read_ahead
from mhimdist.data.splits import Split
from mhimdist.data.sub_bags import SampleSize, SubBags
from mhimdist.errors import NonFiniteError
from mhimdist.models import BagModel
from mhimdist.ops.draws import Draws
from mhimdist.statistics import metrics
from mhimdist.training import denormals


@dataclass(frozen=True)
class Sampling:
    """How bags are evaluated by samples of them: the same samples after every epoch and for every network.

    Attributes:
        size: how many instances of a bag a sample has.
        num_samples: how many samples of each bag are predicted; the mean is taken.
        seed: the run's seed.
    """

    size: SampleSize
    num_samples: int
    seed: int

    @classmethod
    def of(cls, config: TrainConfig) -> Self | None:
        """What a configuration asks for; None for whole bags."""
        size = SampleSize.of(config)
        if size is None or config.evaluation_samples is None:
            return None
        return cls(size, config.evaluation_samples, config.seed)


@dataclass(frozen=True)
class Predictions:
    """A network's predictions for bags.

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
        return cls(
            keys=tuple(keys),
            labels_N=np.concatenate([part.labels_N for part in parts])[order],
            probabilities_NC=np.concatenate([part.probabilities_NC for part in parts])[order],
            losses_N=np.concatenate([part.losses_N for part in parts])[order],
        )

    @property
    def loss(self) -> float:
        """Mean classification loss."""
        return float(self.losses_N.mean())

    def scores(self, case_of: Mapping[str, str]) -> metrics.Scores:
        """The probabilities with the case of each bag, which `case_of` names by its key."""
        return metrics.Scores(self.labels_N, self.probabilities_NC, [case_of[key] for key in self.keys])

    @property
    def auc(self) -> float | None:
        """See `metrics.auc`."""
        return metrics.auc(self.labels_N, self.probabilities_NC)


def predict(
    network: BagModel, bags: BagSource, keys: Sequence[str], sampling: Sampling | None = None
) -> Predictions:
    """Predict bags, one at a time, without dropout.

    Args:
        network: predicts on its current device.
        bags: the data set.
        keys: keys of the bags to predict, at least one.
        sampling: predict samples of each bag, and take the means of probabilities and losses; None predicts
            whole bags.

    Raises:
        NonFiniteError: a bag's probabilities are not finite; the message names it.
    """
    if sampling is None:
        return _predict(network, bags, keys)
    each = [
        _predict(
            network,
            SubBags(bags, sampling.size, Draws(sampling.seed, number), "evaluated_sub_bags"),
            keys,
        )
        for number in range(sampling.num_samples)
    ]
    return replace(
        each[0],
        probabilities_NC=np.mean([one.probabilities_NC for one in each], axis=0),
        losses_N=np.mean([one.losses_N for one in each], axis=0),
    )


@torch.inference_mode()
@denormals.flushed()
def _predict(network: BagModel, bags: BagSource, keys: Sequence[str]) -> Predictions:
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


def evaluate(
    network: BagModel, bags: BagSource, split: Split, sampling: Sampling | None = None
) -> dict[str, dict[str, float | None]]:
    """Metrics on the validation and the test bags, both at the Youden threshold of the validation scores.

    Args:
        network: predicts on its current device.
        bags: the data set.
        split: names the validation and the test bags.
        sampling: as in `predict`.

    Raises:
        NonFiniteError: a bag's probabilities are not finite; the message names it.
    """
    return judge(
        predict(network, bags, split.validation, sampling), predict(network, bags, split.test, sampling)
    )


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
