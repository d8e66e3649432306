"""A trial as Ray Tune runs it: a process that steps through its folds and reports epoch by epoch.

A failure of a configuration ends its trial and is reported as a result, with a reason, because another try
would end the same way. The loss of a process ends the trial only for Ray: the driver starts it again, and its
folds resume from their checkpoints.

However a process ends, it keeps everything that its trial needs to resume, unless the driver has recorded the
trial's end: Ray Tune stops a pruned trial in the same way as all trials after a failure elsewhere.
"""

import gc
import json
import os
import platform
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
from mhimdist.distributed.shared_gpu import within_share
from mhimdist.errors import DiskFullError, PreemptedError, RunLockedError
from mhimdist.sweep.folder import PROCESS_FILE
from mhimdist.sweep.launchers import ActorLauncher, GroupLauncher
from mhimdist.sweep.memory import is_out_of_memory
from mhimdist.sweep.task import Task
from mhimdist.sweep.trial import Launcher, TrialRun
from mhimdist.training.environment import environment
from mhimdist.training.first_stage import first_stage
from mhimdist.training.folds import ERROR_FILE, folds_of_trial

ENDED_FILE = "ended"
"""A file in a trial's folder; it exists once the study has the trial's end."""


class SweepTrial(tune.Trainable):
    """A trial; its process is kept for the next trial, with the open data set."""

    def setup(self, config: dict[str, Any], task: Task) -> None:  # type: ignore[override]
        """Begin the first trial."""
        self.task = task
        self._launcher: Launcher | None = None
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """End this trial, and begin another one in the same process."""
        self.cleanup()
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        self.number = int(config["number"])
        self.folder = self.task.trials / f"{self.number:04d}"
        self._run: TrialRun | None = None
        with suppress(OSError, DiskFullError):  # only a message about this process needs it
            self.folder.mkdir(parents=True, exist_ok=True)
            here = {"host": platform.node(), "pid": os.getpid()}
            files.write_text(self.folder / PROCESS_FILE, json.dumps(here))

    def step(self) -> dict[str, Any]:
        """Train an epoch of every fold of the trial's wave.

        Raises:
            RayError: the process or node of a fold was lost.
            RunLockedError: a lost process still holds a fold.
        """
        try:
            if self._run is None:
                self._run = self._open()
            with within_share(self._config):
                progress = self._run.next_epoch()
        except Exception as error:
            cause = _cause(error)
            if isinstance(cause, PreemptedError):
                self.cleanup()
                return {"number": self.number, "is_saved": True, "is_finished": False, "done": True}
            if isinstance(cause, ray.exceptions.RayError | RunLockedError):
                raise  # the driver starts the trial again
            return self._failed(error, cause)
        return {
            "number": self.number,
            "epoch": progress.step,
            "validation_score": progress.value,
            "folds": json.dumps(progress.folds),  # as text, so that loggers do not take it apart
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
        with suppress(DiskFullError):  # it would fail the next trial, which notices it itself
            run.close()

    def _open(self) -> TrialRun:
        task, sweep = self.task, self.task.sweep
        (self.folder / ERROR_FILE).unlink(missing_ok=True)
        self._config = config = TrainConfig.model_validate_json((self.folder / "config.json").read_text())
        node = {"node": ray.get_runtime_context().get_node_id()}
        _write_once(self.folder / "environment.json", environment(sweep.num_threads) | node)
        folds = folds_of_trial(config, task.splits, sweep.run_seeds, self.folder, task.digest_of(config))
        self._launcher = self._launcher or self._make_launcher()
        return TrialRun(folds, sweep.parallel_folds, self._launcher)

    def _make_launcher(self) -> Launcher:
        if self.task.group is not None:
            return GroupLauncher(self.task, self.task.group)
        return ActorLauncher(self.task) if self.task.sweep.parallel_folds > 1 else self.task.launcher()

    def _failed(self, error: Exception, cause: BaseException) -> dict[str, Any]:
        details = "".join(traceback.format_exception(error))
        traceback.clear_frames(error.__traceback__)  # frames keep their tensors in memory
        with suppress(DiskFullError):  # the first error is the one to report
            if is_out_of_memory(cause):
                self.cleanup()  # it may run again, beside fewer trials
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
    """Write JSON unless an earlier start of the trial has written it."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(path, json.dumps(content, indent=1))


def _cause(error: BaseException) -> BaseException:
    """The error in a fold's own process, if Ray wraps it; otherwise the error itself."""
    while isinstance(error, ray.exceptions.RayTaskError):
        error = error.cause
    return error


def make_first_stage(config: TrainConfig, task: Task, split: Split) -> None:
    """Train a first stage into the cache, for all trials that share it; it ends if they are asked to stop.

    Args:
        config: a trial's configuration that needs the first stage.
        task: the common input of the trials.
        split: of the fold.
    """
    torch.set_num_threads(task.sweep.num_threads)
    with suppress(PreemptedError), within_share(config):
        first_stage(config, task.bags_of(config), split, task.sweep.first_stages, stop=task.stop_file.exists)
