"""One trial of a sweep: a configuration on every fold with every seed, epoch by epoch.

Nothing here knows Ray.

The folds run one after another, or a few at a time in waves. A trial's value after an epoch is the mean of
its folds so far, each at its best epoch, so two trials can be compared at the same step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from mhimdist.config.execution import Saving
from mhimdist.data.opening import with_features
from mhimdist.data.stored import StoredBags
from mhimdist.training.fold import Epoch, FoldRun, Run
from mhimdist.training.folds import Fold
from mhimdist.training.history import EpochRecord


@dataclass(frozen=True)
class Progress:
    """The state of a trial after an epoch.

    Attributes:
        step: epochs done over all folds; after an early stop, all of the fold's epochs count.
        value: mean of the best validation score of each fold so far.
        folds: value of every fold that is done, by name.
        train_s: mean training seconds of the folds so far.
        kept_share: mean share of the instances that the student saw in these folds, in [0, 1].
        num_epochs: epochs trained in all folds so far.
        is_finished: whether all folds are done.
    """

    step: int
    value: float
    folds: dict[str, float]
    train_s: float
    kept_share: float
    num_epochs: int
    is_finished: bool


@dataclass
class _State:
    """The epochs of one fold so far."""

    records: list[EpochRecord]
    is_done: bool = False


class TrialRun:
    """A trial in training: waves of folds, each wave epoch by epoch."""

    def __init__(self, folds: Sequence[Fold], num_parallel: int, launcher: "Launcher") -> None:
        """Begin a trial.

        Args:
            folds: its runs, in their order.
            num_parallel: folds per wave.
            launcher: makes the runs of a wave and steps through them.
        """
        self._waves = [folds[i : i + num_parallel] for i in range(0, len(folds), num_parallel)]
        self._launcher = launcher
        self._wave = 0
        self._states: dict[str, _State] = {}
        self._runs: Sequence[Run] = ()

    def next_epoch(self) -> Progress:
        """Train the next epoch of every fold of the wave."""
        wave = self._waves[self._wave]
        if not self._runs:
            self._runs = self._launcher.launch(wave)
            self._states |= {fold.name: _State([]) for fold in wave}
        states = [self._states[fold.name] for fold in wave]
        running = [pair for pair in zip(self._runs, states, strict=True) if not pair[1].is_done]
        epochs = self._launcher.next_epochs([run for run, _ in running])
        for (_, state), epoch in zip(running, epochs, strict=True):
            state.records.append(epoch.record)
            state.is_done = epoch.is_last
        num_epochs = wave[0].config.epochs
        step = self._wave * num_epochs + max(len(state.records) for state in states)
        if all(state.is_done for state in states):
            self._runs = ()
            self._wave += 1
            step = self._wave * num_epochs
        return self._progress(step)

    def close(self) -> None:
        """End the runs where they are, for good."""
        for run in self._runs:
            run.close()
        self._runs = ()

    def release(self) -> None:
        """End the runs where they are, so that another start can resume them."""
        for run in self._runs:
            run.release()
        self._runs = ()

    def _progress(self, step: int) -> Progress:
        states = self._states
        seen = [state.records for state in states.values() if state.records]
        return Progress(
            step=step,
            value=mean(_best(records) for records in seen),
            folds={name: _best(state.records) for name, state in states.items() if state.is_done},
            train_s=mean(sum(record.epoch_s for record in records) for records in seen),
            kept_share=mean(mean(record.kept_ratio for record in records) for records in seen),
            num_epochs=sum(len(records) for records in seen),
            is_finished=self._wave == len(self._waves),
        )


def _best(records: Sequence[EpochRecord]) -> float:
    score = records[-1].best_validation_score
    assert score is not None, "every fold of a trial has validation bags"
    return score


class Launcher:
    """Makes a trial's runs in this process, and steps through them one after another."""

    def __init__(
        self,
        bags: StoredBags,
        cache: Path,
        num_threads: int,
        saving: Saving,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Prepare to make runs.

        Args:
            bags: the data set; a run reads the features of it that its configuration names.
            cache: folder of the first stages.
            num_threads: compute threads of a run.
            saving: when runs write checkpoints.
            stop: whether runs are asked to save themselves and end.
        """
        self.bags, self.cache, self.num_threads, self.saving = bags, cache, num_threads, saving
        self.stop = stop

    def launch(self, folds: Sequence[Fold]) -> Sequence[Run]:
        """The runs of a wave: folds that run at the same time."""
        return [
            FoldRun(
                fold,
                with_features(self.bags, fold.config.features),
                self.cache,
                self.num_threads,
                saving=self.saving,
                stop=self.stop,
            )
            for fold in folds
        ]

    def next_epochs(self, runs: Sequence[Run]) -> list[Epoch]:
        """The next epoch of each run."""
        return [run.next_epoch() for run in runs]
