"""How a run takes its steps on its device: launched one by one, or recorded as CUDA graphs, and why."""

import json
from pathlib import Path
from typing import Any

import torch

from mhimdist.config.train import TrainConfig
from mhimdist.errors import ConfigError
from mhimdist.method.teacher import Teacher
from mhimdist.models import BagModel
from mhimdist.tasks.memory import Memory
from mhimdist.training.graphed_step import GraphedStep
from mhimdist.training.step import TrainingStep
from mhimdist.training.workers import Workers

LAUNCHING = "launching.json"
_SELECTS_BY = "selects by"


def make_step(
    config: TrainConfig,
    student: BagModel,
    teacher: Teacher | None,
    workers: Workers,
    *,
    most_rows: int,
    memory: Memory | None = None,
) -> TrainingStep:
    """Make the step of a run, with CUDA graphs where `config.cuda_graphs` means them.

    Args:
        config, student, teacher, workers, memory: see `TrainingStep`; the networks are on the run's device.
        most_rows: most instances of this worker in a step.

    Raises:
        ConfigError: `cuda_graphs` is `on`, and the steps cannot be recorded.
    """
    reason = why_not_recorded(config, student, workers)
    if reason is None:
        return GraphedStep(config, student, teacher, workers, most_rows=most_rows, memory=memory)
    if config.cuda_graphs == "on":
        raise ConfigError(f"cuda_graphs is on, but {reason}; set cuda_graphs to auto or off")
    return TrainingStep(config, student, teacher, workers, memory=memory)


def why_not_recorded(config: TrainConfig, student: BagModel, workers: Workers) -> str | None:
    """Why the steps of a run are not, or cannot be, recorded; None if they are.

    Args:
        config: the run's settings.
        student: the network to train, on the device of the run.
        workers: the processes that share each step.
    """
    if config.cuda_graphs == "off":
        return "cuda_graphs is off"
    device = _device_of(student)
    if device.type != "cuda":
        return f"this needs a CUDA device, and the run is on {device}"
    most_bags = max(
        1, config.bags_per_step - workers.world_size + 1
    )  # each worker has a bag before one has two
    for num_bags in range(1, most_bags + 1):
        if student.waits_for_sizes(num_bags):
            return (
                f"{config.model.name} reads the sizes of {num_bags} bag(s) on the host, and a worker has up "
                f"to {most_bags} in a step (bags_per_step {config.bags_per_step}, {workers.world_size} "
                "worker(s))"
            )
    return None


def launching(config: TrainConfig, step: TrainingStep) -> dict[str, Any]:
    """How a run takes its steps, for a file in its folder; none of this is part of the run's identity."""
    reason = why_not_recorded(config, step.student, step.workers)
    return {
        "device": str(_device_of(step.student)),
        "dtype": str(step.dtype).removeprefix("torch."),
        "workers": step.workers.world_size,
        _SELECTS_BY: step.student.task.title,
        "CUDA graphs": "used" if reason is None else f"not used: {reason}",
    }


def selects_by(folder: Path) -> str:
    """The metric that selects a run's epoch, as its folder says; "score" as long as it says nothing."""
    try:
        return str(json.loads((folder / LAUNCHING).read_text(encoding="utf-8"))[_SELECTS_BY])
    except (OSError, ValueError, KeyError):  # not written yet, or by an earlier release
        return "score"


def _device_of(student: BagModel) -> torch.device:
    return next(student.parameters()).device
