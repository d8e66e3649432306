#!/usr/bin/env python3
"""What the kernels cost: bytes, operations, launches and registers, and the floor under them on an H100.

    python benchmarks/kernels.py

No GPU is needed and none is used. Every operation is called as a training step calls it, for one bag of
9,075 instances of 1,024 features in 16 bits; its launches are recorded in place of being run, and each kernel
is compiled ahead of time for sm_80, sm_90 and sm_100 with exactly the arguments of its launch. Registers,
shared memory and spills are the compiler's. Bytes and operations are counted from the shapes; the floor is
the larger of bytes / 3.35 TB/s and operations / 800 TFLOP/s. All times are calculated, none is measured.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.pop("TRITON_INTERPRET", None)  # an interpreted kernel cannot be compiled
sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import triton
from torch import Tensor
from torch.optim import optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from mhimdist.config import Masking
from mhimdist.data.bags import PackedBags
from mhimdist.draws import Draws
from mhimdist.masking import mask_counts, most_kept
from mhimdist.models import build
from mhimdist.ops import _dropout, _pool, _select
from mhimdist.presets import preset
from mhimdist.step import TrainingStep
from mhimdist.teacher import Teacher

ARCHITECTURES = (80, 90, 100)
BYTES_A_S, OPERATIONS_A_S = 3.35e12, 800e12
"""An H100 SXM: its memory, and bfloat16 products at the rate that is reached in practice."""
LAUNCH_US = 3.0
"""A launch by PyTorch without a CUDA graph, between two kernels that are shorter than it."""
INSTANCES, FEATURES, WIDTH, ATTENTION = 9_075, 1_024, 512, 128
PAPER_BAGS_A_S = 266 / 4.3
"""The paper's Table 2: 4.3 s an epoch for 266 bags on an RTX 3090."""


@dataclass(frozen=True)
class Launch:
    """A kernel's launch: its arguments by name, its warps and its grid."""

    kernel: JITFunction
    arguments: dict[str, Any]
    num_warps: int
    grid: tuple[int, ...]

    @property
    def name(self) -> str:
        """The kernel's name."""
        return self.kernel.fn.__name__


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """The launches of a block of code, in place of running them."""
    launches = []

    def record(kernel: JITFunction, *args: Any, grid: tuple[int, ...], warmup: bool, **kwargs: Any) -> None:
        num_warps = kwargs.pop("num_warps", 4)
        arguments = kernel.signature.bind(*args, **kwargs).arguments
        launches.append(Launch(kernel, dict(arguments), num_warps, grid))

    with mock.patch.object(JITFunction, "run", record):
        yield launches


_POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.int32: "*i32",
}


def source_of(launch: Launch) -> ASTSource:
    """What the launch would have compiled, specialised for its arguments as Triton does."""
    signature: dict[str, str] = {}
    constants, attributes = {}, {}
    for place, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        is_one = isinstance(value, int) and value == 1 and not parameter.do_not_specialize
        if parameter.is_constexpr or is_one:
            signature[parameter.name], constants[parameter.name] = "constexpr", value
            continue
        if isinstance(value, Tensor):
            signature[parameter.name] = _POINTERS[value.dtype]
        else:
            signature[parameter.name] = "i32" if isinstance(value, int) else "fp32"
        is_multiple = isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0)
        if is_multiple and not parameter.do_not_specialize:
            attributes[(place,)] = [["tt.divisibility", 16]]
    return ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=attributes)


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes: registers and spilled bytes of a thread, shared memory of a block."""

    registers: int
    spilled_bytes: int
    shared_bytes: int


def compiled(launch: Launch, architecture: int) -> Resources:
    """Compile the kernel of a launch for `sm_<architecture>`, and read its binary's own record."""
    target = GPUTarget("cuda", architecture, 32)
    kernel = triton.compile(source_of(launch), target=target, options={"num_warps": launch.num_warps})
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        report = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    use = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", report)}
    # What does not fit into registers goes to the stack or to local memory.
    return Resources(use["REG"], use["STACK"] + use["LOCAL"], kernel.metadata.shared)


@dataclass(frozen=True)
class Operation:
    """An operation of a training step, and what it has to move and compute at least."""

    name: str
    launches: list[Launch]
    bytes_: float
    operations: float

    @property
    def floor_us(self) -> float:
        """Microseconds under which no H100 can do it."""
        return max(self.bytes_ / BYTES_A_S, self.operations / OPERATIONS_A_S) * 1e6


def operations(masking: Masking, num_heads: int, num_columns: int) -> list[Operation]:
    """The ragged operations of a step on one bag, in the order of the step."""
    sizes_B = torch.tensor([INSTANCES])
    counts = mask_counts(masking, sizes_B, 0.0)
    kept = most_kept(masking, INSTANCES, 1, 0.0)
    offsets, keys = torch.tensor([0, INSTANCES]), torch.zeros(1, dtype=torch.int64)
    half = {"dtype": torch.bfloat16, "requires_grad": True}
    features = torch.empty(INSTANCES, FEATURES, dtype=torch.float16)
    scores = torch.empty(INSTANCES, num_heads)
    hidden = torch.empty(kept, WIDTH, **half)
    attention = torch.empty(kept, num_columns, requires_grad=True)

    def launches_of(call: Callable[[], Any]) -> tuple[list[Launch], Any]:
        with recorded() as launches:
            return launches, call()

    counts_ = (counts.high_pool_B, counts.high_B, counts.low_B, counts.random_B)
    select, _ = launches_of(
        lambda: _select.select_and_gather(
            features, scores, offsets, *counts_, keys, keys, keys, kept, torch.bfloat16
        )
    )
    drop, dropped = launches_of(lambda: _dropout.keyed_dropout(hidden, 64, offsets, keys, 0, True))
    drop_back, _ = launches_of(lambda: dropped.backward(torch.empty_like(dropped)))
    pool, (pooled, _) = launches_of(lambda: _pool.segment_softmax_pool(attention, hidden, offsets))
    pool_back, _ = launches_of(lambda: pooled.backward(torch.empty_like(pooled)))
    top, _ = launches_of(lambda: _pool.segment_top_k(attention, 1, offsets, True))

    rankings = 2 * num_heads + 1
    values, columns = kept * WIDTH * 2, kept * num_columns * 4
    # A kept row is read and written; scores, the keys of every ranking and the ids of rows once each way.
    moved = 2 * kept * FEATURES * 2 + INSTANCES * (4 * num_heads + 2 * 8 * rankings + 8) + kept * 16
    # About 5 passes over the keys at 4 operations each, and 12 for a word.
    compared = INSTANCES * (rankings + 1) * 5 * 4 + 2 * INSTANCES * 12
    return [
        Operation("select and gather", select, moved, compared),
        Operation("ReLU and dropout", drop, 2 * values, kept * WIDTH * 4),
        Operation("ReLU and dropout, backward", drop_back, 3 * values, kept * WIDTH * 2),
        Operation("softmax pooling", pool, values + columns, 2 * kept * WIDTH * num_columns),
        Operation(
            "softmax pooling, backward", pool_back, 2 * values + 2 * columns, 4 * kept * WIDTH * num_columns
        ),
        Operation("arg-max", top, columns, kept * num_columns),
    ]


def products(masking: Masking) -> list[Operation]:
    """The matrix products of an AB-MIL step, which a library computes."""
    kept = most_kept(masking, INSTANCES, 1, 0.0)

    def product(name: str, rows: int, width: int, inner: int, times: int = 1) -> Operation:
        moved = 2 * (rows * inner + inner * width + rows * width)
        return Operation(name, [], times * moved, times * 2 * rows * inner * width)

    return [
        product("teacher's projection", INSTANCES, WIDTH, FEATURES),
        product("teacher's attention", INSTANCES, ATTENTION, WIDTH),
        product("student's projection, both ways", kept, WIDTH, FEATURES, 2),
        product("student's attention, both ways", kept, ATTENTION, WIDTH, 3),
    ]


class _Dispatched(TorchDispatchMode):
    """Counts what is dispatched to a device: neither views nor allocations."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        returned = [each.alias_info for each in operator._schema.returns]
        is_view = any(alias is not None and not alias.is_write for alias in returned)
        self.count += not is_view and "empty" not in operator.name()
        return operator(*args, **(kwargs or {}))


def dispatched(model: str) -> int:
    """Operators that a training step on one bag dispatches, by a step on tensors without data."""
    config = preset("c16", model).override({"device": "cpu", "precision": "bf16"})
    devices = [*optimizer._get_fused_kernels_supported_devices(), "meta"]
    with mock.patch.object(optimizer, "_get_fused_kernels_supported_devices", return_value=devices):
        student = build(config.model, num_features=FEATURES, num_classes=2, seed=0).to("meta")
        step = TrainingStep(config, student, Teacher(config.teacher, student, student))
        bags = PackedBags.from_list([torch.empty(INSTANCES, FEATURES, dtype=step.dtype)], [0]).to("meta")
        with mock.patch.object(step, "_read_later"):
            step(bags, Draws(0, 0), progress=0.0, num_bags=1)  # allocates the optimiser's state
            with _Dispatched() as mode:
                step(bags, Draws(0, 1), progress=0.0, num_bags=1)
    return mode.count


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    parser.add_argument(
        "--architectures", type=int, nargs="*", default=list(ARCHITECTURES), help="compute capabilities x 10"
    )
    parser.add_argument("--all", action="store_true", help="compile for eight heads and two columns, too")
    options = parser.parse_args()

    masking = preset("c16", "abmil").masking
    rows = []
    # One head and one column are AB-MIL's, eight heads TransMIL's, two columns DSMIL's.
    for num_heads, num_columns in ((1, 1), (8, 2)) if options.all else ((1, 1),):
        shapes = f"{num_heads} head{'s' * (num_heads > 1)}, {num_columns} column{'s' * (num_columns > 1)}"
        for operation in operations(masking, num_heads, num_columns):
            for launch in operation.launches:
                use = {f"sm_{arch}": vars(compiled(launch, arch)) for arch in options.architectures}
                rows.append({"kernel": launch.name, "shapes": shapes, "grid": launch.grid, **use})
    step = operations(masking, num_heads=1, num_columns=1)[:-1] + products(masking)
    # The teacher's own pooling, without dropout, and one pass over the flat weights for Adam and average.
    weights = FEATURES * WIDTH + WIDTH + WIDTH * ATTENTION + ATTENTION + WIDTH * 2 + 2
    step.append(Operation("teacher's softmax pooling", step[3].launches, INSTANCES * (WIDTH * 2 + 4), 0))
    step.append(Operation("Adam and moving average", [], weights * 4 * 9, weights * 20))
    floor_us = sum(operation.floor_us for operation in step)
    operators = {model: dispatched(model) for model in ("abmil", "dsmil")}
    # Of ours, selection has two launches more than operators, and pooling one, for student and teacher.
    host_us = (operators["abmil"] + 4) * LAUNCH_US
    summary = {
        "floor_us": floor_us,
        "bags_a_s_by_floor": 1e6 / floor_us,
        "operators": operators,
        "host_us": host_us,
        "bags_a_s_by_host": 1e6 / host_us,
        "paper_bags_a_s": PAPER_BAGS_A_S,
    }
    costs = [
        {
            "operation": operation.name,
            "launches": len(operation.launches) or None,
            "megabytes": operation.bytes_ / 1e6,
            "gigaflop": operation.operations / 1e9,
            "floor_us": operation.floor_us,
        }
        for operation in [*step, operations(masking, num_heads=1, num_columns=2)[-1]]
    ]
    if options.json:
        print(json.dumps({"costs": costs, "kernels": rows, "step": summary}, indent=2))
        return
    print("| operation | launches | MB | GFLOP | H100 floor, us (calculated) |\n|---|---|---|---|---|")
    for cost in costs:
        launches = cost["launches"] or "library"
        print(
            f"| {cost['operation']} | {launches} | {cost['megabytes']:.1f} | {cost['gigaflop']:.3f} "
            f"| {cost['floor_us']:.2f} |"
        )
    print(
        f"\nA step of AB-MIL, calculated: {floor_us:.0f} us by the floors "
        f"({1e6 / floor_us:,.0f} bags/s).\nWithout "
        f"CUDA graphs {operators['abmil']} operators and 4 more launches, at {LAUNCH_US:.0f} us each, are "
        f"{host_us:.0f} us ({1e6 / host_us:,.0f} bags/s).\nDSMIL dispatches {operators['dsmil']} operators. "
        f"The paper, on an RTX 3090: {PAPER_BAGS_A_S:.0f} bags/s.\n"
    )
    names = [f"sm_{arch}" for arch in options.architectures]
    print("Registers of a thread, as compiled; spills in bytes over all architectures.\n")
    print(f"| kernel | for | grid | {' | '.join(names)} | spills |\n|---|---|---|{'---|' * len(names)}---|")
    for row in rows:
        spills = sum(row[name]["spilled_bytes"] for name in names)
        registers = " | ".join(str(row[name]["registers"]) for name in names)
        grid = " x ".join(map(str, row["grid"]))
        print(f"| `{row['kernel']}` | {row['shapes']} | {grid} | {registers} | {spills} |")


if __name__ == "__main__":
    main()
