"""A trial as Ray Tune runs it: a process that steps through its folds, and reports epoch by epoch.

What a configuration does wrong ends its trial with a reason and is reported as a result, because trying it
again would end the same way. What happens to a process ends the trial for Ray, and the driver starts it
again; its folds then go on from their own checkpoints.

However a process ends, what its trial would go on with stays, unless the driver has recorded that the trial
has ended: Ray Tune stops trials in the same way whether they are pruned or something else has failed.
"""

import gc
import json
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.util import get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from mhimdist import atomic
from mhimdist.config import TrainConfig
from mhimdist.data.loader import BagShards, open_bags
from mhimdist.data.remote import Location
from mhimdist.data.splits import Split
from mhimdist.errors import DiskFullError, PreemptedError, RunLockedError
from mhimdist.first_stage import first_stage
from mhimdist.history import EpochRecord
from mhimdist.room import is_out_of_memory
from mhimdist.run_folder import Saving
from mhimdist.sweep import Sweep
from mhimdist.train import STOP_FILE, Group, train
from mhimdist.trial import (
    DONE_FILE,
    Epoch,
    Fold,
    Run,
    Starter,
    TrialRun,
    environment,
    folds_of,
    write_once,
)

ERROR_FILE = "error.txt"
ENDED_FILE = "ended"
"""In a trial's folder once the study has it that the trial has ended."""

_LOST = (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError)  # what Ray says of a killed process


@dataclass(frozen=True)
class Task:
    """What every trial of a sweep is told: settings, and paths on storage that every node sees.

    Attributes:
        sweep: how trials are run.
        splits: of the folds.
        data: folder of shards, or its URL.
        trials: folder of the trials' own.
        stop_file: there once all trials are to save themselves and end.
        group: the workers of a run, where several train one.
    """

    sweep: Sweep
    splits: Sequence[Split]
    data: Location
    trials: Path
    stop_file: Path
    group: Group | None = None

    @property
    def saving(self) -> Saving:
        """When a run makes checkpoints."""
        return Saving(self.sweep.keep_last, 0, self.sweep.save_every_s)

    def bags(self) -> BagShards:
        """The data set; opened once a process, its files' pages shared by all processes of a node."""
        return open_bags(self.data, self.sweep.train.loading)


class SweepTrial(tune.Trainable):
    """A trial; the process is kept for the next one, with its open data set."""

    def setup(self, config: dict[str, Any], task: Task) -> None:  # type: ignore[override]
        """Begin with the first trial."""
        self.task = task
        self._starter: Starter | None = None
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Go on with another trial in the same process."""
        self.cleanup()
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        self.number = int(config["number"])
        self.folder = self.task.trials / f"{self.number:04d}"
        self._run: TrialRun | None = None

    def step(self) -> dict[str, Any]:
        """An epoch of every fold of the trial's wave."""
        try:
            if self._run is None:
                self._run = self._open()
            progress = self._run.next_epoch()
        except Exception as error:
            cause = _cause(error)
            if isinstance(cause, PreemptedError):
                self.cleanup()
                return {"number": self.number, "is_saved": True, "is_finished": False, "done": True}
            if isinstance(cause, ray.exceptions.RayError | RunLockedError):
                raise  # a process or node was lost, or still holds a fold: the driver starts the trial again
            return self._failed(error, cause)
        return {
            "number": self.number,
            "epoch": progress.step,
            "validation_auc": progress.value,
            "units": json.dumps(progress.units),  # as text, which loggers do not take apart
            "train_s": progress.train_s,
            "kept_share": progress.kept_share,
            "num_epochs": progress.num_epochs,
            "is_finished": progress.is_finished,
            "done": progress.is_finished,
        }

    def cleanup(self) -> None:
        """End the trial where it is: for good if the driver has recorded its end."""
        run, self._run = self._run, None
        if run is None:
            return
        if not (self.folder / ENDED_FILE).exists():
            run.let_go()
            return
        with suppress(DiskFullError):  # the trial after this one would fail of it; its own will tell
            run.close()

    def _open(self) -> TrialRun:
        task, sweep = self.task, self.task.sweep
        (self.folder / ERROR_FILE).unlink(missing_ok=True)
        config = TrainConfig.model_validate_json((self.folder / "config.json").read_text())
        node = {"node": ray.get_runtime_context().get_node_id()}
        write_once(self.folder / "environment.json", environment(sweep.num_threads) | node)
        folds = folds_of(config, task.splits, sweep.run_seeds, self.folder)
        self._starter = self._starter or self._make_starter()
        return TrialRun(folds, sweep.parallel_folds, self._starter)

    def _make_starter(self) -> Starter:
        task, sweep = self.task, self.task.sweep
        if task.group is not None:
            return GroupStarter(task, task.group)
        if sweep.parallel_folds > 1:
            return ParallelStarter(task)
        return starter(task)

    def _failed(self, error: Exception, cause: BaseException) -> dict[str, Any]:
        details = "".join(traceback.format_exception(error))
        traceback.clear_frames(error.__traceback__)  # what was being computed would stay in memory with them
        with suppress(DiskFullError):  # what is to be told is the first error
            if is_out_of_memory(cause):
                self.cleanup()  # it may run again, with fewer beside it
            atomic.write_text(self.folder / ERROR_FILE, details)
        gc.collect()
        torch.cuda.empty_cache()
        return {
            "number": self.number,
            "failed": f"{type(cause).__name__}: {' '.join(str(cause).split())}",
            "is_finished": False,
            "done": True,
        }


def _cause(error: BaseException) -> BaseException:
    """What was raised in a fold's own process, where it is one of Ray's."""
    while isinstance(error, ray.exceptions.RayTaskError):
        error = error.cause
    return error


def starter(task: Task) -> Starter:
    """Who makes a trial's runs in this process."""
    sweep = task.sweep
    return Starter(task.bags(), sweep.first_stages, sweep.num_threads, task.saving, task.stop_file.exists)


class ParallelStarter(Starter):
    """Makes the first run of a wave in this process, the others in processes that it keeps for the next."""

    def __init__(self, task: Task) -> None:
        sweep = task.sweep
        super().__init__(
            task.bags(), sweep.first_stages, sweep.num_threads, task.saving, task.stop_file.exists
        )
        self._task = task
        self._actors: list[Any] = []

    def wave(self, folds: Sequence[Fold]) -> Sequence[Run]:
        """See `Starter.wave`; the processes take their share of the trial's placement group."""
        first, *others = folds
        while len(self._actors) < len(others):
            self._actors.append(self._start())
        pairs = zip(self._actors, others, strict=False)
        return [*super().wave([first]), *(RemoteRun(actor, fold) for actor, fold in pairs)]

    def epoch(self, runs: Sequence[Run]) -> list[Epoch]:
        """See `Starter.epoch`; all of them at the same time."""
        asked = {i: run.ask() for i, run in enumerate(runs) if isinstance(run, RemoteRun)}
        here = {i: run.next_epoch() for i, run in enumerate(runs) if i not in asked}
        there = dict(zip(asked, ray.get(list(asked.values())), strict=True))
        return [here[i] if i in here else there[i] for i in range(len(runs))]

    def _start(self) -> Any:
        group = get_current_placement_group()
        assert group is not None, "Ray Tune gives every trial one"
        bundle = group.bundle_specs[-1]
        actor = ray.remote(FoldServer).options(
            num_cpus=bundle.get("CPU", 0),
            num_gpus=bundle.get("GPU", 0),
            memory=bundle.get("memory"),
            scheduling_strategy=PlacementGroupSchedulingStrategy(group),
        )
        return actor.remote(self._task)  # it ends with the process that started it


class FoldServer:
    """Trains one fold after another in an actor."""

    def __init__(self, task: Task) -> None:
        self._starter = starter(task)
        self._run: Run | None = None

    def open(self, fold: Fold) -> None:
        """Begin with a fold, in place of the one before."""
        (self._run,) = self._starter.wave([fold])

    def next_epoch(self) -> Epoch:
        """See `Run.next_epoch`."""
        assert self._run is not None, "a fold was opened"
        return self._run.next_epoch()

    def close(self) -> None:
        """See `Run.close`."""
        if self._run is not None:
            self._run.close()
            self._run = None

    def let_go(self) -> None:
        """See `Run.let_go`."""
        if self._run is not None:
            self._run.let_go()
            self._run = None


class RemoteRun:
    """A fold in training in another process."""

    def __init__(self, actor: Any, fold: Fold) -> None:
        self._actor = actor
        actor.open.remote(fold)

    def ask(self) -> ray.ObjectRef:
        """Have the next epoch trained."""
        return self._actor.next_epoch.remote()

    def next_epoch(self) -> Epoch:
        """See `Run.next_epoch`."""
        return ray.get(self.ask())

    def close(self) -> None:
        """See `Run.close`."""
        with suppress(*_LOST):
            ray.get(self._actor.close.remote())

    def let_go(self) -> None:
        """See `Run.let_go`; after the epoch that it may be in. A process that was lost has let go."""
        with suppress(*_LOST):
            ray.get(self._actor.let_go.remote())


class GroupStarter(Starter):
    """Has each run trained by several workers of Ray Train."""

    def __init__(self, task: Task, group: Group) -> None:
        super().__init__(task.bags(), task.sweep.first_stages, 1, task.saving, task.stop_file.exists)
        self._task, self._group = task, group

    def wave(self, folds: Sequence[Fold]) -> Sequence[Run]:
        """See `Starter.wave`."""
        return [GroupRun(fold, self._task, self._group, self.stop) for fold in folds]


class GroupRun:
    """A fold that several workers train together; what they do is read from its history."""

    def __init__(self, fold: Fold, task: Task, group: Group, stop: Callable[[], bool]) -> None:
        self.fold, self._task, self._group, self._stop = fold, task, group, stop
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._epochs: Iterator[Epoch] | None = None

    def next_epoch(self) -> Epoch:
        """See `Run.next_epoch`."""
        if self._epochs is None:
            self._epochs = self._follow()
        return next(self._epochs)

    def close(self) -> None:
        """See `Run.close`; the workers save themselves first."""
        if self._thread is not None:
            (self.fold.folder / STOP_FILE).touch()
            self._thread.join()

    def let_go(self) -> None:
        """See `Run.let_go`."""
        self.close()

    def _follow(self) -> Iterator[Epoch]:
        if not self.fold.is_done:
            self._thread = threading.Thread(target=self._train, daemon=True)
            self._thread.start()
        given = 0
        while True:
            is_over = self._thread is None or not self._thread.is_alive()
            if not is_over and self._stop():
                (self.fold.folder / STOP_FILE).touch()
            records: list[EpochRecord] = self.fold.records()
            if is_over and self._error is not None:
                raise self._error
            # The last record is given once the workers are gone: only then it is known to be the last.
            for record in records[given : None if is_over else -1]:
                given += 1
                is_last = is_over and given == len(records)
                if is_last:
                    write_once(self.fold.folder / DONE_FILE, given)
                yield Epoch(record, is_last)
            if is_over:
                return
            time.sleep(0.3)

    def _train(self) -> None:
        fold, sweep = self.fold, self._task.sweep
        try:
            train(fold.config, self._task.data, fold.split, fold.folder, sweep.first_stages, self._group)
        except Exception as error:
            self._error = error


def make_first_stage(config: TrainConfig, task: Task, split: Split) -> None:
    """Train a first stage into the cache, for all trials that share it, unless they are asked to stop."""
    torch.set_num_threads(task.sweep.num_threads)
    with suppress(PreemptedError):
        first_stage(config, task.bags(), split, task.sweep.first_stages, stop=task.stop_file.exists)
