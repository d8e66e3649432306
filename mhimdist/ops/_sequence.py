# mypy: disable-error-code="no-untyped-def"
"""The depth-wise convolution along the sequence of TransMIL's values on CUDA, on tokens as they are stored.

PyTorch has no quick kernel for it: cuDNN launches one per column in bfloat16, and the others want the tokens
transposed there and back. Sums are in float32 and in a fixed order: equal arguments give equal bits.

Dimensions: T rows, E width, J taps of the kernel, P parts of the rows.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mhimdist.ops._triton import on_its_device, require_float, with_rows_in_line

# Rows of a program, and of a part whose kernel gradients are summed separately.
_ROWS, _ROWS_A_PART = 32, 128


@triton.jit
def _rows_at(values, start, rows, across, num_rows, width, stride):
    """The values of rows counted from `start`, in float32; zero before the first and after the last row."""
    inside = (start + rows >= 0) & (start + rows < num_rows)
    return tl.load(
        values + start.to(tl.int64) * stride + (rows[:, None] * stride + across[None, :]),
        mask=inside[:, None] & (across < width)[None, :],
        other=0.0,
    ).to(tl.float32)


@triton.jit(do_not_specialize=["num_rows"])
def _convolve(
    values, kernel, out, num_rows, width, stride, TAPS: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr
):
    start, rows = tl.program_id(0) * ROWS, tl.arange(0, ROWS)
    across = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    total = tl.zeros([ROWS, WIDTH], tl.float32)
    for tap in tl.static_range(TAPS):
        weight = tl.load(kernel + tap * width + across, mask=across < width, other=0.0).to(tl.float32)
        near = _rows_at(values, start, rows + (tap - TAPS // 2), across, num_rows, width, stride)
        total += near * weight[None, :]
    tl.store(
        out + start.to(tl.int64) * width + (rows[:, None] * width + across[None, :]),
        total.to(out.dtype.element_ty),
        mask=(start + rows < num_rows)[:, None] & (across < width)[None, :],
    )


@triton.jit(do_not_specialize=["num_rows"])
def _kernel_gradient(
    grad,
    values,
    sums,
    num_rows,
    width,
    grad_stride,
    value_stride,
    TAPS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """One part's sum for every tap of some columns."""
    part = tl.program_id(0)
    start, rows = part * ROWS, tl.arange(0, ROWS)
    across = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    given = _rows_at(grad, start, rows, across, num_rows, width, grad_stride)
    for tap in tl.static_range(TAPS):
        near = _rows_at(values, start, rows + (tap - TAPS // 2), across, num_rows, width, value_stride)
        out = sums + (part.to(tl.int64) * TAPS + tap) * width + across
        tl.store(out, tl.sum(given * near, 0), mask=across < width)


@torch.library.custom_op("mhimdist::sequence_convolution", mutates_args=())
@on_its_device
def sequence_convolution(values_TE: Tensor, kernel_JE: Tensor) -> Tensor:
    """See `ops.sequence_convolution`."""
    require_float(values_TE=values_TE, kernel_JE=kernel_JE)
    values_TE = with_rows_in_line(values_TE)
    num_rows, width = values_TE.shape
    out_TE = values_TE.new_empty((num_rows, width))
    across = min(triton.next_power_of_2(width), 64)
    _convolve[triton.cdiv(num_rows, _ROWS), triton.cdiv(width, across)](
        values_TE,
        kernel_JE.contiguous(),
        out_TE,
        num_rows,
        width,
        values_TE.stride(0),
        TAPS=len(kernel_JE),
        ROWS=_ROWS,
        WIDTH=across,
        num_warps=4,
    )
    return out_TE


@torch.library.custom_op("mhimdist::sequence_convolution_kernel_backward", mutates_args=())
@on_its_device
def sequence_convolution_kernel_backward(grad_TE: Tensor, values_TE: Tensor, num_taps: int) -> Tensor:
    """The gradient of the kernel, J x E in float32."""
    grad_TE, values_TE = with_rows_in_line(grad_TE), with_rows_in_line(values_TE)
    num_rows, width = values_TE.shape
    num_parts = triton.cdiv(num_rows, _ROWS_A_PART)
    sums_PJE = values_TE.new_empty((num_parts, num_taps, width), dtype=torch.float32)
    across = min(triton.next_power_of_2(width), 32)
    _kernel_gradient[num_parts, triton.cdiv(width, across)](
        grad_TE,
        values_TE,
        sums_PJE,
        num_rows,
        width,
        grad_TE.stride(0),
        values_TE.stride(0),
        TAPS=num_taps,
        ROWS=_ROWS_A_PART,
        WIDTH=across,
        num_warps=4,
    )
    return sums_PJE.sum(0)


@sequence_convolution.register_fake
def _(values_TE: Tensor, kernel_JE: Tensor) -> Tensor:
    return values_TE.new_empty(values_TE.shape)


@sequence_convolution_kernel_backward.register_fake
def _(grad_TE: Tensor, values_TE: Tensor, num_taps: int) -> Tensor:
    return values_TE.new_empty((num_taps, values_TE.shape[1]), dtype=torch.float32)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad_TE: Tensor) -> tuple[Tensor, Tensor]:
    values_TE, kernel_JE = ctx.saved_tensors
    grad_JE = sequence_convolution_kernel_backward(grad_TE, values_TE, len(kernel_JE))
    return sequence_convolution(grad_TE, kernel_JE.flip(0)), grad_JE.to(kernel_JE.dtype)


sequence_convolution.register_autograd(_backward, setup_context=_save)
