"""One model's training step: right on the device, and its time, launches, waits and memory.

Dimensions: N instances of a bag.
"""

import random
import time

import torch

from benchmarks.gpu_check.measure import Work, peak_mib, profiled, sync, timed, waits
from benchmarks.gpu_check.notes import Notes
from benchmarks.gpu_check.setting import Setting
from benchmarks.gpu_check.workload import (
    DTYPES,
    bags_of,
    config_of,
    runner,
    stated_waits,
    step_of,
    together,
    weights_of,
)
from benchmarks.peers import NaiveStep
from mhimdist.data.bags import PackedBags
from mhimdist.errors import ConfigError
from mhimdist.ops.draws import Draws

_LEARNING_RATE = 2e-4
# Seconds of a round and steps before the first: TransMIL's eight bags take .3 s a step on a slow host.
_ROUND_S, _WARM_UP = 0.7, 10


def check(notes: Notes, setting: Setting) -> None:
    """Check and measure the step of the model that the argument names."""
    torch.set_num_threads(4 if setting.is_gpu else 1)
    if setting.is_gpu:
        with notes.trying("against the CPU"):
            _against_cpu(notes, setting)
    else:
        notes.leave_out("against the CPU", "needs a GPU")
    for precision in DTYPES:
        most = 8 if setting.is_gpu else 2
        batches = bags_of(setting, [setting.num_instances] * most, DTYPES[precision])
        for num_bags in (1, most):
            for graphs in (False, True):
                with notes.trying(_name(precision, num_bags, graphs)):
                    some = batches if num_bags == 1 else [together(batches)]
                    _measure(notes, setting, precision, some, graphs=graphs)
        del batches
    with notes.trying("naive step"):
        _naive(notes, setting)
    with notes.trying("graphs of many sizes"):
        _many_sizes(notes, setting)


def _name(precision: str, num_bags: int, graphs: bool) -> str:
    bags = "1 bag" if num_bags == 1 else f"{num_bags} bags"
    return f"{precision}, {bags}, {'graphs' if graphs else 'plain'}"


def _six_steps(setting: Setting, device: str) -> tuple[list[tuple[float, list[int]]], torch.Tensor]:
    """The losses and counts of six steps on small bags, and the weights after them."""
    step = step_of(setting, config_of(setting, setting.argument, "float32", device=device))
    rows = []
    for number, batch in enumerate(bags_of(setting, (700, 901) * 3, torch.float32, device=device)):
        loss = step(batch, Draws(0, number), progress=0.1, num_bags=1)
        assert loss is not None
        counts = loss.num_kept, loss.masked_high, loss.masked_low, loss.masked_random
        rows.append((float(loss.total_B[0].detach()), [int(count) for count in counts]))
    step.check(wait=True)
    return rows, weights_of(step)


def _against_cpu(notes: Notes, setting: Setting) -> None:
    """Six steps from the same weights on the CPU and on the device."""
    (theirs, their_weights), (ours, our_weights) = (
        _six_steps(setting, device) for device in ("cpu", setting.device)
    )
    loss_difference = max(abs(one[0] - other[0]) for one, other in zip(ours, theirs, strict=True))
    kept_difference = max(abs(one[1][0] - other[1][0]) for one, other in zip(ours, theirs, strict=True))
    masked_equal = all(one[1][1:] == other[1][1:] for one, other in zip(ours, theirs, strict=True))
    weight_difference = (our_weights - their_weights).abs()
    compared = {
        "largest difference of a loss": loss_difference,
        "largest difference of the instances kept": kept_difference,  # scores round, so that near ties swap
        "masked instances equal": masked_equal,
        "mean difference of a weight": float(weight_difference.mean()),
        "largest difference of a weight": float(weight_difference.max()),
    }
    near = float(weight_difference.mean()) < 0.1 * _LEARNING_RATE
    notes.check(
        "against the CPU", loss_difference < 5e-3 and kept_difference <= 2 and masked_equal and near, compared
    )


def _measure(
    notes: Notes, setting: Setting, precision: str, batches: list[PackedBags], *, graphs: bool
) -> None:
    """Time, launches, waits and memory of a step, which may wait only as often as the documentation says."""
    num_bags, name = len(batches[0]), _name(precision, len(batches[0]), graphs)
    if graphs and not setting.is_gpu:
        notes.leave_out(name, "needs a GPU")
        return
    try:
        config = config_of(setting, setting.argument, precision, graphs=graphs)
        step = step_of(setting, config, graphs=graphs, num_bags=num_bags)
        work = runner(step, batches)
        work()
    except ConfigError as error:
        notes.leave_out(name, f"refused: {error}")
        return
    began = time.perf_counter()
    work()
    sync(setting)
    few = int(_ROUND_S / (time.perf_counter() - began))
    row = {"precision": precision, "num_bags": num_bags, "graphs": graphs}
    row |= timed(setting, work, steps=max(min(few, setting.num_steps), 1), warmup=min(few, _WARM_UP))
    row["bags_per_s"] = round(num_bags * 1e6 / row["us"], 1)
    row["peak_mib"] = peak_mib(setting, work)
    found, stated = waits(setting, work), stated_waits(step.student, num_bags)
    row |= {"waits": found, "stated_waits": stated, **profiled(setting, work)}
    step.check(wait=True)
    notes.add("runs", row)
    if sum(found.values()) > stated:
        notes.fail(f"waits, {name}", f"expected at most {stated} a step, got {found}")


def _naive(notes: Notes, setting: Setting) -> None:
    """The authors' order of work by PyTorch's own operators, which has no dtype but float32."""
    config = config_of(setting, setting.argument, "float32")
    with torch.device(setting.device):
        naive = NaiveStep(config, num_features=setting.num_features, num_classes=2)
    batches = bags_of(setting, [setting.num_instances] * 4, torch.float32)
    number = 0

    def work() -> None:
        nonlocal number
        number += 1
        batch = batches[number % len(batches)]
        with torch.device(setting.device):
            naive(batch.features_TD, batch.labels_B)

    _time_naive(notes, setting, "float32", work)
    if not setting.is_gpu:
        return
    torch.set_float32_matmul_precision("high")
    _time_naive(notes, setting, "TF32", work)
    torch.set_float32_matmul_precision("highest")
    with torch.autocast("cuda", torch.bfloat16):
        _time_naive(notes, setting, "autocast to bf16", work)


def _time_naive(notes: Notes, setting: Setting, precision: str, work: Work) -> None:
    row = {"precision": precision, **timed(setting, work, steps=10 if setting.is_gpu else 1)}
    row["bags_per_s"] = round(1e6 / row["us"], 1)
    notes.add("naive", row | {"peak_mib": peak_mib(setting, work, 3)})


def _many_sizes(notes: Notes, setting: Setting) -> None:
    """Graphs against plain steps over many sizes: the same losses, and nothing is left of a larger bag."""
    if not setting.is_gpu:
        notes.leave_out("graphs of many sizes", "needs a GPU")
        return
    draw = random.Random(0)
    batches = bags_of(setting, [draw.randrange(300, 12_000) for _ in range(24)], torch.float32)
    losses, seconds = {}, {}
    for graphs in (False, True):
        try:
            config = config_of(setting, setting.argument, "float32", graphs=graphs)
            step = step_of(setting, config, graphs=graphs)
        except ConfigError as error:
            notes.leave_out("graphs of many sizes", f"refused: {error}")
            return
        began, totals = time.perf_counter(), []
        for number, batch in enumerate(batches * 2):
            draws = Draws(0, number // len(batches))
            loss = step(batch, draws, progress=number / 48, num_bags=1)
            assert loss is not None
            totals.append(float(loss.total_B[0].detach()))
        step.check(wait=True)
        losses[graphs], seconds["graphs" if graphs else "plain"] = totals, time.perf_counter() - began
    worst = max(abs(one - other) for one, other in zip(losses[True], losses[False], strict=True))
    notes.check(
        "graphs of many sizes",
        worst < 1e-2,
        {
            "largest difference of a loss": worst,
            "48 steps of 24 sizes, s": {name: round(value, 2) for name, value in seconds.items()},
        },
    )
