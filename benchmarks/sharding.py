"""How fast features become shards, against `cp -r` of the same files: `python -m benchmarks.sharding --json`.

The sources are made up, N x 1,024 in CAMELYON16's bag sizes: float32 .pt files like the authors', float16 .pt
files, and float32 .h5 files as CLAM writes them, in chunks of one row, uncompressed and by gzip. The shards
are float16. Both sides read the same warm page cache, write to the same disk and count the bytes of their
sources.
Each round runs cp, shard, cp, shard; a ratio is the median of the paired ones.

`cp -r` does not force its files to disk, and sharding does. Each kind of source is therefore measured in
three ways: neither forces (`ratio_cp` and so on; `os.fsync` does nothing meanwhile), both do (`_synced`), and
each as it is run (`_as_run`), where the disk decides.

Other work on the cores halves what sharding gets, which uses all of them, and leaves `cp` its one. So the
processor time of both sides is measured, too: `processor_ratio_cp` is what idle cores would give, seconds of
a core for a GB by `cp` over those by sharding, times the cores. `stages` are the floors: the seconds of one
core for each thing that must happen to a GB of sources, each measured alone on this machine.

Hashing in other threads than the writing ones would not help, because each core already has its own shard to
hash. Neither would `copy_file_range`, because each byte has to pass through the processor for its hash.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import mock

import h5py
import numpy as np
import torch

from benchmarks.processor import cpu_name
from benchmarks.sharding_stages import stages
from data_prep.embedded.slides import c16_facts
from data_prep.readers.sources import Source, read_features
from data_prep.shard import shard
from data_prep.writing.parallel import num_cores

NUM_FEATURES = 1024


SOURCES = {
    "": "float32 .pt",
    "_float16": "float16 .pt",
    "_h5": "float32 .h5, chunks of a row",
    "_h5_gzip": "the same by gzip",
}
"""The sources, by the suffix of their results' names."""
WAYS = {"": "neither", "_synced": "both", "_as_run": "sharding"}
"""Which side forces its files to disk, by the next suffix."""


def write_sources(folder: Path, num_bytes: int, kind: str) -> int:
    """Write source files and their labels.

    Args:
        folder: that gets `features/` and `labels.csv`.
        num_bytes: of all files, about.
        kind: a key of `SOURCES`.

    Returns:
        The exact number of bytes.
    """
    features = folder / "features"
    features.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    sizes = np.random.default_rng(0).permutation(c16_facts()["bag_sizes"])
    written, lines = 0, ["slide,label"]
    for number, size in enumerate(sizes):
        path = features / f"slide_{number:04d}{'.h5' if kind.startswith('_h5') else '.pt'}"
        features_ND = torch.randn((int(size), NUM_FEATURES), generator=generator)
        if kind.startswith("_h5"):
            with h5py.File(path, "w") as file:
                file.create_dataset(
                    "features",
                    data=features_ND.numpy(),
                    chunks=(1, NUM_FEATURES),
                    maxshape=(None, NUM_FEATURES),
                    compression="gzip" if kind == "_h5_gzip" else None,
                )
        else:
            torch.save(features_ND.half() if kind == "_float16" else features_ND, path)
        lines.append(f"{path.stem},{number % 2}")
        written += path.stat().st_size
        if written >= num_bytes:
            break
    (folder / "labels.csv").write_text("\n".join(lines))
    return written


def seconds(run: Callable[[Path], None], folder: Path) -> np.ndarray:
    """Seconds that it takes to fill a new folder, which is removed again: on the clock, and of processors."""
    out = folder / "out"
    started = np.array([time.perf_counter(), _processor_s()])
    run(out)
    elapsed = np.array([time.perf_counter(), _processor_s()]) - started
    shutil.rmtree(out)
    return elapsed


def _processor_s() -> float:
    both = (resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in both)


def sync_folder(folder: Path) -> None:
    """Force all files of a folder to disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def compare(folder: Path, *, rounds: int, way: str, shard_bytes: int) -> dict[str, Any]:
    """GB per second of cp and of sharding, seconds of a core per GB, and medians of their paired ratios.

    Args:
        folder: with sources and labels.
        rounds: each of cp, shard, cp, shard.
        way: a key of `WAYS`.
        shard_bytes: size at which a new shard begins.
    """

    def copy(out: Path) -> None:
        subprocess.run(["cp", "-r", str(folder / "features"), str(out)], check=True)
        if way == "_synced":
            sync_folder(out)

    def convert(out: Path) -> None:
        with (
            mock.patch("os.fsync", os.fsync if way else lambda descriptor: None),
            redirect_stderr(StringIO()),
        ):
            shard(folder / "features", folder / "labels.csv", out, shard_bytes=shard_bytes)

    num_bytes = sum(path.stat().st_size for path in (folder / "features").iterdir())
    copies, conversions = [], []
    for _ in range(2 * rounds):
        copies.append(num_bytes / seconds(copy, folder))
        conversions.append(num_bytes / seconds(convert, folder))
    copy_2, convert_2 = (1e9 / np.median(each, axis=0) for each in (copies, conversions))
    ratios = np.array([ours / theirs for ours, theirs in zip(conversions, copies, strict=True)])
    return {
        "cp_gb_per_s": 1 / float(copy_2[0]),
        "shard_gb_per_s": 1 / float(convert_2[0]),
        "ratio": float(np.median(ratios[:, 0])),
        "cp_core_s_per_gb": float(copy_2[1]),
        "shard_core_s_per_gb": float(convert_2[1]),
        "processor_ratio": float(np.median(ratios[:, 1])) * num_cores(),
    }


def against_slicing(folder: Path, rounds: int) -> float:
    """How many times as fast our reader is as h5py's own slicing, by processor time: the median of pairs."""
    path = sorted((folder / "features").iterdir())[0]

    def theirs() -> None:
        with h5py.File(path, "r", locking=False) as file:
            assert file["features"][:].shape[1] == NUM_FEATURES

    def ours() -> None:
        for block in read_features(Source(path, "hdf5")).blocks(2**21):
            assert block.shape[1] == NUM_FEATURES

    ratios = []
    for _ in range(2 * rounds + 1):
        times = []
        for read in (theirs, ours):
            started = time.process_time()
            read()
            times.append(time.process_time() - started)
        ratios.append(times[0] / times[1])
    return statistics.median(ratios)


def measure(folder: Path | None, num_bytes: int, rounds: int) -> dict[str, dict[str, Any]]:
    """`compare` every kind of source in every way.

    Args:
        folder: where to work; None: the temporary folder.
        num_bytes: of each kind of source.
        rounds: as in `compare`.
    """
    results: dict[str, dict[str, Any]] = {}
    for kind in SOURCES:
        with tempfile.TemporaryDirectory(dir=folder, prefix="sharding-") as name:
            written = write_sources(Path(name), num_bytes, kind)
            for way in WAYS:
                results[kind + way] = compare(Path(name), rounds=rounds, way=way, shard_bytes=written // 16)
            results[kind]["stages"] = stages(Path(name) / "features")
            if kind.startswith("_h5"):
                results[kind]["ratio_slicing"] = against_slicing(Path(name), rounds)
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sharding", description="Sharding against cp -r, in bytes per second."
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead of a table")
    parser.add_argument("--gb", type=float, default=1.5, help="size of the sources (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=3, help="of cp, shard, cp, shard (default: %(default)s)"
    )
    parser.add_argument("--folder", type=Path, help="where to work (default: the system's temporary folder)")
    options = parser.parse_args(arguments)
    load = os.getloadavg()[0]  # other work slows down both sides, but sharding more, as it uses all cores
    results = measure(options.folder, int(options.gb * 1e9), options.rounds)
    if options.json:
        flat = {f"ratio_cp{label}": round(result["ratio"], 3) for label, result in results.items()}
        flat |= {f"processor_ratio_cp{kind}": round(results[kind]["processor_ratio"], 3) for kind in SOURCES}
        runs = {f"cp{label}": result for label, result in results.items()}
        flat |= {
            f"ratio_slicing{label}": round(result["ratio_slicing"], 2)
            for label, result in results.items()
            if "ratio_slicing" in result
        }
        machine = {"cpu": cpu_name(), "cores": num_cores(), "load": round(load, 1)}
        print(json.dumps(flat | machine | {"runs": runs}))
        return
    print(f"{'sources':30}{'forced to disk':>16}{'cp -r':>12}{'shard':>12}{'ratio':>8}{'idle':>8}")
    for kind, sources in SOURCES.items():
        for way, who in WAYS.items():
            result = results[kind + way]
            rates = f"{result['cp_gb_per_s']:>7.2f} GB/s{result['shard_gb_per_s']:>7.2f} GB/s"
            print(f"{sources:30}{who:>16}{rates}{result['ratio']:>8.2f}{result['processor_ratio']:>8.2f}")
    print("\nSeconds of one core per GB of sources, at least:")
    for kind, sources in SOURCES.items():
        each = ", ".join(f"{name} {taken:.2f}" for name, taken in results[kind]["stages"].items())
        print(f"{sources}: {each}; cp -r {results[kind]['cp_core_s_per_gb']:.2f}")


if __name__ == "__main__":
    sys.exit(main())
