#!/usr/bin/env python3
"""Our own layers, `block_attention` and `linear`, against torch's.

    python benchmarks/layers.py
    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 python benchmarks/layers.py --instances 5000

`attend` races `scaled_dot_product_attention` over TransMIL's two factors: the landmarks gather from the
tokens, and the tokens from the landmarks. `linear`, `linear_relu` and `projection` race `nn.Linear`, followed
by a ReLU or `ops.relu_dropout`. Each side runs forward and backward; if a row says forward, gradients are
off, as in a teacher. The two sides run in turn in one process on the CPU. Every call has a bag of another
size, as in training: a kernel made for one shape serves neither another call nor the other side. Times are
processor time of all threads. A ratio is the median over rounds of torch's time divided by ours: above 1,
ours is faster.

Peak memory of the attention, forward and backward, is measured on Linux, each side in its own process, above
what the process held before; `plain` is softmax(Q K^T) V with the whole matrix in memory.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.train_step import ratio
from mhimdist import ops
from mhimdist.data.bags import PackedBags
from mhimdist.models.layers.block_attention import attend
from mhimdist.models.layers.linear import linear, linear_relu, projection

Call = Callable[[int], object]
"""One side of a race, called with a number of instances."""

SIZES = (500, 5_000, 20_000)
DTYPES = ("float32", "bfloat16")
# Sizes of the C16 presets; heads and landmarks are TransMIL's.
FEATURES, WIDTH, ATTENTION, HEADS, LANDMARKS = 1024, 512, 128, 8, 256
ATTENTIONS = ("landmarks gather", "tokens gather")
WAYS = ("ours", "torch", "plain")


def sdpa(queries_HRK: Tensor, keys_HSK: Tensor, values_HSK: Tensor) -> Tensor:
    """`attend` with torch's operator."""
    return functional.scaled_dot_product_attention(
        queries_HRK[None], keys_HSK[None], values_HSK[None], scale=1.0
    )[0]


def plain(queries_HRK: Tensor, keys_HSK: Tensor, values_HSK: Tensor) -> Tensor:
    """`attend` with the whole matrix in memory."""
    return torch.softmax(queries_HRK @ keys_HSK.mT, dim=-1) @ values_HSK


def attention(way: str, kind: str, instances: int, dtype: torch.dtype, *, has_backward: bool = True) -> Call:
    """One of TransMIL's two large factors, forward and backward or forward alone."""
    function = {"ours": attend, "torch": sdpa, "plain": plain}[way]
    generator = torch.Generator().manual_seed(0)
    # Laid out as heads of tokens are: side by side in a row.
    shape = (HEADS, WIDTH // HEADS)
    tokens_3NHK = torch.randn(3, instances, *shape, generator=generator).to(dtype)
    marks_2PHK = torch.randn(2, LANDMARKS, *shape, generator=generator).to(dtype)
    scale = shape[1] ** -0.5

    def call(size: int) -> None:
        tokens = tokens_3NHK[:, :size].transpose(1, 2)
        marks = marks_2PHK.transpose(1, 2)
        if kind == "landmarks gather":
            parts = (marks[0] * scale, tokens[1], tokens[2])
        else:
            parts = (tokens[0], marks[0] * scale, marks[1])
        inputs = [each.detach().requires_grad_(has_backward) for each in parts]
        out_HRK = function(*inputs)
        if has_backward:
            torch.autograd.grad(out_HRK, inputs, torch.ones_like(out_HRK))

    return call


def product(way: str, width: int, out: int, instances: int, dtype: torch.dtype) -> Call:
    """Forward and backward through a linear layer."""
    function = {"ours": linear, "torch": functional.linear}[way]
    rows_ND, layer = _rows_and_layer(width, out, instances, dtype)
    inputs = list(layer.parameters())

    def call(size: int) -> None:
        rows_RD = rows_ND[:size].requires_grad_()
        out_RE = function(rows_RD, *inputs)
        torch.autograd.grad(out_RE, [rows_RD, *inputs], torch.ones_like(out_RE))

    return call


def product_relu(way: str, width: int, out: int, instances: int, dtype: torch.dtype) -> Call:
    """A linear layer and its ReLU, without gradients."""
    rows_ND, layer = _rows_and_layer(width, out, instances, dtype)

    def call(size: int) -> Tensor:
        with torch.no_grad():
            if way == "ours":
                return linear_relu(rows_ND[:size], layer.weight, layer.bias)
            return torch.relu_(layer(rows_ND[:size]))

    return call


def projected(way: str, instances: int, dtype: torch.dtype) -> Call:
    """Features to the model's width, with ReLU and dropout, forward and backward."""
    rows_ND, layer = _rows_and_layer(FEATURES, WIDTH, instances, dtype)
    keys_1 = torch.tensor([1])

    def call(size: int) -> None:
        bags = PackedBags.from_list([rows_ND[:size]])
        if way == "ours":
            out_NE = projection(bags, layer, 0.25, keys_1)
        else:
            out_NE = ops.relu_dropout(layer(bags.features_TD), 0.25, bags.offsets_B1, keys_1, inplace=True)
        torch.autograd.grad(out_NE, list(layer.parameters()), torch.ones_like(out_NE))

    return call


def _rows_and_layer(width: int, out: int, instances: int, dtype: torch.dtype) -> tuple[Tensor, nn.Linear]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(instances, width, generator=generator).to(dtype), nn.Linear(width, out).to(dtype)


def race(calls: dict[str, Call], instances: int, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of processor time of each side in each round; within a round the sides take turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    sizes = count(instances, -1)
    for _ in range(rounds + 1):
        for name, call in calls.items():
            size = next(sizes)
            started = time.process_time()
            call(size)
            times[name].append((time.process_time() - started) * 1e3)
    return {name: values[1:] for name, values in times.items()}  # the first warms up


def races(instances: int, dtype: str) -> dict[str, Callable[[str], Call]]:
    """The races by name: each maps a side to its call."""
    size, kind = instances, getattr(torch, dtype)
    found: dict[str, Callable[[str], Call]] = {
        f"attention: {name}": lambda way, name=name: attention(way, name, size, kind)  # type: ignore[misc]
        for name in ATTENTIONS
    }
    return found | {
        "forward: attention: tokens gather": lambda way: attention(
            way, "tokens gather", size, kind, has_backward=False
        ),
        f"linear {WIDTH} to {WIDTH}": lambda way: product(way, WIDTH, WIDTH, size, kind),
        f"linear {WIDTH} to {ATTENTION}": lambda way: product(way, WIDTH, ATTENTION, size, kind),
        f"projection {FEATURES} to {WIDTH}": lambda way: projected(way, size, kind),
        f"forward: linear, ReLU {FEATURES} to {WIDTH}": lambda way: product_relu(
            way, FEATURES, WIDTH, size, kind
        ),
    }


def measure(instances: int, dtype: str, rounds: int) -> list[dict[str, Any]]:
    """Race every layer at one size."""
    rows = []
    for name, of_way in races(instances, dtype).items():
        times = race({way: of_way(way) for way in ("ours", "torch")}, instances, rounds)
        ms = {way: round(statistics.median(values), 3) for way, values in times.items()}
        rows.append(
            {
                "layer": name,
                "instances": instances,
                "dtype": dtype,
                "ms": ms,
                "ratio": round(ratio(times["torch"], times["ours"]), 2),
            }
        )
    return rows


def peak_mb(way: str, kind: str, instances: int, dtype: str) -> float:
    """Peak of this process during an attention, forward and backward, above what it held before, in MB."""
    call = attention(way, kind, instances, getattr(torch, dtype))
    call(16)  # the libraries allocate some memory once
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak, which filling the tokens has set
    before = _status_mb("VmRSS")
    call(instances)
    return _status_mb("VmHWM") - before


def _status_mb(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(f"{name}:"))


def peaks(instances: int, dtype: str) -> list[dict[str, Any]]:
    """Peak memory of every way of attention, each in its own process."""
    rows = []
    for kind in ATTENTIONS:
        found = {}
        for way in WAYS:
            command = [sys.executable, __file__, "--instances", str(instances), "--dtype", dtype]
            done = subprocess.run([*command, "--only", way, kind], check=True, capture_output=True, text=True)
            found[way] = round(float(done.stdout), 1)
        rows.append({"layer": kind, "instances": instances, "dtype": dtype, "peak_mb": found})
    return rows


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--instances", type=int, nargs="+", default=SIZES, help="of the bag")
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=DTYPES, help="of features and layers")
    parser.add_argument("--threads", type=int, default=1, help="compute threads (default: 1)")
    parser.add_argument("--rounds", type=int, default=15, help="of each race (default: 15)")
    parser.add_argument(
        "--only", nargs=2, metavar=("WAY", "LAYER"), help="measure one in this process and print its MB"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.only:
        print(peak_mb(*options.only, options.instances[0], options.dtype[0]))
        return
    cases = [(instances, dtype) for dtype in options.dtype for instances in options.instances]
    found = [row for case in cases for row in measure(*case, options.rounds)]
    memory = [row for dtype in options.dtype for row in peaks(max(options.instances), dtype)]
    cpu = torch.backends.cpu.get_cpu_capability()
    if options.json:
        facts = {"cpu": cpu, "machine": platform.machine(), "threads": options.threads}
        print(json.dumps(facts | {"rounds": options.rounds, "races": found, "memory": memory}))
        return
    print(f"{cpu}, {options.threads} thread(s), medians of {options.rounds} rounds")
    print(f"  {'layer':<36} {'dtype':<9} {'instances':>9} {'ours ms':>9} {'torch ms':>9}   ours is faster by")
    for row in found:
        print(
            f"  {row['layer']:<36} {row['dtype']:<9} {row['instances']:>9,} {row['ms']['ours']:>9.2f} "
            f"{row['ms']['torch']:>9.2f}   {row['ratio']:>17.2f}"
        )
    print("Peak memory of the attention, MB")
    for row in memory:
        peak = ", ".join(f"{way} {mb:.0f}" for way, mb in row["peak_mb"].items())
        print(f"  {row['layer']:<36} {row['dtype']:<9} {row['instances']:>9,} {peak}")


if __name__ == "__main__":
    main()
