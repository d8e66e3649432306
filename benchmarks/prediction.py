"""Slides per second that `mhimdist.predict` applies a model to, and the memory it takes.

The peer is the loop that a user writes: `torch.load` of a slide's float32 features, and the network in plain
torch as the authors wrote it (`peers.NETWORKS`, with the same weights) without gradients, with as many
compute threads as there are cores. Ours predicts the same slides from float16 shards, and from the same `.pt`
files; its time includes opening the data, the record on disk and the tables. Both run in turns (ours, peer,
ours, ...) from a warm page cache. A ratio is the median over the rounds; each round takes the mean of our
turns before and after the peer's. Processor time is that of all threads, also those that spin and wait. Peak
anonymous memory (RssAnon, above that of the imports) is measured in a process of its own.

    python -m benchmarks.prediction [--slides 10000] [--rounds 3] [--json]

10,000 slides take 20 GB of `.pt` files and 10 GB of shards; give `--folder` a disk with that room.
"""

import argparse
import contextlib
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))

import mhimdist as mh
from benchmarks.loading import peak_of
from benchmarks.peers import NETWORKS
from data_prep.shard import shard
from mhimdist.data.shards import BagShards
from mhimdist.models import build
from mhimdist.tasks import task_of
from mhimdist.training.student import load_student, save_student

MEAN_INSTANCES, NUM_FEATURES = 2000, 256
OURS = {"shards": "shards", "files": "pt"}


def make(folder: Path, num_slides: int, model: str) -> None:
    """Write the slides as .pt files and as shards, and a network with random weights.

    The sizes are log-normal with a mean of 2,000, as slides' are: few are many times as large as the median.
    """
    (folder / "pt").mkdir(parents=True)
    generator = np.random.default_rng(0)
    spread = 0.6
    sizes = generator.lognormal(np.log(MEAN_INSTANCES) - spread**2 / 2, spread, num_slides)
    values = torch.randn(1 << 22, generator=torch.Generator().manual_seed(0)).half().float()
    lines = ["slide,label"]
    for number, size in enumerate(np.maximum(sizes.round(), 1).astype(int).tolist()):
        start = int(generator.integers(NUM_FEATURES))
        rows_ND = values[start:].repeat(-(-size * NUM_FEATURES // (len(values) - start)))
        features_ND = rows_ND[: size * NUM_FEATURES].reshape(size, NUM_FEATURES).clone()
        torch.save(features_ND, folder / "pt" / f"slide{number:05d}.pt")
        lines.append(f"slide{number:05d},{('normal', 'tumour')[number % 2]}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        shard(folder / "pt", folder / "labels.csv", folder / "shards", shard_bytes=256 << 20)
    config = mh.preset("c16", model)
    network = build(config.model, num_features=NUM_FEATURES, num_classes=2, seed=0)
    bags = BagShards(folder / "shards")
    run, task = folder / "fold-1-seed-0", task_of(bags, config.task)
    save_student(run, network.state_dict(), config, bags, bags.keys[0], task=task, fitted={"threshold": 0.5})


def ours(folder: Path, source: str) -> np.ndarray:
    """Predict all slides; returns the probabilities of the second class in the order of the slides."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    with contextlib.redirect_stdout(io.StringIO()):
        mh.predict(folder / "fold-1-seed-0", folder / source, out, ignore_labels=True, device="cpu")
    table = pq.read_table(out / "predictions.parquet").sort_by("slide")
    return table["probability_tumour"].to_numpy()


def _plain_network(folder: Path) -> nn.Module:
    """The authors' network with the weights of ours, whose parameters are in the same order."""
    ours_ = load_student(folder / "fold-1-seed-0")
    settings = json.loads((folder / "fold-1-seed-0" / "best_student" / "state.json").read_text())["state"]
    network = NETWORKS[settings["config"]["model"]["name"]](NUM_FEATURES, 2).eval()
    weights = ours_.state_dict().values()
    network.load_state_dict(dict(zip(network.state_dict(), weights, strict=True)))
    return network


@torch.inference_mode()
def plain(folder: Path) -> np.ndarray:
    """The loop that a user writes."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    network = _plain_network(folder)
    found = []
    for path in sorted((folder / "pt").iterdir()):
        features_ND = torch.load(path, weights_only=True)
        _, _, logits = network.encode(network.dropout(network.projection(features_ND)))
        found.append(float(torch.stack(logits).softmax(2).mean(0)[0, 1]))
    return np.array(found)


def _processor_s() -> float:
    """Seconds of processor time of this process and of those that it has waited for."""
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def _timed(work: Callable[[], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Wall-clock and processor seconds, and what the work found."""
    started = np.array([time.perf_counter(), _processor_s()])
    found = work()
    return np.array([time.perf_counter(), _processor_s()]) - started, found


def measure(folder: Path, num_slides: int, rounds: int) -> dict[str, object]:
    """Rates in turns, our ratios to the plain loop, the largest difference and the peaks of memory."""
    _, expected = _timed(lambda: plain(folder))
    seconds: dict[str, list[np.ndarray]] = {name: [] for name in (*OURS, "plain")}
    ratios: dict[str, list[np.ndarray]] = {name: [] for name in OURS}
    difference = 0.0
    for name, source in OURS.items():
        before, found = _timed(lambda source=source: ours(folder, source))
        difference = max(difference, float(np.abs(found - expected).max()))
        for _ in range(rounds):
            theirs, _ = _timed(lambda: plain(folder))
            after, _ = _timed(lambda source=source: ours(folder, source))
            ratios[name].append(theirs / ((before + after) / 2))
            seconds["plain"].append(theirs)
            seconds[name].append(after)
            before = after
    command = [sys.executable, "-m", "benchmarks.prediction", "--folder", str(folder), "--memory-of"]
    peaks = {
        name: int(subprocess.run([*command, name], check=True, stdout=subprocess.PIPE).stdout)
        for name in (*OURS, "plain")
    }
    stacked = {name: np.stack(each) for name, each in seconds.items()}
    return {
        "slides": num_slides,
        "rounds": rounds,
        "slides_per_s": {name: round(num_slides / median(s[:, 0]), 1) for name, s in stacked.items()},
        "processor_ms_per_slide": {
            name: round(1e3 * median(s[:, 1]) / num_slides, 2) for name, s in stacked.items()
        },
        **{f"ratio_{name}": round(median(r[0] for r in ratios[name]), 2) for name in OURS},
        **{f"processor_ratio_{name}": round(median(r[1] for r in ratios[name]), 2) for name in OURS},
        "peak_rss_anon_mib": {name: round(peak / 2**20) for name, peak in peaks.items()},
        "largest_difference": difference,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.prediction", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "--slides", type=int, default=10_000, help="number of slides (default: 10,000, 30 GB)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="turns of each reader (default: 3)")
    parser.add_argument("--model", default="abmil", help="network to apply (default: abmil)")
    parser.add_argument("--folder", type=Path, help="where files are made or found (default: temporary)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        work = plain if options.memory_of == "plain" else lambda folder: ours(folder, OURS[options.memory_of])
        print(peak_of(lambda: work(options.folder)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if not (folder / "shards").exists():
            make(folder, options.slides, options.model)
        result = measure(folder, len(list((folder / "pt").iterdir())), options.rounds)
    if options.json:
        print(json.dumps(result))
        return
    for name, per_s in result["slides_per_s"].items():
        print(f"{name:8} {per_s:8.1f} slides/s   peak RssAnon {result['peak_rss_anon_mib'][name]:5} MiB")
    print(
        f"ours is {result['ratio_shards']} x the plain loop from shards, {result['ratio_files']} x from "
        f"files; in processor time {result['processor_ratio_shards']} x and "
        f"{result['processor_ratio_files']} x; largest difference of a probability "
        f"{result['largest_difference']:.1e}"
    )


if __name__ == "__main__":
    main()
