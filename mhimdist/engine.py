"""The training loop of one run: epochs, evaluation, early stopping, checkpoints, history.

It knows nothing of Ray: a caller steps through `Trainer.epochs()` and reports what it gets.
"""

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mhimdist import atomic, checkpoint, denormals
from mhimdist.config import TrainConfig
from mhimdist.data.bags import BagSource
from mhimdist.data.sampler import epoch_plan
from mhimdist.data.splits import Split
from mhimdist.draws import Draws
from mhimdist.errors import CheckpointError, NonFiniteError
from mhimdist.evaluation import predict
from mhimdist.mhim import MHIM, StepLoss
from mhimdist.models import BagModel, build
from mhimdist.teacher import Teacher


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch did: a line of `history.jsonl`. Ratios are shares of the epoch's instances."""

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
    best_epoch: int
    best_validation_auc: float
    epoch_s: float


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
    ) -> None:
        """Build the networks, or load them from the last checkpoint in `folder`.

        Args:
            config: the run's settings.
            bags: the data set.
            split: keys that train, select and test; proved disjoint by case.
            folder: receives config.json, split.json, history.jsonl and checkpoints/; None writes nothing.
            pretrained: the first stage's network, where the configuration needs one.

        Raises:
            CheckpointError: the folder belongs to another configuration or split, or is damaged.
            SplitError: the split does not fit the data.
        """
        split.check(bags.keys, bags.cases, bags.labels_N)
        self.config, self.bags, self.split, self.folder = config, bags, split, folder
        self.device = _device(config.device)
        self.history: list[EpochRecord] = []

        self.student = self._build()
        if pretrained is not None and config.student_init == "projection":
            self.student.projection.load_state_dict(pretrained.projection.state_dict())
        elif pretrained is not None and config.student_init == "all":
            self.student.load_state_dict(pretrained.state_dict())
        self.teacher = (
            Teacher(config.teacher, self.student, pretrained) if config.teacher.kind != "none" else None
        )
        self.method = MHIM(config, self.student, self.teacher)
        self.optimizer = torch.optim.Adam(
            self.student.parameters(),
            lr=config.optimizer.learning_rate,
            weight_decay=config.optimizer.weight_decay,
            foreach=True,
        )
        self._train_rows = bags.rows_of(split.train)
        self._best_weights = _copy(self.student)
        if folder is not None:
            self._open(folder)

    @property
    def best(self) -> EpochRecord:
        """The selected epoch: the highest student validation AUC, then the lowest validation loss."""
        return max(self.history, key=lambda r: (r.student_validation_auc, -r.student_validation_loss))

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
        """Train epoch after epoch, each one saved before it is given."""
        while not self.is_finished:
            with denormals.flushed():
                record = self._run_epoch()
            yield record

    def _run_epoch(self) -> EpochRecord:
        started, epoch = time.perf_counter(), len(self.history)
        learning_rate = self._learning_rate(epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        draws = Draws(self.config.seed, epoch)
        plan = epoch_plan(
            self.bags.sizes_N[self._train_rows],
            seed=self.config.seed,
            epoch=epoch,
            bags_per_step=self.config.bags_per_step,
        )
        totals = _Totals()
        momentum: float | None = None
        for step in plan:
            packed = self.bags.load(self._train_rows[step[0]].tolist()).to(self.device)
            progress = (epoch + totals.num_bags / len(self._train_rows)) / self.config.epochs
            step_loss = self.method.loss(packed, draws, progress)
            loss = step_loss.total_B.mean()
            if not torch.isfinite(loss):
                raise NonFiniteError(
                    f"the loss became {loss.item()} in epoch {epoch} at bag(s) {', '.join(packed.keys)}; "
                    "no weight was changed by them: look for NaN or huge features, or lower the learning rate"
                )
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            if self.teacher is not None and self.teacher.is_own_network:
                momentum = self.teacher.follow(self.student, progress=progress, num_bags=len(packed))
            totals.add(step_loss)

        record = self._record(epoch, totals, learning_rate, momentum, started)
        better = record.best_epoch == epoch
        self.history.append(record)
        if better:
            self._best_weights = _copy(self.student)
        if self.folder is not None:
            self._save(self.folder)
        return record

    def _record(
        self, epoch: int, totals: "_Totals", learning_rate: float, momentum: float | None, started: float
    ) -> EpochRecord:
        """Validate student and teacher after an epoch, and say which epoch is the best so far."""
        validation = predict(self.student, self.bags, self.split.validation)
        auc, teacher_auc = validation.auc, None
        assert auc is not None, "the split's check wants several classes in validation"
        if self.teacher is not None:
            teacher_auc = predict(self.teacher.network, self.bags, self.split.validation).auc
        best_epoch, best_auc = epoch, auc
        if self.history:
            best = self.best
            if (auc, -validation.loss) <= (best.student_validation_auc, -best.student_validation_loss):
                best_epoch, best_auc = best.epoch, best.student_validation_auc
        return EpochRecord(
            epoch=epoch,
            **totals.means(),
            learning_rate=learning_rate,
            momentum=momentum,
            student_validation_auc=auc,
            student_validation_loss=validation.loss,
            teacher_validation_auc=teacher_auc,
            best_epoch=best_epoch,
            best_validation_auc=best_auc,
            epoch_s=time.perf_counter() - started,
        )

    def _learning_rate(self, epoch: int) -> float:
        settings = self.config.optimizer
        if settings.decay == "constant":
            return settings.learning_rate
        return settings.learning_rate * (1 + math.cos(math.pi * epoch / self.config.epochs)) / 2

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

    def _open(self, folder: Path) -> None:
        """Claim an empty folder, or resume the run that it holds."""
        folder.mkdir(parents=True, exist_ok=True)
        written = {"config.json": self.config.model_dump(mode="json"), "split.json": asdict(self.split)}
        for name, content in written.items():
            path, text = folder / name, json.dumps(content, indent=1)
            if not path.exists():
                atomic.write_text(path, text)
            elif path.read_text() != text:
                raise CheckpointError(
                    f"{path} is of another run than this one; give this run a folder of its own"
                )
        epochs = checkpoint.saved_epochs(folder / "checkpoints")
        if not epochs:
            return
        tensors, state = checkpoint.load(checkpoint.epoch_folder(folder / "checkpoints", epochs[-1]))
        self.history = [EpochRecord(**record) for record in state["history"]]
        self._load_tensors(tensors)
        best, _ = checkpoint.load(checkpoint.epoch_folder(folder / "checkpoints", self.best.epoch + 1))
        self._best_weights = best["student"]
        _write_history(folder, self.history)

    def _save(self, folder: Path) -> None:
        """Checkpoint the epoch just done; keep it, the one before it, and the selected one."""
        checkpoints = folder / "checkpoints"
        done = len(self.history)
        state = {"history": [asdict(record) for record in self.history]}
        checkpoint.save(checkpoint.epoch_folder(checkpoints, done), self._tensors(), state)
        checkpoint.remove(checkpoints, keep={done, done - 1, self.best.epoch + 1})
        _write_history(folder, self.history)

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        tensors = {"student": dict(self.student.state_dict()), "optimizer": {}}
        if self.teacher is not None and self.teacher.is_own_network:
            tensors["teacher"] = dict(self.teacher.network.state_dict())
        for name, parameter in self.student.named_parameters():
            for kind, value in self.optimizer.state[parameter].items():
                tensors["optimizer"][f"{kind}.{name}"] = value
        return tensors

    def _load_tensors(self, tensors: dict[str, dict[str, Tensor]]) -> None:
        self.student.load_state_dict(tensors["student"])
        if self.teacher is not None and self.teacher.is_own_network:
            self.teacher.network.load_state_dict(tensors["teacher"])
        for name, parameter in self.student.named_parameters():
            saved = {kind: tensors["optimizer"][f"{kind}.{name}"] for kind in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[parameter] = {
                "step": tensors["optimizer"][f"step.{name}"],  # Adam counts steps on the CPU
                **{kind: value.to(self.device) for kind, value in saved.items()},
            }


def load_run(folder: Path) -> tuple[TrainConfig, Split, list[EpochRecord]]:
    """What a run's folder says of it: configuration, split and history."""
    config = TrainConfig.model_validate_json((folder / "config.json").read_text())
    lines = (folder / "history.jsonl").read_text().splitlines()
    return config, Split.load(folder / "split.json"), [EpochRecord(**json.loads(line)) for line in lines]


class _Totals:
    """Sums over an epoch's steps, kept on the device until the epoch is over."""

    def __init__(self) -> None:
        self.num_bags = self.num_instances = self.num_kept = 0
        self.sums: dict[str, Tensor] = {}

    def add(self, step: StepLoss) -> None:
        self.num_bags += len(step.total_B)
        self.num_instances += step.num_instances
        self.num_kept += step.num_kept
        for name, value in (
            ("loss", step.total_B.detach().sum()),
            ("classification_loss", step.classification_B.sum()),
            ("consistency_loss", step.consistency_B.sum()),
            ("masked_high_ratio", step.masked_high),
            ("masked_low_ratio", step.masked_low),
            ("masked_random_ratio", step.masked_random),
        ):
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def means(self) -> dict[str, Any]:
        per = {name: self.num_bags if name.endswith("loss") else self.num_instances for name in self.sums}
        means: dict[str, Any] = {name: value.item() / per[name] for name, value in self.sums.items()}
        return means | {"kept_ratio": self.num_kept / self.num_instances}


def _write_history(folder: Path, history: Sequence[EpochRecord]) -> None:
    atomic.write_text(
        folder / "history.jsonl", "".join(json.dumps(asdict(record)) + "\n" for record in history)
    )


def _copy(network: BagModel) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def _device(name: str) -> torch.device:
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")
