"""Times, launches, waits and memory of a piece of work on a device.

On a CPU there are only times: nothing is launched, and nothing is waited for.
"""

import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_check.setting import Setting

Work = Callable[[], object]

_CALLS = ("Launch", "Memcpy", "Memset", "Synchronize", "Malloc", "HostAlloc", "cudaFree", "EventQuery")


def sync(setting: Setting) -> None:
    """Wait until the device has done all its work."""
    if setting.is_gpu:
        torch.cuda.synchronize()


def timed(
    setting: Setting, work: Work, *, steps: int | None = None, warmup: int | None = None
) -> dict[str, float]:
    """Microseconds of a piece of work: `us` until the device is done, `host_us` until the host may go on.

    Args:
        setting: the device.
        work: what to measure.
        steps: repetitions in each round; None for the setting's.
        warmup: repetitions before the first round; None for 10 on a GPU and none on a CPU.
    """
    steps = steps or setting.num_steps
    warmup = warmup if warmup is not None else 10 if setting.is_gpu else 0
    for _ in range(warmup):
        work()
    host_us, whole_us = [], []
    for _ in range(setting.num_rounds):
        sync(setting)
        started = time.perf_counter()
        for _ in range(steps):
            work()
        host_us.append((time.perf_counter() - started) / steps * 1e6)
        sync(setting)
        whole_us.append((time.perf_counter() - started) / steps * 1e6)
    return {
        "us": round(statistics.median(whole_us), 2),
        "host_us": round(statistics.median(host_us), 2),
        "spread": round(max(whole_us) / min(whole_us), 3),
    }


def peak_mib(setting: Setting, work: Work, steps: int = 5) -> float | None:
    """The most memory that the work takes on the device, above what was held before, in MiB."""
    if not setting.is_gpu:
        return None
    sync(setting)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(steps):
        work()
    sync(setting)
    return round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)


def profiled(setting: Setting, work: Work, steps: int = 5) -> dict[str, Any]:
    """What the profiler sees of one repetition.

    Returns:
        `launches`: kernels and graphs that the host launches; `calls`: all calls of the driver, by name;
        `device_us`: time of the device's own work; `kernels`: the 12 that take longest, with their number and
        microseconds. Empty on a CPU.
    """
    if not setting.is_gpu:
        return {}
    from torch.profiler import ProfilerActivity, profile

    sync(setting)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], acc_events=True) as found:
        for _ in range(steps):
            work()
        sync(setting)
    calls: dict[str, int] = {}
    kernels: dict[str, list[float]] = {}
    for event in found.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            if not getattr(event, "is_user_annotation", False):
                row = kernels.setdefault(event.name[:90], [0, 0.0])
                row[0] += 1
                row[1] += event.time_range.elapsed_us()
        elif event.name.startswith("cu") and any(call in event.name for call in _CALLS):
            calls[event.name] = calls.get(event.name, 0) + 1
    slowest = sorted(kernels.items(), key=lambda item: -item[1][1])[:12]
    return {
        "launches": round(sum(count for name, count in calls.items() if "Launch" in name) / steps, 1),
        "device_us": round(sum(us for _, us in kernels.values()) / steps, 1),
        "device_operations": round(sum(count for count, _ in kernels.values()) / steps, 1),
        "calls": {name: round(count / steps, 2) for name, count in sorted(calls.items())},
        "kernels": {name: [round(n / steps, 2), round(us / steps, 2)] for name, (n, us) in slowest},
    }


def waits(setting: Setting, work: Work, steps: int = 3) -> dict[str, float]:
    """How often in a repetition the host waits for the device, by the line of Python at which it does."""
    if not setting.is_gpu:
        return {}
    sync(setting)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            for _ in range(steps):
                work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found: dict[str, float] = {}
    for each in caught:
        text = str(each.message)
        if (
            "synchronizing" in text and "prototype" not in text
        ):  # the mode itself warns that it is a prototype
            place = f"{Path(each.filename).name}:{each.lineno}"
            found[place] = found.get(place, 0) + 1 / steps
    return {place: round(count, 2) for place, count in found.items()}
