"""Recorded steps of tasks with targets against plain ones, as in `test_graphed_step`."""

import numpy as np
import pytest
import torch
from as_on_a_gpu import Recorder
from task_bags import TASKS, config, task_bags

from mhimdist.data.bags import PackedBags
from mhimdist.method.teacher import Teacher
from mhimdist.models import build
from mhimdist.ops.draws import Draws
from mhimdist.tasks import task_of
from mhimdist.tasks.memory import Memory
from mhimdist.training.graphed_step import CudaGraphs, GraphedStep
from mhimdist.training.step import TrainingStep

pytest.importorskip("triton", reason="the kernels' operators need triton, from the extra dev")


def _step(kind, model: str, task: str, device: str, **more) -> TrainingStep:
    bags, settings = task_bags(TASKS[task][0], num_bags=12), config(model, task, precision="float32")
    rows = np.arange(12)
    meaning = task_of(bags, settings.task).after(bags, rows)
    student = build(settings.model, num_features=8, task=meaning, seed=0).to(device)
    teacher = Teacher(settings.teacher, student, student) if settings.teacher.kind != "none" else None
    memory = (
        Memory(meaning, bags, rows, student.head.weight.device) if meaning.compares_with == "memory" else None
    )
    step = kind(settings, student, teacher, memory=memory, **more)
    # Rounding decides the gradient of the scores' bias; Adam must not scale that.
    step.optimizer.epsilon = 1e-3
    if device == "cpu":
        step._read_later = lambda verdict_2, place: None
    return step


@pytest.mark.parametrize(
    ("model", "task"),
    [("abmil", task) for task in TASKS] + [("dsmil", "cox"), ("dtfd", "cox"), ("dtfd", "cumulative")],
)
def test_recorded_steps_train_as_plain_ones(device: str, model: str, task: str):
    bags = task_bags(TASKS[task][0], num_bags=12)
    plain = _step(TrainingStep, model, task, device)
    graphed = _step(GraphedStep, model, task, device, recorder=CudaGraphs if device == "cuda" else Recorder)
    for number in range(8):
        batch: PackedBags = bags.load([number, 11 - number, (number + 4) % 12]).to(device)
        losses = []
        for step in (plain, graphed):
            step.set_learning_rate(0.01)
            losses.append(step(batch, Draws(3, number), progress=number / 8, num_bags=3).total_B.detach())
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-5)
    for mine, other in zip(plain.student.parameters(), graphed.student.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-5)
    if plain.memory is not None:
        torch.testing.assert_close(
            plain.memory.predictions_NP, graphed.memory.predictions_NP, rtol=1e-3, atol=1e-5, equal_nan=True
        )
        assert not graphed.memory.predictions_NP.isnan().all()
