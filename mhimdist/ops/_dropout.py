# mypy: disable-error-code="no-untyped-def"
"""Keyed dropout on CUDA, alone or with the ReLU before it: one launch forward, one backward.

Dimensions: T instances of a batch, B bags, B1 = B + 1 offsets, E embedding width.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mhimdist.ops._triton import bag_of, mix, on_its_device, require_float, stream_words


@triton.jit(do_not_specialize=["num_rows", "num_bags", "threshold", "site"])
def _drop(
    values,
    out,
    offsets,
    keys,
    num_rows,
    num_bags,
    width,
    row_stride,
    threshold,
    site,
    scale,
    RELU: tl.constexpr,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
    BAGS: tl.constexpr,
):
    """Each program makes `WORDS` words for each of `ROWS` rows; a word's bytes decide over eight columns."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    words = tl.program_id(1) * WORDS + tl.arange(0, WORDS)
    bags = bag_of(rows, offsets, num_bags, BAGS)
    is_row = (rows < num_rows) & (bags < num_bags)
    index = rows - tl.load(offsets + bags, mask=is_row, other=0)
    key = tl.load(keys + bags, mask=is_row, other=0) + site
    key = mix(key.to(tl.uint64)).to(tl.int64)
    output = index[:, None] * tl.cdiv(width, 8) + words[None, :]
    word = stream_words(key[:, None], output)
    byte = tl.arange(0, 8)
    bytes_ = (word[:, :, None] >> (byte * 8).to(tl.uint64)[None, None, :]) & 255
    column = words[None, :, None] * 8 + byte[None, None, :]
    at_row = rows[:, None, None]
    is_value = (at_row < num_rows) & (column < width)
    value = tl.load(
        values + at_row * row_stride + column, mask=is_value & is_row[:, None, None], other=0.0
    ).to(tl.float32)
    if RELU:
        # The device's plain maximum of NaN and 0 is 0, which would hide a NaN from the loss.
        value = tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)
    kept = tl.where(bytes_.to(tl.int32) >= threshold, value * scale, 0.0)
    tl.store(out + at_row * width + column, kept.to(out.dtype.element_ty), mask=is_value)


@triton.jit(do_not_specialize=["num_rows"])
def _relu_backward(grad, out, grad_values, scale, num_rows, width, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    # The width's divisibility allows the loads to be vectors: the mask then is the same for a whole vector.
    inside = at < num_rows.to(tl.int64) * width
    kept = tl.load(out + at, mask=inside, other=0.0).to(tl.float32) > 0
    value = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
    value = tl.where(kept, value * scale, 0.0)
    tl.store(grad_values + at, value.to(grad_values.dtype.element_ty), mask=inside)


@torch.library.custom_op("mhimdist::keyed_dropout", mutates_args=())
@on_its_device
def keyed_dropout(
    values_TE: Tensor, threshold: int, offsets_B1: Tensor, keys_B: Tensor, site: int, relu: bool
) -> Tensor:
    """See `ops.keyed_dropout`, or `ops.relu_dropout` if `relu`; a byte below `threshold` drops its value."""
    require_float(values_TE=values_TE)
    if values_TE.stride(1) != 1:
        values_TE = values_TE.contiguous()
    num_rows, width = values_TE.shape
    out_TE = values_TE.new_empty((num_rows, width))
    words = triton.cdiv(width, 8)
    words_block = min(triton.next_power_of_2(words), 64)
    rows_block = max(2048 // (words_block * 8), 1)
    _drop[triton.cdiv(num_rows, rows_block), triton.cdiv(words, words_block)](
        values_TE,
        out_TE,
        offsets_B1,
        keys_B,
        num_rows,
        len(keys_B),
        width,
        values_TE.stride(0),
        threshold,
        site,
        256 / (256 - threshold),
        RELU=relu,
        ROWS=rows_block,
        WORDS=words_block,
        BAGS=16,
        num_warps=4,
    )
    return out_TE


@keyed_dropout.register_fake
def _(values_TE: Tensor, threshold: int, offsets_B1: Tensor, keys_B: Tensor, site: int, relu: bool) -> Tensor:
    return values_TE.new_empty(values_TE.shape)


@torch.library.custom_op("mhimdist::relu_dropout_backward", mutates_args=())
@on_its_device
def relu_dropout_backward(grad_TE: Tensor, out_TE: Tensor, threshold: int) -> Tensor:
    """The gradient of the values from which `keyed_dropout` with ReLU made `out_TE`."""
    grad_TE, out_TE = grad_TE.contiguous(), out_TE.contiguous()
    grad_values_TE = torch.empty_like(out_TE)
    block = 2048
    _relu_backward[triton.cdiv(out_TE.numel(), block),](
        grad_TE, out_TE, grad_values_TE, 256 / (256 - threshold), *out_TE.shape, BLOCK=block, num_warps=4
    )
    return grad_values_TE


@relu_dropout_backward.register_fake
def _(grad_TE: Tensor, out_TE: Tensor, threshold: int) -> Tensor:
    return torch.empty_like(out_TE)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.threshold, offsets_B1, keys_B, ctx.site, ctx.relu = inputs
    ctx.save_for_backward(*((output,) if ctx.relu else (offsets_B1, keys_B)))


def _backward(ctx: Any, grad_TE: Tensor) -> tuple[Tensor | None, ...]:
    if ctx.relu:
        grad_values_TE = relu_dropout_backward(grad_TE, *ctx.saved_tensors, ctx.threshold)
    else:
        grad_values_TE = keyed_dropout(grad_TE, ctx.threshold, *ctx.saved_tensors, ctx.site, False)
    return grad_values_TE, None, None, None, None, None


keyed_dropout.register_autograd(_backward, setup_context=_save)
