"""The plan of an epoch: which worker reads which bags in which step.

Everything here is a pure function of its arguments, so an interrupted run, or a worker that joins late, finds
its place without communication.

Dimensions: K bags of an epoch, S steps, S1 = S + 1 offsets, N bags of the data, W workers.
"""

import bisect
import hashlib
import heapq
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypedDict

import numpy as np

from mhimdist.config.train import ConfigWarning
from mhimdist.data.bags import BagSource


class StepLimits(TypedDict):
    """What decides how large a step is; see `epoch_plan`."""

    bags_per_step: int
    max_instances: int | None
    world_size: int
    balance_labels: Sequence[int] | np.ndarray | None


@dataclass(frozen=True, eq=False)
class EpochPlan:
    """The bags of every step and worker; `plan[step][rank]` lists positions in the epoch's `sizes`.

    Attributes:
        bags_K: int64 positions of the bags, step after step, within a step in the order in which it is dealt.
        ranks_K: int64 worker of each of these bags.
        starts_S1: int64 offsets of the steps in both arrays; the first is 0, the last K.
        world_size: number of workers.
    """

    bags_K: np.ndarray
    ranks_K: np.ndarray
    starts_S1: np.ndarray
    world_size: int

    def __len__(self) -> int:
        return len(self.starts_S1) - 1

    def __getitem__(self, step: int) -> list[list[int]]:
        if not 0 <= step < len(self):
            raise IndexError(f"an epoch of {len(self)} steps has no step {step}")
        ranks: list[list[int]] = [[] for _ in range(self.world_size)]
        part = slice(self.starts_S1[step], self.starts_S1[step + 1])
        for bag, rank in zip(self.bags_K[part].tolist(), self.ranks_K[part].tolist(), strict=True):
            ranks[rank].append(bag)
        return ranks

    def of_rank(self, rank: int, from_step: int = 0) -> list[np.ndarray]:
        """The int64 positions that a worker reads in each step from `from_step` on; may be empty in some."""
        mine_K = self.ranks_K == rank
        starts_S1 = np.concatenate([[0], mine_K.cumsum()])[self.starts_S1]
        return np.split(self.bags_K[mine_K], starts_S1[1:-1])[from_step:]

    def num_bags(self, step: int) -> int:
        """Number of bags in a step, over all workers."""
        return int(self.starts_S1[step + 1] - self.starts_S1[step])

    def num_bags_before(self, step: int) -> int:
        """Number of bags in all steps before this one, over all workers."""
        return int(self.starts_S1[step])

    def loads_SW(self, sizes: Sequence[int] | np.ndarray) -> np.ndarray:
        """Number of instances per step and worker, int64 S x W."""
        steps_K = np.repeat(np.arange(len(self)), np.diff(self.starts_S1))
        loads_SW = np.zeros((len(self), self.world_size), np.int64)
        np.add.at(loads_SW, (steps_K, self.ranks_K), np.asarray(sizes, np.int64)[self.bags_K])
        return loads_SW


def epoch_order(num_bags: int, *, seed: int, epoch: int) -> np.ndarray:
    """An int64 permutation of all bags, a pure function of seed and epoch.

    Args:
        num_bags: number of bags in the training set.
        seed: seed of the run.
        epoch: number of the epoch, from 0.
    """
    return _generator(seed, epoch, "order").permutation(num_bags)


def balanced_order(labels: Sequence[int] | np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
    """An epoch of as many bags as the data has, int64 positions, with every class equally often.

    From N bags of C classes an epoch draws N / C per class (one more from the first N mod C classes). The
    draws of a class run through one shuffle of its bags after another, across epochs: after any number of
    epochs, the draws of any two bags of a class differ by at most one.

    Args:
        labels: class of each bag.
        seed: seed of the run; decides the order with `epoch`.
        epoch: number of the epoch, from 0.
    """
    labels_N = np.asarray(labels)
    classes = np.unique(labels_N)
    drawn = []
    for number, label in enumerate(classes):
        members = np.flatnonzero(labels_N == label)
        quota = len(labels_N) // len(classes) + (number < len(labels_N) % len(classes))
        first = epoch * quota
        rounds = range(first // len(members), -(-(first + quota) // len(members)))
        shuffles = [_generator(seed, turn, f"class {label}").permutation(members) for turn in rounds]
        start = first - rounds.start * len(members)
        drawn.append(np.concatenate(shuffles)[start : start + quota])
    return np.concatenate(drawn)[epoch_order(len(labels_N), seed=seed, epoch=epoch)]


def epoch_plan(
    sizes: Sequence[int] | np.ndarray,
    *,
    seed: int,
    epoch: int,
    bags_per_step: int,
    max_instances: int | None = None,
    world_size: int = 1,
    balance_labels: Sequence[int] | np.ndarray | None = None,
) -> EpochPlan:
    """Plan the bags of every step and worker of an epoch.

    An epoch has every bag exactly once (or every class equally often), every worker has the same number of
    steps, and a step has the same bags for any number of workers. Within a step the largest bags are dealt
    first, each to the pile with the fewest instances so far; the heaviest pile goes to the worker with the
    fewest instances so far in this epoch. In a step of few bags a worker may have none.

    Args:
        sizes: number of instances of each bag.
        seed: seed of the run; decides the order with `epoch`.
        epoch: number of the epoch, from 0.
        bags_per_step: most bags per step, over all workers.
        max_instances: most instances per step, over all workers; only a single larger bag may exceed it. None
            is no limit.
        world_size: number of workers.
        balance_labels: class of each bag, to draw every class equally often (`balanced_order`); None takes
            every bag once.
    """
    sizes_N = np.asarray(sizes, np.int64)
    if balance_labels is None:
        order_K = epoch_order(len(sizes_N), seed=seed, epoch=epoch)
    else:
        order_K = balanced_order(balance_labels, seed=seed, epoch=epoch)
    starts_S1 = _cut(sizes_N[order_K], bags_per_step, max_instances)
    steps_K = np.repeat(np.arange(len(starts_S1) - 1), np.diff(starts_S1))
    # By step, within a step the largest first, among equals the lower position first.
    order_K = order_K[np.lexsort((order_K, -sizes_N[order_K], steps_K))]
    ranks_K = _deal(sizes_N[order_K], starts_S1, world_size)
    return EpochPlan(order_K, ranks_K, starts_S1, world_size)


def most_instances(
    sizes: Sequence[int] | np.ndarray,
    *,
    bags_per_step: int,
    max_instances: int | None = None,
    world_size: int = 1,
    balance_labels: Sequence[int] | np.ndarray | None = None,
) -> int:
    """A bound on the instances that a worker has in a step, in any epoch; exact for steps of one bag.

    Args:
        sizes, bags_per_step, max_instances, world_size, balance_labels: see `epoch_plan`.
    """
    sizes_N = np.asarray(sizes, np.int64)
    largest = int(sizes_N.max())
    candidates_K = sizes_N
    if balance_labels is not None:
        _, classes_N, counts_C = np.unique(balance_labels, return_inverse=True, return_counts=True)
        # An epoch draws a bag once per whole shuffle of its class, and may begin and end within a shuffle.
        times_C = -(-len(sizes_N) // len(counts_C)) // counts_C + 2
        candidates_K = np.repeat(sizes_N, times_C[classes_N])
    step = int(np.sort(candidates_K)[-bags_per_step:].sum())
    if max_instances is not None:
        step = min(step, max(max_instances, largest))
    # A bag goes to the pile with the fewest instances: no more than the mean of all piles without the bag.
    return min(step, largest + (step - largest) // world_size)


def warn_of_larger_bags(
    bags: BagSource, max_instances: int | None, rows: np.ndarray | slice = slice(None)
) -> None:
    """Warn if bags are larger than the limit of a step, which then bounds neither memory nor time.

    Args:
        bags: the data set.
        max_instances: most instances per step; None is no limit.
        rows: rows of the bags to check; all by default.
    """
    sizes_N = bags.sizes_N[rows]
    if max_instances is None or not (larger := int((sizes_N > max_instances).sum())):
        return
    most = int(np.arange(len(bags.keys))[rows][sizes_N.argmax()])
    warnings.warn(
        f"max_instances={max_instances}: {larger} of {len(sizes_N)} bags have more. Each of them gets a "
        "step to itself, and the limit does not bound the memory and time of that step; the largest, "
        f"{bags.keys[most]!r}, has {bags.sizes_N[most]}",
        ConfigWarning,
        stacklevel=3,
    )


def _generator(seed: int, turn: int, purpose: str) -> np.random.Generator:
    key = hashlib.blake2b(f"{seed}/{turn}/{purpose}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(key, np.uint64)))


def _cut(sizes_K: np.ndarray, bags_per_step: int, max_instances: int | None) -> np.ndarray:
    """Offsets of the steps of an order, with as few steps as both limits allow.

    Under a limit of instances the steps are made about equally large; otherwise the last one would be a rest
    of a few bags, which cannot be dealt evenly.
    """
    if max_instances is None:
        return np.append(np.arange(0, len(sizes_K), bags_per_step), len(sizes_K))
    sums = sizes_K.cumsum().tolist()
    most, least = _greedy(sums, bags_per_step, max_instances), 0
    while max_instances - least > max_instances >> 12:
        budget = (least + max_instances) // 2
        starts = _greedy(sums, bags_per_step, budget)
        if len(starts) > len(most):
            least = budget + 1
        else:
            most, max_instances = starts, budget
    return np.array(most)


def _greedy(sums: list[int], bags_per_step: int, max_instances: int) -> list[int]:
    """Offsets of steps, each as long as both limits allow, from the running sums of the sizes."""
    starts, before = [0], 0
    while (start := starts[-1]) < len(sums):
        fitting = bisect.bisect_right(sums, before + max_instances, start)
        end = max(start + 1, min(fitting, start + bags_per_step))
        starts.append(end)
        before = sums[end - 1]
    return starts


def _deal(sizes_K: np.ndarray, starts_S1: np.ndarray, world_size: int) -> np.ndarray:
    """The worker of every bag, from the sizes by step, within a step the largest first."""
    ranks_K = np.zeros(len(sizes_K), np.int64)
    if world_size == 1:
        return ranks_K
    totals = [(0, rank) for rank in range(world_size)]  # a heap of the loads of all steps so far
    sizes, starts = sizes_K.tolist(), starts_S1.tolist()
    for start, end in pairwise(starts):
        num_piles = min(world_size, end - start)
        piles = [(0, pile) for pile in range(num_piles)]  # a heap of the loads of this step
        pile_of = []
        for size in sizes[start:end]:
            load, pile = piles[0]
            heapq.heapreplace(piles, (load + size, pile))
            pile_of.append(pile)
        rank_of = [0] * num_piles
        # Workers that get nothing keep their place in the heap; the others get the heaviest pile first.
        for (load, pile), (total, rank) in zip(
            sorted(piles, reverse=True), [heapq.heappop(totals) for _ in range(num_piles)], strict=True
        ):
            rank_of[pile] = rank
            heapq.heappush(totals, (total + load, rank))
        ranks_K[start:end] = [rank_of[pile] for pile in pile_of]
    return ranks_K
