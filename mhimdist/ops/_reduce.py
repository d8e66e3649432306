# mypy: disable-error-code="no-untyped-def"
"""The mean and the maximum of each bag's rows on CUDA.

The forward pass takes two launches, as in `_pool`: `_reduce_parts` splits every bag over several programs,
and `_join_reduced` reduces the parts in their order. The backward pass is one launch. Beside a result, the
count of the rows that share its gradient is kept: all rows of the bag for a mean, those equal to the maximum
for a maximum. Sums have one order, so all results are the same in every run.

Dimensions: T instances of a batch, B bags, B1 = B + 1 offsets, S parts of a bag, E columns.
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
    require_float,
    with_rows_in_line,
)

# Values of a bag that a program reduces at a time.
BLOCK = 2048


@triton.jit
def _maximum(left, right):
    # The device's plain maximum of NaN and a number is the number, which would hide a NaN from the loss.
    return tl.maximum(left, right, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _is_largest(values, largest):
    return (values == largest) | (values != values)


@triton.jit
def _add(result, count, values, counts, IS_MAX: tl.constexpr):
    """Take more rows into a result and its count; each of the rows stands for `counts` rows."""
    if IS_MAX:
        larger = _maximum(result, tl.reduce(values, 0, _maximum))
        count = tl.where(_is_largest(result, larger), count, 0)
        counts = tl.where(_is_largest(values, larger[None, :]), counts, 0)
        result = larger
    else:
        result += tl.sum(values, 0)
    return result, count + tl.sum(counts, 0)


@triton.jit(do_not_specialize=["num_parts"])
def _reduce_parts(
    values,
    offsets,
    results,
    counts,
    num_parts,
    row_stride,
    width,
    IS_MAX: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    bag, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    first, stop = part_of(offsets, bag, part, num_parts)
    across = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    NOTHING: tl.constexpr = float("-inf") if IS_MAX else 0.0
    result = tl.full([WIDTH], NOTHING, tl.float32)
    count = tl.zeros([WIDTH], tl.int32)
    for row in range(first, stop, ROWS):
        rows = row + tl.arange(0, ROWS)
        inside = (rows < stop)[:, None] & (across < width)[None, :]
        value = tl.load(values + rows[:, None] * row_stride + across[None, :], mask=inside, other=NOTHING)
        result, count = _add(result, count, value.to(tl.float32), inside.to(tl.int32), IS_MAX)
    at = (bag * num_parts + part) * width + across
    tl.store(results + at, result, mask=across < width)
    tl.store(counts + at, count, mask=across < width)


@triton.jit(do_not_specialize=["num_parts"])
def _join_reduced(
    results,
    counts,
    reduced,
    counted,
    num_parts,
    width,
    IS_MAX: tl.constexpr,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    bag = tl.program_id(0).to(tl.int64)
    across = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    NOTHING: tl.constexpr = float("-inf") if IS_MAX else 0.0
    result = tl.full([WIDTH], NOTHING, tl.float32)
    count = tl.zeros([WIDTH], tl.int32)
    for first in range(0, num_parts, PARTS):
        part = first + tl.arange(0, PARTS)
        at = (bag * num_parts + part)[:, None] * width + across[None, :]
        inside = (part < num_parts)[:, None] & (across < width)[None, :]
        value = tl.load(results + at, mask=inside, other=NOTHING)
        result, count = _add(result, count, value, tl.load(counts + at, mask=inside, other=0), IS_MAX)
    if not IS_MAX:
        result = result / tl.maximum(count, 1).to(tl.float32)
    out = bag * width + across
    tl.store(reduced + out, result.to(reduced.dtype.element_ty), mask=across < width)
    tl.store(counted + out, count, mask=across < width)


@triton.jit(do_not_specialize=["num_bags", "num_parts", "num_rows"])
def _reduce_backward(
    values,
    offsets,
    reduced,
    counted,
    grad,
    grad_values,
    num_bags,
    num_parts,
    num_rows,
    row_stride,
    width,
    IS_MAX: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    bag, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    first, stop = part_or_padding(offsets, bag, part, num_bags, num_parts, num_rows)
    across = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    of_bag = (across < width) & (bag < num_bags)
    at = bag * width + across
    count = tl.load(counted + at, mask=of_bag, other=1).to(tl.float32)
    share = tl.load(grad + at, mask=of_bag, other=0.0).to(tl.float32) / count
    largest = tl.load(reduced + at, mask=of_bag, other=0.0)
    for row in range(first, stop, ROWS):
        rows = row + tl.arange(0, ROWS)
        inside = (rows < stop)[:, None] & (across < width)[None, :]
        shares = tl.broadcast_to(share[None, :], [ROWS, WIDTH])
        if IS_MAX:
            value = tl.load(
                values + rows[:, None] * row_stride + across[None, :],
                mask=inside & of_bag[None, :],
                other=0.0,
            )
            shares = tl.where(_is_largest(value, largest[None, :]), shares, 0.0)
        tl.store(
            grad_values + rows[:, None] * width + across[None, :],
            shares.to(grad_values.dtype.element_ty),
            mask=inside,
        )


def _blocks(width: int) -> tuple[int, int]:
    """Rows and columns that a program takes at a time."""
    columns = min(triton.next_power_of_2(width), 128)
    return min(BLOCK // columns, 256), columns


@torch.library.custom_op("mhimdist::segment_reduce", mutates_args=())
@on_its_device
def segment_reduce(values_TE: Tensor, offsets_B1: Tensor, is_max: bool) -> tuple[Tensor, Tensor]:
    """See `ops.segment_max` and `ops.segment_mean`; also returns how many rows share a gradient, int32."""
    require_float(values_TE=values_TE)
    values_TE = with_rows_in_line(values_TE)
    num_bags, (num_rows, width) = len(offsets_B1) - 1, values_TE.shape
    rows, columns = _blocks(width)
    width_blocks = triton.cdiv(width, columns)
    parts = most_parts(num_bags, num_rows, width_blocks)
    reduced_BE = values_TE.new_empty((num_bags, width))
    counts_BE = values_TE.new_empty((num_bags, width), dtype=torch.int32)
    results_BSE = values_TE.new_empty((num_bags, parts, width), dtype=torch.float32)
    counts_BSE = torch.empty_like(results_BSE, dtype=torch.int32)
    _reduce_parts[num_bags, parts, width_blocks](
        values_TE,
        offsets_B1,
        results_BSE,
        counts_BSE,
        parts,
        values_TE.stride(0),
        width,
        IS_MAX=is_max,
        ROWS=rows,
        WIDTH=columns,
        num_warps=4,
    )
    _join_reduced[num_bags, width_blocks](
        results_BSE,
        counts_BSE,
        reduced_BE,
        counts_BE,
        parts,
        width,
        IS_MAX=is_max,
        PARTS=16,
        WIDTH=columns,
        num_warps=4,
    )
    return reduced_BE, counts_BE


@segment_reduce.register_fake
def _(values_TE: Tensor, offsets_B1: Tensor, is_max: bool) -> tuple[Tensor, Tensor]:
    reduced_BE = values_TE.new_empty((offsets_B1.shape[0] - 1, values_TE.shape[1]))
    return reduced_BE, torch.empty_like(reduced_BE, dtype=torch.int32)


@torch.library.custom_op("mhimdist::segment_reduce_backward", mutates_args=())
@on_its_device
def segment_reduce_backward(
    values_TE: Tensor,
    offsets_B1: Tensor,
    reduced_BE: Tensor,
    counts_BE: Tensor,
    grad_BE: Tensor,
    is_max: bool,
) -> Tensor:
    """The gradient of the values, zero for rows after the last bag."""
    values_TE, grad_BE = with_rows_in_line(values_TE), grad_BE.contiguous()
    (num_bags, width), num_rows = grad_BE.shape, len(values_TE)
    grad_values_TE = values_TE.new_empty(values_TE.shape)
    rows, columns = _blocks(width)
    width_blocks = triton.cdiv(width, columns)
    parts = most_parts(num_bags, num_rows, width_blocks)
    _reduce_backward[num_bags + 1, parts, width_blocks](
        values_TE,
        offsets_B1,
        reduced_BE,
        counts_BE,
        grad_BE,
        grad_values_TE,
        num_bags,
        parts,
        num_rows,
        values_TE.stride(0),
        width,
        IS_MAX=is_max,
        ROWS=rows,
        WIDTH=columns,
        num_warps=4,
    )
    return grad_values_TE


@segment_reduce_backward.register_fake
def _(
    values_TE: Tensor,
    offsets_B1: Tensor,
    reduced_BE: Tensor,
    counts_BE: Tensor,
    grad_BE: Tensor,
    is_max: bool,
) -> Tensor:
    return values_TE.new_empty(values_TE.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    values_TE, offsets_B1, ctx.is_max = inputs
    ctx.save_for_backward(values_TE, offsets_B1, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_BE: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    if grad_BE is None:
        return None, None, None
    return segment_reduce_backward(*ctx.saved_tensors, grad_BE, ctx.is_max), None, None


segment_reduce.register_autograd(_backward, setup_context=_save)
