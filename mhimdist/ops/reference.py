"""The ragged operations of the method in plain torch: the specification every kernel is tested against.

Dimensions: T instances of a batch, N instances of one bag, B bags, B1 = B + 1 offsets, D features,
E embedding width, H heads of scores, C columns of scores, K kept instances.
"""

from itertools import pairwise

import torch
from torch import Tensor

from mhimdist.ops.draws import instance_words, mix
from mhimdist.ops.masks import Gathered, MaskCounts, MaskKeys, Selection


def _canonical(scores: Tensor) -> Tensor:
    """Subnormal scores as zero: whether they compare as such would else depend on a flag of the CPU."""
    return torch.where(scores.abs() < torch.finfo(torch.float32).tiny, 0.0, scores)


def share_of(sizes_B: Tensor, ratio: float) -> Tensor:
    """`ceil(ratio * N)` of each bag, int64; 0.07 of 100 is 7, though as floats it is a little more."""
    return (sizes_B.double() * ratio).mul(1e9).round().div(1e9).ceil().long()


def most_voted(scores_NH: Tensor, count: int, *, highest: bool) -> Tensor:
    """The `count` instances that most heads rank among their own `count` highest (or lowest), int64.

    Ties, of a head's scores and of votes, go to the instance that comes first. NaN is above all numbers.
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
    """Mask the bags' most salient, least salient and some random instances (paper, section 3.3, equation 7).

    The three masks are drawn from the whole bag, independently, and united. A bag that they cover entirely
    keeps the instance whose `keep_words_T` is smallest, so that at least one always stays.

    Args:
        scores_TH: the teacher's scores before any softmax (after it, small scores underflow into ties).
        offsets_B1: int64 offsets of the bags.
        counts: sizes of the masks of each bag.
        high_words_T: random int64; the smallest of the pool are masked.
        random_words_T: random int64; the smallest of the bag are masked.
        keep_words_T: random int64, used only where everything is masked.
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
    """`select` by the words of the keys' streams, and the kept rows, in `dtype` where one is given."""

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
    """Each value dropped if its byte of the bag's stream is below the share in 256ths, else scaled."""
    threshold = round(share * 256)
    num_instances, width = values_TE.shape
    words_TW = instance_words(mix(keys_B + site), offsets_B1, num_instances, -(-width // 8))
    kept_TE = words_TW.view(torch.uint8)[:, :width] >= threshold
    return torch.where(kept_TE, values_TE * (256 / (256 - threshold)), 0)


def segment_softmax_pool(scores_TC: Tensor, values_TE: Tensor, offsets_B1: Tensor) -> Tensor:
    """Each bag's values averaged by the softmax of each column of its scores (equation 1), B x C x E."""
    wide = torch.promote_types(values_TE.dtype, torch.float32)
    pooled = [
        torch.softmax(scores_TC[start:stop].to(wide), dim=0).T @ values_TE[start:stop].to(wide)
        for start, stop in pairwise(offsets_B1.tolist())
    ]
    return torch.stack(pooled)


def segment_top_k(values_TC: Tensor, k: int, offsets_B1: Tensor, *, largest: bool = True) -> Tensor:
    """The rows of each bag's k largest (or smallest) values of a column, best first, int64, B x k x C.

    Ties go to the row that comes first. A bag of fewer than k rows is padded with -1.
    """
    rows_BKC = values_TC.new_full((len(offsets_B1) - 1, k, values_TC.shape[1]), -1, dtype=torch.int64)
    for rows_KC, (start, stop) in zip(rows_BKC, pairwise(offsets_B1.tolist()), strict=True):
        best = torch.sort(_canonical(values_TC[start:stop]), dim=0, descending=largest, stable=True).indices
        rows_KC[: stop - start] = start + best[:k]
    return rows_BKC


def segment_argmax(values_TC: Tensor, offsets_B1: Tensor) -> Tensor:
    """The row of each bag that holds a column's largest value, the first of equals: int64, B x C."""
    return segment_top_k(values_TC, 1, offsets_B1)[:, 0]


def segment_mean(values_TE: Tensor, offsets_B1: Tensor) -> Tensor:
    """The mean of each bag's rows, B x E."""
    return torch.stack([values_TE[start:stop].mean(0) for start, stop in pairwise(offsets_B1.tolist())])


def segment_max(values_TE: Tensor, offsets_B1: Tensor) -> Tensor:
    """The largest of each bag's rows, column by column, B x E."""
    return torch.stack([values_TE[start:stop].amax(0) for start, stop in pairwise(offsets_B1.tolist())])
