"""One run on several workers: Ray Train starts and restarts them, and the trainer trains.

Ray holds no state of the run: whatever dies, the run resumes from the last checkpoint in its folder.
"""

import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import ray
import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from mhimdist import errors, files, terminal
from mhimdist.cluster.connect import has_gpus
from mhimdist.config.execution import Execution, Saving
from mhimdist.config.sub_bags import evaluation_text
from mhimdist.data.opening import open_bags
from mhimdist.data.remote import Location, absolute
from mhimdist.data.stored import BagOf
from mhimdist.training.fold import run_fold
from mhimdist.training.folds import STOP_FILE, Fold
from mhimdist.training.launching import selects_by
from mhimdist.training.run_folder import HISTORY
from mhimdist.training.workers import DistributedWorkers, Workers

_WORKER_ERROR_FILE = "error.json"


@dataclass(frozen=True)
class Group:
    """The workers of a run.

    Attributes:
        num_workers: the fewest and the most workers; if they differ, the run is elastic and continues with
            the workers that a shrinking cluster leaves it.
        cpus: CPU cores, and compute threads, per worker.
        gpus: GPUs per worker, 0 or 1.
        max_failures: how often the group starts again after the death of a worker.
        timeout_s: seconds to wait for a worker that does not answer, before an error names it.
        grow_every_s: seconds between two looks of an elastic run for nodes that have come; more workers start
            again from the last checkpoint.
        saving: when checkpoints are written and which are kept.
        bag_of: what one bag of the data is.
    """

    num_workers: tuple[int, int]
    cpus: float = 1.0
    gpus: float = 0.0
    max_failures: int = 3
    timeout_s: float = 300.0
    grow_every_s: float = 60.0
    saving: Saving = field(default_factory=Saving)
    bag_of: BagOf = "slide"


@dataclass(frozen=True)
class _WorkerTask:
    """The input of each worker: settings, and paths on storage that every node sees."""

    fold: Fold
    data: Location
    cache: Path
    group: Group


def train(
    fold: Fold, data: Location, cache: Path, group: Group, *, stop: Callable[[], bool] = lambda: False
) -> None:
    """Train a fold to its end and judge it; a finished fold stays as it is.

    A second call with the same arguments resumes the fold.

    Args:
        fold: the fold to train. `bags_per_step` and `max_instances` of its configuration count over all
            workers together, so the number of workers changes how fast a step is, not what it learns.
        data: folder of shards, on storage that every node sees, or its URL.
        cache: folder of first-stage networks.
        group: the workers.
        stop: called twice per second; once it returns true, the workers save the fold within 16 steps and
            end.

    Raises:
        PreemptedError: the fold was asked to stop, and is saved.
        WorkerLostError: the group failed more often than allowed; the message has the last reason.
        MhimdistError: an error of a worker, such as features that are not finite.
    """
    if fold.is_finished:
        return
    fold = replace(fold, folder=fold.folder.resolve())
    folder = fold.folder
    folder.mkdir(parents=True, exist_ok=True)
    for name in (STOP_FILE, _WORKER_ERROR_FILE):
        (folder / name).unlink(missing_ok=True)
    trainer = _trainer(_WorkerTask(fold, absolute(data), cache.resolve(), group))
    with _watching(fold, stop):
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            _raise_what_a_worker_said(folder)
            raise errors.WorkerLostError(f"{folder}: {' '.join(str(error).split())}") from error
    _raise_what_a_worker_said(folder)
    if (folder / STOP_FILE).exists() and not fold.is_finished:
        raise errors.PreemptedError(
            f"{folder} was stopped and is saved; run the same command again to resume it"
        )


def nccl_environment(timeout_s: float) -> dict[str, str]:
    """Environment variables for NCCL's own watchdog, so that our message comes before it acts.

    Its ways are to kill the process, or to abort the exchange, after which the device continues on whatever
    sums it has. Here the watchdog only notes an error or a timeout: the host finds a lost worker itself
    (`DistributedWorkers`), by an exchange that takes up to `timeout_s` and a wait that takes as long again.
    If the host is stuck elsewhere, torch's heartbeat monitor kills the process later than both.

    Args:
        timeout_s: seconds to wait for a worker that does not answer.

    Returns:
        Names and values; those that are set in this process's environment stay as they are.
    """
    wanted = {
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
        "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC": str(max(480, math.ceil(2 * timeout_s))),  # torch's own is 480
    }
    return {name: os.environ.get(name, value) for name, value in wanted.items()}


def _trainer(task: _WorkerTask) -> TorchTrainer:
    group = task.group
    # Seconds until a dead worker is noticed, and seconds that an elastic group waits for its most workers.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "30")
    fewest, most = group.num_workers  # Ray takes a pair, too; the annotation in its base class omits that
    return TorchTrainer(
        _train_in_worker,
        train_loop_config={"task": task},
        torch_config=TorchConfig(backend="nccl" if group.gpus else "gloo", timeout_s=int(group.timeout_s)),
        scaling_config=ScalingConfig(
            num_workers=fewest if fewest == most else (fewest, most),  # type: ignore[arg-type]
            elastic_resize_monitor_interval_s=group.grow_every_s,  # type: ignore[call-arg]
            use_gpu=bool(group.gpus),
            resources_per_worker={"CPU": group.cpus} | ({"GPU": group.gpus} if group.gpus else {}),
        ),
        run_config=RunConfig(
            # Each start has its own name, so that Ray's record of an earlier start decides nothing.
            name=f"start-{time.time_ns()}",
            storage_path=str(task.fold.folder / "ray"),
            failure_config=FailureConfig(max_failures=group.max_failures),
            # As above: the annotation is of the base class.
            worker_runtime_env=(  # type: ignore[call-arg]
                {"env_vars": nccl_environment(group.timeout_s)} if group.gpus else None
            ),
        ),
    )


def _train_in_worker(loop_config: dict[str, _WorkerTask]) -> None:
    """Run the fold in one worker."""
    task = loop_config["task"]
    fold, group = task.fold, task.group
    world_size = ray.train.get_context().get_world_size()
    workers = DistributedWorkers(group.timeout_s) if world_size > 1 else Workers()
    if group.gpus:
        torch.cuda.set_device(ray.train.torch.get_device())
    try:
        with workers.watched():
            if workers.from_first((fold.folder / _WORKER_ERROR_FILE).exists()):
                return  # Ray has started it again after an error that would only recur
            run_fold(
                fold,
                open_bags(
                    task.data,
                    fold.config.loading,
                    fold.config.features,
                    bag_of=group.bag_of,
                    digest=fold.data_digest,
                ),
                task.cache,
                max(1, int(group.cpus)),
                workers=workers,
                saving=group.saving,
                stop=(fold.folder / STOP_FILE).exists,
            )
    except errors.PreemptedError:
        return
    except errors.WorkerLostError:
        raise
    except errors.MhimdistError as error:
        said = {"type": type(error).__name__, "message": str(error)}
        files.write_text(fold.folder / _WORKER_ERROR_FILE, json.dumps(said))
        raise


def _raise_what_a_worker_said(folder: Path) -> None:
    file = folder / _WORKER_ERROR_FILE
    if file.exists():
        said = files.json_object(file, errors.WorkerLostError)
        raise getattr(errors, str(said.get("type")), errors.WorkerLostError)(said.get("message"))


@contextmanager
def _watching(fold: Fold, stop: Callable[[], bool]) -> Iterator[None]:
    """Pass a stop on to the workers as a file, wherever they are; print a line per epoch of the history."""
    ended = threading.Event()
    history = fold.folder / HISTORY

    def rows() -> list[str]:
        return history.read_text(encoding="utf-8").splitlines() if history.exists() else []

    how = f"; {evaluated}" if (evaluated := evaluation_text(fold.config)) else ""

    def follow(num_seen: int) -> None:
        while True:
            is_over = ended.wait(0.5)
            if not is_over and stop():
                (fold.folder / STOP_FILE).touch()
            for line in (lines := rows())[num_seen:]:
                row = json.loads(line)
                score, teacher = row["student_validation_score"], row["teacher_validation_score"] or 0
                named = f"validation {selects_by(fold.folder)}"
                judged = "" if score is None else f"{named} {score:.3f} (teacher {teacher:.3f}{how}) "
                terminal.progress().print(
                    f"{fold.name}: epoch {row['epoch'] + 1:>3} loss {row['loss']:.3f} {judged}"
                    f"kept {row['kept_ratio']:.0%} {row['epoch_s']:.1f} s",
                    highlight=False,
                    soft_wrap=True,
                )
            num_seen = max(num_seen, len(lines))
            if is_over:
                return

    thread = threading.Thread(target=follow, args=(len(rows()),), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def worker_group(execution: Execution) -> Group:
    """The workers that train one run together."""
    return Group(
        num_workers=(execution.min_workers or execution.workers, execution.workers),
        cpus=execution.cpus_per_run,
        gpus=1.0 if execution.gpus_per_run != 0 and has_gpus() else 0.0,
        max_failures=execution.max_failures,
        timeout_s=execution.worker_timeout_s,
        saving=execution.saving,
        bag_of=execution.bag_of,
    )
