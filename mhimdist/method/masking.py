"""Masked hard instance mining: from a bag's scores to the instances the student sees (paper, section 3.3).

Dimensions: T instances of a batch, B bags, H heads of scores.
"""

from dataclasses import replace

import torch
from torch import Tensor

from mhimdist import ops
from mhimdist.config.train import Masking
from mhimdist.data.bags import PackedBags


def ratios_at(masking: Masking, progress: float) -> tuple[float, float, float, float]:
    """The ratios of the masks at `progress` in [0, 1] of the run, as `ops.bag_numbers` wants them."""
    high = masking.high.at(progress)
    # Where high / high_pool_share exceeds 1 the pool is the whole bag and the share of it is high itself.
    pool = min(high / masking.high_pool_share, 1.0)
    share = masking.high_pool_share if high <= masking.high_pool_share else high
    return pool, share, masking.low.at(progress), masking.random.at(progress)


def most_kept(masking: Masking, num_instances: int, num_bags: int, progress: float) -> int:
    """How many instances of bags can stay at most: what the host knows without waiting for the device.

    Args:
        masking: the ratios and their schedules.
        num_instances: of all bags together.
        num_bags: among which they are.
        progress: share of the run's bags already seen, in [0, 1].
    """
    masked = max(ratio.at(progress) for ratio in (masking.high, masking.low, masking.random))
    # Of each bag at least the largest ratio is gone, but for the one instance that always stays.
    return min(num_instances, int(num_instances * (1 - masked)) + num_bags)


def mask_bags(
    bags: PackedBags, scores_TH: Tensor | None, numbers: ops.BagNumbers, *, capacity: int
) -> tuple[PackedBags, ops.Selection]:
    """The bags without their masked instances, raw features as they are, and what was masked.

    On a CPU the rows that stay are gathered later, block by block as they are projected.

    Args:
        bags: whole bags.
        scores_TH: the teacher's scores before the softmax; None where only random masking is asked for.
        numbers: of the bags; a bag's mask depends on nothing else of the run.
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
