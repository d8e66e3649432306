#!/usr/bin/env python3
"""Mask selection against the authors' way of doing it: which instances of a bag the student sees.

    python benchmarks/masking.py

Ours ranks by integers and finds each mask's last member without a sort, for all bags of a batch at once; the
peer (`peers.naive_kept`) takes torch's `topk` and unites the masks through Python sets, bag by bag. The masks
are those of the C16 presets: AB-MIL's, with one head of scores, and TransMIL's, with eight. Both run in turn
in one process, a turn being several batches. No scores come twice, as in training: a branch predictor
remembers those it has seen. A ratio is the median over rounds of the peer's time divided by ours: above 1,
ours is faster. `gather` adds the kept rows of 1,024 features to both.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.peers import naive_kept
from mhimdist import ops
from mhimdist.config import Masking
from mhimdist.draws import Draws
from mhimdist.masking import mask_counts
from mhimdist.presets import preset

FEATURES = 1_024
BATCHES = 5
"""Batches of a turn."""
# Instances of a bag, bags and heads of scores.
CASES = [
    (1_000, 1, 1),
    (9_000, 1, 1),
    (9_000, 1, 8),
    (30_000, 1, 1),
    (100_000, 1, 1),
    (100_000, 1, 8),
    (100, 64, 1),
    (1_000, 16, 1),
    (1_000, 64, 1),
    (9_000, 4, 8),
]


class Problem:
    """Bags of one size, and both ways to mask them."""

    def __init__(self, masking: Masking, size: int, num_bags: int, num_heads: int) -> None:
        self.masking, self.size, self.num_bags, self.num_heads = masking, size, num_bags, num_heads
        self.offsets_B1 = torch.arange(num_bags + 1) * size
        self.counts = mask_counts(masking, self.offsets_B1.diff(), 0.0)
        self.features_TD = torch.empty(0, FEATURES)

    def scores(self, epoch: int) -> tuple[Tensor, ops.MaskKeys]:
        """New scores, T x H, and the keys of an epoch."""
        generator = torch.Generator().manual_seed(epoch)
        scores_TH = torch.randn(self.size * self.num_bags, self.num_heads, generator=generator)
        ids_B = torch.arange(self.num_bags)
        keys = [Draws(0, epoch).keys(ids_B, purpose) for purpose in ("high_mask", "random_mask", "keep_one")]
        return scores_TH, ops.MaskKeys(*keys)

    def ours(self, scores_TH: Tensor, keys: ops.MaskKeys) -> Tensor:
        """The kept rows of the batch."""
        return ops.select(scores_TH, self.offsets_B1, self.counts, keys).kept_K

    def naive(self, scores_TH: Tensor, keys: ops.MaskKeys) -> Tensor:
        """The same by the peer; its draws are its own."""
        kept = [naive_kept(scores_NH.T, self.masking) for scores_NH in scores_TH.split(self.size)]
        return torch.cat([start + kept_K for start, kept_K in zip(self.offsets_B1, kept, strict=False)])

    def ours_with_rows(self, scores_TH: Tensor, keys: ops.MaskKeys) -> Tensor:
        """The kept rows' features."""
        gathered = ops.select_and_gather(
            self.features_TD, scores_TH, self.offsets_B1, self.counts, keys, capacity=len(scores_TH)
        )
        return gathered.features_KD

    def naive_with_rows(self, scores_TH: Tensor, keys: ops.MaskKeys) -> Tensor:
        """The same by the peer."""
        return self.features_TD.index_select(0, self.naive(scores_TH, keys))


Way = Callable[[Tensor, ops.MaskKeys], Tensor]


def race(problem: Problem, ours: Way, naive: Way, rounds: int) -> dict[str, float]:
    """Milliseconds of both (medians), and the median of their ratio."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds + 1):
        batches = [problem.scores(epoch) for epoch in range(turn * BATCHES, (turn + 1) * BATCHES)]
        for way, times in zip((ours, naive), seconds, strict=True):
            start = time.perf_counter()
            for scores_TH, keys in batches:
                way(scores_TH, keys)
            times.append((time.perf_counter() - start) / BATCHES)
    of_ours, of_naive = (times[1:] for times in seconds)  # the first round warms up
    return {
        "ours_ms": statistics.median(of_ours) * 1e3,
        "naive_ms": statistics.median(of_naive) * 1e3,
        "ratio": statistics.median(n / o for n, o in zip(of_naive, of_ours, strict=True)),
    }


def main() -> None:
    """Print a table, or with --json an object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="compute threads (default: 1)")
    parser.add_argument("--rounds", type=int, default=15, help="times that each runs (default: 15)")
    parser.add_argument("--largest", type=int, default=100_000, help="leave out bags of more instances")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    rows = []
    for size, num_bags, num_heads in CASES:
        if size > options.largest:
            continue
        masking = preset("c16", "abmil" if num_heads == 1 else "transmil").masking
        problem = Problem(masking, size, num_bags, num_heads)
        row: dict[str, float] = {"instances": size, "bags": num_bags, "heads": num_heads}
        row |= race(problem, problem.ours, problem.naive, options.rounds)
        if size * num_bags <= 10_000:
            problem.features_TD = torch.randn(size * num_bags, FEATURES)
            with_rows = race(problem, problem.ours_with_rows, problem.naive_with_rows, options.rounds)
            row |= {f"gather_{name}": value for name, value in with_rows.items()}
        rows.append(row)
    if options.json:
        print(json.dumps({"threads": options.threads, "rounds": options.rounds, "cases": rows}, indent=2))
        return
    print(
        "| instances | bags | heads | ours, ms | naive, ms | ratio "
        "| with the rows: ours, ms | naive, ms | ratio |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        cells = [f"{row['instances']:,}", f"{row['bags']}", f"{row['heads']}"]
        for prefix in ("", "gather_"):
            if f"{prefix}ratio" in row:
                cells += [f"{row[f'{prefix}{name}']:.2f}" for name in ("ours_ms", "naive_ms")]
                cells.append(f"**{row[f'{prefix}ratio']:.1f}**")
            else:
                cells += [""] * 3
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
