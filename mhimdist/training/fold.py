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
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from mhimdist import files
from mhimdist.config.execution import Saving
from mhimdist.data.bags import BagSource
from mhimdist.errors import CheckpointError, PreemptedError, RunLockedError
from mhimdist.models import BagModel
from mhimdist.training import checkpoint
from mhimdist.training.evaluation import Sampling, fit, predict
from mhimdist.training.first_stage import FirstStage, first_stage, open_trainer
from mhimdist.training.folds import ERROR_FILE, RESULT_FILE, Fold
from mhimdist.training.history import HISTORY, EpochRecord
from mhimdist.training.judgement import result_of
from mhimdist.training.model_card import Trained, write_card
from mhimdist.training.network import task_for
from mhimdist.training.refit import Choice, InnerRun, choose, read_inner, save_predictions
from mhimdist.training.run_folder import LOST_LOCK_S, Position, RunFolder
from mhimdist.training.student import save_student
from mhimdist.training.trainer import Trainer
from mhimdist.training.workers import Workers


def _never() -> bool:
    return False


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


class Chosen(NamedTuple):
    """What the inner folds of a fold have chosen, and how many epochs its first stage has, if any."""

    choice: Choice
    num_stage_epochs: int | None


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
        chosen: Chosen | None = None,
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
            chosen: what the inner folds have chosen, if there are any.
        """
        self.fold, self._chosen = fold, chosen
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
                teacher=_teacher_of(self.fold, trainer.best.epoch, self._saving),
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
                    num_epochs=self._chosen.choice.num_epochs if self._chosen else None,
                    num_stage_epochs=self._chosen.num_stage_epochs if self._chosen else None,
                    keeps_predictions=not self.fold.is_tested,
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
            if trainer.run.predictions:
                save_predictions(self.fold.folder, trainer.run.predictions)
            student, choice = trainer.best_student(), self._chosen.choice if self._chosen else None
            _judge(self.fold, student, trainer.best.epoch, trainer.history, self._bags, choice, self._saving)
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

    A plain fold that is tested or an inner one trains in the cache, as a first stage: the folds that need it
    find it there. A plain fold of a search trains in its own folder, where the search follows it epoch by
    epoch. A fold with inner folds comes after them.

    Args:
        fold, bags, cache, num_threads, workers, saving, stop: as in `FoldRun`.

    Raises:
        PreemptedError: the fold was asked to stop and is saved; the same call resumes it.
        RunLockedError: another process has held the fold for `LOST_LOCK_S`.
        CheckpointError: an inner fold is not finished.
        MhimdistError: training failed, for example with a `NonFiniteError`.
    """
    workers = workers or Workers()
    shared: dict[str, Any] = {"workers": workers, "saving": saving, "stop": stop}
    is_finished = workers.from_first(fold.is_finished)
    torch.set_num_threads(num_threads)
    chosen = _chosen(fold, bags, cache, **shared) if fold.inner and not is_finished else None
    if fold.is_plain and (fold.is_tested or fold.is_inner) and not is_finished:
        choice = chosen.choice if chosen else None
        stage = first_stage(
            fold.config,
            bags,
            fold.split,
            cache,
            num_epochs=choice.num_epochs if choice else None,
            needs_predictions=fold.is_inner,
            **shared,
        )
        if workers.rank == 0:
            _write_stage(fold, stage)
            _judge(fold, stage.network, stage.best_epoch, stage.history, bags, choice, saving)
        return
    run = FoldRun(fold, bags, cache, num_threads, chosen=chosen, **shared)
    while not run.next_epoch().is_last:
        pass


def _chosen(fold: Fold, bags: BagSource, cache: Path, **shared: Any) -> Chosen:
    """What the inner folds of a fold have chosen, for itself and for its first stage.

    Raises:
        CheckpointError: an inner fold is not finished, or its files are damaged.
    """
    for inner in fold.inner:
        error = inner.folder / ERROR_FILE
        if error.exists() and not inner.is_finished:
            why = error.read_text(encoding="utf-8").strip().splitlines()[-1]
            raise CheckpointError(f"{inner.name} failed: {why.removeprefix('mhimdist.errors.')}")
        inner.ended_result()
    num_stage_epochs = None
    if fold.config.teacher.is_pretrained and not fold.config.teacher.weights:
        stages = [
            first_stage(inner.config, bags, inner.split, cache, needs_predictions=True, **shared)
            for inner in fold.inner
        ]
        num_stage_epochs = choose([InnerRun(s.history, s.predictions or ()) for s in stages]).num_epochs
    return Chosen(choose([_inner_run(each, bags) for each in fold.inner]), num_stage_epochs)


def _inner_run(fold: Fold, bags: BagSource) -> InnerRun:
    return read_inner(fold.folder, fold.records(), task_for(fold.config, bags, fold.split))


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


def _write_stage(fold: Fold, stage: FirstStage) -> None:
    """Write a plain fold, which trained in the cache, to its folder: all but its student and result."""
    fold.folder.mkdir(parents=True, exist_ok=True)
    files.write_text(fold.folder / "config.json", json.dumps(fold.config.recipe(), indent=1))
    files.write_text(fold.folder / "split.json", json.dumps(asdict(fold.split), indent=1))
    # Another run may have made the stage, and a stage does not know which bags are tested.
    records = (replace(record, selects_on_test=fold.split.selects_on_test) for record in stage.history)
    lines = (json.dumps(asdict(record), allow_nan=False) + "\n" for record in records)
    files.write_text(fold.folder / HISTORY, "".join(lines))
    if fold.is_inner and stage.predictions:
        save_predictions(fold.folder, stage.predictions)


def _teacher_of(fold: Fold, epoch: int, saving: Saving | None) -> Mapping[str, Tensor] | None:
    """The teacher after an epoch, from the checkpoint that the fold keeps of its best one.

    None if the fold keeps no such checkpoint, or has no teacher with weights of its own.
    """
    if not (saving or Saving()).keep_best:  # otherwise it would depend on the moments of the last checkpoints
        return None
    kept = fold.checkpoints / Position(epoch + 1, 0).name
    try:
        return checkpoint.load(kept)[0].get("teacher")
    except CheckpointError:  # it is for pictures alone: the result does not need it
        return None


def _judge(
    fold: Fold,
    network: BagModel,
    best_epoch: int,
    history: Sequence[EpochRecord],
    bags: BagSource,
    choice: Choice | None,
    saving: Saving | None,
) -> None:
    """Write the best student, its teacher and its result, then delete the checkpoints."""
    sampling = Sampling.of(fold.config)
    if choice is None:
        validation = [predict(network, bags, fold.split.validation, sampling)]
    else:
        validation = [part.as_of(network.task) for part in choice.parts]
    test = predict(network, bags, fold.split.test, sampling) if fold.is_tested else None
    result = result_of(fold, network, best_epoch, history, bags, validation, test, choice)
    chosen_on = f"the {'test' if fold.split.selects_on_test else 'validation'} bags"
    state = save_student(
        fold.folder,
        network.state_dict(),
        fold.config,
        bags,
        fold.split.train[0],
        teacher=_teacher_of(fold, best_epoch, saving),
        task=network.task,
        fitted=fit(validation),
        fitted_from=f"{network.task.fits_by} on {choice.chosen_on if choice else chosen_on}",
    )
    write_card(fold.folder, [Trained.of(fold.folder, state, result, fold.split)], fold.folder.name)
    # In this order: a fold that is killed before its result is written still has its checkpoints.
    files.write_text(fold.folder / RESULT_FILE, json.dumps(result.record(), allow_nan=False))
    checkpoint.discard(fold.checkpoints)
