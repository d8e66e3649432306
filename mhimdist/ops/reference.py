"""The ragged operations of the method in plain torch: the specification every kernel is tested against.

Dimensions: T instances of a batch, N instances of one bag, B bags, B1 = B + 1 offsets, D features,
E embedding width, H heads of scores, C columns of scores, K kept instances, J and I height and width of a
kernel, Y and X of a grid.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor

from mhimdist.ops.draws import instance_words, mix
from mhimdist.ops.masks import Gathered, MaskCounts, MaskKeys, Selection


def _canonical(scores: Tensor) -> Tensor:
    """The scores with subnormals set to zero: otherwise a flag of the CPU would decide how these compare."""
    return torch.where(scores.abs() < torch.finfo(torch.float32).tiny, 0.0, scores)


def share_of(sizes_B: Tensor, ratio: float) -> Tensor:
    """`ceil(ratio * N)` per bag, int64.

    The product is first rounded to 9 decimals: 0.07 of 100 is 7, though the float product is slightly larger.
    """
    return (sizes_B.double() * ratio).mul(1e9).round().div(1e9).ceil().long()


def most_voted(scores_NH: Tensor, count: int, *, highest: bool) -> Tensor:
    """The `count` instances that the most heads rank among their `count` highest (or lowest) scores, int64.

    Ties between a head's scores and ties between votes go to the earlier instance. NaN ranks above all
    numbers.

    Args:
        scores_NH: scores of one bag's instances.
        count: instances to return.
        highest: rank the highest scores first, otherwise the lowest.
    """
    order_NH = torch.sort(_canonical(scores_NH), dim=0, descending=highest, stable=True).indices
    if scores_NH.shape[1] == 1:
        return order_NH[:count, 0]
    votes_N = torch.bincount(order_NH[:count].flatten(), minlength=len(scores_NH))
    return torch.sort(votes_N, descending=True, stable=True).indices[:count]


def _smallest(words_N: Tensor, count: int) -> Tensor:
    return torch.sort(words_N, stable=True).indices[:count]


def select(
    scores_TH: Tensor,
    offsets_B1: Tensor,
    counts: MaskCounts,
    *,
    high_words_T: Tensor,
    random_words_T: Tensor,
    keep_words_T: Tensor,
) -> Selection:
    """Mask each bag's most salient, least salient and some random instances (paper, section 3.3, equation 7).

    Each of the three masks is drawn from the whole bag, independently of the others; their union is masked.
    If the union covers a bag entirely, the instance with the smallest `keep_words_T` stays, so every bag
    keeps at least one instance.

    Args:
        scores_TH: the teacher's scores before any softmax (after it, small scores underflow into ties).
        offsets_B1: int64 offsets of the bags.
        counts: sizes of each bag's masks.
        high_words_T: random int64; the high mask takes the pool's instances with the smallest words.
        random_words_T: random int64; the random mask takes the bag's instances with the smallest words.
        keep_words_T: random int64, used only in a bag that is masked entirely.
    """
    edges = offsets_B1.tolist()
    sizes_of_masks = zip(
        *(c.tolist() for c in (counts.high_pool_B, counts.high_B, counts.low_B, counts.random_B)), strict=True
    )
    masked_T = torch.zeros(edges[-1], dtype=torch.bool, device=scores_TH.device)
    for (start, stop), (pool, high, low, random) in zip(pairwise(edges), sizes_of_masks, strict=True):
        scores_NH, masked_N = scores_TH[start:stop], masked_T[start:stop]
        if high:
            pool_ids = most_voted(scores_NH, pool, highest=True)
            chosen = _smallest(high_words_T[start:stop][pool_ids], high) if high < pool else slice(None)
            masked_N[pool_ids[chosen]] = True
        if low:
            masked_N[most_voted(scores_NH, low, highest=False)] = True
        if random:
            masked_N[_smallest(random_words_T[start:stop], random)] = True
        if masked_N.all():
            masked_N[keep_words_T[start:stop].argmin()] = False

    kept_before_T1 = torch.nn.functional.pad((~masked_T).cumsum(0), (1, 0))
    return Selection(
        kept_K=(~masked_T).nonzero().squeeze(1),
        offsets_B1=kept_before_T1[offsets_B1],
        masked_high=counts.high_B.sum(),
        masked_low=counts.low_B.sum(),
        masked_random=counts.random_B.sum(),
    )


def select_and_gather(
    features_TD: Tensor,
    scores_TH: Tensor,
    offsets_B1: Tensor,
    counts: MaskCounts,
    keys: MaskKeys,
    *,
    dtype: torch.dtype | None = None,
) -> Gathered:
    """`select` by the words of the keys' streams, and the kept rows themselves.

    Args:
        features_TD: raw instances.
        scores_TH, offsets_B1, counts: see `select`.
        keys: keys of the bags' random streams, which supply the words.
        dtype: of the gathered rows; None for the dtype of the features.
    """

    def words_T(keys_B: Tensor) -> Tensor:
        return instance_words(keys_B, offsets_B1, len(scores_TH)).squeeze(1)

    selection = select(
        scores_TH,
        offsets_B1,
        counts,
        high_words_T=words_T(keys.high_B),
        random_words_T=words_T(keys.random_B),
        keep_words_T=words_T(keys.keep_B),
    )
    return Gathered(**vars(selection), features_KD=features_TD[selection.kept_K].to(dtype))


def keyed_dropout(values_TE: Tensor, share: float, offsets_B1: Tensor, keys_B: Tensor, site: int) -> Tensor:
    """Drop each value whose byte of the bag's stream is below the share in 256ths; scale the others.

    Args:
        values_TE: packed instances.
        share: share dropped, in [0, 1), rounded to 1/256.
        offsets_B1: int64 offsets of the bags.
        keys_B: int64 keys of the bags' streams.
        site: distinguishes the dropout layers of one model.
    """
    threshold = round(share * 256)
    num_instances, width = values_TE.shape
    words_TW = instance_words(mix(keys_B + site), offsets_B1, num_instances, -(-width // 8))
    kept_TE = words_TW.view(torch.uint8)[:, :width] >= threshold
    return torch.where(kept_TE, values_TE * (256 / (256 - threshold)), 0)


def segment_softmax_pool(scores_TC: Tensor, values_TE: Tensor, offsets_B1: Tensor) -> Tensor:
    """The mean of each bag's values, weighted by the softmax of each score column, B x C x E (equation 1).

    Args:
        scores_TC: scores before the softmax.
        values_TE: packed rows.
        offsets_B1: int64 offsets of the bags.
    """
    wide = torch.promote_types(values_TE.dtype, torch.float32)
    pooled = [
        torch.softmax(scores_TC[start:stop].to(wide), dim=0).T @ values_TE[start:stop].to(wide)
        for start, stop in pairwise(offsets_B1.tolist())
    ]
    return torch.stack(pooled)


def segment_top_k(values_TC: Tensor, k: int, offsets_B1: Tensor, *, largest: bool = True) -> Tensor:
    """The rows of the k largest (or smallest) values per bag and column, best first: int64, B x k x C.

    Ties go to the earlier row. A bag with fewer than k rows is padded with -1.

    Args:
        values_TC: packed rows; each column is ranked separately.
        k: rows to return per bag and column.
        offsets_B1: int64 offsets of the bags.
        largest: rank the largest first, otherwise the smallest.
    """
    rows_BKC = values_TC.new_full((len(offsets_B1) - 1, k, values_TC.shape[1]), -1, dtype=torch.int64)
    for rows_KC, (start, stop) in zip(rows_BKC, pairwise(offsets_B1.tolist()), strict=True):
        best = torch.sort(_canonical(values_TC[start:stop]), dim=0, descending=largest, stable=True).indices
        rows_KC[: stop - start] = start + best[:k]
    return rows_BKC


def segment_argmax(values_TC: Tensor, offsets_B1: Tensor) -> Tensor:
    """The row of the largest value per bag and column, the first of equal ones: int64, B x C."""
    return segment_top_k(values_TC, 1, offsets_B1)[:, 0]


def segment_mean(values_TE: Tensor, offsets_B1: Tensor) -> Tensor:
    """The mean of each bag's rows, B x E."""
    return torch.stack([values_TE[start:stop].mean(0) for start, stop in pairwise(offsets_B1.tolist())])


def segment_max(values_TE: Tensor, offsets_B1: Tensor) -> Tensor:
    """The maximum of each column over each bag's rows, B x E."""
    return torch.stack([values_TE[start:stop].amax(0) for start, stop in pairwise(offsets_B1.tolist())])


def sequence_convolution(values_TE: Tensor, kernel_EJ: Tensor) -> Tensor:
    """The depth-wise convolution of the rows, zero before the first and after the last, in at least float32.

    Args:
        values_TE: the rows.
        kernel_EJ: an odd number of taps per column.
    """
    wide = torch.promote_types(values_TE.dtype, torch.float32)
    width, num_taps = kernel_EJ.shape
    return torch.nn.functional.conv1d(
        values_TE.T.to(wide), kernel_EJ[:, None].to(wide), padding=num_taps // 2, groups=width
    ).T


def square_convolution(tokens_NE: Tensor, kernel_EJI: Tensor, bias_E: Tensor) -> Tensor:
    """The instances plus their depth-wise convolution in a square, N x E, in at least float32.

    The square has sides of ceil(sqrt(N)); a repetition of the first instances completes it. A square smaller
    than 7 x 7 is filled with zeros to 49 places, which are laid out as 7 x 7.

    Args:
        tokens_NE: one bag's instances.
        kernel_EJI: one 7 x 7 kernel per column.
        bias_E: added to each instance.
    """
    wide = torch.promote_types(tokens_NE.dtype, torch.float32)
    tokens_NE, kernel_EJI, bias_E = tokens_NE.to(wide), kernel_EJI.to(wide), bias_E.to(wide)
    side = math.isqrt(len(tokens_NE) - 1) + 1
    square_SE = torch.cat([tokens_NE, tokens_NE[: side**2 - len(tokens_NE)]])
    square_SE = torch.nn.functional.pad(square_SE, (0, 0, 0, max(49 - side**2, 0)))
    grid_EYX = square_SE.unflatten(0, (max(side, 7), -1)).permute(2, 0, 1)
    convolved_EYX = torch.nn.functional.conv2d(
        grid_EYX, kernel_EJI[:, None], bias_E, padding=3, groups=len(grid_EYX)
    )
    return tokens_NE + convolved_EYX.flatten(1).T[: len(tokens_NE)]
