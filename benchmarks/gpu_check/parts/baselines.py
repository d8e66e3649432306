"""The models without masks: a step of each, its time, its slowest kernels and its waits."""

import torch

from benchmarks.gpu_check.measure import profiled, timed, waits
from benchmarks.gpu_check.notes import Notes
from benchmarks.gpu_check.setting import Setting
from benchmarks.gpu_check.workload import bags_of, config_of, runner, stated_waits, step_of

MODELS = ("clam_sb", "clam_mb", "dtfd", "max_pooling", "mean_pooling")


def check(notes: Notes, setting: Setting) -> None:
    """Train each for some steps; its loss must be finite, and it may wait only as often as is documented."""
    torch.set_num_threads(1)
    batches = bags_of(setting, [setting.num_instances] * 3, torch.bfloat16)
    for model in MODELS:
        with notes.trying(model):
            step = step_of(setting, config_of(setting, model, "bf16"))
            work = runner(step, batches)
            row = {"model": model, **timed(setting, work, steps=20 if setting.is_gpu else 1)}
            found, stated = waits(setting, work), stated_waits(step.student, 1)
            row |= {"waits": found, "stated_waits": stated, **profiled(setting, work, 2)}
            step.check(wait=True)
            notes.add("runs", row)
            if sum(found.values()) > stated:
                notes.fail(f"waits, {model}", f"expected at most {stated} a step, got {found}")
