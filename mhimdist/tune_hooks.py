"""What Ray Tune calls: searcher, scheduler, callback and stopper, which ask and tell the driver."""

from functools import partial
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from mhimdist.tune_driver import Driver


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
        """See `Driver.ended`."""
        self._driver.guarded(self._driver.ended, trial_id, result, error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study has it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


class StudyScheduler(FIFOScheduler):
    """Passes every report to the study, and stops the trials that it says."""

    def __init__(self, driver: Driver) -> None:
        super().__init__()
        self._driver = driver

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """See `Driver.decide`."""
        if self._driver.guarded(self._driver.decide, trial.trial_id, result) is not None:
            return TrialScheduler.STOP
        return TrialScheduler.CONTINUE

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """See `Driver.broke`."""
        error = Path(trial.error_file)  # `trial.get_error` looks where it is brought only later
        self._driver.broke(trial.trial_id, error.read_text(encoding="utf-8") if error.exists() else "")


class Following(tune.Callback):
    """Tells the driver, some ten times a second, which trials run."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """See `Driver.stepped`."""
        running = {trial.config["number"] for trial in trials if trial.status == Trial.RUNNING}
        self._driver.guarded(self._driver.stepped, running)


def guard(callback: tune.Callback, driver: Driver) -> tune.Callback:
    """Have what fails in a logger stop the sweep in order."""
    for name in dir(tune.Callback):
        if name == "setup" or name.startswith("on_"):
            setattr(callback, name, partial(driver.guarded, getattr(callback, name)))
    return callback


class WhenAllAreSaved(tune.Stopper):
    """Ends Ray Tune's loop once every trial that was asked to stop has saved itself."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether a trial is to be stopped; its scheduler says that."""
        return False

    def stop_all(self) -> bool:
        """See `Driver.stepped`."""
        return self._driver.is_over
