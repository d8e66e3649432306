"""Which worker reads which bags in which step of an epoch."""

import hashlib
from collections.abc import Sequence

import numpy as np

Plan = list[list[list[int]]]


def epoch_order(num_bags: int, *, seed: int, epoch: int) -> np.ndarray:
    """A permutation of `num_bags` bags, int64: a pure function of seed and epoch."""
    key = hashlib.blake2b(f"{seed}/{epoch}/order".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(key, np.uint64))).permutation(num_bags)


def epoch_plan(
    sizes: Sequence[int] | np.ndarray, *, seed: int, epoch: int, bags_per_step: int, world_size: int = 1
) -> Plan:
    """The bags of every step and worker: `plan[step][rank]` lists positions in `sizes`.

    Every bag comes exactly once an epoch, every worker has the same number of steps, and a step has the same
    bags whatever the number of workers. Within a step the largest bags are dealt out first, each to the
    worker with the fewest instances so far; at the end of an epoch a worker may have none.

    Args:
        sizes: number of instances of each bag.
        seed, epoch: decide the order.
        bags_per_step: bags of a step over all workers.
        world_size: number of workers.
    """
    order = epoch_order(len(sizes), seed=seed, epoch=epoch)
    plan: Plan = []
    for start in range(0, len(order), bags_per_step):
        ranks: list[list[int]] = [[] for _ in range(world_size)]
        load = [0] * world_size
        for bag in sorted(order[start : start + bags_per_step].tolist(), key=lambda b: (-sizes[b], b)):
            rank = load.index(min(load))
            ranks[rank].append(bag)
            load[rank] += int(sizes[bag])
        plan.append(ranks)
    return plan
