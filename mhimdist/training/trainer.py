"""The training loop of one run: epochs, evaluation, early stopping, checkpoints, history.

It does not know Ray: a caller steps through `Trainer.epochs()` and reports the records. In a run on several
workers, each worker is a process that steps through the same loop with its share of every step's bags.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch

from mhimdist import files
from mhimdist.config.execution import Saving
from mhimdist.config.train import TrainConfig
from mhimdist.data.bags import BagSource, PackedBags
from mhimdist.data.devices import indexed
from mhimdist.data.read_ahead import read_ahead
from mhimdist.data.resident import resident
from mhimdist.data.sampler import StepLimits, epoch_plan, most_instances, warn_of_larger_bags
from mhimdist.data.splits import Split
from mhimdist.data.sub_bags import trained_on
from mhimdist.errors import ConfigError, PreemptedError
from mhimdist.method import precision
from mhimdist.method.teacher import Teacher
from mhimdist.models import BagModel
from mhimdist.ops.draws import Draws
from mhimdist.tasks.memory import Memory
from mhimdist.training import denormals
from mhimdist.training.evaluation import Sampling
from mhimdist.training.history import EpochRecord
from mhimdist.training.launching import LAUNCHING, launching, make_step
from mhimdist.training.mask_telemetry import MaskTelemetry
from mhimdist.training.network import network_for
from mhimdist.training.requirements import check_run
from mhimdist.training.run_folder import LOST_LOCK_S, RunFolder
from mhimdist.training.run_state import RunState, Totals
from mhimdist.training.validation import Validation
from mhimdist.training.workers import Workers

AGREE_EVERY_STEPS = 16
"""The workers agree every so many steps on whether to stop or to save."""


class Trainer:
    """One run of a configuration on a split; it resumes if its folder holds a checkpoint.

    Attributes:
        student, teacher: the networks; the teacher is None if the configuration has none.
        run: the state of the run.
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
        num_epochs: int | None = None,
        keeps_predictions: bool = False,
    ) -> None:
        """Build the networks, or load them from the last checkpoint in `folder`.

        Args:
            config: the run's settings.
            bags: the data set.
            split: keys that train, select and test; proved disjoint by case.
            folder: receives config.json, split.json, launching.json, history.jsonl and checkpoints/; None
                writes nothing.
            pretrained: the first stage's network, if the configuration needs one.
            workers: the processes of this run; by default this process alone.
            saving: when checkpoints are written and which are kept.
            stop: called every `AGREE_EVERY_STEPS` steps; once it returns true on any worker, the run is saved
                and ends.
            num_epochs: epochs to do of those configured, on a split without validation; None: it selects.
            keeps_predictions: whether the predictions after each epoch are kept, see `RunState`.

        Raises:
            ConfigError: the class weights are not one per class, the model or the settings do not fit the
                task, the device is a GPU and there is none, or `cuda_graphs` is `on` where steps cannot be
                recorded.
            CheckpointError: the folder belongs to another configuration or split, or is damaged.
            RunLockedError: another process trains in the folder.
            SplitError: the split does not fit the data, or cannot teach or select the task.
            WorkerLostError: another worker was killed or does not answer.
        """
        self.workers, self.saving, self._stop = workers or Workers(), saving or Saving(), stop
        check_run(config, bags, split, num_workers=self.workers.world_size, validates=num_epochs is None)
        self.device = device_of(config.device)
        self.config, self.split, self._num_epochs = config, split, num_epochs
        self.bags: BagSource = resident(bags, config.loading.cache, self.device)
        self.student = _first_student(config, bags, split, pretrained).to(self.device)
        self.teacher = (
            Teacher(config.teacher, self.student, pretrained) if config.teacher.kind != "none" else None
        )
        self._validation = Validation(self.bags, split.validation, self.workers, Sampling.of(config))
        self._train_rows = bags.rows_of(split.train)
        samples = trained_on(bags, config)
        if self.workers.rank == 0:
            warn_of_larger_bags(samples, config.max_instances, self._train_rows)
        self._telemetry = MaskTelemetry(
            config, self.student, self.teacher, self.bags, self._train_rows, labelled=bags
        )
        self._limits = _step_limits(config, bags.labels_N[self._train_rows], self.workers)
        most_rows = most_instances(samples.sizes_N[self._train_rows], **self._limits)
        # On several workers a step copies worker 0's weights to all others, before a checkpoint is loaded.
        self.workers.meet()
        memory = Memory.of(self.student.task, bags, self._train_rows, self.device)
        self.train_step = make_step(
            config, self.student, self.teacher, self.workers, most_rows=most_rows, memory=memory
        )
        self.optimizer = self.train_step.optimizer
        networks = self.student, self.teacher
        kept = keeps_predictions
        self.run = RunState(*networks, self.optimizer, self.workers, memory, keeps_predictions=kept)
        self.folder = self._open(folder) if folder is not None else None

    @property
    def history(self) -> list[EpochRecord]:
        """A record per finished epoch."""
        return self.run.history

    @property
    def best(self) -> EpochRecord:
        """The selected epoch; the first one if several are equal."""
        return self.run.best

    @property
    def is_finished(self) -> bool:
        """Whether all epochs are done or early stopping has ended the run."""
        done, stopping = len(self.history), self.config.early_stopping
        if done >= (self._num_epochs or self.config.epochs):
            return True
        if self._num_epochs or stopping.patience is None or done <= stopping.from_epoch:
            return False
        return done - 1 - self.best.epoch >= stopping.patience

    def epochs(self) -> Iterator[EpochRecord]:
        """Train epoch after epoch; when a record is yielded, its epoch's checkpoint is being written.

        Raises:
            NonFiniteError: a loss is not finite; it has changed no weight.
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
            self.train_step.release()
            if self.folder is not None:
                self.folder.unlock()

    def best_student(self) -> BagModel:
        """The student after the selected epoch."""
        network = network_for(self.config, self.bags, self.split).to(self.device)
        network.load_state_dict(self.run.best_weights)
        return network

    def _run_epoch(self) -> EpochRecord:
        """Train the rest of the current epoch: all of it, unless the run was resumed within the epoch."""
        started = time.perf_counter()
        config, epoch = self.config, len(self.history)
        learning_rate = config.optimizer.rate(epoch, config.epochs, config.bags_per_step)
        self.train_step.set_learning_rate(learning_rate)
        self._take_steps(epoch)
        self.train_step.check(wait=True)
        totals = Totals(self.workers.sum(self.run.totals.values))
        record = self._record(totals.means(), learning_rate, self.train_step.momentum, started)
        self.run.end_epoch(record)
        self._save()
        return record

    def _take_steps(self, epoch: int) -> None:
        """Take the steps of an epoch that are not done yet.

        Raises:
            PreemptedError: the run was asked to stop; it is saved.
        """
        config, rows_N, run = self.config, self._train_rows, self.run
        last_saved = time.perf_counter()
        bags, draws = trained_on(self.bags, config, epoch), Draws(config.seed, epoch)
        plan = epoch_plan(bags.sizes_N[rows_N], seed=config.seed, epoch=epoch, **self._limits)
        mine = [rows_N[positions] for positions in plan.of_rank(self.workers.rank, run.step)]
        with read_ahead(
            bags, mine, dtype=self.train_step.dtype, device=self.device, loading=config.loading
        ) as batches:
            while run.step < len(plan):
                progress = (epoch + plan.num_bags_before(run.step) / len(rows_N)) / config.epochs
                # The batch has no name here, so that its memory is free for the batch after the next.
                self._train_on(next(batches), plan.num_bags(run.step), draws, progress)
                run.step += 1
                if run.step % AGREE_EVERY_STEPS == 0 and run.step < len(plan):
                    every_s = self.saving.every_s
                    is_due = every_s is not None and time.perf_counter() - last_saved >= every_s
                    stop, save = self.workers.any(self._stop(), is_due)
                    if stop or save:
                        self._save()
                        last_saved = time.perf_counter()
                    if stop:
                        raise PreemptedError(
                            f"stopped as asked in epoch {epoch} after step {run.step} of {len(plan)}; "
                            "run the same command again to resume there"
                        )

    def _train_on(self, packed: PackedBags, num_bags: int, draws: Draws, progress: float) -> None:
        """Take one optimiser step on the `num_bags` bags of all workers; `packed` is this worker's share."""
        mine = packed if len(packed) else None
        step_loss = self.train_step(mine, draws, progress=progress, num_bags=num_bags)
        if step_loss is not None:
            self.run.totals.add(step_loss)

    def _record(
        self, means: dict[str, float], learning_rate: float, momentum: float | None, started: float
    ) -> EpochRecord:
        """Validate student and teacher after an epoch, and find the best epoch so far."""
        train_s = time.perf_counter() - started
        validation = self._validation.of_student(self.student)
        score, loss = (validation.score, validation.loss) if validation else (None, None)
        if validation:
            self.run.keep(validation)
        best_epoch, best_score = self.run.best_with(score, loss)
        figures, self.run.masks = self._telemetry.measure(len(self.history), self.run.masks, self.workers)
        return EpochRecord(
            epoch=len(self.history),
            **means,
            learning_rate=learning_rate,
            momentum=momentum,
            student_validation_score=score,
            student_validation_loss=loss,
            teacher_validation_score=self._validation.of_teacher(self.teacher, score, self.history),
            selects_on_test=self.split.selects_on_test,
            best_epoch=best_epoch,
            best_validation_score=best_score,
            train_s=train_s,
            epoch_s=time.perf_counter() - started,
            **asdict(figures),
        )

    def _open(self, path: Path) -> RunFolder | None:
        """Claim the run's folder on worker 0, and load its last checkpoint on all."""
        folder, latest = None, None
        if self.workers.rank == 0:
            identity = {"config.json": self.config.recipe(), "split.json": asdict(self.split)}
            if self._num_epochs:
                identity["refit.json"] = {"num_epochs": self._num_epochs}
            folder = RunFolder(path, identity, self.saving, self.bags.digest)
            # Workers that Ray has just started again may find the locks of the lost ones.
            folder.lock(wait_s=LOST_LOCK_S if self.workers.world_size > 1 else 0.0)
            latest = folder.latest(partial(self.run.check, folder=path, keys=self.split.validation))
        latest = self.workers.from_first(latest)
        if latest is not None:
            self.run.load(*latest, folder=path, keys=self.split.validation)
            if folder is not None:
                folder.write_history(map(asdict, self.history))  # a torn one, or one behind the checkpoint
        if folder is not None and self.is_finished:
            folder.unlock()
        if folder is not None:
            text = json.dumps(launching(self.config, self.train_step), indent=1)
            files.write_text(path / LAUNCHING, text)
        return folder

    def _save(self) -> None:
        """Write a checkpoint of the current state; all workers must call this."""
        self.train_step.check(wait=True)
        tensors, state = self.run.state()
        if self.folder is not None:
            self.folder.save(
                self.run.position,
                tensors,
                state,
                history=state["history"],
                best_epochs=self.run.best_epochs,
            )


def _step_limits(config: TrainConfig, labels_N: np.ndarray, workers: Workers) -> StepLimits:
    return {
        "bags_per_step": config.bags_per_step,
        "max_instances": config.max_instances,
        "world_size": workers.world_size,
        "balance_labels": labels_N if config.sampling == "class_balanced" else None,
    }


def _first_student(
    config: TrainConfig, bags: BagSource, split: Split, pretrained: BagModel | None
) -> BagModel:
    """The student before the first step."""
    student = network_for(config, bags, split)
    if pretrained is not None and config.student_init == "projection":
        student.projection.load_state_dict(pretrained.projection.state_dict())
    elif pretrained is not None and config.student_init == "all":
        student.load_state_dict(pretrained.state_dict())
    return student


def device_of(name: str) -> torch.device:
    """The device that a configuration's `device` means in this process: `auto` is a GPU if it sees one.

    A GPU comes with its index, which is that of this thread's current GPU.

    Raises:
        ConfigError: `device` is cuda, but this process sees no GPU.
    """
    sees_gpu = torch.cuda.is_available()
    if name == "cuda" and not sees_gpu:
        raise ConfigError(
            "device: expected a GPU for cuda, but this process sees none; choose auto or cpu, or give it one"
        )
    return indexed("cuda") if name != "cpu" and sees_gpu else torch.device("cpu")
