#!/usr/bin/env python3
"""How a run scales: bags per step, two workers, and a model of the cost for up to 1,024 workers.

    python benchmarks/scaling.py

Three things are measured on this machine: the step of AB-MIL (C16 preset) on 1 to 16 bags with one worker;
the same with two workers that average their gradients over gloo, one compute thread each; and that averaging
alone. The rest is calculated from the fixed cost of a step, the cost of a bag and the cost of the exchange. A
step of W workers costs

    fixed + bags / W x bag + exchange x 2 (W - 1) / W + hop x 2 (W - 1)

For any W, a ring all-reduce sends its bytes 2 (W - 1) / W times, in 2 (W - 1) hops one after the other. A hop
takes half of the time in which two workers exchange a single number. All values are medians over rounds, over
the loopback interface: a network's hops take longer. Nobody has run more than two workers.
"""

import argparse
import json
import os
import socket
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

sys.path.insert(0, str(Path(__file__).parent.parent))

from mhimdist.config.presets import preset
from mhimdist.data.bags import PackedBags
from mhimdist.method.teacher import Teacher
from mhimdist.models import build
from mhimdist.ops.draws import Draws
from mhimdist.training import denormals
from mhimdist.training.step import TrainingStep
from mhimdist.training.workers import DistributedWorkers, Workers

BAGS = (1, 2, 4, 8, 16)
PARAMETERS = 591_490
WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


def step_ms(workers: Workers, bags_per_worker: int, instances: int, rounds: int) -> float:
    """Milliseconds of a step, the median of the rounds.

    Args:
        workers: that share the step.
        bags_per_worker: of a step.
        instances: of each bag.
        rounds: that are timed.
    """
    torch.set_num_threads(1)
    config = preset("c16", "abmil").override({"device": "cpu", "precision": "float32"})
    student = build(config.model, num_features=1024, num_classes=2, seed=0)
    step = TrainingStep(config, student, Teacher(config.teacher, student, student), workers)
    generator = torch.Generator().manual_seed(workers.rank)
    features = [torch.rand(instances, 1024, generator=generator) for _ in range(bags_per_worker)]
    bags = PackedBags.from_list(features)
    times = []
    with denormals.flushed():
        for epoch in range(rounds + 2):
            started = time.perf_counter()
            step(bags, Draws(0, epoch), progress=0.0, num_bags=bags_per_worker * workers.world_size)
            times.append((time.perf_counter() - started) * 1e3)
    return statistics.median(times[2:])


def _worker(rank: int, port: int, instances: int, rounds: int, answers: Any) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", rank=rank, world_size=2)
    workers = DistributedWorkers(timeout_s=120)
    found = [step_ms(workers, bags // 2, instances, rounds) for bags in BAGS[1:]]
    tiny, whole = _exchange_ms(1, rounds), _exchange_ms(PARAMETERS, rounds)
    if rank == 0:
        answers.put((found, tiny, whole))
    dist.barrier()
    dist.destroy_process_group()


def _exchange_ms(size: int, rounds: int) -> float:
    """Milliseconds of adding up `size` values of two workers, the median of the rounds."""
    gradient, times = torch.zeros(size), []
    for _ in range(rounds + 2):
        dist.barrier()
        started = time.perf_counter()
        dist.all_reduce(gradient)
        times.append((time.perf_counter() - started) * 1e3)
    return statistics.median(times[2:])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def measure(instances: int, rounds: int) -> dict[str, Any]:
    """Measure one and two workers and fit the model; returns the keys that `--json` prints."""
    one = {bags: step_ms(Workers(), bags, instances, rounds) for bags in BAGS}
    answers = mp.get_context("spawn").SimpleQueue()
    mp.spawn(_worker, args=(_free_port(), instances, rounds, answers), nprocs=2)
    of_two, tiny, whole = answers.get()
    # With two workers the factor of the ring's bytes is 1, and there are two hops.
    hop, exchange = tiny / 2, max(whole - tiny, 0.0)
    two = dict(zip(BAGS[1:], of_two, strict=True))
    times = np.array(list(one.values()))
    bag, fixed = np.polyfit(list(one), times, 1, w=1 / times)  # weighted by relative error
    fixed = max(float(fixed), 0.0)

    def bags_per_s(workers: int, bags: int) -> float:
        others = workers - 1
        step = fixed + bag * bags / workers + exchange * 2 * others / workers + hop * 2 * others
        return 1e3 * bags / step

    return {
        "instances": instances,
        "one_worker_ms": {bags: round(ms, 1) for bags, ms in one.items()},
        "two_workers_ms": {bags: round(ms, 1) for bags, ms in two.items()},
        "speed_up_of_two": {bags: round(one[bags] / two[bags], 2) for bags in two},
        "fixed_ms": round(fixed, 2),
        "bag_ms": round(float(bag), 2),
        "exchange_ms": round(exchange, 2),
        "hop_ms": round(hop, 3),
        "calculated_bags_per_s": {
            workers: {per: round(bags_per_s(workers, per * workers), 1) for per in (1, 4, 16)}
            for workers in WORKERS
        },
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--instances", type=int, default=1000, help="of each bag (default: 1000)")
    parser.add_argument("--rounds", type=int, default=9, help="steps of each case (default: 9)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args()
    result = measure(options.instances, options.rounds)
    if options.json:
        print(json.dumps(result))
        return
    print(f"AB-MIL, bags of {result['instances']:,} x 1,024, float32, one thread per worker; measured:")
    print(f"  {'bags/step':>11} {'1 worker, ms':>13} {'2 workers, ms':>14} {'faster by':>10}")
    for bags, ms in result["one_worker_ms"].items():
        two = result["two_workers_ms"].get(bags)
        rest = f"{two:>14.1f} {result['speed_up_of_two'][bags]:>10.2f}" if two is not None else ""
        print(f"  {bags:>11} {ms:>13.1f} {rest}")
    print(
        f"  a step: {result['fixed_ms']} ms + {result['bag_ms']} ms per bag"
        f" + {result['exchange_ms']} ms to exchange gradients + {result['hop_ms']} ms per hop"
    )
    print("calculated, bags/s by workers and bags per step and worker:")
    print(f"  {'workers':>8} {'1':>10} {'4':>10} {'16':>10}")
    for workers, speeds in result["calculated_bags_per_s"].items():
        print(f"  {workers:>8}" + "".join(f"{speed:>11,.1f}" for speed in speeds.values()))


if __name__ == "__main__":
    main()
