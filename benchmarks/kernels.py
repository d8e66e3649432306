#!/usr/bin/env python3
"""What the kernels must cost on an H100, calculated: nothing here has run on a GPU.

    python benchmarks/kernels.py > benchmarks/RESULTS.md

Bytes and FLOPs of every part of an AB-MIL training step with the C16 preset follow from the shapes of a bag
of 9,075 x 1,024 in 16 bits; the floor is the larger of bytes / 3.35 TB/s and FLOPs / 800 TF/s. Registers and
stack are the compiler's, ahead of time. Launches are counted on tensors without data.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.optim import optimizer
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import bag_on_gpu
from benchmarks.ahead_of_time import ARCHITECTURES, Launch, compiled
from mhimdist.data.bags import PackedBags
from mhimdist.draws import Draws
from mhimdist.masking import most_kept
from mhimdist.models import build
from mhimdist.presets import preset
from mhimdist.step import TrainingStep
from mhimdist.teacher import Teacher

BYTES_A_S, FLOPS_A_S, PAPER_BAGS_A_S = 3.35e12, 800e12, 62
# Assumed, in microseconds: a launch of a CUDA graph, one of PyTorch's eager mode, and what a program takes to
# go once over a block of 2,048 keys.
GRAPH_US, EAGER_US, BLOCK_US = 2.0, 10.0, 1.0
N, D, E, ATTENTION = bag_on_gpu.INSTANCES, bag_on_gpu.FEATURES, bag_on_gpu.WIDTH, 128
CONFIG = preset("c16", "abmil").override({"device": "cpu", "precision": "bf16"})
K = most_kept(CONFIG.masking, N, 1, 0.0)


@dataclass(frozen=True)
class Part:
    """A part of the step.

    Attributes:
        name: of the kernel, or of the product.
        bytes: read from and written to the device's memory.
        flops: of matrix products, or of a kernel's arithmetic.
        serial_us: at most, where one program goes over a whole bag, pass after pass.
    """

    name: str
    bytes: int
    flops: int
    serial_us: float = 0.0

    @property
    def floor_us(self) -> float:
        """What neither memory nor arithmetic allows to undercut."""
        return max(self.bytes / BYTES_A_S, self.flops / FLOPS_A_S) * 1e6


def _product(name: str, rows: int, inner: int, columns: int) -> Part:
    moved = 2 * (rows * inner + inner * columns + rows * columns)
    return Part(name, moved, 2 * rows * inner * columns)


def parts(num_parameters: int) -> list[Part]:
    """The step's parts in their order; 16-bit features and activations, float32 scores."""
    blocks = -(-N // 2048)
    pooled = {"forward": 5, "backward": 7}
    return [
        _product("teacher: projection (cuBLAS)", N, D, E),
        _product("teacher: attention (cuBLAS)", N, E, ATTENTION),
        Part("teacher: scores (cuBLAS)", N * (2 * ATTENTION + 4), 2 * N * ATTENTION),
        Part("teacher: `_pool_parts`, `_join_parts`", N * (4 + 2 * E), pooled["forward"] * N * E),
        # Keys of the highest and of the random ranking; the passes over them stay in the L2 cache.
        Part("`_find_limits`", N * (4 + 2 * 8), 2 * 8 * N, serial_us=(1 + 8) * blocks * BLOCK_US),
        Part("`_mask`", N * (2 * 8 + 8) + 8 * K, 8 * N, serial_us=(1 + 8 + 1) * blocks * BLOCK_US),
        Part("`_gather`", K * (2 * 2 * D + 16), 0),
        _product("student: projection (cuBLAS)", K, D, E),
        Part("student: `_drop`", K * 2 * 2 * E, 4 * K * E),
        _product("student: attention (cuBLAS)", K, E, ATTENTION),
        Part("student: scores (cuBLAS)", K * (2 * ATTENTION + 4), 2 * K * ATTENTION),
        Part("student: `_pool_parts`, `_join_parts`", K * (4 + 2 * E), pooled["forward"] * K * E),
        Part("student: `_pool_backward`", K * (4 + 4 + 2 * 2 * E), pooled["backward"] * K * E),
        _product("attention's gradients (cuBLAS), of its weight", ATTENTION, K, E),
        _product("attention's gradients (cuBLAS), of its input", K, ATTENTION, E),
        Part("student: `_relu_backward`", K * 3 * 2 * E, 2 * K * E),
        _product("projection's gradient (cuBLAS)", E, K, D),
        Part("fused Adam, on flat float32", num_parameters * 7 * 4, 12 * num_parameters),
        Part("moving average of the teacher", num_parameters * 3 * 4, 3 * num_parameters),
    ]


LAUNCHES_OF = {
    "mhimdist::select_and_gather": 3,
    "mhimdist::segment_softmax_pool": 2,
}


class Launches(TorchDispatchMode):
    """Counts what would be launched: every operator that is neither a view nor only makes room."""

    def __init__(self) -> None:
        super().__init__()
        self.ours = 0
        self.others = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count, and go on."""
        name = func._schema.name
        if name.startswith("mhimdist::"):
            self.ours += LAUNCHES_OF.get(name, 1)
        elif not func.is_view and not name.startswith(("aten::empty", "aten::new_empty", "aten::detach")):
            self.others += 1
        return func(*args, **(kwargs or {}))


def count_launches() -> tuple[int, int, int]:
    """Launches of a step of our kernels and of torch's, and the number of parameters."""
    student = build(CONFIG.model, num_features=D, num_classes=2, seed=0).to("meta")
    step = TrainingStep(CONFIG, student, Teacher(CONFIG.teacher, student, student))
    bags = PackedBags.from_list([torch.empty(N, D, dtype=torch.bfloat16)], [1]).to("meta")
    devices = [*optimizer._get_fused_kernels_supported_devices(), "meta"]
    with (
        patch.object(optimizer, "_get_fused_kernels_supported_devices", lambda: devices),
        patch.object(step, "_read_later", lambda found_2, where: None),
    ):
        step(bags, Draws(0, 0), progress=0.0, num_bags=1)  # makes Adam's states
        with Launches() as launches:
            step(bags, Draws(0, 1), progress=0.0, num_bags=1)
    return launches.ours, launches.others, sum(p.numel() for p in student.parameters())


def _compiled_row(label: str, launch: Launch) -> str:
    cells = []
    for architecture in ARCHITECTURES:
        found = compiled(launch, architecture)
        cells.append(f"{found.registers} / {found.stack_bytes} / {found.shared_bytes}")
    return f"| {label} | {launch.num_warps} | " + " | ".join(cells) + " |"


def report() -> str:
    """The tables, in Markdown."""
    ours, others, num_parameters = count_launches()
    step = parts(num_parameters)
    floor = sum(part.floor_us for part in step)
    serial = sum(part.serial_us for part in step)
    launches = ours + others
    lines = [
        "# The kernels on an H100: calculated, nothing has run on a GPU",
        "",
        f"`python benchmarks/kernels.py` prints this. An AB-MIL step with the C16 preset on a bag of {N:,} "
        f"x {D:,} in 16 bits, of which {K:,} instances stay. Floor: the larger of bytes / 3.35 TB/s and "
        "FLOPs / 800 TF/s.",
        "",
        "| part | MB | GFLOP | floor, us | one program a bag: at most, us |",
        "|---|---|---|---|---|",
    ]
    for part in step:
        latency = f"{part.serial_us:.0f}" if part.serial_us else ""
        lines.append(
            f"| {part.name} | {part.bytes / 1e6:.2f} | {part.flops / 1e9:.3f} | {part.floor_us:.2f} "
            f"| {latency} |"
        )
    lines += [
        f"| all | {sum(p.bytes for p in step) / 1e6:.1f} | {sum(p.flops for p in step) / 1e9:.1f} | "
        f"{floor:.1f} | {serial:.0f} |",
        "",
        f"Launches a step: {launches}, of which {ours} are of our kernels and {others} of PyTorch's "
        "operators (counted on tensors without data, views left out). The engine launches them eagerly.",
        "",
        "| prediction | us a bag | bags/s | x the paper's 62 |",
        "|---|---|---|---|",
    ]
    graph = floor + serial + launches * GRAPH_US
    predictions = {
        "floor: memory and arithmetic alone": floor,
        f"if it were a CUDA graph: floor, passes, {GRAPH_US:g} us a launch (assumed)": graph,
        f"eager, as the engine does it: the host's {EAGER_US:g} us a launch (assumed)": max(
            launches * EAGER_US, graph
        ),
    }
    for name, us in predictions.items():
        lines.append(f"| {name} | {us:.0f} | {1e6 / us:,.0f} | {1e6 / us / PAPER_BAGS_A_S:.0f} |")
    lines += [
        "",
        "The paper's 62 bags/s (4.3 s for 266 bags) were measured on an RTX 3090, loading included. The last "
        f"column of the first table assumes {BLOCK_US:g} us for a pass over 2,048 keys and all eight passes "
        "of the radix select; it ends earlier where the keys differ early.",
        "",
        "## Compiled ahead of time",
        "",
        "Registers a thread / stack bytes a thread (0: nothing spills) / shared bytes a program.",
        "",
        "| kernel | warps | " + " | ".join(f"sm_{a} ({gpu})" for a, gpu in ARCHITECTURES.items()) + " |",
        "|---|---|" + "---|" * len(ARCHITECTURES),
    ]
    eight = bag_on_gpu.selection(num_heads=8)
    labelled = [(f"`{launch.name}`", launch) for launch in bag_on_gpu.selection(capacity=K)]
    labelled += [(f"`{launch.name}`, 8 heads", launch) for launch in eight[:2]]
    labelled += [(f"`{launch.name}`", launch) for launch in bag_on_gpu.pooling()]
    labelled += [(f"`{launch.name}`, 2 columns", launch) for launch in bag_on_gpu.pooling(columns=2)]
    labelled += [(f"`{launch.name}`", launch) for launch in bag_on_gpu.dropout()]
    labelled += [(f"`{launch.name}`", launch) for launch in bag_on_gpu.ranking()]
    return "\n".join(lines + [_compiled_row(label, launch) for label, launch in labelled])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.parse_args()
    print(report())


if __name__ == "__main__":
    main()
