"""Launchers that run a wave's folds outside a trial's own process: in actors, or in Ray Train's groups."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.util import get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from mhimdist.distributed.shared_gpu import within_share
from mhimdist.distributed.worker_group import Group, train
from mhimdist.sweep.task import Task
from mhimdist.sweep.trial import Launcher
from mhimdist.training.fold import Epoch, Run, keep_best_only
from mhimdist.training.folds import Fold
from mhimdist.training.history import EpochRecord

_LOST = (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError)  # Ray's errors for a killed process


class ActorLauncher(Launcher):
    """Runs a wave's first fold in this process, and the others in actors; the next wave uses them again."""

    def __init__(self, task: Task) -> None:
        sweep = task.sweep
        super().__init__(
            task.bags(), sweep.first_stages, sweep.num_threads, task.saving, task.stop_file.exists
        )
        self._task = task
        self._actors: list[Any] = []

    def launch(self, folds: Sequence[Fold]) -> Sequence[Run]:
        """See `Launcher.launch`; the actors take their share of the trial's placement group."""
        first, *others = folds
        while len(self._actors) < len(others):
            self._actors.append(self._start())
        pairs = zip(self._actors, others, strict=False)
        return [*super().launch([first]), *(RemoteRun(actor, fold) for actor, fold in pairs)]

    def next_epochs(self, runs: Sequence[Run]) -> list[Epoch]:
        """See `Launcher.next_epochs`; the runs train at the same time."""
        asked = {i: run.ask() for i, run in enumerate(runs) if isinstance(run, RemoteRun)}
        here = {i: run.next_epoch() for i, run in enumerate(runs) if i not in asked}
        there = dict(zip(asked, ray.get(list(asked.values())), strict=True))
        return [here[i] if i in here else there[i] for i in range(len(runs))]

    def _start(self) -> Any:
        group = get_current_placement_group()
        assert group is not None, "Ray Tune gives every trial a placement group"
        bundle = group.bundle_specs[-1]
        actor = ray.remote(FoldServer).options(
            num_cpus=bundle.get("CPU", 0),
            num_gpus=bundle.get("GPU", 0),
            memory=bundle.get("memory"),
            scheduling_strategy=PlacementGroupSchedulingStrategy(group),
        )
        return actor.remote(self._task)  # the actor ends with the process that started it


class FoldServer:
    """Trains one fold after another in an actor."""

    def __init__(self, task: Task) -> None:
        self._launcher = task.launcher()
        self._fold: Fold | None = None
        self._run: Run | None = None

    def open(self, fold: Fold) -> None:
        """Begin a fold, in place of the previous one."""
        self._fold = fold
        (self._run,) = self._launcher.launch([fold])

    def next_epoch(self) -> Epoch:
        """See `Run.next_epoch`."""
        assert self._run is not None, "a fold was opened"
        assert self._fold is not None
        with within_share(self._fold.config):
            return self._run.next_epoch()

    def close(self) -> None:
        """See `Run.close`."""
        if self._run is not None:
            self._run.close()
            self._run = None

    def release(self) -> None:
        """See `Run.release`."""
        if self._run is not None:
            self._run.release()
            self._run = None


class RemoteRun:
    """A fold in training in another process."""

    def __init__(self, actor: Any, fold: Fold) -> None:
        self._actor = actor
        actor.open.remote(fold)

    def ask(self) -> ray.ObjectRef:
        """Ask for the next epoch; returns Ray's reference to it."""
        return self._actor.next_epoch.remote()

    def next_epoch(self) -> Epoch:
        """See `Run.next_epoch`."""
        return ray.get(self.ask())

    def close(self) -> None:
        """See `Run.close`."""
        with suppress(*_LOST):
            ray.get(self._actor.close.remote())

    def release(self) -> None:
        """See `Run.release`; an epoch in progress ends first. A lost process holds nothing."""
        with suppress(*_LOST):
            ray.get(self._actor.release.remote())


class GroupLauncher(Launcher):
    """Trains each fold with a group of Ray Train's workers."""

    def __init__(self, task: Task, group: Group) -> None:
        super().__init__(task.bags(), task.sweep.first_stages, 1, task.saving, task.stop_file.exists)
        self._task, self._group = task, group

    def launch(self, folds: Sequence[Fold]) -> Sequence[Run]:
        """See `Launcher.launch`."""
        return [GroupRun(fold, self._task, self._group) for fold in folds]


class GroupRun:
    """A fold that a group of workers trains together; its epochs are read from its history."""

    def __init__(self, fold: Fold, task: Task, group: Group) -> None:
        self.fold, self._task, self._group = fold, task, group
        self._thread: threading.Thread | None = None
        self._is_ended = False
        self._error: Exception | None = None
        self._epochs: Iterator[Epoch] | None = None

    def next_epoch(self) -> Epoch:
        """See `Run.next_epoch`."""
        if self._epochs is None:
            self._epochs = self._follow()
        return next(self._epochs)

    def close(self) -> None:
        """See `Run.close`; the workers save the run first."""
        self.release()
        keep_best_only(self.fold, self._task.bags_of(self.fold.config))

    def release(self) -> None:
        """See `Run.release`."""
        self._is_ended = True
        if self._thread is not None:
            self._thread.join()

    def _follow(self) -> Iterator[Epoch]:
        self._thread = threading.Thread(target=self._train, daemon=True)
        self._thread.start()
        given = 0
        while True:
            is_over = not self._thread.is_alive()
            records: list[EpochRecord] = self.fold.records()
            if is_over and self._error is not None:
                raise self._error
            # The last record is yielded after the workers have ended: only then is it known to be the last.
            for record in records[given : None if is_over else -1]:
                given += 1
                yield Epoch(record, is_over and given == len(records))
            if is_over:
                return
            time.sleep(0.3)

    def _train(self) -> None:
        task = self._task
        try:
            train(self.fold, task.data, task.sweep.first_stages, self._group, stop=self._should_stop)
        except Exception as error:
            self._error = error

    def _should_stop(self) -> bool:
        return self._is_ended or self._task.stop_file.exists()
