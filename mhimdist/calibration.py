"""What a run of a sweep's base configuration takes, measured once for every kind of device."""

import hashlib
import json
import platform
from dataclasses import asdict
from pathlib import Path

import psutil
import torch

from mhimdist import atomic
from mhimdist.config import TrainConfig
from mhimdist.cost import measure
from mhimdist.data.loader import BagShards
from mhimdist.data.splits import Split
from mhimdist.first_stage import RECIPE_VERSION
from mhimdist.planner import Calibration
from mhimdist.sweep import Sweep
from mhimdist.task import Task

CALIBRATION_VERSION = 2
"""Raised when something else is measured, so that what an older release measured is not taken for it."""

_GPU_CONTEXT_BYTES = 600 * 2**20  # what CUDA takes of a GPU beside torch's tensors


def calibrate(task: Task) -> Calibration:
    """What a run of the base configuration takes here; to be called in a process that has trained nothing.

    It is measured once for all sweeps of a home, of each device on its own.
    """
    bags, sweep = task.bags(), task.sweep
    made_of = (
        CALIBRATION_VERSION,
        RECIPE_VERSION,
        sweep.train.digest(),
        task.splits[0].digest(),
        bags.digest,
        sweep.num_threads,
        _device(sweep.train),
    )
    name = hashlib.blake2b(json.dumps(made_of).encode(), digest_size=8).hexdigest()
    file = sweep.home.resolve() / "cache" / "calibration" / f"{name}.json"
    if file.exists():
        return Calibration(**json.loads(file.read_text()))
    found = _measure(sweep, bags, task.splits[0])
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_text(file, json.dumps(asdict(found)))
    return found


def _device(config: TrainConfig) -> tuple[str, int]:
    """The device that runs would train on here, by its model and the bytes of its memory."""
    if config.device != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name(), torch.cuda.mem_get_info()[1]
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.machine()), 0  # not every architecture names its model


def _measure(sweep: Sweep, bags: BagShards, split: Split) -> Calibration:
    process = psutil.Process()
    before = process.memory_info()
    cost = measure(sweep.train, bags, split, sweep.num_threads)
    after = process.memory_info()
    own_bytes = max(before.rss - before.shared + cost.peak_bytes, after.rss - after.shared)
    if cost.device != "cuda":
        return Calibration(cost.epoch_s, own_bytes, 0, 0, cost.device)
    taken = torch.cuda.max_memory_reserved() + _GPU_CONTEXT_BYTES
    return Calibration(
        cost.epoch_s, after.rss - after.shared, taken, torch.cuda.mem_get_info()[1], cost.device
    )
