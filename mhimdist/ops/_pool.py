# mypy: disable-error-code="no-untyped-def"
"""Softmax pooling and ranking of ragged bags on CUDA.

Pooling takes two launches. `_pool_parts` splits every bag over several programs, so that one large bag fills
the device; each program keeps a running maximum and sum (online softmax). `_join_parts` weighs the parts and
adds them. The backward pass is one launch: it reads the values once, and from the forward pass it needs only
the result and the log of each softmax's sum.

Dimensions: T instances of a batch, B bags, B1 = B + 1 offsets, S parts of a bag, C columns of scores,
E embedding width.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mhimdist.ops._triton import (
    most_parts,
    on_its_device,
    part_of,
    part_or_padding,
    rank,
    require_float,
    with_rows_in_line,
)

# The most parts of a bag that are joined.
MOST_PARTS = 128
# Rows of a bag that a program ranks at a time.
BLOCK = 2048


@triton.jit(do_not_specialize=["num_parts"])
def _pool_parts(
    scores,
    values,
    offsets,
    maxima,
    sums,
    pooled,
    num_parts,
    score_stride,
    column_stride,
    value_stride,
    width,
    COLUMNS: tl.constexpr,
    PADDED_COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    bag, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    first, stop = part_of(offsets, bag, part, num_parts)
    column = tl.arange(0, PADDED_COLUMNS)
    across = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    largest = tl.full([PADDED_COLUMNS], float("-inf"), tl.float32)
    total = tl.zeros([PADDED_COLUMNS], tl.float32)
    sum_ = tl.zeros([PADDED_COLUMNS, WIDTH], tl.float32)
    for row in range(first, stop, ROWS):
        rows = row + tl.arange(0, ROWS)
        inside = rows < stop
        score = tl.load(
            scores + rows[:, None] * score_stride + column[None, :] * column_stride,
            mask=inside[:, None] & (column < COLUMNS)[None, :],
            other=float("-inf"),
        ).to(tl.float32)
        value = tl.load(
            values + rows[:, None] * value_stride + across[None, :],
            mask=inside[:, None] & (across < width)[None, :],
            other=0.0,
        ).to(tl.float32)
        larger = tl.maximum(largest, tl.max(score, 0))
        # If all scores so far are -inf, any finite base keeps the weights at zero.
        base = tl.where(larger == float("-inf"), 0.0, larger)
        weight = tl.exp(score - base[None, :])
        fade = tl.exp(largest - base)
        total = total * fade + tl.sum(weight, 0)
        sum_ = sum_ * fade[:, None] + tl.sum(weight[:, :, None] * value[:, None, :], 0)
        largest = larger
    at = (bag * num_parts + part) * COLUMNS + column
    if tl.program_id(2) == 0:
        tl.store(maxima + at, largest, mask=column < COLUMNS)
        tl.store(sums + at, total, mask=column < COLUMNS)
    tl.store(
        pooled + at[:, None] * width + across[None, :],
        sum_,
        mask=(column < COLUMNS)[:, None] & (across < width)[None, :],
    )


@triton.jit(do_not_specialize=["num_parts"])
def _join_parts(
    offsets,
    maxima,
    sums,
    sums_of_parts,
    pooled,
    logsumexp,
    num_parts,
    num_columns,
    width,
    MOST_PARTS: tl.constexpr,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    bag, column = tl.program_id(0).to(tl.int64), tl.program_id(1)
    across = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    every_part = tl.arange(0, MOST_PARTS)
    places = (bag * num_parts + every_part) * num_columns + column
    every_maximum = tl.load(maxima + places, mask=every_part < num_parts, other=float("-inf"))
    largest = tl.max(every_maximum, 0)
    base = tl.where(largest == float("-inf"), 0.0, largest)
    every_sum = tl.load(sums + places, mask=every_part < num_parts, other=0.0)
    total = tl.sum(every_sum * tl.exp(every_maximum - base), 0)
    sum_ = tl.zeros([WIDTH], tl.float32)
    for first in range(0, num_parts, PARTS):
        part = first + tl.arange(0, PARTS)
        at = (bag * num_parts + part) * num_columns + column
        maximum = tl.load(maxima + at, mask=part < num_parts, other=float("-inf"))
        value = tl.load(
            sums_of_parts + at[:, None] * width + across[None, :],
            mask=(part < num_parts)[:, None] & (across < width)[None, :],
            other=0.0,
        )
        sum_ += tl.sum(value * tl.exp(maximum - base)[:, None], 0)
    out = bag * num_columns + column
    # A bag without rows is pooled to 0.
    total = tl.where(tl.load(offsets + bag) == tl.load(offsets + bag + 1), 1.0, total)
    tl.store(pooled + out * width + across, sum_ / total, mask=across < width)
    if tl.program_id(2) == 0:
        tl.store(logsumexp + out, base + tl.log(total))


@triton.jit
def _products(left_rows, right_rows, at, is_row, width, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """The scalar products of rows `at` of two matrices of width `width`, zero where `is_row` is false."""
    product = tl.zeros([ROWS], tl.float32)
    for left in range(0, width, WIDTH):
        across = left + tl.arange(0, WIDTH)
        there = at[:, None] * width + across[None, :]
        inside = is_row[:, None] & (across < width)[None, :]
        product += tl.sum(
            tl.load(left_rows + there, mask=inside, other=0.0)
            * tl.load(right_rows + there, mask=inside, other=0.0),
            1,
        )
    return product


@triton.jit(do_not_specialize=["num_bags", "num_parts", "num_rows"])
def _pool_backward(
    scores,
    values,
    offsets,
    pooled,
    logsumexp,
    grad,
    grad_scores,
    grad_values,
    num_bags,
    num_parts,
    num_rows,
    score_stride,
    column_stride,
    value_stride,
    width,
    COLUMNS: tl.constexpr,
    PADDED_COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    bag, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = tl.arange(0, PADDED_COLUMNS)
    is_column = column < COLUMNS
    first, stop = part_or_padding(offsets, bag, part, num_bags, num_parts, num_rows)
    is_bag = bag < num_bags
    at = bag * COLUMNS + column
    log_total = tl.load(logsumexp + at, mask=is_column & is_bag, other=float("inf"))
    share = _products(pooled, grad, at, is_column & is_bag, width, PADDED_COLUMNS, WIDTH)
    for row in range(first, stop, ROWS):
        rows = row + tl.arange(0, ROWS)
        is_row = rows < stop
        is_score = is_row[:, None] & is_column[None, :]
        score = tl.load(
            scores + rows[:, None] * score_stride + column[None, :] * column_stride,
            mask=is_score & is_bag,
            other=float("-inf"),
        ).to(tl.float32)
        weight = tl.exp(score - log_total[None, :])
        product = tl.zeros([ROWS, PADDED_COLUMNS], tl.float32)
        for left in range(0, width, WIDTH):
            across = left + tl.arange(0, WIDTH)
            is_value = is_row[:, None] & (across < width)[None, :]
            value = tl.load(
                values + rows[:, None] * value_stride + across[None, :], mask=is_value & is_bag, other=0.0
            ).to(tl.float32)
            grad_pooled = tl.load(
                grad + at[:, None] * width + across[None, :],
                mask=is_bag & is_column[:, None] & (across < width)[None, :],
                other=0.0,
            )
            product += tl.sum(value[:, None, :] * grad_pooled[None, :, :], 2)
            grad_value = tl.sum(weight[:, :, None] * grad_pooled[None, :, :], 1)
            tl.store(
                grad_values + rows[:, None] * width + across[None, :],
                grad_value.to(grad_values.dtype.element_ty),
                mask=is_value,
            )
        grad_score = weight * (product - share[None, :])
        tl.store(
            grad_scores + rows[:, None] * COLUMNS + column[None, :],
            grad_score.to(grad_scores.dtype.element_ty),
            mask=is_score,
        )


@triton.jit
def _top_k(
    values,
    offsets,
    rows,
    k,
    row_stride,
    column_stride,
    num_columns,
    LARGEST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Find one rank after the other, as the best key below the previous one: meant for a small k."""
    bag, column = tl.program_id(0).to(tl.int64), tl.program_id(1)
    start = tl.load(offsets + bag)
    size = (tl.load(offsets + bag + 1) - start).to(tl.int32)
    before = (start * 0) + 0x7FFFFFFFFFFFFFFF
    nothing = (start * 0) - 0x7FFFFFFFFFFFFFFF
    for place in range(0, k):
        best = nothing
        for first in range(0, size, BLOCK):
            index = first + tl.arange(0, BLOCK)
            inside = index < size
            value = tl.load(
                values + (start + index) * row_stride + column * column_stride, mask=inside, other=0.0
            )
            ranks = rank(value)
            if not LARGEST:
                ranks = -1 - ranks
            key = (ranks << 32) | (0x7FFFFFFF - index).to(tl.int64)
            best = tl.maximum(best, tl.max(tl.where(inside & (key < before), key, nothing), 0))
        row = tl.where(best == nothing, -1, start + 0x7FFFFFFF - (best & 0x7FFFFFFF))
        tl.store(rows + (bag * k + place) * num_columns + column, row)
        before = best


@torch.library.custom_op("mhimdist::segment_softmax_pool", mutates_args=())
@on_its_device
def segment_softmax_pool(scores_TC: Tensor, values_TE: Tensor, offsets_B1: Tensor) -> tuple[Tensor, Tensor]:
    """See `ops.segment_softmax_pool`; returns float32 B x C x E, and the log of each softmax's sum, B x C."""
    require_float(scores_TC=scores_TC, values_TE=values_TE)
    values_TE = with_rows_in_line(values_TE)
    num_bags, columns, width = len(offsets_B1) - 1, scores_TC.shape[1], values_TE.shape[1]
    padded = triton.next_power_of_2(columns)
    width_block = min(triton.next_power_of_2(width), 128)
    width_blocks = triton.cdiv(width, width_block)
    parts = min(most_parts(num_bags, len(values_TE), width_blocks), MOST_PARTS)
    pooled_BCE = scores_TC.new_empty((num_bags, columns, width), dtype=torch.float32)
    log_BC = pooled_BCE.new_empty((num_bags, columns))
    # Two tensors: where the second half of one would start, aligned or not, depends on the bags.
    maxima_BSC, sums_BSC = (pooled_BCE.new_empty((num_bags, parts, columns)) for _ in range(2))
    parts_BSCE = pooled_BCE.new_empty((num_bags, parts, columns, width))
    _pool_parts[num_bags, parts, width_blocks](
        scores_TC,
        values_TE,
        offsets_B1,
        maxima_BSC,
        sums_BSC,
        parts_BSCE,
        parts,
        *scores_TC.stride(),
        values_TE.stride(0),
        width,
        COLUMNS=columns,
        PADDED_COLUMNS=padded,
        ROWS=max(32 // padded, 1),
        WIDTH=width_block,
        num_warps=4,
    )
    _join_parts[num_bags, columns, width_blocks](
        offsets_B1,
        maxima_BSC,
        sums_BSC,
        parts_BSCE,
        pooled_BCE,
        log_BC,
        parts,
        columns,
        width,
        MOST_PARTS=MOST_PARTS,
        PARTS=16,
        WIDTH=width_block,
        num_warps=4,
    )
    return pooled_BCE, log_BC


@segment_softmax_pool.register_fake
def _(scores_TC: Tensor, values_TE: Tensor, offsets_B1: Tensor) -> tuple[Tensor, Tensor]:
    shape = (offsets_B1.shape[0] - 1, scores_TC.shape[1])
    pooled_BCE = scores_TC.new_empty((*shape, values_TE.shape[1]), dtype=torch.float32)
    return pooled_BCE, pooled_BCE.new_empty(shape)


@torch.library.custom_op("mhimdist::segment_softmax_pool_backward", mutates_args=())
@on_its_device
def segment_softmax_pool_backward(
    scores_TC: Tensor,
    values_TE: Tensor,
    offsets_B1: Tensor,
    pooled_BCE: Tensor,
    log_BC: Tensor,
    grad_BCE: Tensor,
) -> tuple[Tensor, Tensor]:
    """The gradients of the scores and of the values, zero for rows after the last bag."""
    values_TE, grad_BCE = with_rows_in_line(values_TE), grad_BCE.contiguous()
    num_bags, columns, width = grad_BCE.shape
    padded = triton.next_power_of_2(columns)
    grad_scores_TC = torch.empty(scores_TC.shape, dtype=scores_TC.dtype, device=scores_TC.device)
    grad_values_TE = torch.empty(values_TE.shape, dtype=values_TE.dtype, device=values_TE.device)
    parts = most_parts(num_bags, len(values_TE))
    _pool_backward[num_bags + 1, parts](
        scores_TC,
        values_TE,
        offsets_B1,
        pooled_BCE,
        log_BC,
        grad_BCE,
        grad_scores_TC,
        grad_values_TE,
        num_bags,
        parts,
        len(values_TE),
        *scores_TC.stride(),
        values_TE.stride(0),
        width,
        COLUMNS=columns,
        PADDED_COLUMNS=padded,
        ROWS=max(8 // padded, 1),
        WIDTH=min(triton.next_power_of_2(width), 256),
        num_warps=4,
    )
    return grad_scores_TC, grad_values_TE


@segment_softmax_pool_backward.register_fake
def _(
    scores_TC: Tensor,
    values_TE: Tensor,
    offsets_B1: Tensor,
    pooled_BCE: Tensor,
    log_BC: Tensor,
    grad_BCE: Tensor,
) -> tuple[Tensor, Tensor]:
    return scores_TC.new_empty(scores_TC.shape), values_TE.new_empty(values_TE.shape)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_BCE: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    if grad_BCE is None:
        return None, None, None
    return *segment_softmax_pool_backward(*ctx.saved_tensors, grad_BCE), None


segment_softmax_pool.register_autograd(_backward, setup_context=_save)


@torch.library.custom_op("mhimdist::segment_top_k", mutates_args=())
@on_its_device
def segment_top_k(values_TC: Tensor, k: int, offsets_B1: Tensor, largest: bool) -> Tensor:
    """See `ops.segment_top_k`; one launch."""
    require_float(values_TC=values_TC)
    num_bags, columns = len(offsets_B1) - 1, values_TC.shape[1]
    rows_BKC = offsets_B1.new_empty((num_bags, k, columns))
    _top_k[num_bags, columns](
        values_TC,
        offsets_B1,
        rows_BKC,
        k,
        *values_TC.stride(),
        columns,
        LARGEST=largest,
        BLOCK=BLOCK,
        num_warps=8,
    )
    return rows_BKC


@segment_top_k.register_fake
def _(values_TC: Tensor, k: int, offsets_B1: Tensor, largest: bool) -> Tensor:
    return offsets_B1.new_empty((offsets_B1.shape[0] - 1, k, values_TC.shape[1]))
