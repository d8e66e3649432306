"""The exchange of gradients, by NCCL with a single rank: what it changes and what it costs."""

import tempfile

import torch
import torch.distributed as dist

from benchmarks.gpu_check.measure import timed, waits
from benchmarks.gpu_check.notes import Notes
from benchmarks.gpu_check.setting import Setting
from benchmarks.gpu_check.workload import bags_of, config_of, runner, step_of, weights_of
from mhimdist.ops.draws import Draws
from mhimdist.training.workers import DistributedWorkers, Workers

_STEPS = 12


def check(notes: Notes, setting: Setting) -> None:
    """Train alone and as the only one of a group, and compare."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="gpu-check-store-") as folder:
        backend = "nccl" if setting.is_gpu else "gloo"
        if setting.is_gpu:
            torch.cuda.set_device(0)
        dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=0, world_size=1)
        try:
            _compare(notes, setting)
        finally:
            dist.destroy_process_group()


def _compare(notes: Notes, setting: Setting) -> None:
    group = DistributedWorkers(60.0)
    weights = {}
    for name, workers, graphs in (
        ("alone", None, False),
        ("in a group", group, False),
        ("in a group, graphs", group, True),
    ):
        if graphs and not setting.is_gpu:
            notes.leave_out(name, "needs a GPU")
            continue
        with notes.trying(name):
            weights[name] = _train(notes, setting, name, workers, graphs)
    for name, found in weights.items():
        difference = float((found - weights["alone"]).abs().max())
        # Graphs add up over padded bags in another order.
        allowed = 1e-3 if "graphs" in name else 1e-6
        notes.check(f"weights {name}", difference <= allowed, {"difference": difference, "allowed": allowed})
    total = group.sum(torch.ones(2, device=setting.device)).tolist()
    notes.check("sum over the workers", total == [1.0, 1.0], total)


def _train(notes: Notes, setting: Setting, name: str, workers: Workers | None, graphs: bool) -> torch.Tensor:
    """Train for some steps, measure further ones, and take part in a step without a bag."""
    config = config_of(setting, "abmil", "bf16", graphs=graphs)
    step = step_of(setting, config, graphs=graphs, workers=workers)
    work = runner(step, bags_of(setting, [setting.num_instances] * 4, torch.bfloat16))
    for _ in range(_STEPS):
        work()
    trained = weights_of(step)
    row = {"workers": name, **timed(setting, work)}
    notes.add("runs", row | {"waits": waits(setting, work)})
    if workers is not None and not graphs:
        nothing = step(None, Draws(0, 99), progress=0.5, num_bags=3)
        notes.check(f"a step without a bag, {name}", nothing is None, str(nothing))
    step.check(wait=True)
    return trained
