"""The ragged operations of the method in plain torch: the specification every kernel is tested against.

Dimensions: T instances of a batch, N instances of one bag, B bags, B1 = B + 1 offsets, E embedding width,
H heads of scores, K kept instances.
"""

from dataclasses import dataclass

import torch
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
class Selection:
    """What is left of packed bags.

    Attributes:
        kept_K: int64 rows of the batch that stay, ascending.
        offsets_B1: int64 offsets of the bags among them.
        masked_high, masked_low, masked_random: how many instances each mask took, int64 scalars; the masks
            overlap, so that they add up to at least the number of rows that are gone.
    """

    kept_K: Tensor
    offsets_B1: Tensor
    masked_high: Tensor
    masked_low: Tensor
    masked_random: Tensor


def most_voted(scores_NH: Tensor, count: int, *, highest: bool) -> Tensor:
    """The `count` instances that most heads rank among their own `count` highest (or lowest), int64.

    Ties, of a head's scores and of votes, go to the instance that comes first.
    """
    order_NH = torch.sort(scores_NH, dim=0, descending=highest, stable=True).indices
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
    masked_T = torch.zeros(len(scores_TH), dtype=torch.bool, device=scores_TH.device)
    for start, stop, (pool, high, low, random) in zip(edges[:-1], edges[1:], sizes_of_masks, strict=True):
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


def segment_softmax_pool(scores_T: Tensor, values_TE: Tensor, offsets_B1: Tensor) -> Tensor:
    """Each bag's values averaged by the softmax of its scores (paper, equation 1), B x E."""
    if len(offsets_B1) == 2:
        return torch.softmax(scores_T, dim=0)[None] @ values_TE
    sizes = offsets_B1.diff().tolist()
    pooled = [
        torch.softmax(scores_N, dim=0) @ values_NE
        for scores_N, values_NE in zip(scores_T.split(sizes), values_TE.split(sizes), strict=True)
    ]
    return torch.stack(pooled)


def segment_mean(values_TE: Tensor, offsets_B1: Tensor) -> Tensor:
    """The mean of each bag's rows, B x E."""
    return torch.segment_reduce(values_TE, "mean", offsets=offsets_B1)


def segment_max(values_TE: Tensor, offsets_B1: Tensor) -> Tensor:
    """The largest of each bag's rows, column by column, B x E."""
    return torch.segment_reduce(values_TE, "max", offsets=offsets_B1)
