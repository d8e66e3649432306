"""Masked hard instance mining: from a bag's scores to the instances the student sees (paper, section 3.3).

Dimensions: T instances of a batch, B bags, H heads of scores.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from mhimdist import ops
from mhimdist.config import Masking
from mhimdist.data.bags import PackedBags
from mhimdist.draws import Draws


def share_of(sizes_B: Tensor, ratio: float) -> Tensor:
    """`ceil(ratio * N)` of each bag, int64; 0.07 of 100 is 7, though as floats it is a little more."""
    if sizes_B.device.type == "cpu":  # the same, in a third of the time
        shares_B = np.ceil(np.rint(sizes_B.numpy() * ratio * 1e9) / 1e9)
        return torch.from_numpy(shares_B.astype(np.int64))
    return (sizes_B.double() * ratio).mul(1e9).round().div(1e9).ceil().long()


def mask_counts(masking: Masking, sizes_B: Tensor, progress: float) -> ops.MaskCounts:
    """The sizes of the masks of bags of `sizes_B` instances, at `progress` in [0, 1] of the run."""
    high = masking.high.at(progress)
    pool_B = share_of(sizes_B, min(high / masking.high_pool_share, 1.0))
    # Where high / high_pool_share exceeds 1 the pool is the whole bag and the share of it is high itself.
    share = masking.high_pool_share if high <= masking.high_pool_share else high
    return ops.MaskCounts(
        high_pool_B=pool_B,
        high_B=share_of(pool_B, share),
        low_B=share_of(sizes_B, masking.low.at(progress)),
        random_B=share_of(sizes_B, masking.random.at(progress)),
    )


def most_kept(masking: Masking, num_instances: int, num_bags: int, progress: float) -> int:
    """How many instances of bags can stay at most: what the host knows without waiting for the device."""
    masked = max(ratio.at(progress) for ratio in (masking.high, masking.low, masking.random))
    # Of each bag at least the largest ratio is gone, but for the one instance that always stays.
    return min(num_instances, int(num_instances * (1 - masked)) + num_bags)


def mask_bags(
    masking: Masking, bags: PackedBags, scores_TH: Tensor | None, draws: Draws, progress: float
) -> tuple[PackedBags, ops.Selection]:
    """The bags without their masked instances, raw features as they are, and what was masked.

    On a CPU the rows that stay are gathered later, block by block as they are projected.

    Args:
        masking: the ratios and their schedules.
        bags: whole bags.
        scores_TH: the teacher's scores before the softmax; None where only random masking is asked for.
        draws: the epoch's random streams; a bag's mask depends on nothing else of the run.
        progress: share of the run's bags already seen, in [0, 1].
    """
    total = len(bags.features_TD)
    if scores_TH is None:
        scores_TH = torch.zeros(total, 1, device=bags.features_TD.device)
    counts = mask_counts(masking, bags.sizes_B, progress)
    keys = ops.MaskKeys(
        high_B=draws.keys(bags.ids_B, "high_mask"),
        random_B=draws.keys(bags.ids_B, "random_mask"),
        keep_B=draws.keys(bags.ids_B, "keep_one"),
    )
    if bags.features_TD.device.type == "cpu":
        selection = ops.select(scores_TH.detach(), bags.offsets_B1, counts, keys)
        return bags.select(selection.kept_K, selection.offsets_B1), selection
    gathered = ops.select_and_gather(
        bags.features_TD,
        scores_TH.detach(),
        bags.offsets_B1,
        counts,
        keys,
        capacity=most_kept(masking, total, len(bags), progress),
    )
    kept = replace(bags, features_TD=gathered.features_KD, offsets_B1=gathered.offsets_B1, host_sizes=None)
    return kept, gathered
