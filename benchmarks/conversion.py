"""What a core does for a GPU per bag: converting features, against copying them as they are stored.

`mhimdist/data/devices.py` chooses by these times. torch computes on one thread; each time is the quickest of
several, into memory that is in use already. The readers convert float16 for a CPU by torch's `copy_` into
reused memory, and `--ways` races that against the other converters at hand: torch's `.to` and numpy's
`astype` into new memory, and numpy into reused memory. A block that stays in a core's cache shows the width
of the instructions: one value at a time cannot exceed about one value per nanosecond.

    python -m benchmarks.conversion [--rows 9000] [--features 1024] [--repeats 12] [--ways] [--json]
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.processor import cpu_name

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
CACHED_ROWS = 64
"""Rows of a block that stays in a core's cache with its copy: 384 KiB of 1,024 features."""


def quickest_s(stored: torch.dtype, dtype: torch.dtype, shape: tuple[int, int], repeats: int) -> float:
    """Seconds for one thread to write features into memory of a dtype."""
    source = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(stored)
    target = torch.empty(shape, dtype=dtype)
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - started)
    return min(times)


def numpy_s(shape: tuple[int, int], repeats: int) -> float:
    """Seconds for numpy to write float16 features into memory of float32."""
    source = np.random.default_rng(0).standard_normal(shape).astype(np.float16)
    target = np.empty(shape, np.float32)
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        np.copyto(target, source)
        times.append(time.perf_counter() - started)
    return min(times)


def ways(shape: tuple[int, int], repeats: int) -> dict[str, dict[str, float]]:
    """Ways from float16 to float32, in turn: the quickest and the median ms, and values per nanosecond.

    Args:
        shape: of the features.
        repeats: rounds.
    """
    source = torch.randn(shape, generator=torch.Generator().manual_seed(0)).half()
    target, array = torch.empty(shape), source.numpy()
    converters: dict[str, Callable[[], object]] = {
        "torch, reused memory": lambda: target.copy_(source),
        "torch, new memory": lambda: source.to(torch.float32),
        "numpy, reused memory": lambda: np.copyto(target.numpy(), array),
        "numpy, new memory": lambda: array.astype(np.float32),
    }
    times: dict[str, list[float]] = {name: [] for name in converters}
    for _ in range(repeats):
        for name, convert in converters.items():
            started = time.perf_counter()
            convert()
            times[name].append((time.perf_counter() - started) * 1e3)
    return {
        name: {
            "quickest_ms": round(min(taken), 4),
            "median_ms": round(statistics.median(taken), 4),
            "values_per_ns": round(source.numel() / (max(min(taken), 1e-6) * 1e6), 2),
        }
        for name, taken in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=9000, help="instances of the bag")
    parser.add_argument("--features", type=int, default=1024, help="width of the features")
    parser.add_argument("--repeats", type=int, default=12, help="times that each conversion runs")
    parser.add_argument("--ways", action="store_true", help="float16 to float32 alone, by each converter")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    torch.set_num_threads(1)
    shape = args.rows, args.features
    machine = {"cpu": cpu_name(), "instructions": torch.backends.cpu.get_cpu_capability()}
    if args.ways:
        found = {"bag": ways(shape, args.repeats), "in_cache": ways((CACHED_ROWS, args.features), 400)}
        if args.json:
            print(json.dumps(machine | found))
            return
        for what, each in found.items():
            for name, taken in each.items():
                print(f"{what:<9} {name:<21}", *(f"{key} {value:>9}" for key, value in taken.items()))
        return
    milliseconds = {
        f"{str(stored).removeprefix('torch.')} to {str(dtype).removeprefix('torch.')}": round(
            quickest_s(stored, dtype, shape, args.repeats) * 1e3, 3
        )
        for stored in DTYPES
        for dtype in DTYPES
    }
    milliseconds["float16 to float32 by numpy"] = round(numpy_s(shape, args.repeats) * 1e3, 3)
    if args.json:
        size = {"rows": args.rows, "features": args.features}
        print(json.dumps(machine | size | {"ms": milliseconds}))
        return
    for what, taken in milliseconds.items():
        print(
            f"{what:<22} {taken:8.2f} ms{' (a copy as stored)' if len(set(what.split(' to '))) == 1 else ''}"
        )


if __name__ == "__main__":
    main()
