"""How fast features become shards, against `cp -r` of the same files: `python benchmarks/sharding.py --json`.

Sources are made up: .pt files of N x 1,024 in CAMELYON16's bag sizes, in float32 as the authors' are
(`ratio_cp`), and again in float16 (`ratio_cp_float16`); the shards are float16. Both sides read the same
warm page cache, write to the same disk and count the bytes of the sources. Each round runs cp, shard, cp,
shard; a ratio is the median of the paired ones. `cp -r` does not force what it wrote to disk, so for
`ratio_cp` sharding does not either, while `ratio_cp_synced` has both do it: sharding as users run it, and cp
with a sync of what it wrote.

Where the processor's time goes on float16 sources, of which every byte is hashed and written: sha256 of the
shard .4, crc32 of the members .2, writing .15, the search for NaN .1 (one thread, a processor with SHA
instructions).
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from data_prep.digits import c16_facts
from data_prep.shard import shard

NUM_FEATURES = 1024


def write_sources(folder: Path, num_bytes: int, dtype: torch.dtype) -> int:
    """Write .pt files of about this many bytes in all, and their labels; the exact number of bytes."""
    features = folder / "features"
    features.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    sizes = np.random.default_rng(0).permutation(c16_facts()["bag_sizes"])
    written, lines = 0, ["slide,label"]
    for number, size in enumerate(sizes):
        path = features / f"slide_{number:04d}.pt"
        torch.save(torch.randn((int(size), NUM_FEATURES), generator=generator).to(dtype), path)
        lines.append(f"{path.stem},{number % 2}")
        written += path.stat().st_size
        if written >= num_bytes:
            break
    (folder / "labels.csv").write_text("\n".join(lines))
    return written


def seconds(run: Callable[[Path], None], folder: Path) -> float:
    """How long it takes to fill a new folder, which is removed again."""
    out = folder / "out"
    started = time.perf_counter()
    run(out)
    elapsed = time.perf_counter() - started
    shutil.rmtree(out)
    return elapsed


def sync_folder(folder: Path) -> None:
    """Force all files of a folder to disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def compare(folder: Path, *, rounds: int, synced: bool, shard_bytes: int) -> dict[str, float]:
    """Bytes per second of cp and of sharding, and the median of their paired ratios."""

    def copy(out: Path) -> None:
        subprocess.run(["cp", "-r", str(folder / "features"), str(out)], check=True)
        if synced:
            sync_folder(out)

    def convert(out: Path) -> None:
        with mock.patch("os.fsync", os.fsync if synced else lambda descriptor: None):
            shard(folder / "features", folder / "labels.csv", out, shard_bytes=shard_bytes)

    num_bytes = sum(path.stat().st_size for path in (folder / "features").iterdir())
    copies, conversions = [], []
    for _ in range(2 * rounds):
        copies.append(num_bytes / seconds(copy, folder))
        conversions.append(num_bytes / seconds(convert, folder))
    ratios = [ours / theirs for ours, theirs in zip(conversions, copies, strict=True)]
    return {
        "cp_gb_per_s": statistics.median(copies) / 1e9,
        "shard_gb_per_s": statistics.median(conversions) / 1e9,
        "ratio": statistics.median(ratios),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python benchmarks/sharding.py", description="Sharding against cp -r, in bytes per second."
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead of a table")
    parser.add_argument("--gb", type=float, default=1.5, help="size of the sources (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=3, help="of cp, shard, cp, shard (default: %(default)s)"
    )
    parser.add_argument("--folder", type=Path, help="where to work (default: the system's temporary folder)")
    options = parser.parse_args()
    results: dict[str, dict[str, float]] = {}
    load = os.getloadavg()[0]  # both sides suffer from what else runs, but sharding uses all cores
    for dtype in (torch.float32, torch.float16):
        with tempfile.TemporaryDirectory(dir=options.folder, prefix="sharding-") as name:
            folder = Path(name)
            num_bytes = write_sources(folder, int(options.gb * 1e9), dtype)
            for synced in (False, True):
                label = f"{dtype}".removeprefix("torch.") + ("_synced" if synced else "")
                rounds = options.rounds if not synced else 1
                results[label] = compare(folder, rounds=rounds, synced=synced, shard_bytes=num_bytes // 16)
    flat = {"ratio_cp": results["float32"]["ratio"], "ratio_cp_synced": results["float32_synced"]["ratio"]}
    flat |= {"ratio_cp_float16": results["float16"]["ratio"]}
    flat |= {
        "ratio_cp_float16_synced": results["float16_synced"]["ratio"],
        "cores": os.cpu_count() or 0,
        "load": load,
    }
    if options.json:
        print(json.dumps({name: round(value, 3) for name, value in flat.items()} | {"runs": results}))
        return
    print(f"{'sources':20}{'cp -r':>12}{'shard':>12}{'ratio':>8}")
    for label, result in results.items():
        rates = f"{result['cp_gb_per_s']:.2f} GB/s{result['shard_gb_per_s']:>7.2f} GB/s"
        print(f"{label:20}{rates:>24}{result['ratio']:>8.2f}")


if __name__ == "__main__":
    sys.exit(main())
