"""What logs the trials of a sweep: TensorBoard always, and the tracker that is asked for."""

import importlib
import os
from collections.abc import Callable
from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from mhimdist.config import extensions
from mhimdist.errors import ExtensionError, SweepError
from mhimdist.search.options import Sweep
from mhimdist.search.storage import sqlite_url
from mhimdist.search.tracker import TRACKERS, Tracker, tracker_fault
from mhimdist.sweep.driver import SHARE
from mhimdist.sweep.tensorboard import TensorBoard


def trackers(sweep: Sweep) -> list[tune.Callback]:
    """Ray's loggers of trials: always TensorBoard, and the requested tracker.

    Raises:
        SweepError: the tracker's package is not installed (the message names the extra), or the tracker would
            ask for a login, which no job can answer.
        ExtensionError: another package adds the tracker, and it cannot be used.
    """
    found: list[tune.Callback] = [TensorBoard()]
    if sweep.track == "none":
        return found
    if sweep.track not in TRACKERS:
        return [*found, _of_extension(sweep)]
    try:
        package = importlib.import_module(sweep.track)
    except ImportError:
        raise SweepError(
            f"track {sweep.track}: the package is not installed; pip install 'mhimdist[{sweep.track}]'"
        ) from None
    if sweep.track == "wandb":
        is_offline = os.environ.get("WANDB_MODE") in ("offline", "disabled")
        if not (is_offline or os.environ.get("WANDB_API_KEY") or package.api.api_key):
            raise SweepError(
                "track wandb: nobody is logged in; run `wandb login`, or set WANDB_API_KEY or "
                "WANDB_MODE=offline"
            )
        from ray.air.integrations.wandb import WandbLoggerCallback

        return [*found, WandbLoggerCallback(project="mhimdist", group=sweep.name)]
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    uri = os.environ.get("MLFLOW_TRACKING_URI", sqlite_url(sweep.home / "mlflow.db"))
    return [*found, MLflowLoggerCallback(tracking_uri=uri, experiment_name=sweep.name)]


class TrackerCallback(tune.Callback):
    """Passes what Ray Tune says to a tracker of another package."""

    def __init__(self, tracker: Tracker, sweep: Sweep) -> None:
        """Tell it nothing yet.

        Args:
            tracker: the tracker.
            sweep: the sweep; names it in messages.
        """
        self._tracker, self._sweep = tracker, sweep

    def _tell(self, what: Callable[..., None], *arguments: Any) -> None:
        try:
            what(*arguments)
        except Exception as error:  # whatever the package does
            raise ExtensionError(
                f"the tracker {self._sweep.track} failed in {what.__name__} ({type(error).__name__}: "
                f"{error}); the same command with --track none resumes the sweep"
            ) from error

    def setup(
        self,
        stop: tune.Stopper | None = None,
        num_samples: int | None = None,
        total_num_samples: int | None = None,
        **info: Any,
    ) -> None:
        """The loop of Ray Tune starts.

        Args:
            stop, num_samples, total_num_samples, info: not used.
        """
        self._tell(self._tracker.started, self._sweep.name, self._sweep.folder)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial has reported; the report of its failure or of its end has no epoch.

        Args:
            iteration, trials, info: not used.
            trial: the trial.
            result: its report.
        """
        if "epoch" not in result:
            return
        names = ("validation_score", "train_s", "kept_share")
        metrics = {name: float(result[name]) for name in names if result.get(name) is not None}
        self._tell(self._tracker.reported, int(result["number"]), int(result["epoch"]), metrics)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial has ended.

        Args:
            iteration, trials, info: not used.
            trial: the trial.
        """
        chosen = {name: value for name, value in trial.config.items() if name not in ("number", SHARE)}
        self._tell(self._tracker.trial_ended, int(trial.config["number"]), chosen)

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        """The loop of Ray Tune has ended."""
        self._tell(self._tracker.ended)


def _of_extension(sweep: Sweep) -> TrackerCallback:
    kind = extensions.one(extensions.TRACKERS, sweep.track, fault=tracker_fault, taken=TRACKERS)
    try:
        return TrackerCallback(kind(), sweep)
    except Exception as error:  # whatever the package does
        raise ExtensionError(
            f"the tracker {sweep.track} cannot be made: {type(error).__name__}: {error}"
        ) from error
