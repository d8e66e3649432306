"""Masked hard instance mining: from a bag's scores to the instances the student sees (paper, section 3.3).

Dimensions: T instances of a batch, B bags, H heads of scores.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from mhimdist import ops
from mhimdist.config.imported import imported
from mhimdist.config.method import Masking
from mhimdist.data.bags import PackedBags
from mhimdist.errors import ConfigError

MASKS = ("all", "high", "low", "random")
"""The names of `hidden_by`: all masks together, and each alone."""

Ranking = Callable[[Tensor, PackedBags], Tensor]
"""How salient instances are: from the teacher's scores, T x H, and the bags to numbers, T or T x H."""


@cache
def ranking_of(entry: str) -> Ranking:
    """The function that `Masking.ranking` names.

    Raises:
        ConfigError: it cannot be imported here, or is no function.
    """
    found: Ranking = imported(entry, "masking.ranking", "function", ConfigError)
    if not callable(found):
        raise ConfigError(f"masking.ranking: expected a function, got {found!r} for {entry!r}")
    return found


@torch.no_grad()
def ranked(masking: Masking, scores_TH: Tensor | None, bags: PackedBags) -> Tensor | None:
    """The scores that decide which instances are the most and the least salient.

    Args:
        masking: names a ranking, or none, which leaves the teacher's scores.
        scores_TH: the teacher's scores before the softmax; None if there is no teacher.
        bags: the whole bags; on CUDA padding may follow the last one.

    Raises:
        ConfigError: the ranking returns something else than one number, or one per head, for each instance.
    """
    if masking.ranking is None or scores_TH is None:
        return scores_TH
    found = ranking_of(masking.ranking)(scores_TH, bags)
    if not isinstance(found, Tensor) or found.shape[:1] != scores_TH.shape[:1] or found.ndim not in (1, 2):
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ConfigError(
            f"masking.ranking: expected {masking.ranking} to return a number for each of "
            f"{len(scores_TH)} instances, got {got}"
        )
    return found.reshape(len(scores_TH), -1).to(scores_TH.dtype)


def ratios_at(masking: Masking, progress: float) -> tuple[float, float, float, float]:
    """The ratios of the masks at `progress` in [0, 1] of the run, in the order of `ops.bag_numbers`."""
    high = masking.high.at(progress)
    # If high / high_pool_share exceeds 1, the pool is the whole bag and the share of it is `high` itself.
    pool = min(high / masking.high_pool_share, 1.0)
    share = masking.high_pool_share if high <= masking.high_pool_share else high
    return pool, share, masking.low.at(progress), masking.random.at(progress)


def most_kept(masking: Masking, num_instances: int, num_bags: int, progress: float) -> int:
    """The most instances of bags that can stay, which the host knows without waiting for the device.

    Args:
        masking: the ratios and their schedules.
        num_instances: number of instances of all bags together.
        num_bags: number of bags.
        progress: share of the run's bags already seen, in [0, 1].
    """
    masked = max(ratio.at(progress) for ratio in (masking.high, masking.low, masking.random))
    # Each bag loses at least the largest ratio, except for the one instance that always stays.
    return min(num_instances, int(num_instances * (1 - masked)) + num_bags)


def mask_bags(
    bags: PackedBags, scores_TH: Tensor | None, numbers: ops.BagNumbers, *, capacity: int
) -> tuple[PackedBags, ops.Selection]:
    """Remove the masked instances from bags; returns the bags, raw features unchanged, and the selection.

    On a CPU the kept rows are gathered later, block by block as they are projected.

    Args:
        bags: whole bags.
        scores_TH: the teacher's scores before the softmax; None if the settings ask only for random masking.
        numbers: mask sizes and keys of the bags; with the scores, all that decides a bag's mask.
        capacity: `most_kept`, or more.
    """
    if scores_TH is None:
        scores_TH = torch.zeros(len(bags.features_TD), 1, device=bags.features_TD.device)
    if bags.features_TD.device.type == "cpu":
        selection = ops.select(scores_TH.detach(), bags.offsets_B1, numbers.counts, numbers.keys)
        return bags.select(selection.kept_K, selection.offsets_B1), selection
    gathered = ops.select_and_gather(
        bags.features_TD,
        scores_TH.detach(),
        bags.offsets_B1,
        numbers.counts,
        numbers.keys,
        capacity=capacity,
    )
    kept = replace(bags, features_TD=gathered.features_KD, offsets_B1=gathered.offsets_B1, host_sizes=None)
    return kept, gathered


def hidden_by(scores_TH: Tensor | None, offsets_B1: Tensor, numbers: ops.BagNumbers) -> dict[str, Tensor]:
    """The instances that the masks hide, for records and pictures: per name of `MASKS` bool T, on the CPU.

    Args:
        scores_TH: see `mask_bags`.
        offsets_B1: int64 offsets of the bags.
        numbers: see `mask_bags`.
    """
    num_rows = int(offsets_B1[-1])
    if scores_TH is None:
        scores_TH = torch.zeros(num_rows, 1)
    counts, none_B = numbers.counts, torch.zeros_like(numbers.counts.low_B)
    none = ops.MaskCounts(none_B, none_B, none_B, none_B)
    taken = {
        "all": counts,
        "high": replace(none, high_pool_B=counts.high_pool_B, high_B=counts.high_B),
        "low": replace(none, low_B=counts.low_B),
        "random": replace(none, random_B=counts.random_B),
    }
    hidden = {}
    for name, each in taken.items():
        hidden[name] = torch.ones(num_rows, dtype=torch.bool)
        hidden[name][ops.select(scores_TH.detach(), offsets_B1, each, numbers.keys).kept_K] = False
    return hidden
