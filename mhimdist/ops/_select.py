# mypy: disable-error-code="no-untyped-def"
"""Masked selection on CUDA: three launches for any number and size of bags, none of which the host waits for.

1. `_find_limits`, one program per bag and ranking (a head's highest, its lowest, the random words): makes
   64-bit keys and finds the largest of the k smallest, by a radix select of 8 bits per pass. No two keys of a
   bag are equal: the key of a score has the row in its lower half, so ties go to the first row.
2. `_mask`, one program per bag: the votes of the heads, the words of the pool, the union of the masks, and
   the kept rows, ascending.
3. `_gather`, one program per block of the result: the new offsets, by a sum over bags, and the rows.

Dimensions: T instances of a batch, B bags, B1 = B + 1 offsets, D features, H heads of scores, K kept
instances, R = 2 H + 1 rankings.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mhimdist.ops._triton import on_its_device, rank, require_float, stream_words
from mhimdist.ops.masks import Gathered, MaskCounts, MaskKeys

# Rows of a bag that a program processes at a time.
BLOCK = 2048
_ALL = tl.constexpr(0xFFFFFFFFFFFFFFFF)


@triton.jit
def _signed_words(key, index):
    """A stream's words as unsigned integers that have the order of the signed words."""
    return stream_words(key, index) ^ 0x8000000000000000


@triton.jit
def _limit(keys, size, count, first_shift, BLOCK: tl.constexpr):
    """A limit that the `count` smallest of `size` keys do not exceed, and all other keys do.

    The limit is found digit by digit, from the highest. Each pass takes the keys that share the digits known
    so far, counts their next digits, and so finds the limit's next digit. It ends when all keys that share
    the known digits are among the `count` smallest. If all keys are, or `count` is 0, all bits of the limit
    are set.
    """
    known = (size * 0).to(tl.uint64)
    limit = known | _ALL
    left = count
    bins = tl.arange(0, 256)
    shift = tl.where((count > 0) & (count < size), first_shift, -8)
    while shift >= 0:
        bits = shift.to(tl.uint64)
        counted = tl.zeros([256], tl.int32)
        for first in range(0, size, BLOCK):
            index = first + tl.arange(0, BLOCK)
            key = tl.load(keys + index, mask=index < size, other=0).to(tl.uint64)
            shares = (index < size) & (((key >> bits) >> 8) == known)
            counted += tl.histogram(((key >> bits) & 255).to(tl.int32), 256, mask=shares)
        digit = tl.sum((tl.cumsum(counted, 0) < left).to(tl.int32), 0)
        left -= tl.sum(tl.where(bins < digit, counted, 0), 0)
        shared = tl.sum(tl.where(bins == digit, counted, 0), 0)
        known = (known << 8) | digit.to(tl.uint64)
        limit = ((known + 1) << bits) - 1
        shift = tl.where(shared == left, -8, shift - 8)
    return limit


@triton.jit(do_not_specialize=["total", "head_stride"])
def _find_limits(
    scores,
    offsets,
    pool_counts,
    low_counts,
    random_counts,
    random_keys,
    keys,
    limits,
    total,
    row_stride,
    head_stride,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    bag = tl.program_id(0)
    ranking = tl.program_id(1)
    start = tl.load(offsets + bag)
    size = (tl.load(offsets + bag + 1) - start).to(tl.int32)
    is_high = ranking < HEADS
    is_score = ranking < 2 * HEADS
    counts = tl.where(is_high, tl.load(pool_counts + bag), tl.load(low_counts + bag))
    count = tl.where(is_score, counts, tl.load(random_counts + bag)).to(tl.int32)
    random_key = tl.load(random_keys + bag)
    keys += ranking.to(tl.int64) * total + start
    if (count > 0) & (count < size):
        for first in range(0, size, BLOCK):
            index = first + tl.arange(0, BLOCK)
            inside = index < size
            if is_score:
                head = (ranking % HEADS).to(tl.int64)
                score = tl.load(
                    scores + (start + index) * row_stride + head * head_stride, mask=inside, other=0.0
                )
                ranks = rank(score)
                ranks = tl.where(is_high, -1 - ranks, ranks) + 0x80000000
                key = (ranks.to(tl.uint64) << 32) | index.to(tl.uint64)
            else:
                key = _signed_words(random_key, index.to(tl.int64))
            tl.store(keys + index, key.to(tl.int64), mask=inside)
        tl.debug_barrier()
    tl.store(limits + bag * (2 * HEADS + 1) + ranking, _limit(keys, size, count, 56, BLOCK).to(tl.int64))


@triton.jit
def _vote(keys, limits, size, total, count, votes, HEADS: tl.constexpr, BLOCK: tl.constexpr):
    """Write keys that order a bag's rows by the heads' votes; return the limit of the `count` first."""
    for first in range(0, size, BLOCK):
        index = first + tl.arange(0, BLOCK)
        inside = index < size
        against = tl.full([BLOCK], HEADS, tl.int64)
        for head in tl.static_range(HEADS):
            key = tl.load(keys + head * total + index, mask=inside, other=0).to(tl.uint64)
            against -= (key <= tl.load(limits + head).to(tl.uint64)).to(tl.int64)
        tl.store(votes + index, (against << 32) | index, mask=inside)
    tl.debug_barrier()
    return _limit(votes, size, count, 32, BLOCK)


@triton.jit
def _draw(pool_keys, pool_limit, words, key, size, count, BLOCK: tl.constexpr):
    """Write the pool's random words, other rows all ones; return the limit of the `count` smallest."""
    if count > 0:
        for first in range(0, size, BLOCK):
            index = first + tl.arange(0, BLOCK)
            inside = index < size
            pool_key = tl.load(pool_keys + index, mask=inside, other=0).to(tl.uint64)
            word = tl.where(pool_key <= pool_limit, _signed_words(key, index.to(tl.int64)), _ALL)
            tl.store(words + index, word.to(tl.int64), mask=inside)
        tl.debug_barrier()
    return _limit(words, size, count, 56, BLOCK)


@triton.jit
def _first_word(key, size, BLOCK: tl.constexpr):
    """The index of the smallest among the first `size` words of a stream."""
    smallest = (size * 0).to(tl.uint64) | _ALL
    found = size * 0
    for first in range(0, size, BLOCK):
        index = first + tl.arange(0, BLOCK)
        word = tl.where(index < size, _signed_words(key, index.to(tl.int64)), _ALL)
        least = tl.min(word, 0)
        found = tl.where(least < smallest, tl.max(tl.where(word == least, index, 0), 0), found)
        smallest = tl.minimum(least, smallest)
    return found


@triton.jit(do_not_specialize=["total"])
def _mask(
    offsets,
    pool_counts,
    high_counts,
    low_counts,
    random_counts,
    high_keys,
    keep_keys,
    keys,
    limits,
    kept_rows,
    num_kept,
    total,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    bag = tl.program_id(0)
    start = tl.load(offsets + bag)
    size = (tl.load(offsets + bag + 1) - start).to(tl.int32)
    pool = tl.load(pool_counts + bag).to(tl.int32)
    high = tl.load(high_counts + bag).to(tl.int32)
    low = tl.load(low_counts + bag).to(tl.int32)
    random = tl.load(random_counts + bag).to(tl.int32)
    high_key = tl.load(high_keys + bag)

    # The keys of the rankings come one after the other, then three rows of scratch. With many heads there
    # may be more keys than 32 bits can count, hence `total` in int64.
    total = start * 0 + total
    keys += start
    limits += bag * (2 * HEADS + 1)
    pool_keys = keys
    low_keys = keys + HEADS * total
    random_words = keys + 2 * HEADS * total
    pool_words = keys + (2 * HEADS + 3) * total
    if HEADS == 1:
        pool_limit = tl.load(limits).to(tl.uint64)
        low_limit = tl.load(limits + 1).to(tl.uint64)
    else:
        pool_keys = keys + (2 * HEADS + 1) * total
        low_keys = keys + (2 * HEADS + 2) * total
        pool_limit = _vote(keys, limits, size, total, pool, pool_keys, HEADS, BLOCK)
        low_limit = _vote(keys + HEADS * total, limits + HEADS, size, total, low, low_keys, HEADS, BLOCK)
    random_limit = tl.load(limits + 2 * HEADS).to(tl.uint64)

    draws = tl.where(high < pool, high, 0)
    word_limit = _draw(pool_keys, pool_limit, pool_words, high_key, size, draws, BLOCK)

    kept = 0
    for first in range(0, size, BLOCK):
        index = first + tl.arange(0, BLOCK)
        inside = index < size
        pool_key = tl.load(pool_keys + index, mask=inside, other=0).to(tl.uint64)
        low_key = tl.load(low_keys + index, mask=inside, other=0).to(tl.uint64)
        random_word = tl.load(random_words + index, mask=inside, other=0).to(tl.uint64)
        drawn = _signed_words(high_key, index.to(tl.int64)) <= word_limit
        masked = (high > 0) & (pool_key <= pool_limit) & drawn
        masked |= (low > 0) & (low_key <= low_limit)
        masked |= (random > 0) & (random_word <= random_limit)
        stays = (inside & ~masked).to(tl.int32)
        place = kept + tl.cumsum(stays, 0) - 1
        tl.store(kept_rows + start + place, start + index, mask=stays > 0)
        kept += tl.sum(stays, 0)

    if (kept == 0) & (size > 0):
        tl.store(kept_rows + start, start + _first_word(tl.load(keep_keys + bag), size, BLOCK))
        kept = 1
    tl.store(num_kept + bag, kept)


@triton.jit(do_not_specialize=["num_bags", "capacity"])
def _gather(
    features,
    offsets,
    kept_rows,
    num_kept,
    high_counts,
    low_counts,
    random_counts,
    gathered,
    kept,
    new_offsets,
    masked,
    num_bags,
    capacity,
    width,
    row_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BAGS: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    # The bag of each row of the result, and the row at which that bag starts.
    before = tl.zeros([ROWS], tl.int64)
    bags = tl.zeros([ROWS], tl.int32)
    ends = tl.zeros([ROWS], tl.int64)
    for first in range(0, num_bags, BAGS):
        bag = first + tl.arange(0, BAGS)
        count = tl.load(num_kept + bag, mask=bag < num_bags, other=0).to(tl.int64)
        starts = tl.max(ends, 0) + tl.cumsum(count, 0) - count
        ends += tl.sum(count, 0)
        is_before = (bag < num_bags)[None, :] & ((starts + count)[None, :] <= rows[:, None])
        bags += tl.sum(is_before.to(tl.int32), 1)
        before += tl.sum(tl.where(is_before, count[None, :], 0), 1)
        if (tl.program_id(0) == 0) & (tl.program_id(1) == 0):
            tl.store(new_offsets + 1 + bag, starts + count, mask=bag < num_bags)
    valid = (rows < ends) & (rows < capacity)
    start = tl.load(offsets + bags, mask=valid, other=0)
    source = tl.load(kept_rows + start + rows - before, mask=valid, other=0)
    inside = valid[:, None] & (columns < width)[None, :]
    values = tl.load(features + source[:, None] * row_stride + columns[None, :], mask=inside, other=0.0)
    writes = (rows < capacity)[:, None] & (columns < width)[None, :]
    tl.store(gathered + rows[:, None] * width + columns[None, :], values, mask=writes)

    if tl.program_id(1) == 0:
        tl.store(kept + rows, tl.where(valid, source, -1), mask=rows < capacity)
        if tl.program_id(0) == 0:
            tl.store(new_offsets, 0)
            high = tl.zeros([BAGS], tl.int64)
            low = tl.zeros([BAGS], tl.int64)
            random = tl.zeros([BAGS], tl.int64)
            for first in range(0, num_bags, BAGS):
                bag = first + tl.arange(0, BAGS)
                high += tl.load(high_counts + bag, mask=bag < num_bags, other=0)
                low += tl.load(low_counts + bag, mask=bag < num_bags, other=0)
                random += tl.load(random_counts + bag, mask=bag < num_bags, other=0)
            tl.store(masked, tl.sum(high, 0))
            tl.store(masked + 1, tl.sum(low, 0))
            tl.store(masked + 2, tl.sum(random, 0))


def _kept(
    scores_TH: Tensor,
    offsets_B1: Tensor,
    pool_counts_B: Tensor,
    high_counts_B: Tensor,
    low_counts_B: Tensor,
    random_counts_B: Tensor,
    high_keys_B: Tensor,
    random_keys_B: Tensor,
    keep_keys_B: Tensor,
) -> tuple[Tensor, Tensor]:
    """The first two launches.

    Returns:
        The kept rows, T, each bag's from the bag's first place on; and the number of kept rows per bag, B.
    """
    num_bags, (total, num_heads) = len(offsets_B1) - 1, scores_TH.shape
    rankings = 2 * num_heads + 1
    keys = offsets_B1.new_empty((rankings + 3, total))
    limits = offsets_B1.new_empty((num_bags, rankings))
    kept_rows_T, num_kept_B = offsets_B1.new_empty(total), offsets_B1.new_empty(num_bags, dtype=torch.int32)
    _find_limits[num_bags, rankings](
        scores_TH,
        offsets_B1,
        pool_counts_B,
        low_counts_B,
        random_counts_B,
        random_keys_B,
        keys,
        limits,
        total,
        *scores_TH.stride(),
        HEADS=num_heads,
        BLOCK=BLOCK,
        num_warps=16,
    )
    _mask[num_bags,](
        offsets_B1,
        pool_counts_B,
        high_counts_B,
        low_counts_B,
        random_counts_B,
        high_keys_B,
        keep_keys_B,
        keys,
        limits,
        kept_rows_T,
        num_kept_B,
        total,
        HEADS=num_heads,
        BLOCK=BLOCK,
        num_warps=16,
    )
    return kept_rows_T, num_kept_B


@torch.library.custom_op("mhimdist::select_and_gather", mutates_args=())
@on_its_device
def select_and_gather(
    features_TD: Tensor,
    scores_TH: Tensor,
    offsets_B1: Tensor,
    pool_counts_B: Tensor,
    high_counts_B: Tensor,
    low_counts_B: Tensor,
    random_counts_B: Tensor,
    high_keys_B: Tensor,
    random_keys_B: Tensor,
    keep_keys_B: Tensor,
    capacity: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `ops.select_and_gather`; returns rows K x D, their ids K, new offsets B1, totals of the 3 masks."""
    require_float(features_TD=features_TD, scores_TH=scores_TH)
    if features_TD.stride(1) != 1:
        features_TD = features_TD.contiguous()
    width = features_TD.shape[1]
    kept_rows_T, num_kept_B = _kept(
        scores_TH,
        offsets_B1,
        pool_counts_B,
        high_counts_B,
        low_counts_B,
        random_counts_B,
        high_keys_B,
        random_keys_B,
        keep_keys_B,
    )
    rows_KD = features_TD.new_empty((capacity, width), dtype=dtype)
    kept_K, new_offsets_B1 = offsets_B1.new_empty(capacity), torch.empty_like(offsets_B1)
    masked_3 = offsets_B1.new_empty(3)
    rows, columns = 4, min(triton.next_power_of_2(max(width, 16)), 1024)
    _gather[triton.cdiv(capacity, rows), triton.cdiv(max(width, 1), columns)](
        features_TD,
        offsets_B1,
        kept_rows_T,
        num_kept_B,
        high_counts_B,
        low_counts_B,
        random_counts_B,
        rows_KD,
        kept_K,
        new_offsets_B1,
        masked_3,
        len(offsets_B1) - 1,
        capacity,
        width,
        features_TD.stride(0),
        ROWS=rows,
        COLUMNS=columns,
        BAGS=64,
        num_warps=4,
    )
    return rows_KD, kept_K, new_offsets_B1, masked_3


@select_and_gather.register_fake
def _(
    features_TD: Tensor,
    scores_TH: Tensor,
    offsets_B1: Tensor,
    pool_counts_B: Tensor,
    high_counts_B: Tensor,
    low_counts_B: Tensor,
    random_counts_B: Tensor,
    high_keys_B: Tensor,
    random_keys_B: Tensor,
    keep_keys_B: Tensor,
    capacity: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        features_TD.new_empty((capacity, features_TD.shape[1]), dtype=dtype),
        offsets_B1.new_empty(capacity),
        torch.empty_like(offsets_B1),
        offsets_B1.new_empty(3),
    )


def gathered(
    features_TD: Tensor,
    scores_TH: Tensor,
    offsets_B1: Tensor,
    counts: MaskCounts,
    keys: MaskKeys,
    capacity: int,
    dtype: torch.dtype | None,
) -> Gathered:
    """See `ops.select_and_gather`."""
    rows_KD, kept_K, new_offsets_B1, masked_3 = select_and_gather(
        features_TD,
        scores_TH.detach(),
        offsets_B1,
        counts.high_pool_B,
        counts.high_B,
        counts.low_B,
        counts.random_B,
        keys.high_B,
        keys.random_B,
        keys.keep_B,
        capacity,
        dtype or features_TD.dtype,
    )
    high, low, random = masked_3.unbind()
    return Gathered(kept_K, new_offsets_B1, high, low, random, rows_KD)
