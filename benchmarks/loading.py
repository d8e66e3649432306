"""Bags per second that each way of loading features delivers as float32, and the memory it takes.

All loaders read the same bags of CAMELYON16's sizes from a warm page cache, in turns in one process; the
consumer touches every page it gets. torch computes on one thread. A ratio is the median over the rounds; each
round takes the mean of our turns before and after the peer's. Peak anonymous memory (RssAnon, above that of
the imports) is measured with each loader in its own process.

    python -m benchmarks.loading [--bags 32] [--rounds 5] [--one-core] [--json]
"""

import argparse
import json
import mmap
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import h5py
import numpy as np
import torch
import webdataset
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.processor import cpu_name
from data_prep.shard import shard
from mhimdist.config.train import Loading
from mhimdist.data import read_ahead as read_ahead_module
from mhimdist.data.read_ahead import read_ahead
from mhimdist.data.resident import resident
from mhimdist.data.shards import BagShards

FACTS = Path(__file__).parent.parent / "data_prep" / "c16_facts.json"
NUM_FEATURES = 1024
TURN_S = 0.6
NUM_H5_BAGS = 4  # one bag takes so long that more would only prolong the benchmark

OURS, IN_TURN = "mmap, read ahead", "mmap, no read ahead"
PEERS = ("torch.load", "webdataset")
CACHES = ("warm", "cold")
"""States of the page cache: all files are in it, or none."""


def build(folder: Path, num_bags: int) -> None:
    """Write the bags as float32 .pt files, as float16 shards, and some as CLAM's h5 files.

    The sizes are evenly spaced quantiles of CAMELYON16's and include the largest, 44,402.
    """
    sizes = np.sort(json.loads(FACTS.read_text())["bag_sizes"])
    sizes = sizes[np.linspace(len(sizes) - 1, 0, num_bags).round().astype(int)]
    for name in ("pt", "h5"):
        (folder / name).mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    lines = ["slide,label"]
    for number, size in enumerate(sizes.tolist()):
        features_ND = torch.randn(size, NUM_FEATURES, generator=generator).half().float()
        torch.save(features_ND, folder / "pt" / f"bag{number:03d}.pt")
        lines.append(f"bag{number:03d},{('normal', 'tumour')[number % 2]}")
        if number in _h5_numbers(num_bags):
            with h5py.File(folder / "h5" / f"bag{number:03d}.h5", "w") as file:  # as CLAM writes it
                shape = (None, NUM_FEATURES)
                file.create_dataset(
                    "features", data=features_ND.numpy(), chunks=(1, NUM_FEATURES), maxshape=shape
                )
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    shard(folder / "pt", folder / "labels.csv", folder / "shards", shard_bytes=256 << 20)


def _h5_numbers(num_bags: int) -> list[int]:
    """Bags near the median size, because rates are compared in bags."""
    middle = num_bags // 2
    return list(range(middle - NUM_H5_BAGS // 2, middle + NUM_H5_BAGS // 2))


def loaders(folder: Path) -> dict[str, Callable[[], Iterator[Tensor]]]:
    """An epoch of each loader, as float32 tensors N x D."""
    bags = BagShards(folder / "shards")
    order = np.random.default_rng(0).permutation(len(bags)).tolist()
    paths = [folder / "pt" / f"{bags.slides[row]}.pt" for row in order]
    tars = sorted(map(str, (folder / "shards").glob("*.tar")))

    def ours(loading: Loading) -> Iterator[Tensor]:
        with read_ahead(bags, [[row] for row in order], loading=loading) as batches:
            for batch in batches:
                yield batch.features_TD

    def torch_load() -> Iterator[Tensor]:
        for path in paths:
            yield torch.load(path, weights_only=True)

    def webdataset_reader() -> Iterator[Tensor]:
        for sample in webdataset.WebDataset(tars, shardshuffle=False).decode(only=["features.npy"]):
            yield torch.from_numpy(sample["features.npy"]).float()

    def in_ram() -> Iterator[Tensor]:
        held = resident(bags, "ram")
        for row in order:
            yield held.load([row]).features_TD

    def h5() -> Iterator[Tensor]:
        for path in sorted((folder / "h5").iterdir()):
            with h5py.File(path, "r") as file:
                yield torch.from_numpy(file["features"][:])

    return {
        OURS: lambda: ours(Loading(read_ahead=True)),
        "torch.load": torch_load,
        "webdataset": webdataset_reader,
        IN_TURN: lambda: ours(Loading(read_ahead=False)),
        "DALI": lambda: ours(Loading(reader="dali")),
        "chunked h5": h5,
        "cache=ram": in_ram,
    }


def consume(epoch: Iterator[Tensor]) -> tuple[int, float]:
    """Touch every page of every bag of an epoch; returns the number of bags and the seconds."""
    started, num_bags, total = time.perf_counter(), 0, 0.0
    for features_ND in epoch:
        assert features_ND.dtype == torch.float32
        total += float(features_ND.view(-1)[::1024].sum())
        num_bags += 1
    assert np.isfinite(total)
    return num_bags, time.perf_counter() - started


def rate(epoch: Callable[[], Iterator[Tensor]]) -> float:
    """Bags per second, over as many epochs as fill `TURN_S`."""
    num_bags, seconds = 0, 0.0
    while seconds < TURN_S:
        more_bags, more_s = consume(epoch())
        num_bags, seconds = num_bags + more_bags, seconds + more_s
    return num_bags / seconds


def rss_anon() -> int:
    """Anonymous resident memory of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise RuntimeError("/proc/self/status has no RssAnon: this benchmark needs Linux 4.5")


def peak_rss_anon(epoch: Callable[[], Iterator[Tensor]]) -> int:
    """Peak anonymous memory of two epochs, as in `peak_of`."""

    def two_epochs() -> None:
        for _ in range(2):
            consume(epoch())

    return peak_of(two_epochs)


def peak_of(work: Callable[[], object]) -> int:
    """Peak anonymous memory above what the process had before, sampled every 2 ms, in bytes."""
    before = peak = rss_anon()
    ended = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.002):
            peak = max(peak, rss_anon())

    thread = threading.Thread(target=watch)
    thread.start()
    work()
    ended.set()
    thread.join()
    return peak - before


def one_core(folder: Path, rounds: int) -> dict[str, object]:
    """The part of `measure` that says what a trial on one core gets."""
    found = with_a_step(folder, rounds, 1, 1)
    return {
        "one_core": found["later"]["processor"],
        "with_a_step": {"one core": found},
        "cpu": cpu_name(),
        "load": round(os.getloadavg()[0], 1),
        "rounds": rounds,
    }


def measure(folder: Path, rounds: int) -> dict[str, object]:
    """Rates of all loaders in turns, our ratios to the peers, and peaks of memory."""
    epochs = loaders(folder)
    first = {state: first_epochs(folder, rounds, state) for state in CACHES}
    num_cores = len(os.sched_getaffinity(0))
    together = {
        "one core": with_a_step(folder, rounds, 1, 1),
        "all cores, one thread": with_a_step(folder, rounds, num_cores, 1),
        "all cores": with_a_step(folder, rounds, num_cores, num_cores),
    }
    num_bags, first_s = consume(epochs[OURS]())  # with every checksum
    rates: dict[str, list[float]] = {name: [] for name in epochs}
    for epoch in epochs.values():
        consume(epoch())
    ratios: dict[str, list[float]] = {peer: [] for peer in PEERS}
    for _ in range(rounds):
        before = rate(epochs[OURS])
        for peer in PEERS:
            theirs, after = rate(epochs[peer]), rate(epochs[OURS])
            ratios[peer].append((before + after) / 2 / theirs)
            rates[peer].append(theirs)
            rates[OURS].append(after)
            before = after
        for name in list(epochs)[1 + len(PEERS) :]:
            rates[name].append(rate(epochs[name]))
    memory = {
        name: json.loads(
            subprocess.run(
                [sys.executable, "-m", "benchmarks.loading", "--folder", str(folder), "--memory-of", name],
                check=True,
                stdout=subprocess.PIPE,
            ).stdout
        )
        for name in epochs
    }
    return {
        "ratio_torch_load": round(median(ratios["torch.load"]), 2),
        "ratio_webdataset": round(median(ratios["webdataset"]), 2),
        "bags_per_s": {name: round(median(values), 1) for name, values in rates.items()},
        "first_epoch_bags_per_s": round(num_bags / first_s, 1),
        "first_epoch_ratio_torch_load": first["warm"]["ratio_torch_load"],
        "first_epoch_spread": [first["warm"][f"{name}_ratio_torch_load"] for name in ("least", "largest")],
        "first_epoch": first,
        "one_core": together["one core"]["later"]["processor"],
        "with_a_step": together,
        "cpu": cpu_name(),
        "load": round(os.getloadavg()[0], 1),
        "peak_rss_anon_mib": {name: round(peak / 2**20) for name, peak in memory.items()},
        "rss_anon_ratio_torch_load": round(memory[OURS] / memory["torch.load"], 2),
        "rss_anon_ratio_webdataset": round(memory[OURS] / memory["webdataset"], 2),
        "num_bags": num_bags,
        "rounds": rounds,
    }


def forget(folder: Path) -> None:
    """Have the kernel drop the pages of all files, so that the disk is read again."""
    for path in filter(Path.is_file, folder.rglob("*")):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def level_memory(num_bytes: int) -> None:
    """Have every epoch find the same free memory: as much as this, just used and given back.

    Otherwise the second of two finds what the first gave back, and the first what a hypervisor took away.
    """
    with mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as pages:
        for start in range(0, num_bytes, mmap.PAGESIZE):
            pages[start] = 1


def first_epochs(folder: Path, rounds: int, state: str) -> dict[str, float]:
    """First epochs, in which every byte is compared with its checksum, against `torch.load`.

    Each takes a data set that was opened for it and memory that the process does not have yet. A round is
    ours, theirs, ours; the ratios are medians, of the time on the wall and of that on the processors, with
    the least and the largest beside them.

    Args:
        folder: of the bags.
        rounds: number of rounds.
        state: one of `CACHES`.
    """
    largest = max(path.stat().st_size for path in (folder / "pt").iterdir())

    def taken_s(name: str) -> np.ndarray:
        if state == "cold":
            forget(folder)
        read_ahead_module._spare.clear()
        epoch = loaders(folder)[name]()
        level_memory(2 * largest)
        started = np.array([time.perf_counter(), time.process_time()])
        consume(epoch)
        return np.array([time.perf_counter(), time.process_time()]) - started

    ratios = []
    for _ in range(rounds):
        before, theirs, after = (taken_s(name) for name in (OURS, "torch.load", OURS))
        ratios.append(2 * theirs / (before + after))
    found = {}
    for name, kind in (("", np.median), ("least_", np.min), ("largest_", np.max)):
        wall, cpu = kind(ratios, axis=0).tolist()
        found |= {f"{name}ratio_torch_load": round(wall, 2), f"{name}cpu_ratio_torch_load": round(cpu, 2)}
    return found


def with_a_step(
    folder: Path, rounds: int, num_cores: int, num_threads: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Bags per second that each reader and a step get together, bound to so many cores.

    The step is the first layer's product: a longer one would hide the readers. They run in turn, in an order
    that reverses every round.

    Args:
        folder: of the bags.
        rounds: number of rounds.
        num_cores: that the process may use; 1 is what a trial of a sweep has.
        num_threads: of torch.

    Returns:
        By kind of epoch (`later`; `first`, which checks every byte; `cold`, a first one that reads the disk)
        and by clock (`wall`, `processor`): the median rate of each reader; `step_ms: ` and the reader, the
        milliseconds that the step alone took beside it (of the step's own thread by the processor's clock);
        and `ratio_read_ahead`, the median over the rounds of reading ahead against reading in turn, with its
        quartiles `ratio_read_ahead_low` and `_high`.
    """
    cores = os.sched_getaffinity(0)
    weights_DH = torch.randn(NUM_FEATURES, 512, generator=torch.Generator().manual_seed(0))
    opened = loaders(folder)

    def rates(name: str, kind: str) -> np.ndarray:
        if kind == "cold":
            forget(folder)
        if kind != "later":
            read_ahead_module._spare.clear()
        epoch = (opened if kind == "later" else loaders(folder))[name]()
        started = np.array([time.perf_counter(), time.process_time()])
        steps_s, num_bags = np.zeros(2), 0
        for features_ND in epoch:
            began = np.array([time.perf_counter(), time.thread_time()])
            float(torch.relu(features_ND @ weights_DH).sum())
            steps_s += np.array([time.perf_counter(), time.thread_time()]) - began
            num_bags += 1
        taken_s = np.array([time.perf_counter(), time.process_time()]) - started
        return np.stack([num_bags / taken_s, 1e3 * steps_s / num_bags])

    threads = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    os.sched_setaffinity(0, set(sorted(cores)[:num_cores]))
    try:
        return {kind: _in_turns(rates, kind, rounds) for kind in ("first", "cold", "later")}
    finally:
        torch.set_num_threads(threads)
        os.sched_setaffinity(0, cores)


def _in_turns(rates: Callable[[str, str], np.ndarray], kind: str, rounds: int) -> dict[str, dict[str, float]]:
    names = [OURS, IN_TURN, *(("DALI", "cache=ram") if kind == "later" else ())]
    if kind == "later":
        for name in names:
            rates(name, kind)  # opens and checks
    measured: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names if number % 2 else reversed(names):
            measured[name].append(rates(name, kind))
    pairs = zip(measured[OURS], measured[IN_TURN], strict=True)
    low, middle, high = np.quantile([(ours / theirs)[0] for ours, theirs in pairs], (0.25, 0.5, 0.75), axis=0)
    medians = {name: np.median(each, axis=0) for name, each in measured.items()}
    found = {name: both[0] for name, both in medians.items()}
    found |= {f"step_ms: {name}": both[1] for name, both in medians.items()}
    found |= {"ratio_read_ahead": middle, "ratio_read_ahead_low": low, "ratio_read_ahead_high": high}
    return {
        clock: {name: round(float(both[at]), 3) for name, both in found.items()}
        for at, clock in enumerate(("wall", "processor"))
    }


def print_table(result: dict) -> None:
    """Print the result for a person."""
    table = Table(title=f"{result['num_bags']} bags of CAMELYON16's sizes, as float32")
    for name, justify in (("loader", "left"), ("bags/s", "right"), ("peak RssAnon, MiB", "right")):
        table.add_column(name, justify=justify)
    for name, bags_per_s in result["bags_per_s"].items():
        table.add_row(name, f"{bags_per_s:.1f}", str(result["peak_rss_anon_mib"][name]))
    console = Console(width=100)
    console.print(table)
    console.print(
        f"{OURS}: {result['ratio_torch_load']} x torch.load, {result['ratio_webdataset']} x webdataset "
        f"(medians of {result['rounds']} rounds); "
        f"in the first epoch, with every checksum, {result['first_epoch_ratio_torch_load']} x torch.load; "
        f"{result['cpu']}, load {result['load']}"
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loading", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--bags", type=int, default=32, help="bags of the data set (default: 32, 2 GB of files)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="epochs of each loader (default: 5)")
    parser.add_argument("--folder", type=Path, help="where files are made or found (default: temporary)")
    parser.add_argument("--one-core", action="store_true", help="only the readers with a step on one core")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)  # like a trial on one core; two are noisy when anything else runs
    if options.memory_of:
        print(peak_rss_anon(loaders(options.folder)[options.memory_of]))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if not (folder / "shards").exists():
            build(folder, options.bags)
        result = one_core(folder, options.rounds) if options.one_core else measure(folder, options.rounds)
    if options.json:
        print(json.dumps(result))
    elif options.one_core:
        for kind, clocks in result["with_a_step"]["one core"].items():
            for clock, rates in clocks.items():
                print(
                    f"{kind} epoch, time on the {clock}:", *(f"  {n} {v}" for n, v in rates.items()), sep="\n"
                )
    else:
        print_table(result)


if __name__ == "__main__":
    main()
