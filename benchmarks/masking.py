#!/usr/bin/env python3
"""Mask selection against the authors' way, with Python sets (`peers.naive_kept`).

    python benchmarks/masking.py
    python benchmarks/masking.py --instances 9000 --bags 1 --heads 8

Ours is what a training step does, including the sizes of the masks and the keys of the streams. It takes the
bags of a batch together; the naive selection takes them one after the other, like the authors' step. Both
draw all three masks and return the kept rows, and neither gathers them. They run in turn in one process on
the CPU, ten calls at a time. Times are processor time of all threads. A ratio is the median over rounds of
the naive time divided by ours: above 1, ours is faster.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.peers import naive_kept
from benchmarks.train_step import ratio
from mhimdist import ops
from mhimdist.config.method import Masking
from mhimdist.method.step_numbers import StepNumbers
from mhimdist.ops.draws import Draws

# The masks of the C16 preset and a low one, so that every kind of mask is drawn.
MASKING = Masking.model_validate({"high": 0.01, "high_pool_share": 0.5, "low": 0.2, "random": 0.5})
SIZES = (1_000, 9_000, 30_000, 100_000)
NUM_BAGS = (1, 8, 64)
CALLS_A_ROUND = 10


def race(steps: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of processor time per call in each round; within a round the steps take turns."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + 1):
        for name, step in steps.items():
            started = time.process_time()
            for _ in range(CALLS_A_ROUND):
                step()
            times[name].append((time.process_time() - started) * 1e3 / CALLS_A_ROUND)
    return {name: values[1:] for name, values in times.items()}  # the first warms up


def measure(instances: int, *, num_bags: int, num_heads: int, rounds: int) -> dict[str, Any]:
    """Race over a batch of bags that have `instances` instances in total.

    Args:
        instances: of all bags together.
        num_bags: of the batch.
        num_heads: of the scores.
        rounds: of the race.
    """
    generator = torch.Generator().manual_seed(0)
    scores_TH = torch.randn(instances, num_heads, generator=generator)
    sizes_B = torch.full((num_bags,), instances // num_bags)
    sizes_B[: instances % num_bags] += 1
    offsets_B1 = torch.nn.functional.pad(sizes_B.cumsum(0), (1, 0))
    scores_HN = [part.T.contiguous() for part in scores_TH.split(sizes_B.tolist())]
    ids_B = torch.arange(num_bags)

    def ours() -> ops.Selection:
        step = StepNumbers.of(MASKING, Draws(0, 0), 0.0)
        numbers = ops.bag_numbers(offsets_B1, ids_B, step.ratios_4, step.streams_S)
        return ops.select(scores_TH, offsets_B1, numbers.counts, numbers.keys)

    def naive() -> list[torch.Tensor]:
        return [naive_kept(each_HN, MASKING) for each_HN in scores_HN]

    steps: dict[str, Callable[[], object]] = {"ours": ours, "naive": naive}
    times = race(steps, rounds)
    return {
        "instances": instances,
        "bags": num_bags,
        "heads": num_heads,
        "ms": {name: round(statistics.median(values), 3) for name, values in times.items()},
        "ratio": round(ratio(times["naive"], times["ours"]), 1),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--instances", type=int, nargs="+", default=SIZES, help="of a batch, over all its bags"
    )
    parser.add_argument("--bags", type=int, nargs="+", default=NUM_BAGS, help="of a batch")
    parser.add_argument("--heads", type=int, nargs="+", default=(1, 8), help="of the scores")
    parser.add_argument("--threads", type=int, default=1, help="compute threads (default: 1)")
    parser.add_argument("--rounds", type=int, default=9, help="of each race (default: 9)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    races = [
        measure(instances, num_bags=num_bags, num_heads=num_heads, rounds=options.rounds)
        for num_heads in options.heads
        for instances in options.instances
        for num_bags in options.bags
    ]
    if options.json:
        found: dict[str, Any] = {"threads": options.threads, "rounds": options.rounds}
        for key, num_heads in (("ratio_naive", 1), ("ratio_naive_heads", 8)):
            at_9000 = [r for r in races if (r["instances"], r["bags"], r["heads"]) == (9000, 1, num_heads)]
            found[key] = at_9000[0]["ratio"] if at_9000 else None
        print(json.dumps(found | {"races": races}))
        return
    print(f"Mask selection, {options.threads} thread(s), medians of {options.rounds} rounds")
    print(f"  {'instances':>9} {'bags':>5} {'heads':>5} {'ours ms':>9} {'naive ms':>9}   ours is faster by")
    for each in races:
        ms = each["ms"]
        print(
            f"  {each['instances']:>9,} {each['bags']:>5} {each['heads']:>5} {ms['ours']:>9.3f} "
            f"{ms['naive']:>9.3f}   {each['ratio']:>17.1f}"
        )


if __name__ == "__main__":
    main()
