"""What a run is in the middle of: all that a checkpoint holds, as tensors and as what JSON can hold."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mhimdist.method.flat_parameters import NamedAdam
from mhimdist.method.mhim import StepLoss
from mhimdist.method.teacher import Teacher
from mhimdist.models import BagModel
from mhimdist.training.history import EpochRecord
from mhimdist.training.run_folder import Position
from mhimdist.training.workers import Workers


class Totals:
    """Sums over an epoch's steps of one worker, kept on the device until the epoch is over."""

    NAMES = (
        "num_bags",
        "num_instances",
        "num_kept",
        "loss",
        "classification_loss",
        "consistency_loss",
        "masked_high_ratio",
        "masked_low_ratio",
        "masked_random_ratio",
    )

    def __init__(self, values: Tensor | None = None) -> None:
        """Start at 0, or from float64 sums in the order of `NAMES`."""
        self.values = torch.zeros(len(self.NAMES), dtype=torch.float64) if values is None else values

    def add(self, step: StepLoss) -> None:
        """Add a step, without waiting for the device."""
        counts = (len(step.total_B), step.num_instances)
        self.values = self.values.to(step.sums_7.device)
        for place, count in enumerate(counts):  # no copy from the host, which would wait for the device
            self.values[place] += count
        self.values[len(counts) :] += step.sums_7

    def means(self) -> dict[str, float]:
        """The fields of an `EpochRecord` that are means: losses per bag, ratios per instance."""
        totals = dict(zip(self.NAMES, self.values.tolist(), strict=True))
        per_bag, per_instance = totals.pop("num_bags"), totals.pop("num_instances")
        means = {"kept_ratio": totals.pop("num_kept") / per_instance}
        for name, total in totals.items():
            means[name] = total / (per_bag if name.endswith("loss") else per_instance)
        return means


class RunState:
    """What a run resumes from as if it had never stopped.

    Attributes:
        student, teacher: the networks; the teacher is None where the configuration has none.
        optimizer: of the student.
        workers: the processes of the run.
        history: a record for every epoch done.
        step: how many steps of the next epoch are done.
        totals: sums over these steps, this worker's share.
        best_weights: the student after the selected epoch, or as it began.
    """

    def __init__(
        self, student: BagModel, teacher: Teacher | None, optimizer: NamedAdam, workers: Workers
    ) -> None:
        """Begin a run.

        Args:
            student, teacher: the networks, already on their device.
            optimizer: of the student.
            workers: the processes of the run.
        """
        self.student, self.teacher, self.optimizer, self.workers = student, teacher, optimizer, workers
        self.history: list[EpochRecord] = []
        self.step = 0
        self.totals = Totals()
        self.best_weights = _copy(student)

    @property
    def position(self) -> Position:
        """How far the run is."""
        return Position(len(self.history), self.step)

    @property
    def best(self) -> EpochRecord:
        """The selected epoch, the first of equals."""
        return max(self.history, key=lambda record: record.rank)

    @property
    def best_epochs(self) -> list[int]:
        """How many epochs were done at the end of each one, the best first."""
        ranked = sorted(self.history, key=lambda record: record.rank, reverse=True)
        return [record.epoch + 1 for record in ranked]

    def best_with(self, auc: float, loss: float) -> tuple[int, float]:
        """The selected epoch, and its AUC, once the epoch that is ending has these validation results."""
        if self.history and (auc, -loss) <= self.best.rank:
            return self.best.epoch, self.best.student_validation_auc
        return len(self.history), auc

    def end_epoch(self, record: EpochRecord) -> None:
        """Note what an epoch did, keep its student where it is the best so far, and begin the next epoch."""
        self.history.append(record)
        self.step, self.totals = 0, Totals()
        if record.best_epoch == record.epoch:
            self.best_weights = _copy(self.student)

    def state(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """The tensors of each file of a checkpoint, and the rest of it; all workers have to ask.

        The tensors are those of the run, not copies. The totals are those of each worker.
        """
        totals = self.workers.gather(self.totals.values.tolist())
        history = [asdict(record) for record in self.history]
        tensors = {"student": dict(self.student.state_dict()), "best_student": self.best_weights}
        if self.teacher is not None and self.teacher.is_own_network:
            tensors["teacher"] = dict(self.teacher.network.state_dict())
        tensors["optimizer"] = self.optimizer.named_state()
        return tensors, {"step": self.step, "totals": totals, "history": history}

    def load(
        self, tensors: Mapping[str, dict[str, Tensor]], state: Mapping[str, Any], *, folder: Path
    ) -> None:
        """Become the run that `state` gave, whatever its number of workers was.

        Args:
            tensors: of each file.
            state: the rest of the checkpoint.
            folder: of the run, for messages.

        Raises:
            CheckpointError: a release with other records wrote the history.
        """
        self.history = [EpochRecord.read(record, folder) for record in state["history"]]
        self.step = state["step"]
        self.totals = Totals(self._share_of_totals(state["totals"]))
        self.student.load_state_dict(tensors["student"])
        self.best_weights = tensors["best_student"]
        if self.teacher is not None and self.teacher.is_own_network:
            self.teacher.network.load_state_dict(tensors["teacher"])
        self.optimizer.load_named_state(tensors["optimizer"])

    def _share_of_totals(self, totals: list[list[float]]) -> Tensor:
        """The sums of this worker; after a change of the number of workers the first one takes all."""
        by_rank = torch.tensor(totals, dtype=torch.float64)
        if len(totals) == self.workers.world_size:
            return by_rank[self.workers.rank]
        return by_rank.sum(0) if self.workers.rank == 0 else torch.zeros_like(by_rank[0])


def _copy(network: BagModel) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}
