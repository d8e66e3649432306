"""A network's predictions for bags, whole or by the mean over samples of them, and their metrics.

Dimensions: N bags, P predictions of a bag, K targets of a bag.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from statistics import fmean
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from mhimdist.config.train import TrainConfig
from mhimdist.data.bags import BagSource
from mhimdist.data.read_ahead import read_ahead
from mhimdist.data.splits import Split
from mhimdist.data.sub_bags import SampleSize, SubBags
from mhimdist.errors import NonFiniteError
from mhimdist.models import BagModel
from mhimdist.ops.draws import Draws
from mhimdist.tasks import Judged, Task, Truth
from mhimdist.tasks.interface import Metrics, targets_of
from mhimdist.training import denormals

PREDICTIONS = "predictions"
"""In a checkpoint, the file of the predictions after each epoch."""
ARRAYS = ("labels_N", "targets_NK", "predictions_NP", "losses_N")
"""The fields of `Predictions` that hold a row per bag."""


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
        labels_N: int64 class indices, or strata of the targets.
        targets_NK: float64 targets; N x 0 for classes.
        predictions_NP: float64 predictions, such as class probabilities.
        losses_N: float64 losses of the task.
        task: what the predictions mean.
    """

    keys: tuple[str, ...]
    labels_N: np.ndarray
    targets_NK: np.ndarray
    predictions_NP: np.ndarray
    losses_N: np.ndarray
    task: Task

    @classmethod
    def merge(cls, parts: Sequence["Predictions"], keys: Sequence[str]) -> "Predictions":
        """Join the parts, in the order of `keys`."""
        place_of = {key: i for i, key in enumerate(key for part in parts for key in part.keys)}
        order = [place_of[key] for key in keys]
        joined = cls.pooled(parts)
        return cls(tuple(keys), **{name: getattr(joined, name)[order] for name in ARRAYS}, task=joined.task)

    @classmethod
    def pooled(cls, parts: Sequence["Predictions"]) -> "Predictions":
        """Lay parts of one task end to end; a bag that several networks have predicted counts as often."""
        return cls(
            tuple(chain.from_iterable(part.keys for part in parts)),
            **{name: np.concatenate([getattr(part, name) for part in parts]) for name in ARRAYS},
            task=parts[0].task,
        )

    def as_of(self, task: Task) -> "Predictions":
        """The same as a task means them that other bags have taught, see `Task.aligned`."""
        return replace(self, predictions_NP=self.task.aligned(self.predictions_NP, task), task=task)

    @property
    def judged(self) -> Judged:
        """The bags as the task judges them."""
        return Judged.of(self.labels_N, self.targets_NK, self.predictions_NP)

    def by_cases_of(self, bags: BagSource) -> Judged:
        """`judged`, with the case of each bag, which the data set knows."""
        return replace(self.judged, cases=[bags.cases[row] for row in bags.rows_of(self.keys)])

    @property
    def loss(self) -> float:
        """The task's loss of the set, usually the mean over the bags."""
        return self.task.total_loss(self.judged, self.losses_N)

    @property
    def score(self) -> float | None:
        """The metric that selects, such as the AUC; None if it is undefined."""
        return self.task.score(self.judged)


def stacked(epochs: Sequence[Predictions]) -> dict[str, Tensor]:
    """The predictions for the same bags after each epoch as tensors, epochs first."""
    return {name: torch.from_numpy(np.stack([getattr(each, name) for each in epochs])) for name in ARRAYS}


def unstacked(tensors: Mapping[str, Tensor], keys: Sequence[str], task: Task) -> list[Predictions]:
    """What `stacked` was given.

    Args:
        tensors: the tensors.
        keys: those of the bags.
        task: of the network that predicted them.
    """
    arrays = {name: tensors[name].numpy() for name in ARRAYS}
    return [
        Predictions(tuple(keys), **{name: array[epoch] for name, array in arrays.items()}, task=task)
        for epoch in range(len(arrays[ARRAYS[0]]))
    ]


def predict(
    network: BagModel, bags: BagSource, keys: Sequence[str], sampling: Sampling | None = None
) -> Predictions:
    """Predict bags, one at a time, without dropout.

    Args:
        network: predicts on its current device.
        bags: the data set.
        keys: keys of the bags to predict, at least one.
        sampling: predict samples of each bag, and take the means of predictions and losses; None predicts
            whole bags.

    Raises:
        NonFiniteError: a bag's predictions are not finite; the message names it.
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
        predictions_NP=network.task.average(np.stack([one.predictions_NP for one in each], axis=1)),
        losses_N=np.mean([one.losses_N for one in each], axis=0),
    )


@torch.inference_mode()
@denormals.flushed()
def _predict(network: BagModel, bags: BagSource, keys: Sequence[str]) -> Predictions:
    device = next(network.parameters()).device
    predictions, losses, labels = [], [], []
    rows_N = bags.rows_of(keys)
    with read_ahead(bags, [[row] for row in rows_N.tolist()], device=device) as batches:
        for packed in batches:
            output = network(packed)
            predictions.append(network.predictions(output))
            losses.append(network.loss(output, Truth.of(packed)))
            labels.append(packed.labels_B)
    predictions_NP = torch.cat(predictions).double().cpu().numpy()
    finite_N = np.isfinite(predictions_NP).all(axis=1)
    if not finite_N.all():
        raise NonFiniteError(f"the scores of bag {keys[int(finite_N.argmin())]} are not finite")
    return Predictions(
        keys=tuple(keys),
        labels_N=torch.cat(labels).cpu().numpy(),
        targets_NK=targets_of(bags)[rows_N],
        predictions_NP=predictions_NP,
        losses_N=torch.cat(losses).double().cpu().numpy(),
        task=network.task,
    )


def evaluate(
    network: BagModel, bags: BagSource, split: Split, sampling: Sampling | None = None
) -> dict[str, dict[str, float | None]]:
    """Metrics on the validation and the test bags, both with what the task fits on the validation bags.

    With two classes that is the threshold that Youden's J chooses.

    Args:
        network: predicts on its current device.
        bags: the data set.
        split: names the validation and the test bags.
        sampling: as in `predict`.

    Raises:
        NonFiniteError: a bag's predictions are not finite; the message names it.
    """
    return judge(
        [predict(network, bags, split.validation, sampling)], predict(network, bags, split.test, sampling)
    )


def fit(parts: Sequence[Predictions]) -> dict[str, Any]:
    """What the task fits on bags that select.

    Args:
        parts: what each network predicts of bags that it was not trained on, as in `Task.fit_by_all`; usually
            one.
    """
    return parts[0].task.fit_by_all([part.judged for part in parts])


def judge(parts: Sequence[Predictions], test: Predictions | None) -> dict[str, Metrics]:
    """Metrics on the validation bags and, if given, on the test bags, with what the task fits on the former.

    Args:
        parts: the validation bags, as in `fit`; where they are not pooled, the metrics are means over them.
        test: the test bags.
    """
    task, fitted = parts[0].task, fit(parts)
    pooled = [Predictions.pooled(parts)] if task.pools else parts
    each = [task.metrics(part.judged, fitted) for part in pooled]
    found = {"validation": {name: _mean([metrics[name] for metrics in each]) for name in each[0]}}
    return found if test is None else found | {"test": task.metrics(test.judged, fitted)}


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean; the value itself if there is one, None if one is undefined."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    return known[0] if len(known) == 1 else fmean(known)
