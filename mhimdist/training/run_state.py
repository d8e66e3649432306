"""The state of a run: everything that a checkpoint holds, as tensors and as values that JSON can hold."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mhimdist.errors import CheckpointError
from mhimdist.method.flat_parameters import NamedAdam
from mhimdist.method.mhim import StepLoss
from mhimdist.method.teacher import Teacher
from mhimdist.models import BagModel
from mhimdist.tasks.memory import Memory
from mhimdist.training.evaluation import ARRAYS, PREDICTIONS, Predictions, stacked, unstacked
from mhimdist.training.history import EpochRecord, rank
from mhimdist.training.run_folder import Position
from mhimdist.training.workers import Workers


class Totals:
    """One worker's sums over the steps of an epoch, kept on the device until the epoch ends."""

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
        for place, count in enumerate(counts):  # a copy from the host would wait for the device
            self.values[place] += count
        self.values[len(counts) :] += step.sums_7

    def means(self) -> dict[str, float]:
        """The means among the fields of an `EpochRecord`: losses per bag, ratios per instance."""
        totals = dict(zip(self.NAMES, self.values.tolist(), strict=True))
        per_bag, per_instance = totals.pop("num_bags"), totals.pop("num_instances")
        means = {"kept_ratio": totals.pop("num_kept") / per_instance}
        for name, total in totals.items():
            means[name] = total / (per_bag if name.endswith("loss") else per_instance)
        return means


class RunState:
    """The state of a run; a run resumes from it as if it had never stopped.

    Attributes:
        student, teacher: the networks; the teacher is None if the configuration has none.
        optimizer: the student's optimiser.
        workers: the processes of the run.
        memory: the last predictions for all training bags; None if the task needs none.
        history: a record per finished epoch.
        step: number of finished steps of the next epoch.
        totals: this worker's sums over these steps.
        best_weights: the student after the selected epoch; before the first epoch, the initial student.
        masks: the masks of the last epoch on the bags that telemetry looks at.
        predictions: the student's predictions for the validation bags after each epoch; None if they are not
            kept, or if a checkpoint lacks those of its epochs.
    """

    def __init__(
        self,
        student: BagModel,
        teacher: Teacher | None,
        optimizer: NamedAdam,
        workers: Workers,
        memory: Memory | None = None,
        *,
        keeps_predictions: bool = False,
    ) -> None:
        """Begin a run.

        Args:
            student, teacher: the networks, already on their device.
            optimizer: the student's optimiser.
            workers: the processes of the run.
            memory: see the attributes.
            keeps_predictions: whether `predictions` are kept.
        """
        self.predictions: list[Predictions] | None = [] if keeps_predictions else None
        self.student, self.teacher, self.optimizer, self.workers = student, teacher, optimizer, workers
        self.memory = memory
        self.history: list[EpochRecord] = []
        self.step = 0
        self.totals = Totals()
        self.best_weights = _copy(student)
        self.masks: dict[str, Tensor] = {}

    @property
    def position(self) -> Position:
        """How far the run is."""
        return Position(len(self.history), self.step)

    @property
    def best(self) -> EpochRecord:
        """The selected epoch; the first one if several are equal."""
        return max(self.history, key=lambda record: record.rank)

    @property
    def best_epochs(self) -> list[int]:
        """For each finished epoch, the number of epochs done at its end; the best epoch first."""
        ranked = sorted(self.history, key=lambda record: record.rank, reverse=True)
        return [record.epoch + 1 for record in ranked]

    def best_with(self, score: float | None, loss: float | None) -> tuple[int, float | None]:
        """The selected epoch and its score, if the epoch that is ending has this score and loss."""
        if self.history and rank(len(self.history), score, loss) <= self.best.rank:
            return self.best.epoch, self.best.student_validation_score
        return len(self.history), score

    def keep(self, validation: Predictions) -> None:
        """Keep the predictions of the epoch that is ending, if the run keeps them."""
        if self.predictions is not None:
            self.predictions.append(validation)

    def end_epoch(self, record: EpochRecord) -> None:
        """Add the record of an epoch, keep its student if it is the best so far, and begin the next epoch."""
        self.history.append(record)
        self.step, self.totals = 0, Totals()
        if record.best_epoch == record.epoch:
            self.best_weights = _copy(self.student)

    def state(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """The tensors of each file of a checkpoint, and the rest of its state; all workers must call this.

        The tensors are the run's, not copies. The totals of all workers are included.
        """
        totals = self.workers.gather(self.totals.values.tolist())
        history = [asdict(record) for record in self.history]
        tensors = {"student": dict(self.student.state_dict()), "best_student": self.best_weights}
        if self.teacher is not None and self.teacher.is_own_network:
            tensors["teacher"] = dict(self.teacher.network.state_dict())
        tensors["optimizer"] = self.optimizer.named_state()
        if self.memory is not None:
            tensors["memory"] = {"predictions": self.memory.predictions_NP}
        if self.masks:
            tensors["masks"] = self.masks
        if self.predictions:
            tensors[PREDICTIONS] = stacked(self.predictions)
        return tensors, {"step": self.step, "totals": totals, "history": history}

    def check(
        self,
        tensors: Mapping[str, Mapping[str, Tensor]],
        state: Mapping[str, Any],
        *,
        folder: Path,
        keys: Sequence[str] = (),
    ) -> None:
        """Check that `load` can restore a checkpoint into this run's networks.

        Args:
            tensors, state, folder, keys: as in `load`.

        Raises:
            CheckpointError: a file, a tensor or an entry is missing, is not ours, or has another shape.
        """
        student = self.student.state_dict()
        networks: dict[str, Mapping[str, Tensor]] = {"student": student, "best_student": student}
        if self.teacher is not None and self.teacher.is_own_network:
            networks["teacher"] = self.teacher.network.state_dict()
        found = dict(tensors)
        kinds = dict.fromkeys(key.partition(".")[0] for key in found.get("optimizer", {}))
        scalar = torch.empty(())
        parameters = dict(self.student.named_parameters())
        networks["optimizer"] = {
            f"{kind}.{name}": scalar if kind == "step" else parameter
            for kind in kinds
            for name, parameter in parameters.items()
        }
        if self.memory is not None:
            networks["memory"] = {"predictions": self.memory.predictions_NP}
        for file, expected in networks.items():
            _check_shapes(f"{folder}: {file}", expected, found.get(file))
        if any(bits.dtype != torch.uint8 or bits.dim() != 1 for bits in found.get("masks", {}).values()):
            raise CheckpointError(f"{folder}: masks: expected the bits of the last epoch's masks, as bytes")
        totals, step = state.get("totals"), state.get("step")
        if not isinstance(step, int) or not isinstance(totals, list) or not totals:
            raise CheckpointError(f"{folder}: the checkpoint lacks its step or its totals")
        if any(not isinstance(each, list) or len(each) != len(Totals.NAMES) for each in totals):
            raise CheckpointError(f"{folder}: expected {len(Totals.NAMES)} totals of each worker")
        if any(not isinstance(value, int | float) for each in totals for value in each):
            raise CheckpointError(f"{folder}: expected numbers as totals")
        history = [EpochRecord.read(record, folder) for record in state.get("history", ())]
        if self.predictions is not None and (known := found.get(PREDICTIONS)) is not None:
            expected_2 = (len(history), len(keys))
            if set(known) != set(ARRAYS) or {tuple(each.shape[:2]) for each in known.values()} != {
                expected_2
            }:
                raise CheckpointError(
                    f"{folder}: {PREDICTIONS}: expected {', '.join(ARRAYS)} of {expected_2[0]} epochs and "
                    f"{expected_2[1]} bags"
                )

    def load(
        self,
        tensors: Mapping[str, dict[str, Tensor]],
        state: Mapping[str, Any],
        *,
        folder: Path,
        keys: Sequence[str] = (),
    ) -> None:
        """Restore what `state` returned, possibly on another number of workers.

        Args:
            tensors: named tensors per file.
            state: the rest of the checkpoint.
            folder: the run's folder, for messages.
            keys: the validation bags, in the order of the predictions.

        Raises:
            CheckpointError: another release wrote the history, with other fields.
        """
        self.history = [EpochRecord.read(record, folder) for record in state["history"]]
        self.step = state["step"]
        self.totals = Totals(self._share_of_totals(state["totals"]))
        self.student.load_state_dict(tensors["student"])
        self.best_weights = tensors["best_student"]
        self.masks = tensors.get("masks", {})  # earlier releases kept none
        if self.teacher is not None and self.teacher.is_own_network:
            self.teacher.network.load_state_dict(tensors["teacher"])
        self.optimizer.load_named_state(tensors["optimizer"])
        if self.memory is not None:
            self.memory.predictions_NP.copy_(tensors["memory"]["predictions"])
        if self.predictions is not None and self.history:
            known = tensors.get(PREDICTIONS)
            self.predictions = unstacked(known, keys, self.student.task) if known is not None else None

    def _share_of_totals(self, totals: list[list[float]]) -> Tensor:
        """The sums of this worker; if the number of workers has changed, worker 0 takes all sums."""
        by_rank = torch.tensor(totals, dtype=torch.float64)
        if len(totals) == self.workers.world_size:
            return by_rank[self.workers.rank]
        return by_rank.sum(0) if self.workers.rank == 0 else torch.zeros_like(by_rank[0])


def _check_shapes(where: str, expected: Mapping[str, Tensor], got: Mapping[str, Tensor] | None) -> None:
    """Refuse tensors of other names or shapes than expected; the message lists the first of them.

    Raises:
        CheckpointError: they differ.
    """
    if got is None:
        raise CheckpointError(f"{where}: expected this file of tensors, found none")
    shapes, found = ({name: tuple(t.shape) for name, t in each.items()} for each in (expected, got))
    differing = [name for name in {**shapes, **found} if shapes.get(name) != found.get(name)]
    if differing:
        listing = "; ".join(
            f"{name}: expected {shapes.get(name, 'none')}, got {found.get(name, 'none')}"
            for name in differing[:3]
        )
        more = f"; and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise CheckpointError(f"{where} is of another network: {listing}{more}")


def _copy(network: BagModel) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}
