#!/usr/bin/env python3
"""The least that the kernels must cost on an H100, calculated: nothing here has run on a GPU.

    python benchmarks/kernels.py

Bytes and FLOPs of every part of an AB-MIL training step with the C16 preset follow from the shapes of a bag
of 9,075 x 1,024 in 16 bits; the floor is the larger of bytes / 3.35 TB/s and FLOPs / 800 TF/s. Registers and
stack are the compiler's, ahead of time. Launches are counted on tensors without data. The command prints the
first part of RESULTS.md.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.optim import optimizer
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import bag_on_gpu
from benchmarks.ahead_of_time import ARCHITECTURES, Launch, compiled
from mhimdist.config.models import TransMIL
from mhimdist.config.presets import preset
from mhimdist.config.train import TrainConfig
from mhimdist.data.bags import PackedBags
from mhimdist.method.masking import most_kept
from mhimdist.method.teacher import Teacher
from mhimdist.models import build
from mhimdist.models.layers.pseudo_inverse import PseudoInverse, inverse_times, times_inverse
from mhimdist.ops.draws import Draws
from mhimdist.training.graphed_step import GraphedStep
from mhimdist.training.step import TrainingStep

BYTES_A_S, FLOPS_A_S, PAPER_BAGS_A_S = 3.35e12, 800e12, 62
# Assumed, in microseconds: a launch in a CUDA graph, one in PyTorch's eager mode, and the time in which a
# program goes once over a block of 2,048 keys.
GRAPH_US, EAGER_US, BLOCK_US = 2.0, 10.0, 1.0
N, D, E, ATTENTION = bag_on_gpu.INSTANCES, bag_on_gpu.FEATURES, bag_on_gpu.WIDTH, 128
CONFIG = preset("c16", "abmil").override({"device": "cpu", "precision": "bf16"})
TRANSMIL = preset("c16", "transmil").override({"device": "cpu", "precision": "bf16"})
K = most_kept(CONFIG.masking, N, 1, 0.0)


@dataclass(frozen=True)
class Part:
    """A part of the step.

    Attributes:
        name: of the kernel, or of the product.
        bytes: read from and written to the device's memory.
        flops: of matrix products, or of a kernel's arithmetic.
        serial_us: at most, if one program goes over a whole bag, pass after pass.
    """

    name: str
    bytes: int
    flops: int
    serial_us: float = 0.0

    @property
    def floor_us(self) -> float:
        """The least time that memory and arithmetic allow."""
        return max(self.bytes / BYTES_A_S, self.flops / FLOPS_A_S) * 1e6


def _product(name: str, rows: int, inner: int, columns: int) -> Part:
    moved = 2 * (rows * inner + inner * columns + rows * columns)
    return Part(name, moved, 2 * rows * inner * columns)


def _passes(name: str, values: int, bytes_a_value: int) -> Part:
    """One of torch's operators that goes through values once."""
    return Part(name, values * bytes_a_value, 0)


def parts(num_parameters: int, rows: int = N, kept: int = K) -> list[Part]:
    """The step's parts in their order; 16-bit features and activations, float32 scores."""
    blocks = -(-N // 2048)
    pooled = {"forward": 5, "backward": 7}
    return [
        _passes("parameters of both networks to 16 bits", 2 * num_parameters, 4 + 2),
        _product("teacher: projection (cuBLAS)", rows, D, E),
        _passes("teacher: ReLU", rows * E, 2 * 2),
        _product("teacher: attention (cuBLAS)", rows, E, ATTENTION),
        _passes("teacher: ReLU of the attention", rows * ATTENTION, 2 * 2),
        _passes("teacher: attention to float32", rows * ATTENTION, 2 + 4),
        Part("teacher: scores (cuBLAS)", rows * (4 * ATTENTION + 4), 2 * rows * ATTENTION),
        Part("teacher: `_pool_parts`, `_join_parts`", rows * (4 + 2 * E), pooled["forward"] * rows * E),
        Part("`_number`", 200, 0),
        # Keys of the highest and the random ranking; the passes over them stay in the L2 cache.
        Part("`_find_limits`", rows * (4 + 2 * 8), 2 * 8 * rows, serial_us=(1 + 8) * blocks * BLOCK_US),
        Part("`_mask`", rows * (2 * 8 + 8) + 8 * kept, 8 * rows, serial_us=(1 + 8 + 1) * blocks * BLOCK_US),
        Part("`_gather`", kept * (2 * 2 * D + 16), 0),
        _product("student: projection (cuBLAS)", kept, D, E),
        Part("student: `_drop`", kept * 2 * 2 * E, 4 * kept * E),
        _product("student: attention (cuBLAS)", kept, E, ATTENTION),
        _passes("student: ReLU of the attention", kept * ATTENTION, 2 * 2),
        _passes("student: attention to float32", kept * ATTENTION, 2 + 4),
        Part("student: scores (cuBLAS)", kept * (4 * ATTENTION + 4), 2 * kept * ATTENTION),
        Part("student: `_pool_parts`, `_join_parts`", kept * (4 + 2 * E), pooled["forward"] * kept * E),
        Part("student: `_pool_backward`", kept * (4 + 4 + 2 * 2 * E), pooled["backward"] * kept * E),
        Part("scores' gradients (cuBLAS)", kept * (2 * 4 * ATTENTION + 2 * 4), 4 * kept * ATTENTION),
        _passes("attention's gradient to 16 bits", kept * ATTENTION, 4 + 2),
        _passes("attention's gradient through the ReLU", kept * ATTENTION, 3 * 2),
        _product("attention's gradients (cuBLAS), of its weight", ATTENTION, kept, E),
        _product("attention's gradients (cuBLAS), of its input", kept, ATTENTION, E),
        _passes("the instances' two gradients added up", kept * E, 3 * 2),
        Part("student: `_relu_backward`", kept * 3 * 2 * E, 2 * kept * E),
        _product("projection's gradient (cuBLAS)", E, kept, D),
        _passes("gradient of the projection's bias", kept * E, 2),
        _passes("gradients to float32", num_parameters, 2 + 4),
        _passes("gradients to one buffer", num_parameters, 4 + 4),
        Part("fused Adam, on flat float32", num_parameters * 7 * 4, 12 * num_parameters),
        Part("moving average of the teacher", num_parameters * 3 * 4, 3 * num_parameters),
    ]


NO_LAUNCH = (
    *("aten::empty", "aten::new_empty", "aten::detach", "profiler::"),
    *("aten::_unsafe_view", "aten::promote_types"),
)
LAUNCHES_OF = {
    "mhimdist::select_and_gather": 3,
    "mhimdist::segment_softmax_pool": 2,
    "mhimdist::segment_reduce": 2,
    "mhimdist::sequence_convolution_kernel_backward": 2,
    "mhimdist::square_convolution_kernel_backward": 2,
}


class Launches(TorchDispatchMode):
    """Counts what would be launched: every operator except views and those that only allocate."""

    def __init__(self) -> None:
        super().__init__()
        self.ours = 0
        self.others = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count an operator, then run it."""
        name, found = func._schema.name, func(*args, **(kwargs or {}))
        # `aten::to` may return a copy, though its schema says that it is a view.
        is_view = found is args[0] if name == "aten::to" else func.is_view
        if name.startswith("mhimdist::"):
            self.ours += LAUNCHES_OF.get(name, 1)
        elif not is_view and not name.startswith(NO_LAUNCH):
            self.others += 1
        return found


class CountedGraph:
    """A recorder that only counts the launches of a step, the nodes of its two graphs."""

    def __init__(self) -> None:
        self.nodes = Launches()

    def record(self, work: Callable[[], tuple[Tensor, ...]]) -> tuple[tuple[Tensor, ...], Callable[[], None]]:
        """See `graphed_step.Recorder`."""
        work()  # makes Adam's states
        with self.nodes:
            found = work()
        return found, lambda: None


@dataclass(frozen=True)
class Counted:
    """Launches of a step.

    Attributes:
        ours, others: of our kernels and of torch's, if the host launches each of them.
        nodes: of the two CUDA graphs of the step.
        around: by the host if the step is recorded; two of them are the graphs.
        rows, kept: instances that the graph is for.
        num_parameters: of the student.
    """

    ours: int
    others: int
    nodes: int
    around: int
    rows: int
    kept: int
    num_parameters: int


def count_launches(config: TrainConfig = CONFIG) -> Counted:
    """Count on tensors without data."""
    student = build(config.model, num_features=D, num_classes=2, seed=0).to("meta")
    teacher, graph = Teacher(config.teacher, student, student), CountedGraph()
    bags = PackedBags.from_list([torch.empty(N, D, dtype=torch.bfloat16)], [1]).to("meta")
    devices = [*optimizer._get_fused_kernels_supported_devices(), "meta"]
    counted = []
    with patch.object(optimizer, "_get_fused_kernels_supported_devices", lambda: devices):
        eager = TrainingStep(config, student, teacher)
        graphed = GraphedStep(config, student, teacher, recorder=lambda: graph)
        # As many launches as with a rate on the device, which torch cannot read without data.
        graphed.optimizer.learning_rate = config.optimizer.learning_rate
        for step in (eager, graphed):
            with patch.object(step, "_read_later", lambda found_2, where: None):
                step(bags, Draws(0, 0), progress=0.0, num_bags=1)  # records, or makes Adam's states
                with Launches() as launches:
                    step(bags, Draws(0, 1), progress=0.0, num_bags=1)
            counted.append(launches)
    of_eager, around = counted
    (bucket,) = graphed._graphs
    return Counted(
        of_eager.ours,
        of_eager.others,
        graph.nodes.ours + graph.nodes.others,
        around.others + 2,
        bucket.rows,
        bucket.capacity,
        sum(p.numel() for p in student.parameters()),
    )


def _compiled_row(label: str, launch: Launch) -> str:
    cells = []
    for architecture in ARCHITECTURES:
        found = compiled(launch, architecture)
        cells.append(f"{found.registers} / {found.stack_bytes} / {found.shared_bytes}")
    return f"| {label} | {launch.num_warps} | " + " | ".join(cells) + " |"


def _launches_of_pseudo_inverses() -> int:
    """Of the step of TransMIL: the student's two and their gradients, and the teacher's two."""
    settings = TRANSMIL.model
    assert isinstance(settings, TransMIL)
    heads, marks = settings.num_heads, settings.num_landmarks
    shapes = (heads, marks, marks), (heads, marks, settings.hidden_dim // heads), (heads, 1, marks)
    near, spread, row = (torch.empty(shape, device="meta", requires_grad=True) for shape in shapes)
    with Launches() as launches:
        first = inverse_times(near, spread, settings.pinv_iterations)
        second = times_inverse(row, near, settings.pinv_iterations)
        torch.autograd.grad([first, second], [near, spread, row], [spread, row])
        with torch.inference_mode():
            inverse = PseudoInverse(near, settings.pinv_iterations)
            inverse.after(row), inverse.times(spread)
            times_inverse(row, near, settings.pinv_iterations)
    return launches.others


def _launches_of_transmil() -> str:
    counted = count_launches(TRANSMIL)
    return (
        f"A step of TransMIL has {counted.ours + counted.others:,} launches, {counted.ours} of them of our "
        f"kernels; as a graph {counted.nodes:,} nodes for {counted.rows:,} instances and {counted.kept:,} "
        f"that stay, and {counted.around} launches by the host. The pseudo-inverses of landmark matrices are "
        f"{_launches_of_pseudo_inverses()} of the nodes."
    )


def _labelled() -> list[tuple[str, Launch]]:
    """The launches to compile, and what the table calls them."""
    eight = bag_on_gpu.selection(num_heads=8)
    labelled = [(f"`{launch.name}`", launch) for launch in bag_on_gpu.numbers()]
    labelled += [(f"`{launch.name}`", launch) for launch in bag_on_gpu.selection(capacity=K)]
    labelled += [(f"`{launch.name}`, 8 heads", launch) for launch in eight[:2]]
    labelled += [(f"`{launch.name}`", launch) for launch in bag_on_gpu.pooling()]
    labelled += [(f"`{launch.name}`, 2 columns", launch) for launch in bag_on_gpu.pooling(columns=2)]
    labelled += [(f"`{launch.name}`", launch) for launch in bag_on_gpu.dropout()]
    labelled += [(f"`{launch.name}`", launch) for launch in bag_on_gpu.ranking()]
    for kind in ("mean", "max"):
        labelled += [(f"`{each.name}`, {kind}", each) for each in bag_on_gpu.reducing(is_max=kind == "max")]
    labels = ("`_convolve`, sequence", "`_kernel_gradient`, sequence")
    labelled += zip(labels, bag_on_gpu.along_the_sequence(), strict=True)
    labels = ("`_convolve`, square", "`_convolve`, square, backward", "`_kernel_gradient`, square")
    labelled += zip(labels, bag_on_gpu.square(), strict=True)
    return labelled


def _predictions(counted: Counted, floor: float, serial: float) -> list[str]:
    """The rows of what a step takes, in Markdown."""
    padded = sum(part.floor_us for part in parts(counted.num_parameters, counted.rows, counted.kept))
    copied = 2 * 2 * N * D / BYTES_A_S * 1e6
    graph = padded + copied + serial + counted.nodes * GRAPH_US
    predictions = {
        "floor: memory and arithmetic alone": floor,
        f"as a CUDA graph: floor of the padded step, the copy into it ({copied:.0f} us), passes, "
        f"{GRAPH_US:g} us per node (assumed)": max(graph, counted.around * EAGER_US),
        f"launched one by one: the host's {EAGER_US:g} us per launch (assumed)": (
            counted.ours + counted.others
        )
        * EAGER_US,
    }
    return [
        f"| {name} | {us:.0f} | {1e6 / us:,.0f} | {1e6 / us / PAPER_BAGS_A_S:.0f} |"
        for name, us in predictions.items()
    ]


def report() -> str:
    """The tables, in Markdown."""
    counted = count_launches()
    step = parts(counted.num_parameters)
    floor = sum(part.floor_us for part in step)
    serial = sum(part.serial_us for part in step)
    launches = counted.ours + counted.others
    lines = [
        "## The kernels on an H100: calculated",
        "",
        "`python benchmarks/kernels.py` prints this part. It describes an AB-MIL step with the C16 preset "
        f"on a bag of {N:,} x {D:,} in 16 bits, of which {K:,} instances stay. Floor: the larger of bytes / "
        "3.35 TB/s and FLOPs / 800 TF/s.",
        "",
        "| part | MB | GFLOP | floor, us | one program per bag: at most, us |",
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
        f"A step has {launches} launches: {counted.ours} of our kernels and {counted.others} of PyTorch's "
        "operators (counted on tensors without data; views and the copy of the verdict to the host are left "
        f"out). With CUDA graphs the host makes {counted.around}. Two of them are graphs: from the bag to "
        "its gradients, and from there to the new weights. Together they have "
        f"{counted.nodes} nodes for {counted.rows:,} instances and {counted.kept:,} that stay.",
        "",
        _launches_of_transmil(),
        "",
        "| prediction | us per bag | bags/s | x the paper's 62 |",
        "|---|---|---|---|",
    ]
    lines += _predictions(counted, floor, serial)
    lines += [
        "",
        "The paper's 62 bags/s (4.3 s for 266 bags) were measured on an RTX 3090, loading included. The last "
        f"column of the first table assumes {BLOCK_US:g} us for a pass over 2,048 keys, and all eight passes "
        "of the radix select, which ends earlier if the keys differ early.",
        "",
        "### Compiled ahead of time",
        "",
        "Registers per thread / stack bytes per thread (0: nothing spills) / shared bytes per program.",
        "",
        "| kernel | warps | " + " | ".join(f"sm_{a} ({gpu})" for a, gpu in ARCHITECTURES.items()) + " |",
        "|---|---|" + "---|" * len(ARCHITECTURES),
    ]
    return "\n".join(lines + [_compiled_row(label, launch) for label, launch in _labelled()])


def figures() -> dict[str, Any]:
    """The calculated step, without the compiler's figures; the keys of `--json`."""
    counted = count_launches()
    step = parts(counted.num_parameters)
    return {
        "instances": N,
        "kept": K,
        "parts": {
            part.name: {"bytes": part.bytes, "flops": part.flops, "floor_us": round(part.floor_us, 3)}
            for part in step
        },
        "bytes": sum(part.bytes for part in step),
        "floor_us": round(sum(part.floor_us for part in step), 1),
        "launches": counted.ours + counted.others,
        "launches_of_ours": counted.ours,
        "graph_nodes": counted.nodes,
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--json", action="store_true", help="print the calculated step as JSON")
    print(json.dumps(figures()) if parser.parse_args().json else report())


if __name__ == "__main__":
    main()
