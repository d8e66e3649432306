"""What inner folds choose for a network that trains again on the whole training fold: epochs and threshold.

Each inner run holds out another part of the training fold. The mean of their validation scores after each
epoch chooses the number of epochs; their held-out bags' predictions after as many epochs, pooled, choose the
threshold. Every bag of the training fold is held out once per seed, so that a choice rests on all of them and
not on the few that one validation set has.

The network then trains for as many epochs with the schedules of all configured epochs: an epoch means the
same learning rate, the same mask ratios and as many visits to each bag as in the inner runs.

Dimensions: R inner runs, E epochs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mhimdist.errors import CheckpointError
from mhimdist.tasks import Task
from mhimdist.training import checkpoint
from mhimdist.training.evaluation import PREDICTIONS, Predictions, stacked, unstacked
from mhimdist.training.history import EpochRecord

RULE_VERSION = 1
"""Increased when `choose` changes, so that networks of another rule are trained again."""
WINDOW_SHARE = 0.2
"""Epochs that the mean curve is averaged over before its highest point is taken, as a share of all epochs."""


@dataclass(frozen=True)
class InnerRun:
    """A run that held out a part of the training fold.

    Attributes:
        history: a record per epoch.
        predictions: for the held-out bags, after each epoch.
    """

    history: Sequence[EpochRecord]
    predictions: Sequence[Predictions]


@dataclass(frozen=True)
class Choice:
    """What inner runs have chosen.

    Attributes:
        num_epochs: number of epochs to train.
        curve: mean validation score of the inner runs after each epoch, before it is smoothed.
        parts: the predictions of each inner run for the bags that it held out, after as many epochs.
    """

    num_epochs: int
    curve: tuple[float, ...]
    parts: tuple[Predictions, ...]

    @property
    def num_runs(self) -> int:
        """The number of inner runs."""
        return len(self.parts)

    @property
    def chosen_on(self) -> str:
        """The bags that chose, in words."""
        return f"the training bags, each scored by the one of {self.num_runs} inner runs that held it out"


def choose(runs: Sequence[InnerRun]) -> Choice:
    """Choose the number of epochs by the mean validation curve, and pool the predictions after as many.

    A run that early stopping has ended counts with its last epoch from there on, as if it had gone on without
    a change. The curve is smoothed by a moving average (`WINDOW_SHARE`), because its highest point otherwise
    follows the noise of a few held-out cases. Of equal epochs the lower mean loss decides, then the earlier
    one.

    Args:
        runs: the inner runs, at least one, each of at least one epoch.
    """
    num_epochs = max(len(run.history) for run in runs)
    last_RE = [[min(epoch, len(run.history) - 1) for epoch in range(num_epochs)] for run in runs]
    ranks_RE2 = np.array(
        [[run.history[epoch].rank for epoch in last_E] for run, last_E in zip(runs, last_RE, strict=True)]
    )
    curve_E, negative_losses_E = ranks_RE2.mean(axis=0).T
    half = round(WINDOW_SHARE * num_epochs) // 2
    smooth_E, losses_E = _smoothed(curve_E, half), _smoothed(negative_losses_E, half)
    best = max(range(num_epochs), key=lambda epoch: (round(float(smooth_E[epoch]), 9), losses_E[epoch]))
    parts = tuple(run.predictions[last_E[best]] for run, last_E in zip(runs, last_RE, strict=True))
    return Choice(best + 1, tuple(map(float, curve_E)), parts)


def _smoothed(values_E: np.ndarray, half: int) -> np.ndarray:
    """The mean of each value and up to `half` neighbours on each side; fewer at the ends, on both sides."""
    ends = [min(half, epoch, len(values_E) - 1 - epoch) for epoch in range(len(values_E))]
    return np.array([values_E[e - reach : e + reach + 1].mean() for e, reach in enumerate(ends)])


def save_predictions(folder: Path, predictions: Sequence[Predictions]) -> None:
    """Write the predictions after each epoch to a fold's folder; they replace older ones.

    Raises:
        DiskFullError: they do not fit on the disk.
    """
    checkpoint.discard(folder / PREDICTIONS)
    state = {"keys": list(predictions[0].keys)}
    checkpoint.save(folder / PREDICTIONS, {PREDICTIONS: stacked(predictions)}, state)


def read_inner(folder: Path, history: Sequence[EpochRecord], task: Task) -> InnerRun:
    """Read a finished inner run.

    Args:
        folder: its fold's folder.
        history: its records.
        task: what it predicts, as its training bags have taught.

    Raises:
        CheckpointError: the predictions are damaged or missing, or are not of all epochs.
    """
    try:
        tensors, state = checkpoint.load(folder / PREDICTIONS)
        predictions = unstacked(tensors[PREDICTIONS], state["keys"], task)
    except (CheckpointError, KeyError) as error:
        raise CheckpointError(
            f"{folder}: expected the predictions of an inner run after each epoch, found none that can be "
            f"read ({error}); delete the folder and run the same command again"
        ) from None
    if len(predictions) != len(history):
        raise CheckpointError(
            f"{folder}: expected predictions after {len(history)} epochs, got {len(predictions)}; delete the "
            "folder and run the same command again"
        )
    return InnerRun(history, predictions)
