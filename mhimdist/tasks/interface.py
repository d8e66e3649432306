"""The interface of all tasks: what a network puts out for a bag, what it is trained by, how it is judged.

Models, masking, teacher, sweep and reports work through `Task` and know no task by name. Only the paper's
tables and a few pages are those of classes.

Dimensions: B bags of a batch, N bags of a set, M networks, O outputs of a network, P predictions of a bag,
K targets of a bag, C classes, V values that a task learns besides the network, S slides of a case.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mhimdist.config.models import Settings
from mhimdist.data.bags import BagSource, PackedBags
from mhimdist.data.splits import Split
from mhimdist.data.targets import TaskInfo
from mhimdist.errors import SplitError
from mhimdist.statistics.bootstrap import Weighed, estimates

Fitted = Mapping[str, Any]
"""What a task has fitted on the bags that select, in JSON types, such as a threshold."""
Metrics = dict[str, float | None]


class Truth(NamedTuple):
    """What is known of the bags of a batch, and what a loss may look at besides them.

    Attributes:
        labels_B: int64 class of each bag, or the stratum of its targets.
        targets_BK: float32 targets of each bag, NaN where one is missing; None if the task has none.
        class_weights_C: weight of each class; None for 1.
        others: the bags that the loss compares these with, if the task asks for them.
    """

    labels_B: Tensor
    targets_BK: Tensor | None = None
    class_weights_C: Tensor | None = None
    others: "Others | None" = None

    @classmethod
    def of(
        cls, bags: PackedBags, class_weights_C: Tensor | None = None, others: "Others | None" = None
    ) -> "Truth":
        """What is known of packed bags."""
        return cls(bags.labels_B, bags.targets_BK, class_weights_C, others)

    def repeated(self, bag_P: Tensor) -> "Truth":
        """The same of parts of bags, such as pseudo-bags; `bag_P` is each part's bag, int64."""
        return self._replace(
            labels_B=self.labels_B[bag_P],
            targets_BK=None if self.targets_BK is None else self.targets_BK[bag_P],
            others=None if self.others is None else self.others.repeated(bag_P),
        )

    @property
    def targets(self) -> Tensor:
        """The targets, of a task that has them."""
        assert self.targets_BK is not None, "a task with targets is checked to get bags with targets"
        return self.targets_BK


class Others(NamedTuple):
    """The bags that a loss compares the bags of a batch with, which are among them.

    Attributes:
        targets_NK: float32 targets of the bags, in ascending order of the first one.
        predictions_NP: last predictions of the bags, without gradient; NaN before their first.
        rows_B: int64 row of each bag of the batch among them.
    """

    targets_NK: Tensor
    predictions_NP: Tensor
    rows_B: Tensor

    @classmethod
    def of_step(cls, targets_BK: Tensor, predictions_BP: Tensor) -> "Others":
        """The bags of a step themselves."""
        order_B = torch.argsort(targets_BK[:, 0], stable=True)
        return cls(targets_BK[order_B], predictions_BP.detach()[order_B], torch.argsort(order_B))

    def repeated(self, bag_P: Tensor) -> "Others":
        """The same for parts of bags; `bag_P` is each part's bag, int64."""
        return self._replace(rows_B=self.rows_B[bag_P])


@dataclass(frozen=True)
class Judged:
    """Bags that a network was not trained on: what they are, and what it says of them.

    Attributes:
        labels_N: int64 class of each bag, or the stratum of its targets.
        targets_NK: float64 targets; N x 0 if the task has none.
        predictions_NP: float64 predictions, a column per `Task.columns`.
        cases: the case of each bag; of bags that nothing resamples, empty names.
    """

    labels_N: np.ndarray
    targets_NK: np.ndarray
    predictions_NP: np.ndarray
    cases: Sequence[str]

    @classmethod
    def of(
        cls,
        labels_N: np.ndarray,
        targets_NK: np.ndarray,
        predictions_NP: np.ndarray,
        cases: Sequence[str] | None = None,
    ) -> "Judged":
        """Bags, whose cases may be unknown."""
        return cls(labels_N, targets_NK, predictions_NP, cases or [""] * len(labels_N))

    def __len__(self) -> int:
        return len(self.predictions_NP)

    def at(self, rows: np.ndarray | Sequence[int]) -> "Judged":
        """Some of the bags; a row may occur several times."""
        rows_M = np.asarray(rows, np.int64)
        return Judged(
            self.labels_N[rows_M],
            self.targets_NK[rows_M],
            self.predictions_NP[rows_M],
            [self.cases[row] for row in rows_M.tolist()],
        )

    @classmethod
    def pooled(cls, parts: Sequence["Judged"]) -> "Judged":
        """The bags of several folds as one set."""
        return cls(
            np.concatenate([part.labels_N for part in parts]),
            np.concatenate([part.targets_NK for part in parts]),
            np.concatenate([part.predictions_NP for part in parts]),
            [case for part in parts for case in part.cases],
        )


class Task(ABC):
    """What the labels of a data set mean.

    Attributes:
        name: the task's name.
        selection: the metric that selects epochs and configurations; higher is better.
        headings: the metrics that are reported, the selecting one first, and their headings.
        num_shown: how many of them tables for people show, the first ones; None for all.
        pools: whether predictions of different networks can be ranked together, as for a score out of fold.
        fits_by: how `fit` chooses, in words.
        page: the class of the task's sections in reports, as "module:Class"; see `pages.tasks.TaskPage`.
        has_classes: whether a label is one of `classes`, so that models may learn what a class looks like.
        info: the task as the data set states it.
        classes: class names, or names of the strata.
        settings: the task's settings.
        learnt: what `learn` took from the training bags; empty for a task that was not trained.
    """

    name: ClassVar[str]
    selection: ClassVar[str]
    headings: ClassVar[Mapping[str, str]]
    num_shown: ClassVar[int | None] = None
    pools: ClassVar[bool] = True
    fits_by: ClassVar[str] = "what the task fits"
    page: ClassVar[str] = "mhimdist.pages.tasks:TaskPage"
    has_classes: ClassVar[bool] = False

    def __init__(
        self,
        info: TaskInfo,
        classes: Sequence[str],
        settings: Settings,
        learnt: Mapping[str, Any] | None = None,
    ) -> None:
        """Take what the data set and the settings say, and what training bags have taught.

        Args:
            info, classes, settings, learnt: see the attributes.
        """
        self.info, self.classes, self.settings = info, tuple(classes), settings
        self.learnt = dict(learnt or {})

    def __eq__(self, other: object) -> bool:
        """Whether another task means the same, and has learnt the same."""
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), self.info, self.classes))

    # In training.

    @property
    @abstractmethod
    def num_outputs(self) -> int:
        """The number O of outputs of a network for a bag."""

    @abstractmethod
    def loss(self, outputs_BO: Tensor, truth: Truth, values_V: Tensor | None) -> Tensor:
        """The loss of each bag, shape B, without reading anything on the host.

        Args:
            outputs_BO: the network's outputs.
            truth: what is known of the bags.
            values_V: the values that the task learns; None if it learns none.
        """

    @abstractmethod
    def predict(self, outputs_BO: Tensor, values_V: Tensor | None) -> Tensor:
        """The predictions of each bag, B x P, a column per `columns`."""

    def learn(self, labels_N: np.ndarray, targets_NK: np.ndarray) -> dict[str, Any]:
        """What the task needs to know of the training bags, in JSON types, such as the mean of a target."""
        return {}

    @property
    def compares_with(self) -> Literal["nothing", "step", "memory"]:
        """What bags the loss compares a bag with, as `Truth.others`.

        "step": those of the same step. "memory": all training bags, by their last predictions, which are part
        of every checkpoint.
        """
        return "nothing"

    def first_values(self) -> Sequence[float]:
        """First values of what the task learns besides the network, V of them; by default none."""
        return ()

    def after(self, bags: BagSource, train_rows: np.ndarray) -> "Task":
        """The same task, after it has learnt from the training bags."""
        learnt = self.learn(bags.labels_N[train_rows], targets_of(bags)[train_rows])
        return type(self)(self.info, self.classes, self.settings, learnt)

    # In prediction.

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """The names of the P predictions, as columns of a table, such as `probability_tumour`."""

    def aligned(self, predictions_NP: np.ndarray, other: "Task") -> np.ndarray:
        """Predictions of a network of this task as those of another one mean them, so that they average.

        Args:
            predictions_NP: the predictions.
            other: the same task of another network, which other bags have taught.
        """
        return predictions_NP

    def average(self, predictions_NMP: np.ndarray) -> np.ndarray:
        """The predictions of several networks as one, N x P."""
        return predictions_NMP.mean(1)

    def of_case(self, predictions_SMP: np.ndarray, how: Literal["mean", "max"]) -> np.ndarray:
        """The predictions of a case by those of its slides, M x P; "max" goes column by column."""
        return predictions_SMP.mean(0) if how == "mean" else predictions_SMP.max(0)

    def decide(self, predictions_NP: np.ndarray, fitted: Fitted) -> list[str] | None:
        """What is predicted of each bag, in words; None if the numbers say it themselves."""
        return None

    # In judgement.

    def fit(self, judged: Judged) -> dict[str, Any]:
        """What must be chosen by the bags that select before others are judged, in JSON types."""
        return {}

    def fit_by_all(self, parts: Sequence[Judged]) -> dict[str, Any]:
        """What `fit` chooses by bags of several networks: by all, or each one's mean if not `pools`."""
        if self.pools or len(parts) == 1:
            return self.fit(Judged.pooled(parts))
        return self.fitted_of([self.fit(part) for part in parts])

    @abstractmethod
    def weighed(self, judged: Judged, fitted: Fitted) -> Weighed:
        """The metrics of bags, at least those of `headings`, as functions of the bags' weights.

        Args:
            judged: the bags.
            fitted: what `fit` chose, on other bags or on these.
        """

    def metrics(self, judged: Judged, fitted: Fitted) -> Metrics:
        """The metrics of bags; None where one is undefined.

        Args:
            judged, fitted: as in `weighed`.
        """
        return self.weighed(judged, fitted).once()

    def score(self, judged: Judged) -> float | None:
        """The metric that selects; None if it is undefined for these bags."""
        return self.metrics(judged, self.fit(judged))[self.selection]

    def total_loss(self, judged: Judged, losses_N: np.ndarray) -> float:
        """The loss of a set of bags, by default the mean of the bags' own."""
        return float(losses_N.mean())

    def interval(self, parts: Sequence[Judged], *, num_resamples: int = 1000) -> tuple[float, float] | None:
        """The 95 % bootstrap interval of the mean score of several networks, resampled by case.

        Args:
            parts: the bags of each network.
            num_resamples: number of resamples.

        Returns:
            The interval's ends; None if it is undefined.
        """
        if not parts:
            return None
        networks = [self.weighed(part, self.fit(part)) for part in parts]
        found = estimates(networks, num_resamples=num_resamples)[self.selection]
        return None if found is None else (found.low, found.high)

    def intervals(
        self, judged: Judged, fitted: Fitted, *, num_resamples: int = 1000
    ) -> dict[str, tuple[float, float] | None]:
        """The 95 % bootstrap interval of every metric of `headings`, resampled by case; None if undefined.

        Args:
            judged, fitted: as in `weighed`.
            num_resamples: number of resamples.
        """
        found = estimates([self.weighed(judged, fitted)], num_resamples=num_resamples)
        return {
            name: None if (each := found.get(name)) is None else (each.low, each.high)
            for name in self.headings
        }

    def fitted_as(self, fitted: Fitted, other: "Task") -> Fitted:
        """What this network has fitted, in the terms of another one, as `aligned` does it for predictions."""
        return fitted

    def fitted_of(self, members: Sequence[Fitted]) -> dict[str, Any]:
        """What several networks have fitted as one: the mean of each number that all of them have."""
        shared = [name for name in members[0] if all(each.get(name) is not None for each in members)]
        return {name: np.mean([each[name] for each in members], axis=0).tolist() for name in shared}

    # Before training.

    def check(self, bags: BagSource, split: Split, *, validates: bool = True) -> None:
        """Check that a split can teach, select and test the task.

        Args:
            bags: the data set.
            split: the split.
            validates: as in `Split.check`.

        Raises:
            SplitError: it cannot; the message says which set lacks what.
        """
        split.check_sets(bags.keys, bags.cases, validates=validates)
        targets_NK = targets_of(bags)
        for name, keys in split.sets.items():
            if not keys:
                continue  # `check_sets` lets validation alone be empty
            rows_N = bags.rows_of(keys)
            judged = Judged.of(bags.labels_N[rows_N], targets_NK[rows_N], np.zeros((len(rows_N), 0)))
            if fault := self.fault(judged, name == "train"):
                raise SplitError(f"the {name} set: {fault}")

    def fault(self, judged: Judged, is_train: bool) -> str | None:
        """Why bags cannot teach the task, or cannot be judged by its score; None if they can.

        Args:
            judged: the bags, without predictions.
            is_train: whether they shall teach it.
        """
        return None

    @property
    def title(self) -> str:
        """The selecting metric in words that fit an axis, such as "AUC"."""
        return self.headings[self.selection]

    @property
    def shown(self) -> dict[str, str]:
        """The metrics of tables for people, and their headings."""
        return dict(list(self.headings.items())[: self.num_shown])

    def record(self) -> dict[str, Any]:
        """What a file must hold to make the task again with `tasks.restored`; empty for classification."""
        return {
            "name": self.name,
            "settings": self.settings.model_dump(mode="json"),
            "info": self.info.model_dump(mode="json"),
            "classes": list(self.classes),
            "learnt": self.learnt,
        }


def targets_of(bags: BagSource) -> np.ndarray:
    """The targets of all bags of a data set, N x K; N x 0 if it has none."""
    found = getattr(bags, "targets_NK", None)
    return np.zeros((len(bags.labels_N), 0)) if found is None else found
