"""Masked selection of instances (paper, section 3.3): the rows of packed bags that stay.

Dimensions: T instances of a batch, B bags, B1 = B + 1 offsets, D features, H heads of scores,
K kept instances.
"""

import torch
from torch import Tensor

from mhimdist.ops import _select_cpu
from mhimdist.ops.masks import Gathered, MaskCounts, MaskKeys, Selection

# Rows converted at a time on the CPU: few enough to be still in cache after they are gathered.
_ROWS_A_BLOCK = 128


def select(scores_TH: Tensor, offsets_B1: Tensor, counts: MaskCounts, keys: MaskKeys) -> Selection:
    """Mask each bag's most salient, least salient and some random instances (paper, equation 7), on the CPU.

    Each of the three masks is drawn from the whole bag, independently of the others; their union is masked.
    With several heads, the heads vote: an instance is as salient as the number of heads that rank it among
    their most salient. Ties go to the earlier instance. The bag's random streams decide the rest, as
    `reference.select` specifies: which instances of the pool and of the bag are masked, and which one stays
    in a bag that would be masked entirely.

    Args:
        scores_TH: the teacher's scores before any softmax (after it, small scores underflow into ties).
        offsets_B1: int64 offsets of the bags.
        counts: sizes of each bag's masks.
        keys: keys of the bags' random streams.
    """
    return _select_cpu.select(scores_TH, offsets_B1, counts, keys)


def select_and_gather(
    features_TD: Tensor,
    scores_TH: Tensor,
    offsets_B1: Tensor,
    counts: MaskCounts,
    keys: MaskKeys,
    *,
    capacity: int,
    dtype: torch.dtype | None = None,
) -> Gathered:
    """`select`, and the kept rows themselves.

    Masks are bit-identical on the CPU, on CUDA and in `reference.select_and_gather`.

    Args:
        features_TD: raw instances, without gradient; rows after the last bag are padding.
        scores_TH, offsets_B1, counts, keys: see `select`.
        capacity: rows of the result on CUDA, where nothing waits for the true number; at least as many as
            can be kept. It has no effect on the CPU, where the result has exactly the kept rows.
        dtype: of the gathered rows; None for the dtype of the features.

    Raises:
        TypeError: features or scores on CUDA are not in float32, fp16 or bf16.
    """
    if features_TD.device.type != "cpu":
        from mhimdist.ops import _select

        return _select.gathered(features_TD, scores_TH, offsets_B1, counts, keys, capacity, dtype)
    selection = select(scores_TH, offsets_B1, counts, keys)
    rows_KD = _gather(features_TD, selection.kept_K, dtype or features_TD.dtype)
    return Gathered(**vars(selection), features_KD=rows_KD)


def _gather(features_TD: Tensor, kept_K: Tensor, dtype: torch.dtype) -> Tensor:
    if dtype == features_TD.dtype:
        return features_TD.index_select(0, kept_K)
    rows_KD = features_TD.new_empty((len(kept_K), features_TD.shape[1]), dtype=dtype)
    for block_RD, ids_R in zip(rows_KD.split(_ROWS_A_BLOCK), kept_K.split(_ROWS_A_BLOCK), strict=True):
        block_RD.copy_(features_TD.index_select(0, ids_R))
    return rows_KD
