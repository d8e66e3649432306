"""The inputs and the results of the masking operation.

Dimensions: T instances of a batch, B bags, B1 = B + 1 offsets, D features, K kept instances.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class MaskCounts:
    """How many instances each mask takes from each bag, int64 of shape B.

    Attributes:
        high_pool_B: size of the pool of the most salient instances, from which the high mask draws.
        high_B: instances of the pool that are masked; all of the pool is the plain high mask.
        low_B: least salient instances that are masked.
        random_B: instances that are drawn from the whole bag and masked.
    """

    high_pool_B: Tensor
    high_B: Tensor
    low_B: Tensor
    random_B: Tensor


@dataclass(frozen=True)
class MaskKeys:
    """The keys of each bag's random streams (`draws.Draws.keys`), int64 of shape B.

    Attributes:
        high_B: decides which instances of the pool the high mask takes.
        random_B: decides which instances of the bag the random mask takes.
        keep_B: decides which instance stays if the masks would cover a bag entirely.
    """

    high_B: Tensor
    random_B: Tensor
    keep_B: Tensor


@dataclass(frozen=True)
class Selection:
    """The instances of packed bags that stay.

    Attributes:
        kept_K: int64 rows of the batch that stay, ascending; -1 for padding.
        offsets_B1: int64 offsets of the bags among the kept rows; the last is the number of kept rows.
        masked_high, masked_low, masked_random: how many instances each mask took, int64 scalars. The masks
            overlap, so the three add up to at least the number of masked rows.
    """

    kept_K: Tensor
    offsets_B1: Tensor
    masked_high: Tensor
    masked_low: Tensor
    masked_random: Tensor


@dataclass(frozen=True)
class Gathered(Selection):
    """The instances of packed bags that stay, with the rows themselves.

    On CUDA nothing may wait for the number of kept rows, so K is a capacity known in advance. Rows from
    `offsets_B1[-1]` on are padding: they are zero, and their `kept_K` is -1. On the CPU there is no padding.

    Attributes:
        features_KD: the kept rows.
    """

    features_KD: Tensor
