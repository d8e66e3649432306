"""One run on several workers: Ray Train starts and restarts them, the engine trains, the folder remembers.

Nothing of the run lives in Ray: whatever dies, the run goes on from its folder's last checkpoint.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from rich import get_console

from mhimdist import atomic, errors
from mhimdist.config import TrainConfig
from mhimdist.data.loader import open_bags
from mhimdist.data.remote import Location, absolute
from mhimdist.data.splits import Split
from mhimdist.first_stage import first_stage, open_trainer
from mhimdist.run_folder import HISTORY, Saving
from mhimdist.workers import DistributedWorkers, Workers

STOP_FILE = "stop"
"""Asks the workers of the run in whose folder it lies to save themselves and end."""

_ERROR_FILE = "error.json"


@dataclass(frozen=True)
class Group:
    """The workers of a run.

    Attributes:
        num_workers: the fewest and the most; where they differ the run is elastic and goes on with the
            workers that a shrinking cluster leaves it.
        cpus: CPU cores, and compute threads, of a worker.
        gpus: GPUs of a worker, 0 or 1.
        max_failures: how often the group is started again after one of it died.
        timeout_s: how long a worker that does not answer is waited for; then it is named.
        saving: when checkpoints are made and which are kept.
    """

    num_workers: tuple[int, int]
    cpus: float = 1.0
    gpus: float = 0.0
    max_failures: int = 3
    timeout_s: float = 300.0
    saving: Saving = field(default_factory=Saving)


@dataclass(frozen=True)
class _Work:
    """What a worker is told: all of it paths and settings, on storage that every node sees."""

    config: TrainConfig
    data: Location
    split: Split
    folder: Path
    cache: Path
    group: Group
    only_first_stage: bool


def train(
    config: TrainConfig,
    data: Location,
    split: Split,
    folder: Path,
    cache: Path,
    group: Group,
    *,
    only_first_stage: bool = False,
    label: str = "run",
) -> None:
    """Train a run to its end, or further than it was.

    SIGTERM lets the workers save themselves, within some 16 steps, before this raises. Called again with
    the same arguments it goes on; a finished run is left as it is.

    Args:
        config: of the run; `bags_per_step` and `max_instances` are of all workers together, so that their
            number changes how fast a step is and not what it learns.
        data: folder of shards, or its URL.
        split: what trains, selects and tests.
        folder: the run's own, as in `engine.Trainer`.
        cache: of first-stage networks.
        group: the workers.
        only_first_stage: make the first stage's network in the cache, and no run of the configuration.
        label: what progress lines call the run.

    Raises:
        PreemptedError: it was asked to stop, and is saved.
        WorkerLostError: the group failed more often than allowed; the message has the last reason.
        MhimdistError: what a worker cannot do, such as train on features that are not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in (STOP_FILE, _ERROR_FILE):
        (folder / name).unlink(missing_ok=True)
    # How soon a dead worker is noticed, and how long an elastic group waits for those it would like.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "30")
    fewest, most = group.num_workers  # Ray takes a pair too; its annotation of its base class does not say so
    work = _Work(config, absolute(data), split, folder.resolve(), cache.resolve(), group, only_first_stage)
    trainer = TorchTrainer(
        _work,
        train_loop_config={"work": work},
        torch_config=TorchConfig(backend="nccl" if group.gpus else "gloo", timeout_s=int(group.timeout_s)),
        scaling_config=ScalingConfig(
            num_workers=fewest if fewest == most else (fewest, most),  # type: ignore[arg-type]
            use_gpu=bool(group.gpus),
            resources_per_worker={"CPU": group.cpus} | ({"GPU": group.gpus} if group.gpus else {}),
        ),
        run_config=RunConfig(
            # A name of its own each time: Ray's memory of an earlier start must not decide anything.
            name=f"start-{time.time_ns()}",
            storage_path=str(folder.resolve() / "ray"),
            failure_config=FailureConfig(max_failures=group.max_failures),
        ),
    )
    with _stopping_on_sigterm(folder), _progress(folder, label):
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            _raise_what_a_worker_said(folder)
            raise errors.WorkerLostError(f"{folder}: {' '.join(str(error).split())}") from error
    _raise_what_a_worker_said(folder)
    if (folder / STOP_FILE).exists():
        raise errors.PreemptedError(f"{folder} is saved; the same command goes on with it")


def _work(told: dict[str, _Work]) -> None:
    """What each worker runs."""
    work = told["work"]
    torch.set_num_threads(max(1, int(work.group.cpus)))
    world_size = ray.train.get_context().get_world_size()
    workers = DistributedWorkers(work.group.timeout_s) if world_size > 1 else Workers()
    if workers.from_first((work.folder / _ERROR_FILE).exists()):
        return  # started again after an error that would only come again
    if work.group.gpus:
        torch.cuda.set_device(ray.train.torch.get_device())
    bags = open_bags(work.data, work.config.loading)
    how: dict[str, Any] = {
        "workers": workers,
        "saving": work.group.saving,
        "stop": (work.folder / STOP_FILE).exists,
    }
    try:
        if work.only_first_stage:
            first_stage(work.config, bags, work.split, work.cache, **how)
            return
        for _ in open_trainer(work.config, bags, work.split, work.folder, work.cache, **how).epochs():
            pass
    except errors.PreemptedError:
        return
    except errors.WorkerLostError:
        raise
    except errors.MhimdistError as error:
        said = {"type": type(error).__name__, "message": str(error)}
        atomic.write_text(work.folder / _ERROR_FILE, json.dumps(said))
        raise


def _raise_what_a_worker_said(folder: Path) -> None:
    with suppress(FileNotFoundError):
        said = json.loads((folder / _ERROR_FILE).read_text(encoding="utf-8"))
        raise getattr(errors, said["type"])(said["message"])


@contextmanager
def _stopping_on_sigterm(folder: Path) -> Iterator[None]:
    """Pass a SIGTERM on to the workers, wherever they are, as a file."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals; whoever runs this in another watches them itself
        return
    before = signal.signal(signal.SIGTERM, lambda *_: (folder / STOP_FILE).touch())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _progress(folder: Path, label: str) -> Iterator[None]:
    """Print a line for every epoch that the run's history gains."""
    ended = threading.Event()
    history = folder / HISTORY

    def rows() -> list[str]:
        return history.read_text(encoding="utf-8").splitlines() if history.exists() else []

    def follow(num_seen: int) -> None:
        while True:
            is_over = ended.wait(0.5)
            for line in (lines := rows())[num_seen:]:
                row = json.loads(line)
                get_console().print(
                    f"{label}: epoch {row['epoch'] + 1:>3} loss {row['loss']:.3f} validation AUC "
                    f"{row['student_validation_auc']:.3f} (teacher {row['teacher_validation_auc'] or 0:.3f}) "
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
