"""The few integers that each bag of a step needs for its masks and its dropout.

Dimensions: B bags, B1 = B + 1 offsets, S = 5 streams.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mhimdist.ops.draws import Purpose, mix_
from mhimdist.ops.masks import MaskCounts, MaskKeys

STREAMS: tuple[Purpose, ...] = (
    "high_mask",
    "random_mask",
    "keep_one",
    "student_dropout",
    "teacher_dropout",
)
"""The streams of a training step, in the order of their constants."""


@dataclass(frozen=True)
class BagNumbers:
    """The integers of packed bags.

    Attributes:
        counts: sizes of the masks.
        keys: keys of the masks' streams.
        student_dropout_B, teacher_dropout_B: int64 keys of the dropout streams.
    """

    counts: MaskCounts
    keys: MaskKeys
    student_dropout_B: Tensor
    teacher_dropout_B: Tensor


def bag_numbers(offsets_B1: Tensor, ids_B: Tensor, ratios_4: Tensor, streams_S: Tensor) -> BagNumbers:
    """Mask sizes and stream keys of all bags; on CUDA this is one launch, and the host reads nothing.

    Args:
        offsets_B1: int64 offsets of the bags.
        ids_B: int64 `data.bags.bag_id` of the bags.
        ratios_4: float64: the share of the bag in the high mask's pool, the share of the pool that is
            masked, the share of the bag in the low mask, and the share of the bag in the random mask. A count
            is `reference.share_of` its ratio.
        streams_S: int64 constants of the epoch's `STREAMS`; a bag's key is `draws.mix(id ^ constant)`.
    """
    if ids_B.device.type != "cpu":
        from mhimdist.ops import _numbers

        numbers_NP = _numbers.bag_numbers(offsets_B1, ids_B, ratios_4, streams_S)
        *counts, high_B, random_B, keep_B, student_B, teacher_B = numbers_NP[:, : len(ids_B)].unbind()
        return BagNumbers(MaskCounts(*counts), MaskKeys(high_B, random_B, keep_B), student_B, teacher_B)
    offsets, ratios = offsets_B1.numpy(), ratios_4.numpy()
    counts_4B = _shares(offsets[1:] - offsets[:-1], ratios[:, None])
    counts_4B[1] = _shares(counts_4B[0], ratios[1])  # of the pool, not of the bag
    keys_SB = streams_S.numpy()[:, None] ^ ids_B.numpy()
    mix_(keys_SB.view(np.uint64), np.empty(keys_SB.shape, np.uint64))
    high_B, random_B, keep_B, student_B, teacher_B = torch.from_numpy(keys_SB).unbind()
    return BagNumbers(
        MaskCounts(*torch.from_numpy(counts_4B).unbind()),
        MaskKeys(high_B, random_B, keep_B),
        student_B,
        teacher_B,
    )


def _shares(sizes: np.ndarray, ratios: np.ndarray) -> np.ndarray:
    """`reference.share_of`."""
    return np.ceil(np.rint(sizes * ratios * 1e9) / 1e9).astype(np.int64)
