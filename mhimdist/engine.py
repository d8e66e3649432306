"""The training loop of one run: epochs, evaluation, early stopping, checkpoints, history.

It knows nothing of Ray: a caller steps through `Trainer.epochs()` and reports what it gets. A run of several
workers is several processes that step through the same loop, each with its share of every step's bags.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from mhimdist import denormals, precision
from mhimdist.config import TrainConfig
from mhimdist.data.bags import BagSource, PackedBags
from mhimdist.data.read_ahead import read_ahead
from mhimdist.data.residency import resident
from mhimdist.data.sampler import epoch_plan, warn_of_larger_bags
from mhimdist.data.splits import Split
from mhimdist.draws import Draws
from mhimdist.errors import CheckpointError, ConfigError, PreemptedError
from mhimdist.evaluation import Predictions, predict
from mhimdist.graphs import GraphedStep
from mhimdist.mhim import StepLoss
from mhimdist.models import BagModel, build
from mhimdist.run_folder import HISTORY, LOST_LOCK_S, Position, RunFolder, Saving
from mhimdist.step import TrainingStep
from mhimdist.teacher import Teacher
from mhimdist.workers import Workers

AGREE_EVERY_STEPS = 16
"""Steps between two agreements of the workers on whether to stop or to save."""


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch did: a line of `history.jsonl`. Ratios are shares of the epoch's instances.

    `train_s` is the time of its training steps, `epoch_s` that and the validation's; of an epoch that was
    resumed, since then. Where it `selects_on_test`, "validation" is the test bags: the authors' protocol.
    """

    epoch: int
    loss: float
    classification_loss: float
    consistency_loss: float
    learning_rate: float
    momentum: float | None
    kept_ratio: float
    masked_high_ratio: float
    masked_low_ratio: float
    masked_random_ratio: float
    student_validation_auc: float
    student_validation_loss: float
    teacher_validation_auc: float | None
    selects_on_test: bool
    best_epoch: int
    best_validation_auc: float
    train_s: float
    epoch_s: float

    @classmethod
    def read(cls, record: Mapping[str, Any], folder: Path) -> Self:
        """A record of the history in a run's folder.

        Raises:
            CheckpointError: a release with other records wrote it.
        """
        expected = {field.name for field in fields(cls)}
        if difference := expected ^ record.keys():
            raise CheckpointError(
                f"{folder}: its history is of another release, whose records differ in "
                f"{', '.join(sorted(difference))}; give the run another folder"
            )
        return cls(**record)

    @property
    def rank(self) -> tuple[float, float]:
        """What an epoch is selected by: the highest student validation AUC, then the lowest loss."""
        return self.student_validation_auc, -self.student_validation_loss


class Trainer:
    """One run of a configuration on a split, resumed from its folder where that holds a checkpoint.

    Attributes:
        student, teacher: the networks; the teacher is None where the configuration has none.
        history: a record for every epoch done.
    """

    def __init__(
        self,
        config: TrainConfig,
        bags: BagSource,
        split: Split,
        folder: Path | None = None,
        *,
        pretrained: BagModel | None = None,
        workers: Workers | None = None,
        saving: Saving | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Build the networks, or load them from the last checkpoint in `folder`.

        Args:
            config: the run's settings.
            bags: the data set.
            split: keys that train, select and test; proved disjoint by case.
            folder: receives config.json, split.json, history.jsonl and checkpoints/; None writes nothing.
            pretrained: the first stage's network, where the configuration needs one.
            workers: the processes of this run; by default this one alone.
            saving: when checkpoints are made and which are kept.
            stop: asked every few steps; once it says yes on any worker, the run saves itself and ends.

        Raises:
            ConfigError: the class weights are not one for each class.
            CheckpointError: the folder belongs to another configuration or split, or is damaged.
            RunLockedError: another process trains in the folder.
            SplitError: the split does not fit the data.
        """
        split.check(bags.keys, bags.cases, bags.labels_N)
        weights = config.loss.class_weights
        if weights is not None and len(weights) != len(bags.classes):
            raise ConfigError(
                f"loss.class_weights: expected {len(bags.classes)} weights, of {', '.join(bags.classes)}; "
                f"got {len(weights)}"
            )
        self.device = device_of(config.device)
        self.config, self.split = config, split
        self.bags: BagSource = resident(bags, config.loading.cache, self.device)
        self.workers, self.saving, self._stop = workers or Workers(), saving or Saving(), stop
        self.history: list[EpochRecord] = []
        self._step = 0
        self._totals = _Totals()

        self.student = self._build()
        if pretrained is not None and config.student_init == "projection":
            self.student.projection.load_state_dict(pretrained.projection.state_dict())
        elif pretrained is not None and config.student_init == "all":
            self.student.load_state_dict(pretrained.state_dict())
        self.teacher = (
            Teacher(config.teacher, self.student, pretrained) if config.teacher.kind != "none" else None
        )
        self._train_rows = bags.rows_of(split.train)
        if self.workers.rank == 0:
            warn_of_larger_bags(bags, config.max_instances, self._train_rows)
        self._best_weights = _copy(self.student)
        # On several workers this copies worker 0's weights to all others, before a checkpoint is loaded.
        step = GraphedStep if config.cuda_graphs else TrainingStep
        self.train_step = step(config, self.student, self.teacher, self.workers)
        self.optimizer = self.train_step.optimizer
        self.folder = self._open(folder) if folder is not None else None

    @property
    def best(self) -> EpochRecord:
        """The selected epoch; of equals the first."""
        return max(self.history, key=lambda record: record.rank)

    @property
    def is_finished(self) -> bool:
        """Whether all epochs are done or early stopping has ended the run."""
        done, stopping = len(self.history), self.config.early_stopping
        if done >= self.config.epochs:
            return True
        if stopping.patience is None or done <= stopping.from_epoch:
            return False
        return done - 1 - self.best.epoch >= stopping.patience

    def epochs(self) -> Iterator[EpochRecord]:
        """Train epoch after epoch; a checkpoint of each is on its way to disk when it is given.

        Raises:
            NonFiniteError: a loss is not finite; no weight has been changed by it.
            PreemptedError: the run was asked to stop; it is saved.
            WorkerLostError: another worker was killed or does not answer.
        """
        try:
            while not self.is_finished:
                with (
                    denormals.flushed(),
                    precision.tensor_float32(self.config.tf32),
                    self.workers.watched(),
                ):
                    record = self._run_epoch()
                yield record
        finally:
            if self.folder is not None:
                self.folder.unlock()

    def best_student(self) -> BagModel:
        """The student as it was after the selected epoch."""
        network = self._build()
        network.load_state_dict(self._best_weights)
        return network

    def _build(self) -> BagModel:
        return build(
            self.config.model,
            num_features=self.bags.num_features,
            num_classes=len(self.bags.classes),
            seed=self.config.seed,
        ).to(self.device)

    def _run_epoch(self) -> EpochRecord:
        """Train the rest of the current epoch, which is all of it unless the run was resumed within."""
        started = last_saved = time.perf_counter()
        config, epoch = self.config, len(self.history)
        learning_rate = config.optimizer.rate(epoch, config.epochs, config.bags_per_step)
        self.train_step.set_learning_rate(learning_rate)
        draws = Draws(config.seed, epoch)
        rows_N = self._train_rows
        plan = epoch_plan(
            self.bags.sizes_N[rows_N],
            seed=config.seed,
            epoch=epoch,
            bags_per_step=config.bags_per_step,
            max_instances=config.max_instances,
            world_size=self.workers.world_size,
            balance_labels=self.bags.labels_N[rows_N] if config.sampling == "class_balanced" else None,
        )
        mine = [rows_N[positions] for positions in plan.of_rank(self.workers.rank, self._step)]
        with read_ahead(
            self.bags, mine, dtype=self.train_step.dtype, device=self.device, loading=config.loading
        ) as batches:
            while self._step < len(plan):
                progress = (epoch + plan.num_bags_before(self._step) / len(rows_N)) / config.epochs
                # Not held here, so that its memory is free for the batch after the next.
                self._train_on(next(batches), plan.num_bags(self._step), draws, progress)
                self._step += 1
                if self._step % AGREE_EVERY_STEPS == 0 and self._step < len(plan):
                    every_s = self.saving.every_s
                    is_due = every_s is not None and time.perf_counter() - last_saved >= every_s
                    stop, save = self.workers.any(self._stop(), is_due)
                    if stop or save:
                        self._save()
                        last_saved = time.perf_counter()
                    if stop:
                        raise PreemptedError(
                            f"stopped as asked in epoch {epoch} after step {self._step} of {len(plan)}; "
                            "the same command goes on from there"
                        )

        self.train_step.check(wait=True)
        totals = self.workers.sum(self._totals.values)
        record = self._record(_Totals(totals).means(), learning_rate, self.train_step.momentum, started)
        self.history.append(record)
        self._step, self._totals = 0, _Totals()
        if record.best_epoch == epoch:
            self._best_weights = _copy(self.student)
        self._save()
        return record

    def _train_on(self, packed: PackedBags, num_bags: int, draws: Draws, progress: float) -> None:
        """One optimiser step on the bags of all workers, `num_bags`, of which this one has `packed`."""
        mine = packed if len(packed) else None
        step_loss = self.train_step(mine, draws, progress=progress, num_bags=num_bags)
        if step_loss is not None:
            self._totals.add(step_loss)

    def _record(
        self, means: dict[str, float], learning_rate: float, momentum: float | None, started: float
    ) -> EpochRecord:
        """Validate student and teacher after an epoch, and say which epoch is the best so far."""
        train_s = time.perf_counter() - started
        validation = self._predict(self.student)
        auc = validation.auc
        assert auc is not None, "the split's check wants several classes in validation"
        epoch = best_epoch = len(self.history)
        best_auc = auc
        if self.history and (auc, -validation.loss) <= self.best.rank:
            best_epoch, best_auc = self.best.epoch, self.best.student_validation_auc
        return EpochRecord(
            epoch=epoch,
            **means,
            learning_rate=learning_rate,
            momentum=momentum,
            student_validation_auc=auc,
            student_validation_loss=validation.loss,
            teacher_validation_auc=self._teacher_auc(auc),
            selects_on_test=self.split.selects_on_test,
            best_epoch=best_epoch,
            best_validation_auc=best_auc,
            train_s=train_s,
            epoch_s=time.perf_counter() - started,
        )

    def _teacher_auc(self, student_auc: float) -> float | None:
        """The teacher's validation AUC, computed where it can be another one than is known."""
        if self.teacher is None:
            return None
        if not self.teacher.is_own_network:
            return student_auc
        if not self.teacher.settings.has_momentum and self.history:
            return self.history[-1].teacher_validation_auc
        return self._predict(self.teacher.network).auc

    def _predict(self, network: BagModel) -> Predictions:
        """The validation bags' predictions, each worker's share of them made by itself."""
        keys = self.split.validation
        mine = keys[self.workers.rank :: self.workers.world_size]
        parts = self.workers.gather(predict(network, self.bags, mine) if mine else None)
        return Predictions.merge([part for part in parts if part is not None], keys)

    def _open(self, path: Path) -> RunFolder | None:
        """Claim the run's folder on worker 0, and load its last checkpoint on all."""
        folder, latest = None, None
        if self.workers.rank == 0:
            identity = {"config.json": self.config.recipe(), "split.json": asdict(self.split)}
            folder = RunFolder(path, identity, self.saving)
            # Workers that Ray has just started again may find the locks of those that were lost.
            folder.lock(wait_s=LOST_LOCK_S if self.workers.world_size > 1 else 0.0)
            latest = folder.latest()
        latest = self.workers.from_first(latest)
        if latest is not None:
            self._load(path, *latest)
        if folder is not None and self.is_finished:
            folder.unlock()
        return folder

    def _save(self) -> None:
        """Checkpoint where the run is; the sums of an unfinished epoch are those of each worker."""
        self.train_step.check(wait=True)
        totals = self.workers.gather(self._totals.values.tolist())
        if self.folder is None:
            return
        history = [asdict(record) for record in self.history]
        ranked = sorted(self.history, key=lambda record: record.rank, reverse=True)
        self.folder.save(
            Position(len(self.history), self._step),
            self._tensors(),
            {"step": self._step, "totals": totals, "history": history},
            history=history,
            best_epochs=[record.epoch + 1 for record in ranked],
        )

    def _load(self, folder: Path, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        self.history = [EpochRecord.read(record, folder) for record in state["history"]]
        self._step = state["step"]
        self._totals = _Totals(self._share_of_totals(state["totals"]))
        self._load_tensors(tensors)

    def _share_of_totals(self, totals: list[list[float]]) -> Tensor:
        """The sums of this worker; after a change of the number of workers the first one takes all."""
        by_rank = torch.tensor(totals, dtype=torch.float64)
        if len(totals) == self.workers.world_size:
            return by_rank[self.workers.rank]
        return by_rank.sum(0) if self.workers.rank == 0 else torch.zeros_like(by_rank[0])

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        tensors = {"student": dict(self.student.state_dict()), "best_student": self._best_weights}
        if self.teacher is not None and self.teacher.is_own_network:
            tensors["teacher"] = dict(self.teacher.network.state_dict())
        tensors["optimizer"] = {
            f"{kind}.{name}": value
            for name, parameter in self.student.named_parameters()
            for kind, value in self.optimizer.state[parameter].items()
        }
        return tensors

    def _load_tensors(self, tensors: dict[str, dict[str, Tensor]]) -> None:
        self.student.load_state_dict(tensors["student"])
        self._best_weights = tensors["best_student"]
        if self.teacher is not None and self.teacher.is_own_network:
            self.teacher.network.load_state_dict(tensors["teacher"])
        for name, parameter in self.student.named_parameters():
            saved = {kind: tensors["optimizer"][f"{kind}.{name}"] for kind in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[parameter] = {
                "step": tensors["optimizer"][f"step.{name}"].to(self.device),
                **{kind: value.to(self.device) for kind, value in saved.items()},
            }


def load_run(folder: Path) -> tuple[TrainConfig, Split, list[EpochRecord]]:
    """What a run's folder says of it: configuration, split and history."""
    config = TrainConfig.model_validate_json((folder / "config.json").read_text())
    lines = (folder / HISTORY).read_text().splitlines()
    records = [EpochRecord.read(json.loads(line), folder) for line in lines]
    return config, Split.load(folder / "split.json"), records


class _Totals:
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
        self.values = torch.zeros(len(self.NAMES), dtype=torch.float64) if values is None else values

    def add(self, step: StepLoss) -> None:
        counts = (len(step.total_B), step.num_instances)
        self.values = self.values.to(step.sums_7.device)
        for place, count in enumerate(counts):  # no copy from the host, which would wait for the device
            self.values[place] += count
        self.values[len(counts) :] += step.sums_7

    def means(self) -> dict[str, float]:
        totals = dict(zip(self.NAMES, self.values.tolist(), strict=True))
        per_bag, per_instance = totals.pop("num_bags"), totals.pop("num_instances")
        means = {"kept_ratio": totals.pop("num_kept") / per_instance}
        for name, total in totals.items():
            means[name] = total / (per_bag if name.endswith("loss") else per_instance)
        return means


def _copy(network: BagModel) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def device_of(name: str) -> torch.device:
    """The device of a configuration's `device` in this process: `auto` is a GPU where it sees one."""
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")
