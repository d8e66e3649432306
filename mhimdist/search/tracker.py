"""Trackers: what also logs the trials of a sweep, and the class that one of another package derives from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

TRACKERS = ("none", "wandb", "mlflow")
"""The trackers that mhimdist has itself."""


class Tracker:
    """A tracker that another package adds, see docs/extensions.md; it lives in the process of the sweep.

    Each method does nothing unless it is overridden. An error in one stops the sweep in order, and names it.
    """

    def started(self, name: str, folder: Path) -> None:
        """The sweep starts, or is resumed.

        Args:
            name: name of the sweep.
            folder: its folder, where files of the tracker's may lie.
        """

    def reported(self, trial: int, epoch: int, metrics: Mapping[str, float]) -> None:
        """A trial has done another epoch.

        Args:
            trial: number of the trial.
            epoch: epochs done over all its folds, from 1; after a loss some are reported again.
            metrics: validation_score, the mean over its folds so far; train_s, seconds of training; and
                kept_share, the share of the instances that the student sees.
        """

    def trial_ended(self, trial: int, settings: Mapping[str, Any]) -> None:
        """A trial is complete, was stopped, or failed; `trials/<number>/` in the folder says which.

        Args:
            trial: number of the trial.
            settings: what the search chose for it, by dotted path.
        """

    def ended(self) -> None:
        """No trial runs any more."""


def tracker_fault(name: str, found: Any) -> str | None:
    """Why what an entry point names cannot be a tracker; None if it can.

    Args:
        name: name of the entry point.
        found: what it stands for.
    """
    if isinstance(found, type) and issubclass(found, Tracker):
        return None
    return f"expected a class derived from mhimdist.search.tracker.Tracker, got {found!r}"
