"""The classes that Ray Tune calls: searcher, scheduler, callback and stopper; each passes all to the driver.

It also has the change that is made to Ray Tune while a sweep runs.
"""

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from mhimdist.sweep.driver import Driver

ACTOR_ERROR = "RayActorError"
"""The name in `ERROR_MODULES` by which they recognise the error of a lost process."""

ERROR_MODULES = ("ray.air.execution._internal.actor_manager", "ray.tune.execution.tune_controller")
"""Private modules of Ray that end a sweep at any error of a process that they do not recognise."""


class RayChangedWarning(UserWarning):
    """Warns that Ray differs from the expected release; the message names what is missing."""


class StudySearcher(Searcher):
    """Passes Ray Tune's questions to the study."""

    def __init__(self, driver: Driver) -> None:
        super().__init__()
        self._driver = driver

    def suggest(self, trial_id: str) -> Any:
        """See `Driver.suggest`."""
        return self._driver.guarded(self._driver.suggest, trial_id)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """See `Driver.ended`.

        Args:
            trial_id: Ray's name for the trial.
            result: its last report, if it made one.
            error: whether its process was lost.
        """
        self._driver.guarded(self._driver.ended, trial_id, result, error)

    def save(self, checkpoint_path: str) -> None:
        """Does nothing: the study has everything."""

    def restore(self, checkpoint_path: str) -> None:
        """Does nothing."""


class StudyScheduler(FIFOScheduler):
    """Passes every report to the study, and stops the trials that the study stops."""

    def __init__(self, driver: Driver) -> None:
        super().__init__()
        self._driver = driver

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """See `Driver.decide`.

        Args:
            tune_controller: not used.
            trial: the trial that reports.
            result: its report.
        """
        if self._driver.guarded(self._driver.decide, trial.trial_id, result) is not None:
            return TrialScheduler.STOP
        return TrialScheduler.CONTINUE

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """See `Driver.note_error`."""
        error = Path(trial.error_file)  # `trial.get_error` reads a copy that is made later
        self._driver.note_error(trial.trial_id, error.read_text(encoding="utf-8") if error.exists() else "")


class DriverCallback(tune.Callback):
    """Tells the driver which trials run, about ten times per second, and ends those that it gives up."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """See `Driver.tick`."""
        running = {trial.config["number"] for trial in trials if trial.status == Trial.RUNNING}
        ended = self._driver.guarded(self._driver.tick, running) or ()
        for trial in trials:
            if trial.config["number"] in ended and (actor := trial.temporary_state.ray_actor) is not None:
                ray.kill(actor)  # a stopped process, too; `note_error` follows


def guard_callback(callback: tune.Callback, driver: Driver) -> tune.Callback:
    """Have a failure in a logger stop the sweep in order."""
    for name in dir(tune.Callback):
        if name == "setup" or name.startswith("on_"):
            setattr(callback, name, partial(driver.guarded, getattr(callback, name)))
    return callback


class StopOnceSaved(tune.Stopper):
    """Ends Ray Tune's loop once every trial that was asked to stop has saved itself."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Never stops a single trial; the scheduler does."""
        return False

    def stop_all(self) -> bool:
        """See `Driver.is_over`."""
        return self._driver.is_over


@contextmanager
def surviving_the_memory_monitor() -> Iterator[None]:
    """Have Ray Tune lose only the trial whose process Ray's memory monitor killed.

    Ray Tune 2.60 expects one of two errors from an actor's task, and ends the whole sweep at a third one: the
    memory monitor's. If a release of Ray lacks the names to change, a `RayChangedWarning` lists them, and the
    sweep runs without the change.
    """
    modules, missing = _modules_to_patch()
    if missing:
        warnings.warn(
            f"Ray {ray.__version__} has no {' and no '.join(missing)}, which Ray 2.60 has: the sweep stops "
            "if Ray's memory monitor kills a trial, and the same command resumes it",
            RayChangedWarning,
            stacklevel=3,
        )
        modules = []
    for module in modules:
        setattr(module, ACTOR_ERROR, (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError))
    try:
        yield
    finally:
        for module in modules:
            setattr(module, ACTOR_ERROR, ray.exceptions.RayActorError)


def _modules_to_patch() -> tuple[list[ModuleType], list[str]]:
    """The modules of `ERROR_MODULES`, and the names that this release of Ray lacks."""
    modules, missing = [], []
    for name in ERROR_MODULES:
        try:
            module = importlib.import_module(name)
        except ImportError:
            missing.append(name)
            continue
        if getattr(module, ACTOR_ERROR, None) is ray.exceptions.RayActorError:
            modules.append(module)
        else:
            missing.append(f"{name}.{ACTOR_ERROR}")
    return modules, missing
