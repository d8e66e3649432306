"""Which worker reads which bags in which step of an epoch."""

import hashlib
import math
from collections.abc import Sequence

import numpy as np

Plan = list[list[list[int]]]


def epoch_order(num_bags: int, *, seed: int, epoch: int) -> np.ndarray:
    """A permutation of `num_bags` bags, int64: a pure function of seed and epoch."""
    key = hashlib.blake2b(f"{seed}/{epoch}/order".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(key, np.uint64))).permutation(num_bags)


def epoch_plan(
    sizes: Sequence[int] | np.ndarray,
    *,
    seed: int,
    epoch: int,
    bags_per_step: int,
    max_instances: int | None = None,
    world_size: int = 1,
) -> Plan:
    """The bags of every step and worker: `plan[step][rank]` lists positions in `sizes`.

    Every bag comes exactly once an epoch, every worker has the same number of steps, and a step has the same
    bags whatever the number of workers. Within a step the largest bags are dealt out first, each to the
    worker with the fewest instances so far; at the end of an epoch a worker may have none.

    Args:
        sizes: number of instances of each bag.
        seed, epoch: decide the order.
        bags_per_step: bags of a step over all workers, at most.
        max_instances: instances of a step over all workers, at most, except where a single bag has more.
        world_size: number of workers.
    """
    order = epoch_order(len(sizes), seed=seed, epoch=epoch)
    return [_deal(step, sizes, world_size) for step in _steps(order, sizes, bags_per_step, max_instances)]


def _steps(
    order: np.ndarray, sizes: Sequence[int] | np.ndarray, bags_per_step: int, max_instances: int | None
) -> list[list[int]]:
    """Cut an order into steps, each as long as both limits allow."""
    steps: list[list[int]] = []
    room = 0.0
    for bag in order.tolist():
        if not steps or len(steps[-1]) == bags_per_step or sizes[bag] > room:
            steps.append([])
            room = math.inf if max_instances is None else max_instances
        steps[-1].append(bag)
        room -= sizes[bag]
    return steps


def _deal(step: list[int], sizes: Sequence[int] | np.ndarray, world_size: int) -> list[list[int]]:
    ranks: list[list[int]] = [[] for _ in range(world_size)]
    load = [0] * world_size
    for bag in sorted(step, key=lambda b: (-sizes[b], b)):
        rank = load.index(min(load))
        ranks[rank].append(bag)
        load[rank] += int(sizes[bag])
    return ranks
