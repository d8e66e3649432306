"""What a core does for a GPU per bag: converting features, against copying them as they are stored.

`mhimdist/data/devices.py` chooses by these times. torch computes on one thread; each time is the quickest of
several, into memory that is in use already. torch converts with the widest instruction that it was built for
(F16C, AVX-512); numpy is measured beside it, as the other converter at hand.

    python -m benchmarks.conversion [--rows 9000] [--features 1024] [--repeats 12] [--json]
"""

import argparse
import json
import time

import numpy as np
import torch

from benchmarks.processor import cpu_name

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=9000, help="instances of the bag")
    parser.add_argument("--features", type=int, default=1024, help="width of the features")
    parser.add_argument("--repeats", type=int, default=12, help="times that each conversion runs")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    torch.set_num_threads(1)
    shape = args.rows, args.features
    milliseconds = {
        f"{str(stored).removeprefix('torch.')} to {str(dtype).removeprefix('torch.')}": round(
            quickest_s(stored, dtype, shape, args.repeats) * 1e3, 3
        )
        for stored in DTYPES
        for dtype in DTYPES
    }
    milliseconds["float16 to float32 by numpy"] = round(numpy_s(shape, args.repeats) * 1e3, 3)
    if args.json:
        machine = {"cpu": cpu_name(), "instructions": torch.backends.cpu.get_cpu_capability()}
        size = {"rows": args.rows, "features": args.features}
        print(json.dumps(machine | size | {"ms": milliseconds}))
        return
    for what, taken in milliseconds.items():
        print(
            f"{what:<22} {taken:8.2f} ms{' (a copy as stored)' if len(set(what.split(' to '))) == 1 else ''}"
        )


if __name__ == "__main__":
    main()
