"""One trial of a sweep: a configuration on every fold with every seed, epoch by epoch. Nothing here knows
Ray.

The folds run one after the other, or a few at once in waves; a trial's value after an epoch is the mean over
the folds so far, each by its best epoch, so that two trials can be compared at the same step.
"""

import importlib.metadata
import itertools
import json
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple, Protocol

import torch

import mhimdist
from mhimdist import atomic, checkpoint
from mhimdist.config import TrainConfig
from mhimdist.data.bags import BagSource
from mhimdist.data.splits import Split
from mhimdist.engine import Trainer
from mhimdist.errors import PreemptedError, RunLockedError
from mhimdist.first_stage import open_trainer
from mhimdist.history import EpochRecord
from mhimdist.run_folder import HISTORY, LOST_LOCK_S, Saving

DONE_FILE = "done.json"


@dataclass(frozen=True)
class Fold:
    """One run of a trial.

    Attributes:
        config: with the run's seed.
        split: of the fold.
        fold: counted from 1.
        folder: the run's own.
    """

    config: TrainConfig
    split: Split
    fold: int
    folder: Path

    @property
    def name(self) -> str:
        """What a trial's values are kept under."""
        return f"fold {self.fold}, seed {self.config.seed}"

    def records(self) -> list[EpochRecord]:
        """What its history file holds; empty before its first epoch."""
        file = self.folder / HISTORY
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        return [EpochRecord.read(json.loads(line), self.folder) for line in lines]

    @property
    def is_done(self) -> bool:
        """Whether it was trained to its end."""
        return (self.folder / DONE_FILE).exists()


def folds_of(config: TrainConfig, splits: Sequence[Split], seeds: Sequence[int], folder: Path) -> list[Fold]:
    """The runs of a trial: all folds with the first seed, then all with the next."""
    return [
        Fold(
            config.model_copy(update={"seed": seed}),
            split,
            number,
            folder / f"fold-{number}-seed-{seed}",
        )
        for seed in seeds
        for number, split in enumerate(splits, 1)
    ]


class Epoch(NamedTuple):
    """What an epoch of a fold did, and whether it was the fold's last."""

    record: EpochRecord
    is_last: bool


class Run(Protocol):
    """A fold in training, in this process or elsewhere."""

    def next_epoch(self) -> Epoch:
        """Train an epoch. Those of an earlier start come first, without training.

        Raises:
            PreemptedError: all runs were asked to stop; this one has saved itself.
            RunLockedError: another process has held the fold for `LOST_LOCK_S`.
        """

    def close(self) -> None:
        """End it where it is, for good."""

    def let_go(self) -> None:
        """End it where it is; another start goes on with it."""


class FoldRun:
    """A fold in training in this process."""

    def __init__(
        self,
        fold: Fold,
        bags: BagSource,
        cache: Path,
        num_threads: int,
        saving: Saving,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Prepare the run; its networks are built, or its last checkpoint read, by the first epoch asked for.

        Args:
            fold: what to run.
            bags: the data set.
            cache: of first-stage networks.
            num_threads: compute threads.
            saving: when checkpoints are made.
            stop: whether all runs are asked to stop.
        """
        self.fold = fold
        self._bags, self._cache, self._num_threads = bags, cache, num_threads
        self._saving, self._stop = saving, stop
        self._trainer: Trainer | None = None
        self._epochs: Iterator[Epoch] | None = None

    def next_epoch(self) -> Epoch:
        """See `Run.next_epoch`."""
        torch.set_num_threads(self._num_threads)
        self._check_stop()
        if self._epochs is None:
            self._epochs = self._found() if self.fold.is_done else self._trained()
        return next(self._epochs)

    def close(self) -> None:
        """See `Run.close`; keeps history and best weights, but nothing to go on with."""
        trainer = self._trainer
        self.let_go()
        if trainer is not None and trainer.history:
            self._keep_best(trainer)
            checkpoint.discard(self._checkpoints)

    def let_go(self) -> None:
        """See `Run.let_go`; waits for the checkpoint that is being written."""
        trainer, self._trainer, self._epochs = self._trainer, None, None
        if trainer is not None and trainer.folder is not None:
            trainer.folder.unlock()

    @property
    def _checkpoints(self) -> Path:
        return self.fold.folder / "checkpoints"

    def _check_stop(self) -> None:
        if self._stop():
            self.let_go()
            raise PreemptedError(f"{self.fold.name} was stopped; the same command goes on with it")

    def _found(self) -> Iterator[Epoch]:
        checkpoint.discard(self._checkpoints)  # what a killed process had no time for
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
            self._check_stop()
            try:
                return open_trainer(
                    self.fold.config,
                    self._bags,
                    self.fold.split,
                    self.fold.folder,
                    self._cache,
                    saving=self._saving,
                    stop=self._stop,
                )
            except RunLockedError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    def _end(self, trainer: Trainer) -> None:
        if trainer.folder is not None:
            trainer.folder.unlock()
        self._keep_best(trainer)
        # In this order: killed before it is done, a fold still has what to go on with.
        atomic.write_text(self.fold.folder / DONE_FILE, json.dumps(asdict(trainer.best)))
        checkpoint.discard(self._checkpoints)
        self._trainer = None

    def _keep_best(self, trainer: Trainer) -> None:
        folder = self.fold.folder / "best_student"
        checkpoint.discard(folder)
        checkpoint.save(folder, {"student": dict(trainer.best_student().state_dict())}, {})


@dataclass(frozen=True)
class Progress:
    """Where a trial is after an epoch.

    Attributes:
        step: epochs done over all folds; an early stop counts as all of its fold's epochs.
        value: mean over the folds so far of the best validation AUC.
        units: value of every fold that is done, by name.
        train_s: mean seconds of training of the folds so far.
        kept_share: mean share of the instances that the student saw in them.
        num_epochs: epochs trained in all folds so far.
        is_finished: whether all folds are done.
    """

    step: int
    value: float
    units: dict[str, float]
    train_s: float
    kept_share: float
    num_epochs: int
    is_finished: bool


@dataclass
class _State:
    """What is known of one fold so far."""

    records: list[EpochRecord]
    is_done: bool = False


class TrialRun:
    """A trial in training: waves of folds, each wave epoch by epoch."""

    def __init__(self, folds: Sequence[Fold], num_parallel: int, start: "Starter") -> None:
        """Begin a trial.

        Args:
            folds: its runs, in their order.
            num_parallel: folds of a wave.
            start: makes the runs of a wave.
        """
        self._waves = [folds[i : i + num_parallel] for i in range(0, len(folds), num_parallel)]
        self._start = start
        self._wave = 0
        self._states: dict[str, _State] = {}
        self._runs: Sequence[Run] = ()

    def next_epoch(self) -> Progress:
        """Train the next epoch of every fold of the wave."""
        wave = self._waves[self._wave]
        if not self._runs:
            self._runs = self._start.wave(wave)
            self._states |= {fold.name: _State([]) for fold in wave}
        states = [self._states[fold.name] for fold in wave]
        running = [pair for pair in zip(self._runs, states, strict=True) if not pair[1].is_done]
        for (_, state), epoch in zip(running, self._start.epoch([run for run, _ in running]), strict=True):
            state.records.append(epoch.record)
            state.is_done = epoch.is_last
        epochs = wave[0].config.epochs
        step = self._wave * epochs + max(len(state.records) for state in states)
        if all(state.is_done for state in states):
            self._runs = ()
            self._wave += 1
            step = self._wave * epochs
        return self._progress(step)

    def close(self) -> None:
        """End the runs where they are, for good."""
        for run in self._runs:
            run.close()
        self._runs = ()

    def let_go(self) -> None:
        """End the runs where they are; another start goes on with them."""
        for run in self._runs:
            run.let_go()
        self._runs = ()

    def _progress(self, step: int) -> Progress:
        states = self._states
        seen = [state.records for state in states.values() if state.records]
        return Progress(
            step=step,
            value=mean(records[-1].best_validation_auc for records in seen),
            units={
                name: state.records[-1].best_validation_auc for name, state in states.items() if state.is_done
            },
            train_s=mean(sum(record.epoch_s for record in records) for records in seen),
            kept_share=mean(mean(record.kept_ratio for record in records) for records in seen),
            num_epochs=sum(len(records) for records in seen),
            is_finished=self._wave == len(self._waves),
        )


class Starter:
    """Makes a trial's runs in this process, and steps through them one after the other."""

    def __init__(
        self,
        bags: BagSource,
        cache: Path,
        num_threads: int,
        saving: Saving,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.bags, self.cache, self.num_threads, self.saving = bags, cache, num_threads, saving
        self.stop = stop

    def wave(self, folds: Sequence[Fold]) -> Sequence[Run]:
        """The runs of folds that are to run at once."""
        return [
            FoldRun(fold, self.bags, self.cache, self.num_threads, self.saving, self.stop) for fold in folds
        ]

    def epoch(self, runs: Sequence[Run]) -> list[Epoch]:
        """An epoch of each run."""
        return [run.next_epoch() for run in runs]


def environment(num_threads: int) -> dict[str, str]:
    """What a trial ran on, for its folder."""
    packages = ("torch", "ray", "optuna", "numpy")
    return {
        "host": platform.node(),
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": str(num_threads),
        "mhimdist": mhimdist.__version__,
        "revision": revision(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        "CUDA of torch": torch.version.cuda or "none",
    }


@cache
def revision() -> str:
    """The commit of this package, as `git describe` says it; "unknown" where it is no checkout, as in a job's
    upload.
    """
    folder = Path(__file__).parent
    try:
        # Not the commit of a checkout in which this package lies only as one that is installed.
        for command in (
            ("ls-files", "--error-unmatch", "__init__.py"),
            ("describe", "--always", "--dirty", "--abbrev=12"),
        ):
            said = subprocess.run(
                ["git", "-C", folder, *command], capture_output=True, text=True, timeout=10, check=True
            )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return said.stdout.strip()


def write_once(path: Path, content: Any) -> None:
    """Write JSON unless an earlier start of the trial has."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_text(path, json.dumps(content, indent=1))
