"""`--train.compile`: the same losses as without it, how long it compiles, and what it gains."""

import time

import torch

from benchmarks.gpu_check.measure import sync, timed
from benchmarks.gpu_check.notes import Notes
from benchmarks.gpu_check.setting import Setting
from benchmarks.gpu_check.workload import bags_of, config_of, runner, step_of
from mhimdist.method.mhim import StepLoss


def check(notes: Notes, setting: Setting) -> None:
    """Compare compiled and plain steps, launched one by one and as graphs."""
    torch.set_num_threads(1)
    for graphs in (False, True):
        name = "graphs" if graphs else "plain"
        if graphs and not setting.is_gpu:
            notes.leave_out(name, "needs a GPU")
            continue
        with notes.trying(name):
            _compare(notes, setting, name, graphs)


def _compare(notes: Notes, setting: Setting, name: str, graphs: bool) -> None:
    batches = bags_of(setting, [setting.num_instances] * 4, torch.bfloat16)
    losses = {}
    for compiles in (False, True):
        config = config_of(setting, "abmil", "bf16", graphs=graphs, compile=compiles)
        work = runner(step_of(setting, config, graphs=graphs), batches)
        sync(setting)
        began = time.perf_counter()
        loss = work()
        assert isinstance(loss, StepLoss)
        losses[compiles] = float(loss.total_B[0].detach())
        row = {"compiled": compiles, "graphs": graphs, "first_s": round(time.perf_counter() - began, 1)}
        notes.add("runs", row | timed(setting, work))
    difference = abs(losses[True] - losses[False])
    notes.check(
        f"{name}: loss of the first step", difference < 1e-2, {"difference": difference, "below": 1e-2}
    )
