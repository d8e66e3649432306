"""What the masking operation takes and gives.

Dimensions: T instances of a batch, B bags, B1 = B + 1 offsets, D features, K kept instances.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class MaskCounts:
    """How many instances of each bag every mask takes, int64 of shape B.

    Attributes:
        high_pool_B: the most salient ones, among which the high mask draws.
        high_B: of the pool, how many are masked; the whole pool is the plain high mask.
        low_B: the least salient ones.
        random_B: drawn from the whole bag.
    """

    high_pool_B: Tensor
    high_B: Tensor
    low_B: Tensor
    random_B: Tensor


@dataclass(frozen=True)
class MaskKeys:
    """The keys of each bag's random streams (`draws.Draws.keys`), int64 of shape B.

    Attributes:
        high_B: decides which of the pool the high mask takes.
        random_B: decides which of the bag the random mask takes.
        keep_B: decides which instance stays where the masks would cover a bag entirely.
    """

    high_B: Tensor
    random_B: Tensor
    keep_B: Tensor


@dataclass(frozen=True)
class Selection:
    """What is left of packed bags.

    Attributes:
        kept_K: int64 rows of the batch that stay, ascending; -1 for padding.
        offsets_B1: int64 offsets of the bags among them; the last is the number of kept rows.
        masked_high, masked_low, masked_random: how many instances each mask took, int64 scalars; the masks
            overlap, so that they add up to at least the number of rows that are gone.
    """

    kept_K: Tensor
    offsets_B1: Tensor
    masked_high: Tensor
    masked_low: Tensor
    masked_random: Tensor


@dataclass(frozen=True)
class Gathered(Selection):
    """What is left of packed bags, with the rows themselves.

    On CUDA nothing may wait for the number of kept rows, so K is a capacity known beforehand: the rows from
    `offsets_B1[-1]` on are padding, zero, with `kept_K` -1. On the CPU there is no padding.

    Attributes:
        features_KD: the kept rows.
    """

    features_KD: Tensor
