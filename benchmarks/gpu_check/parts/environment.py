"""The card and its versions, and what a copy, a conversion, a launch and a graph's node cost."""

import os
import platform
import subprocess
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version

import torch

from benchmarks.gpu_check.measure import timed
from benchmarks.gpu_check.notes import Notes
from benchmarks.gpu_check.setting import Setting

_BAG = 9000, 1024  # instances and features, on a CPU, too: these are costs of the host
_NODES = 200


def check(notes: Notes, setting: Setting) -> None:
    """Note versions and costs."""
    packages = ("torch", "triton", "numpy", "pydantic", "ray", "nvidia-dali-cuda130", "pytest")
    found = {"python": platform.python_version(), "cores": len(os.sched_getaffinity(0))}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    notes.note("versions", found)
    if setting.is_gpu:
        _card(notes)
    torch.set_num_threads(1)
    with notes.trying("costs of the host"):
        _host(notes, setting)
    if not setting.is_gpu:
        notes.leave_out("costs of the device", "needs a GPU")
        return
    with notes.trying("copies"):
        _copies(notes, setting)
    with notes.trying("launches"):
        _launches(notes, setting)


def _card(notes: Notes) -> None:
    properties = torch.cuda.get_device_properties(0)
    notes.note("card", properties.name)
    notes.note("capability", f"{properties.major}.{properties.minor}")
    notes.note("memory_gib", round(properties.total_memory / 2**30, 1))
    fields = "driver_version", "clocks.max.sm", "clocks.max.mem", "power.limit"
    fields += "pcie.link.gen.current", "pcie.link.width.current"
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        notes.note("nvidia-smi", run.stdout.strip().splitlines())
    except (OSError, subprocess.SubprocessError) as error:
        notes.leave_out("nvidia-smi", f"{type(error).__name__}: {error}")


def _cost(notes: Notes, name: str, value: float, unit: str) -> None:
    notes.add("costs", {"what": name, "value": round(value, 3), "unit": unit})


def _host(notes: Notes, setting: Setting) -> None:
    """What one core needs to copy a bag, and to convert it on the way."""
    half_ND, bf16_ND = torch.rand(_BAG).half(), torch.empty(_BAG, dtype=torch.bfloat16)
    copy_ND = torch.empty_like(half_ND)
    copied = timed(setting, lambda: copy_ND.copy_(half_ND), steps=5)
    converted = timed(setting, lambda: bf16_ND.copy_(half_ND), steps=5)
    notes.check(
        "conversion to bf16 is exact rounding",
        torch.equal(bf16_ND, half_ND.float().bfloat16()),
        "fp16 to bf16 on one core",
    )
    _cost(notes, "a bag of 9,000 x 1,024 copied by one core, fp16", copied["us"] / 1e3, "ms")
    _cost(notes, "the same bag converted by one core, fp16 to bf16", converted["us"] / 1e3, "ms")


def _copies(notes: Notes, setting: Setting) -> None:
    """The memory of the device, and the way to it."""
    big, other = (torch.empty(1 << 30, dtype=torch.uint8, device="cuda") for _ in range(2))
    found = timed(setting, partial(other.copy_, big), steps=20)
    _cost(notes, "device memory, bytes read and written", 2 * big.numel() / found["us"] / 1e6, "TB/s")
    num_bytes = 2 * _BAG[0] * _BAG[1]
    target = torch.empty(num_bytes, dtype=torch.uint8, device="cuda")
    for name, pinned in (("pinned", True), ("pageable", False)):
        source = torch.ones(num_bytes, dtype=torch.uint8)
        source = source.pin_memory() if pinned else source
        found = timed(setting, partial(target.copy_, source, non_blocking=True), steps=20)
        _cost(notes, f"the bag to the device from {name} memory", found["us"] / 1e3, "ms")
        _cost(notes, f"which is, from {name} memory", num_bytes / found["us"] / 1e3, "GB/s")


def _launches(notes: Notes, setting: Setting) -> None:
    """What `RESULTS.md` assumes: 2 us for a node, 10 us for a launch, and the floor of the projection."""
    features, weight = (torch.randn(rows, 1024, device="cuda", dtype=torch.bfloat16) for rows in (9216, 512))
    projection = _recorded(lambda: torch.nn.functional.linear(features, weight), 20)
    found = timed(setting, projection, steps=20)
    _cost(notes, "projection of a bag in bf16 (calculated floor: 11.9)", found["us"] / 20, "us")
    tiny = torch.zeros(8, device="cuda")
    found = timed(setting, _recorded(lambda: tiny.add_(1), _NODES), steps=20)
    _cost(notes, "a node of a graph (assumed: 2)", found["us"] / _NODES, "us")
    single = _recorded(lambda: tiny.add_(1), 1)
    _cost(notes, "the launch of a graph", timed(setting, single, steps=500)["host_us"], "us")
    found = timed(setting, lambda: tiny.add_(1), steps=2000)
    _cost(notes, "a launch of eager PyTorch (assumed: 10)", found["host_us"], "us")


def _recorded(work: Callable[[], object], times: int) -> Callable[[], None]:
    """A graph that does the work so many times."""
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(times):
            work()
    return graph.replay
