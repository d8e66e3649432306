#!/usr/bin/env python3
"""One training step of MHIM against the authors' way, and against torchmil's plain step.

    python benchmarks/train_step.py --model abmil --instances 9000 --dtype float32 --threads 1

Ours is the full step as the trainer runs it with the C16 preset: teacher, masks, student, backward, Adam,
moving average. The peers (`peers.py`) compute in float32, like their originals, and read float32 features;
with `--dtype bfloat16` ours reads features stored in bfloat16. All run in turn in one process. A ratio is the
median over rounds of the peer's time divided by ours: above 1, ours is faster.

Adam and the moving average are compared twice: within the steps, where the work before them has pushed their
memory out of the caches, and alone, one call after the other on the same gradients.
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

from benchmarks.peers import Laps, NaiveStep, TorchmilStep
from mhimdist.config.presets import preset
from mhimdist.data.bags import PackedBags
from mhimdist.method.teacher import Teacher
from mhimdist.models import build
from mhimdist.ops.draws import Draws
from mhimdist.training import denormals
from mhimdist.training.step import TrainingStep


class OurStep:
    """The step as the trainer runs it."""

    def __init__(self, model: str, *, num_features: int, num_classes: int, dtype: str) -> None:
        precision = {"float32": "float32", "bfloat16": "bf16"}[dtype]
        self.config = preset("c16", model).override({"device": "cpu", "precision": precision})
        self.student = build(self.config.model, num_features=num_features, num_classes=num_classes, seed=0)
        self.teacher = Teacher(self.config.teacher, self.student, self.student)
        self.laps = Laps()
        self.step = TrainingStep(self.config, self.student, self.teacher, lap=self.laps)
        self.epoch = 0

    def __call__(self, bags: PackedBags) -> None:
        """Train on a bag."""
        self.epoch += 1
        self.laps.start()
        self.step(bags, Draws(0, self.epoch), progress=0.0, num_bags=1)

    def update(self) -> None:
        """Adam and the moving average alone, with the present gradients."""
        self.step.optimizer.step()
        self.teacher.follow(self.student, 1 - self.config.teacher.momentum.start)


def gemm_share(step: Callable[[], object], repeats: int = 3) -> float:
    """Share of a step's time, Python included, that matrix products and convolutions take."""
    names = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::mv", "aten::addmv")
    convolutions = ("aten::mkldnn_convolution", "aten::convolution_backward", "aten::_slow_conv2d_forward")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        started = time.perf_counter()
        for _ in range(repeats):
            step()
        wall_us = (time.perf_counter() - started) * 1e6
    averages = profile.key_averages()
    return sum(each.self_cpu_time_total for each in averages if each.key in names + convolutions) / wall_us


def race(
    steps: dict[str, Callable[[], object]],
    rounds: int,
    warmup: int,
    after: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Milliseconds of each step in each round.

    Args:
        steps: by name; within a round they take turns.
        rounds: that are timed.
        warmup: untimed calls of each step.
        after: called after each round.
    """
    for step in steps.values():
        for _ in range(warmup):
            step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            times[name].append((time.perf_counter() - started) * 1e3)
        after()
    return times


def ratio(peer: list[float], ours: list[float]) -> float:
    """The median of the paired ratios."""
    return statistics.median(a / b for a, b in zip(peer, ours, strict=True))


def measure(model: str, *, instances: int, dtype: str, threads: int, rounds: int) -> dict[str, Any]:
    """Race the three steps; returns the keys that `--json` prints.

    Args:
        model: "abmil", "dsmil" or "transmil".
        instances: of the bag.
        dtype: of our step.
        threads: compute threads.
        rounds: of the race.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    features_ND = torch.rand(instances, 1024)
    label_1 = torch.tensor([1])
    config = preset("c16", model)
    ours = OurStep(model, num_features=1024, num_classes=2, dtype=dtype)
    bags = PackedBags.from_list([features_ND.to(getattr(torch, dtype))], [1], ["bag"])
    naive = NaiveStep(config, num_features=1024, num_classes=2)
    torchmil = TorchmilStep(config, num_features=1024)
    with denormals.flushed():
        steps: dict[str, Callable[[], object]] = {
            "ours": lambda: ours(bags),
            "naive": lambda: naive(features_ND, label_1),
            "torchmil": lambda: torchmil(features_ND, label_1),
        }
        race(steps, 0, warmup=2)
        ours.laps.take(), naive.laps.take()
        laps: dict[str, list[dict[str, float]]] = {"ours": [], "naive": []}

        def take_laps() -> None:
            laps["ours"].append(ours.laps.take())
            laps["naive"].append(naive.laps.take())

        times = race(steps, rounds, warmup=0, after=take_laps)
        in_step = {
            name: [each["optimiser"] + each["average"] for each in of_rounds]
            for name, of_rounds in laps.items()
        }
        alone = race({"ours": ours.update, "naive": naive.update}, rounds, warmup=2)
        share = gemm_share(steps["naive"])
    return {
        "model": model,
        "instances": instances,
        "dtype": dtype,
        "threads": threads,
        "rounds": rounds,
        "ratio_naive": round(ratio(times["naive"], times["ours"]), 2),
        "ratio_torchmil": round(ratio(times["torchmil"], times["ours"]), 2),
        "ratio_optimiser": round(ratio(in_step["naive"], in_step["ours"]), 2),
        "ratio_optimiser_alone": round(ratio(alone["naive"], alone["ours"]), 2),
        "naive_gemm_share": round(share, 2),
        "ms": {name: round(statistics.median(values), 1) for name, values in times.items()},
        "parts_ms": {
            name: {part: round(statistics.median(lap[part] for lap in of_rounds), 2) for part in of_rounds[0]}
            for name, of_rounds in laps.items()
        },
    }


def table(result: dict[str, Any]) -> str:
    """The result for a person."""
    lines = [
        f"{result['model']}, {result['instances']:,} x 1,024, ours {result['dtype']}, peers float32, "
        f"{result['threads']} thread(s), medians of {result['rounds']} rounds",
        f"  {'step':<10} {'ms':>8}   {'ours is faster by':>17}",
    ]
    for name, ms in result["ms"].items():
        faster = f"{result[f'ratio_{name}']:>17.2f}" if name != "ours" else f"{'':>17}"
        lines.append(f"  {name:<10} {ms:>8.1f}   {faster}")
    for name, parts in result["parts_ms"].items():
        lines.append(f"  {name}: " + ", ".join(f"{part} {ms:.1f}" for part, ms in parts.items()) + " ms")
    lines.append(
        f"  Adam and the moving average are faster by {result['ratio_optimiser']:.2f} in the step, by "
        f"{result['ratio_optimiser_alone']:.2f} alone"
    )
    lines.append(f"  matrix products are {result['naive_gemm_share']:.0%} of the naive step's time")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", choices=("abmil", "dsmil", "transmil"), default="abmil")
    parser.add_argument("--instances", type=int, default=9000, help="of the bag (default: 9000)")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="that ours computes in (default: float32)",
    )
    parser.add_argument("--threads", type=int, default=1, help="compute threads (default: 1)")
    parser.add_argument("--rounds", type=int, default=15, help="of the race (default: 15)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = vars(parser.parse_args())
    as_json = options.pop("json")
    result = measure(options.pop("model"), **options)
    print(json.dumps(result) if as_json else table(result))


if __name__ == "__main__":
    main()
