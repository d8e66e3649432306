"""A trial as Ray Tune runs it: a process that steps through its folds, and reports epoch by epoch.

What a configuration does wrong ends its trial with a reason and is reported as a result, because trying it
again would end the same way. What happens to a process ends the trial for Ray, and the driver starts it
again; its folds then go on from their own checkpoints.

However a process ends, what its trial would go on with stays, unless the driver has recorded that the trial
has ended: Ray Tune stops trials in the same way whether they are pruned or something else has failed.
"""

import gc
import json
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune

from mhimdist import files
from mhimdist.config.train import TrainConfig
from mhimdist.data.splits import Split
from mhimdist.errors import DiskFullError, PreemptedError, RunLockedError
from mhimdist.sweep.launchers import ActorLauncher, GroupLauncher
from mhimdist.sweep.memory import is_out_of_memory
from mhimdist.sweep.task import Task
from mhimdist.sweep.trial import Launcher, TrialRun
from mhimdist.training.environment import environment
from mhimdist.training.first_stage import first_stage
from mhimdist.training.fold import ERROR_FILE, folds_of_trial

ENDED_FILE = "ended"
"""In a trial's folder once the study has it that the trial has ended."""


class SweepTrial(tune.Trainable):
    """A trial; the process is kept for the next one, with its open data set."""

    def setup(self, config: dict[str, Any], task: Task) -> None:  # type: ignore[override]
        """Begin with the first trial."""
        self.task = task
        self._launcher: Launcher | None = None
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
            "folds": json.dumps(progress.folds),  # as text, which loggers do not take apart
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
            run.release()
            return
        with suppress(DiskFullError):  # the trial after this one would fail of it; its own will tell
            run.close()

    def _open(self) -> TrialRun:
        task, sweep = self.task, self.task.sweep
        (self.folder / ERROR_FILE).unlink(missing_ok=True)
        config = TrainConfig.model_validate_json((self.folder / "config.json").read_text())
        node = {"node": ray.get_runtime_context().get_node_id()}
        _write_once(self.folder / "environment.json", environment(sweep.num_threads) | node)
        folds = folds_of_trial(config, task.splits, sweep.run_seeds, self.folder)
        self._launcher = self._launcher or self._make_launcher()
        return TrialRun(folds, sweep.parallel_folds, self._launcher)

    def _make_launcher(self) -> Launcher:
        if self.task.group is not None:
            return GroupLauncher(self.task, self.task.group)
        return ActorLauncher(self.task) if self.task.sweep.parallel_folds > 1 else self.task.launcher()

    def _failed(self, error: Exception, cause: BaseException) -> dict[str, Any]:
        details = "".join(traceback.format_exception(error))
        traceback.clear_frames(error.__traceback__)  # what was being computed would stay in memory with them
        with suppress(DiskFullError):  # what is to be told is the first error
            if is_out_of_memory(cause):
                self.cleanup()  # it may run again, with fewer beside it
            files.write_text(self.folder / ERROR_FILE, details)
        gc.collect()
        torch.cuda.empty_cache()
        return {
            "number": self.number,
            "failed": f"{type(cause).__name__}: {' '.join(str(cause).split())}",
            "is_finished": False,
            "done": True,
        }


def _write_once(path: Path, content: Any) -> None:
    """Write JSON unless an earlier start of the trial has."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(path, json.dumps(content, indent=1))


def _cause(error: BaseException) -> BaseException:
    """What was raised in a fold's own process, where it is one of Ray's."""
    while isinstance(error, ray.exceptions.RayTaskError):
        error = error.cause
    return error


def make_first_stage(config: TrainConfig, task: Task, split: Split) -> None:
    """Train a first stage into the cache, for all trials that share it, unless they are asked to stop."""
    torch.set_num_threads(task.sweep.num_threads)
    with suppress(PreemptedError):
        first_stage(config, task.bags(), split, task.sweep.first_stages, stop=task.stop_file.exists)
