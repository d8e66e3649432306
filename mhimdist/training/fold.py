"""A fold, which is a configuration on one fold with one seed: stepped through, stopped, resumed, judged.

Everything that trains consists of folds: a cross-validation, a trial of a sweep and a sweep's final runs, on
one worker or on several. A fold's folder has the same layout in all of them:

    fold-1-seed-2021[-<digest>]/
        config.json, split.json    the configuration and the split
        history.jsonl              a line per epoch
        checkpoints/               an unfinished fold resumes from these
        best_student/              weights of the selected epoch
        model_card.md              what the network is, and what it is not
        result.json                the metrics; marks a finished fold
        error.txt                  the traceback of a failure
        stop                       asks the workers that share the fold to save it and end

Nothing here knows Ray.
"""

import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mhimdist import files
from mhimdist.config.execution import Saving
from mhimdist.config.train import TrainConfig
from mhimdist.data.bags import BagSource
from mhimdist.data.splits import Split
from mhimdist.errors import CheckpointError, PreemptedError, RunLockedError
from mhimdist.models import BagModel
from mhimdist.training import checkpoint
from mhimdist.training.evaluation import Sampling, predict
from mhimdist.training.first_stage import first_stage, open_trainer
from mhimdist.training.history import HISTORY, EpochRecord, read_history
from mhimdist.training.judgement import result_of
from mhimdist.training.model_card import Trained, write_card
from mhimdist.training.network import task_for
from mhimdist.training.result import Result, read_result
from mhimdist.training.run_folder import LOST_LOCK_S, Position, RunFolder
from mhimdist.training.student import save_student
from mhimdist.training.trainer import Trainer
from mhimdist.training.workers import Workers

RESULT_FILE = "result.json"
ERROR_FILE = "error.txt"
"""In the folder of a fold, a trial or a sweep: the traceback of its failure."""
STOP_FILE = "stop"
"""In the folder of a fold, a cross-validation or a sweep: asks the runs there to save themselves and end."""


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Fold:
    """A configuration on one fold with one seed.

    Attributes:
        name: its name in progress lines, failures and a trial's values.
        config: the configuration, with the fold's seed.
        split: the bags that train, select and test.
        fold: the fold's number, counted from 1.
        folder: receives its files.
        is_tested: whether its student is judged on the test bags at the end; a search must not do that.
        data_digest: digest of the data set that the split is of, which every process that trains the fold
            compares with what it finds; None compares nothing.
    """

    name: str
    config: TrainConfig
    split: Split
    fold: int
    folder: Path
    is_tested: bool
    data_digest: str | None = None

    @property
    def is_plain(self) -> bool:
        """Whether it trains the same as a first stage: a network without teacher or mask."""
        return self.config.teacher.kind == "none" and self.config.masking.strategy == "none"

    @property
    def first_stage_digest(self) -> str | None:
        """Digest of the first stage that it makes, if plain, or needs; None if it does neither."""
        if not self.is_plain and (not self.config.teacher.is_pretrained or self.config.teacher.weights):
            return None
        return f"{self.config.first_stage().digest()} {self.split.digest()}"

    @property
    def is_finished(self) -> bool:
        """Whether its training has ended well and its result is on disk."""
        return (self.folder / RESULT_FILE).exists()

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints that an unfinished fold resumes from."""
        return self.folder / "checkpoints"

    def result(self) -> Result | None:
        """Read its result; None if it is not finished.

        Raises:
            CheckpointError: the file is damaged, or another release wrote it.
        """
        if not self.is_finished:
            return None
        return read_result(self.folder / RESULT_FILE)

    def ended_result(self) -> Result:
        """Read the result of a fold that has been trained, here or elsewhere.

        Raises:
            CheckpointError: the file is not there, or another release wrote it.
        """
        result = self.result()
        if result is None:
            raise CheckpointError(
                f"{self.folder / RESULT_FILE}: expected the result of {self.name}, which has ended, found no "
                "file: was it deleted, or does this machine see the folder late? Run the same command again"
            )
        return result

    def records(self) -> list[EpochRecord]:
        """Read its history file; empty before the end of its first epoch.

        Raises:
            CheckpointError: the history is damaged, or another release wrote it.
        """
        return read_history(self.folder)


def fold_folder(parent: Path, fold: int, seed: int, digest: str = "") -> Path:
    """The folder of a fold.

    Args:
        parent: folder of the trial or of all folds.
        fold: the fold's number, counted from 1.
        seed: the fold's seed.
        digest: tells the folds of several configurations in one parent apart.
    """
    return parent / "-".join(filter(None, (f"fold-{fold}-seed-{seed}", digest)))


def folds_of_trial(
    config: TrainConfig,
    splits: Sequence[Split],
    seeds: Sequence[int],
    folder: Path,
    data_digest: str | None = None,
) -> list[Fold]:
    """The folds of a trial: all with the first seed, then all with the next. None of them is tested.

    Args:
        config: the trial's configuration.
        splits: one split per fold, in order.
        seeds: the seeds that every fold runs with.
        folder: the trial's folder.
        data_digest: as in `Fold`.
    """
    return [
        Fold(
            f"fold {number}, seed {seed}",
            config.model_copy(update={"seed": seed}),
            split,
            number,
            fold_folder(folder, number, seed),
            is_tested=False,
            data_digest=data_digest,
        )
        for seed in seeds
        for number, split in enumerate(splits, 1)
    ]


class Epoch(NamedTuple):
    """The record of an epoch of a fold, and whether it was the fold's last."""

    record: EpochRecord
    is_last: bool


class Run(Protocol):
    """A fold in training, in this process or elsewhere."""

    def next_epoch(self) -> Epoch:
        """Train an epoch. The epochs of an earlier start come first, without training.

        Raises:
            PreemptedError: all runs were asked to stop; this one is saved.
            RunLockedError: another process has held the fold for `LOST_LOCK_S`.
        """

    def close(self) -> None:
        """End the run for good, after the epochs that it has done."""

    def release(self) -> None:
        """End the run after the epochs that it has done; another start can resume it."""


class FoldRun:
    """A fold in training in this process."""

    def __init__(
        self,
        fold: Fold,
        bags: BagSource,
        cache: Path,
        num_threads: int,
        *,
        workers: Workers | None = None,
        saving: Saving | None = None,
        stop: Callable[[], bool] = _never,
    ) -> None:
        """Prepare the run; the first epoch builds its networks or reads its last checkpoint.

        Args:
            fold: the fold to run.
            bags: the data set.
            cache: folder of first-stage networks.
            num_threads: compute threads.
            workers: the processes that share the run; by default this process alone.
            saving: when checkpoints are written.
            stop: returns whether the run is asked to stop.
        """
        self.fold = fold
        self._bags, self._cache, self._num_threads = bags, cache, num_threads
        self._workers, self._saving, self._stop = workers or Workers(), saving, stop
        self._trainer: Trainer | None = None
        self._epochs: Iterator[Epoch] | None = None

    def next_epoch(self) -> Epoch:
        """See `Run.next_epoch`."""
        torch.set_num_threads(self._num_threads)
        with self._workers.watched():
            self._check_stop()
            if self._epochs is None:
                is_finished = self._workers.from_first(self.fold.is_finished)
                self._epochs = self._found() if is_finished else self._trained()
        return next(self._epochs)

    def close(self) -> None:
        """See `Run.close`; keeps the history and the best weights, but no checkpoint to resume from."""
        trainer = self._trainer
        self.release()
        if trainer is not None and trainer.history:
            student = trainer.best_student()
            save_student(
                self.fold.folder,
                student.state_dict(),
                self.fold.config,
                self._bags,
                self.fold.split.train[0],
                task=student.task,
                teacher=_teacher_of(self.fold, trainer.best.epoch),
            )
            checkpoint.discard(self.fold.checkpoints)

    def release(self) -> None:
        """See `Run.release`; waits until a checkpoint that is being written is on disk."""
        trainer, self._trainer, self._epochs = self._trainer, None, None
        if trainer is not None and trainer.folder is not None:
            trainer.folder.unlock()

    def _check_stop(self) -> None:
        if self._workers.any(self._stop())[0]:
            self.release()
            raise PreemptedError(f"{self.fold.name} was stopped; run the same command again to resume it")

    def _found(self) -> Iterator[Epoch]:
        if self._workers.rank == 0:
            checkpoint.discard(self.fold.checkpoints)  # a process killed at its end may have left them
        records = self.fold.records()
        for number, record in enumerate(records, 1):
            yield Epoch(record, number == len(records))

    def _trained(self) -> Iterator[Epoch]:
        self._trainer = trainer = self._open()
        known = list(trainer.history)
        for record in itertools.chain(known, trainer.epochs()):
            is_last = trainer.is_finished and record.epoch + 1 == len(trainer.history)
            if is_last:
                self._end(trainer)
            yield Epoch(record, is_last)

    def _open(self) -> Trainer:
        deadline = time.monotonic() + LOST_LOCK_S
        while True:
            try:
                return open_trainer(
                    self.fold.config,
                    self._bags,
                    self.fold.split,
                    self.fold.folder,
                    self._cache,
                    workers=self._workers,
                    saving=self._saving,
                    stop=self._stop,
                )
            except RunLockedError:
                # Several workers wait inside the trainer, where all of them meet.
                if self._workers.world_size > 1 or time.monotonic() > deadline:
                    raise
                time.sleep(0.5)
                self._check_stop()

    def _end(self, trainer: Trainer) -> None:
        if trainer.folder is not None:  # only worker 0 has it
            trainer.folder.flush()
            _judge(self.fold, trainer.best_student(), trainer.best.epoch, trainer.history, self._bags)
            trainer.folder.unlock()
        self._trainer = None


def run_fold(
    fold: Fold,
    bags: BagSource,
    cache: Path,
    num_threads: int,
    *,
    workers: Workers | None = None,
    saving: Saving | None = None,
    stop: Callable[[], bool] = _never,
) -> None:
    """Train a fold to its end and judge it; a finished fold stays as it is.

    A plain fold that is tested trains in the cache, as a first stage: the folds that need it find it there.
    A plain fold of a search trains in its own folder, where the search follows it epoch by epoch.

    Args:
        fold, bags, cache, num_threads, workers, saving, stop: as in `FoldRun`.

    Raises:
        PreemptedError: the fold was asked to stop and is saved; the same call resumes it.
        RunLockedError: another process has held the fold for `LOST_LOCK_S`.
        MhimdistError: training failed, for example with a `NonFiniteError`.
    """
    workers = workers or Workers()
    if fold.is_plain and fold.is_tested and not workers.from_first(fold.is_finished):
        torch.set_num_threads(num_threads)
        stage = first_stage(fold.config, bags, fold.split, cache, workers=workers, saving=saving, stop=stop)
        if workers.rank == 0:
            _write_stage(fold, stage.history)
            _judge(fold, stage.network, stage.best_epoch, stage.history, bags)
        return
    run = FoldRun(fold, bags, cache, num_threads, workers=workers, saving=saving, stop=stop)
    while not run.next_epoch().is_last:
        pass


def keep_best_only(fold: Fold, bags: BagSource) -> None:
    """End an unfinished fold for good: keep its best weights and delete its checkpoints.

    Args:
        fold: a fold that no process trains any more.
        bags: the data set.

    Raises:
        CheckpointError: the fold has checkpoints, but none is whole.
    """
    latest = None if fold.is_finished else RunFolder(fold.folder, {}, Saving()).latest()
    if latest is not None:
        tensors, _ = latest
        task = task_for(fold.config, bags, fold.split)
        save_student(fold.folder, tensors["best_student"], fold.config, bags, fold.split.train[0], task=task)
        checkpoint.discard(fold.checkpoints)


def _write_stage(fold: Fold, history: Sequence[EpochRecord]) -> None:
    """Write configuration, split and history of a plain fold, which trained in the cache, to its folder."""
    fold.folder.mkdir(parents=True, exist_ok=True)
    files.write_text(fold.folder / "config.json", json.dumps(fold.config.recipe(), indent=1))
    files.write_text(fold.folder / "split.json", json.dumps(asdict(fold.split), indent=1))
    # Another run may have made the stage, and a stage does not know which bags are tested.
    records = (replace(record, selects_on_test=fold.split.selects_on_test) for record in history)
    lines = (json.dumps(asdict(record), allow_nan=False) + "\n" for record in records)
    files.write_text(fold.folder / HISTORY, "".join(lines))


def _teacher_of(fold: Fold, epoch: int) -> Mapping[str, Tensor] | None:
    """The teacher after an epoch, from the checkpoint that the fold keeps of its best one.

    None if the fold keeps no such checkpoint, or has no teacher with weights of its own.
    """
    kept = fold.checkpoints / Position(epoch + 1, 0).name
    try:
        return checkpoint.load(kept)[0].get("teacher")
    except CheckpointError:  # it is for pictures alone: the result does not need it
        return None


def _judge(
    fold: Fold, network: BagModel, best_epoch: int, history: Sequence[EpochRecord], bags: BagSource
) -> None:
    """Write the best student, its teacher and its result, then delete the checkpoints."""
    sampling = Sampling.of(fold.config)
    validation = predict(network, bags, fold.split.validation, sampling)
    test = predict(network, bags, fold.split.test, sampling) if fold.is_tested else None
    selecting = "test" if fold.split.selects_on_test else "validation"
    result = result_of(
        fold.config, fold.split, fold.fold, network, best_epoch, history, bags, validation, test
    )
    state = save_student(
        fold.folder,
        network.state_dict(),
        fold.config,
        bags,
        fold.split.train[0],
        teacher=_teacher_of(fold, best_epoch),
        task=network.task,
        fitted=network.task.fit(validation.judged),
        fitted_from=f"{network.task.fits_by} on the {selecting} bags",
    )
    write_card(fold.folder, [Trained.of(fold.folder, state, result, fold.split)], fold.folder.name)
    # In this order: a fold that is killed before its result is written still has its checkpoints.
    files.write_text(fold.folder / RESULT_FILE, json.dumps(result.record(), allow_nan=False))
    checkpoint.discard(fold.checkpoints)
