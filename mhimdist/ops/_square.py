# mypy: disable-error-code="no-untyped-def"
"""The depth-wise 7 x 7 convolution of TransMIL's position encoding on CUDA, for a bag whose size only the
device knows.

The instances lie in a square row by row. Its side follows from the size, which every program reads itself; no
square is ever copied together. Each pass is a sum over what it reads, in a fixed order and in float32: equal
arguments give equal bits.

Dimensions: T rows, the instances of a bag and padding after them, E width, J = 49 taps of the kernel, row by
row, J1 = J + 1 the taps and the bias.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mhimdist.ops._triton import on_its_device, require_float, with_rows_in_line

SIDE, TAPS = 7, 49
# Most parts of the rows whose kernel gradients are summed separately, and the fewest rows of a part.
_MOST_PARTS, _ROWS_A_PART = 64, 128


@triton.jit
def _square(offsets):
    """Number of instances, side of the grid and number of its places that hold an instance, int32.

    The instances fill a square of side ceil(sqrt(N)), the first of them once more at its end. A square of
    less than 7 x 7 is laid out as 7 x 7, with zeros after its places.
    """
    size = tl.load(offsets + 1).to(tl.int32)
    # The rounded root may be off by one: it starts below and grows until the square has room.
    side = tl.maximum(tl.sqrt(size.to(tl.float32)).to(tl.int32) - 1, 0)
    side += (side * side < size).to(tl.int32)
    side += (side * side < size).to(tl.int32)
    side += (side * side < size).to(tl.int32)
    return size, tl.maximum(side, 7), side * side


@triton.jit
def _values_at(values, rows, across, stride, inside, width):
    return tl.load(
        values + rows.to(tl.int64)[:, None] * stride + across[None, :],
        mask=inside[:, None] & (across < width)[None, :],
        other=0.0,
    ).to(tl.float32)


@triton.jit
def _instances_at(values, y, x, size, side, filled, across, stride, inside, width):
    """The instances at places of the grid, zero beyond its edge."""
    place = y * side + x
    inside = inside & (y >= 0) & (y < side) & (x >= 0) & (x < side) & (place < filled)
    rows = tl.where(place < size, place, place - size)
    return _values_at(values, rows, across, stride, inside, width)


@triton.jit(do_not_specialize=["num_rows"])
def _convolve(
    values,
    kernel,
    bias,
    out,
    offsets,
    num_rows,
    width,
    stride,
    BACKWARD: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """The encoded instances; or, if `BACKWARD`, the gradient of the instances from that of the encoded.

    An instance that is in the square twice gets a gradient from both places.
    """
    start = tl.program_id(0) * ROWS
    rows = start + tl.arange(0, ROWS)
    across = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    size, side, filled = _square(offsets)
    is_instance = rows < size
    total = _values_at(values, rows, across, stride, is_instance, width)
    places = 1
    if BACKWARD:
        if start + size < filled:
            places = 2
    else:
        total += tl.load(bias + across, mask=across < width, other=0.0).to(tl.float32)[None, :]
    for number in range(0, places):
        place = rows + number * size
        is_place = is_instance & (place < filled)
        y, x = place // side, place % side
        for tap_y in range(0, 7):
            for tap_x in tl.static_range(7):
                tap = tap_y * 7 + tap_x
                near_y, near_x = y + tap_y - 3, x + tap_x - 3
                if BACKWARD:
                    # Repeated instances have no result of their own, and so no gradient.
                    tap = 48 - tap
                    value = _instances_at(
                        values, near_y, near_x, size, side, size, across, stride, is_place, width
                    )
                else:
                    value = _instances_at(
                        values, near_y, near_x, size, side, filled, across, stride, is_place, width
                    )
                weight = tl.load(kernel + tap * width + across, mask=across < width, other=0.0)
                total += value * weight.to(tl.float32)[None, :]
    total = tl.where(is_instance[:, None], total, 0.0)
    tl.store(
        out + rows.to(tl.int64)[:, None] * width + across[None, :],
        total.to(out.dtype.element_ty),
        mask=(rows < num_rows)[:, None] & (across < width)[None, :],
    )


@triton.jit(do_not_specialize=["num_parts"])
def _kernel_gradient(
    grad,
    values,
    sums,
    offsets,
    num_parts,
    width,
    grad_stride,
    value_stride,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """One part's sums for the taps of one row of the kernel; the first of these programs sums the bias's."""
    part, tap_y = tl.program_id(0), tl.program_id(2)
    across = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    size, side, filled = _square(offsets)
    rows_a_part = tl.cdiv(size, num_parts)
    first = part * rows_a_part
    stop = tl.minimum(first + rows_a_part, size)
    tap_0 = tl.zeros([ROWS, WIDTH], tl.float32)
    tap_1, tap_2, tap_3, tap_4, tap_5, tap_6, bias = tap_0, tap_0, tap_0, tap_0, tap_0, tap_0, tap_0
    for start in range(first, stop, ROWS):
        rows = start + tl.arange(0, ROWS)
        inside = rows < stop
        y, x = rows // side + tap_y - 3, rows % side - 3
        given = _values_at(grad, rows, across, grad_stride, inside, width)
        bias += given
        at = (across, value_stride, inside, width)
        tap_0 += given * _instances_at(values, y, x, size, side, filled, *at)
        tap_1 += given * _instances_at(values, y, x + 1, size, side, filled, *at)
        tap_2 += given * _instances_at(values, y, x + 2, size, side, filled, *at)
        tap_3 += given * _instances_at(values, y, x + 3, size, side, filled, *at)
        tap_4 += given * _instances_at(values, y, x + 4, size, side, filled, *at)
        tap_5 += given * _instances_at(values, y, x + 5, size, side, filled, *at)
        tap_6 += given * _instances_at(values, y, x + 6, size, side, filled, *at)
    out = sums + (part.to(tl.int64) * 50 + tap_y * 7) * width + across
    tl.store(out, tl.sum(tap_0, 0), mask=across < width)
    tl.store(out + width, tl.sum(tap_1, 0), mask=across < width)
    tl.store(out + 2 * width, tl.sum(tap_2, 0), mask=across < width)
    tl.store(out + 3 * width, tl.sum(tap_3, 0), mask=across < width)
    tl.store(out + 4 * width, tl.sum(tap_4, 0), mask=across < width)
    tl.store(out + 5 * width, tl.sum(tap_5, 0), mask=across < width)
    tl.store(out + 6 * width, tl.sum(tap_6, 0), mask=across < width)
    if tap_y == 0:
        tl.store(out + 49 * width, tl.sum(bias, 0), mask=across < width)


def _launch(
    values_TE: Tensor, kernel_JE: Tensor, bias_E: Tensor, offsets_2: Tensor, *, backward: bool
) -> Tensor:
    values_TE = with_rows_in_line(values_TE)
    num_rows, width = values_TE.shape
    out_TE = values_TE.new_empty((num_rows, width))
    rows, across = 32, min(triton.next_power_of_2(width), 64)
    _convolve[triton.cdiv(num_rows, rows), triton.cdiv(width, across)](
        values_TE,
        kernel_JE.contiguous(),
        bias_E.contiguous(),
        out_TE,
        offsets_2,
        num_rows,
        width,
        values_TE.stride(0),
        BACKWARD=backward,
        ROWS=rows,
        WIDTH=across,
        num_warps=4,
    )
    return out_TE


@torch.library.custom_op("mhimdist::square_convolution", mutates_args=())
@on_its_device
def square_convolution(tokens_TE: Tensor, kernel_JE: Tensor, bias_E: Tensor, offsets_2: Tensor) -> Tensor:
    """See `ops.square_convolution`."""
    require_float(tokens_TE=tokens_TE, kernel_JE=kernel_JE, bias_E=bias_E)
    return _launch(tokens_TE, kernel_JE, bias_E, offsets_2, backward=False)


@torch.library.custom_op("mhimdist::square_convolution_backward", mutates_args=())
@on_its_device
def square_convolution_backward(grad_TE: Tensor, kernel_JE: Tensor, offsets_2: Tensor) -> Tensor:
    """The gradient of the tokens; zero for padding, whose `grad_TE` is not read."""
    return _launch(grad_TE, kernel_JE, kernel_JE, offsets_2, backward=True)


@torch.library.custom_op("mhimdist::square_convolution_kernel_backward", mutates_args=())
@on_its_device
def square_convolution_kernel_backward(grad_TE: Tensor, tokens_TE: Tensor, offsets_2: Tensor) -> Tensor:
    """The gradients of the kernel and of the bias, J1 x E in float32."""
    grad_TE, tokens_TE = with_rows_in_line(grad_TE), with_rows_in_line(tokens_TE)
    num_rows, width = tokens_TE.shape
    num_parts = max(min(triton.cdiv(num_rows, _ROWS_A_PART), _MOST_PARTS), 1)
    sums_PJ1E = tokens_TE.new_empty((num_parts, TAPS + 1, width), dtype=torch.float32)
    across = min(triton.next_power_of_2(width), 64)
    _kernel_gradient[num_parts, triton.cdiv(width, across), SIDE](
        grad_TE,
        tokens_TE,
        sums_PJ1E,
        offsets_2,
        num_parts,
        width,
        grad_TE.stride(0),
        tokens_TE.stride(0),
        ROWS=16,
        WIDTH=across,
        num_warps=4,
    )
    return sums_PJ1E.sum(0)


@square_convolution.register_fake
def _(tokens_TE: Tensor, kernel_JE: Tensor, bias_E: Tensor, offsets_2: Tensor) -> Tensor:
    return tokens_TE.new_empty(tokens_TE.shape)


@square_convolution_backward.register_fake
def _(grad_TE: Tensor, kernel_JE: Tensor, offsets_2: Tensor) -> Tensor:
    return grad_TE.new_empty(grad_TE.shape)


@square_convolution_kernel_backward.register_fake
def _(grad_TE: Tensor, tokens_TE: Tensor, offsets_2: Tensor) -> Tensor:
    return tokens_TE.new_empty((TAPS + 1, tokens_TE.shape[1]), dtype=torch.float32)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    tokens_TE, kernel_JE, bias_E, offsets_2 = inputs
    ctx.bias_dtype = bias_E.dtype
    ctx.save_for_backward(tokens_TE, kernel_JE, offsets_2)


def _backward(ctx: Any, grad_TE: Tensor) -> tuple[Tensor | None, ...]:
    tokens_TE, kernel_JE, offsets_2 = ctx.saved_tensors
    grad_tokens_TE = square_convolution_backward(grad_TE, kernel_JE, offsets_2)
    grad_J1E = square_convolution_kernel_backward(grad_TE, tokens_TE, offsets_2)
    return grad_tokens_TE, grad_J1E[:TAPS].to(kernel_JE.dtype), grad_J1E[TAPS].to(ctx.bias_dtype), None


square_convolution.register_autograd(_backward, setup_context=_save)
