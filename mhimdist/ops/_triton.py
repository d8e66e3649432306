# mypy: disable-error-code="no-untyped-def"
"""Functions that the kernels share: random words, the order of scores, the bag of a row, a bag's parts.

Triton compiles a kernel for every argument that is 1 and every one that is a multiple of 16. Where a number
differs from bag to bag, `do_not_specialize` names it: otherwise the first epoch would compile at every turn.

Dimensions: R rows of a block, B bags, B1 = B + 1 offsets.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
import triton
import triton.language as tl
from torch import Tensor

_Operator = TypeVar("_Operator", bound=Callable[..., Any])

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
# Target number of programs over all bags and blocks of columns.
_PROGRAMS = 512


def require_float(**tensors: Tensor) -> None:
    """Check that the kernels support the dtype of every tensor.

    Raises:
        TypeError: the dtype of a tensor is not one of `FLOATS`.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            expected = ", ".join(str(dtype) for dtype in FLOATS)
            raise TypeError(f"{name}: expected one of {expected} on CUDA, got {tensor.dtype}")


def on_its_device(operator: _Operator) -> _Operator:
    """Make an operator launch on the device of its first tensor: Triton launches on the current device."""

    @wraps(operator)
    def guarded(*args: Any) -> Any:
        with torch.cuda.device_of(args[0]):
            return operator(*args)

    return guarded  # type: ignore[return-value]


def most_parts(num_bags: int, num_rows: int, width_blocks: int = 1) -> int:
    """The number of parts into which every bag is split, so that one large bag fills the device.

    Args:
        num_bags: number of bags.
        num_rows: rows of all bags.
        width_blocks: blocks of columns, each of which a separate program takes.
    """
    return max(1, min(_PROGRAMS // (num_bags * width_blocks), triton.cdiv(num_rows, 32)))


def with_rows_in_line(values_TE: Tensor) -> Tensor:
    """The values, copied if the columns of a row are not next to each other."""
    return values_TE if values_TE.stride(1) == 1 else values_TE.contiguous()


@triton.jit
def mix(words):
    """`draws.mix` for uint64."""
    words = (words ^ (words >> 30)) * 0xBF58476D1CE4E5B9
    words = (words ^ (words >> 27)) * 0x94D049BB133111EB
    return words ^ (words >> 31)


@triton.jit
def stream_words(key, index):
    """Output number `index` (from 0) of the stream with `key`: uint64 from two int64."""
    return mix(key.to(tl.uint64) + (index + 1).to(tl.uint64) * 0x9E3779B97F4A7C15)


@triton.jit
def rank(scores):
    """Integers in the order of the scores: int64 within 32 bits. Subnormals rank as zero, NaN highest."""
    bits = scores.to(tl.float32).to(tl.int32, bitcast=True)
    size = bits & 0x7FFFFFFF
    ranks = tl.where(bits < 0, -size, size)
    ranks = tl.where(size < 0x00800000, 0, ranks)
    return tl.where(size > 0x7F800000, 0x7FC00000, ranks).to(tl.int64)


@triton.jit
def bag_of(rows, offsets, num_bags, BAGS: tl.constexpr):
    """The bag of each row, int32; `num_bags` for a row after the last bag.

    Args:
        rows: row numbers.
        offsets: int64 offsets of the bags.
        num_bags: number of bags.
        BAGS: bags compared at a time.
    """
    bags = tl.zeros(rows.shape, tl.int32)
    for first in range(0, num_bags, BAGS):
        bag = first + tl.arange(0, BAGS)
        ends = tl.load(offsets + 1 + bag, mask=bag < num_bags, other=0x7FFFFFFFFFFFFFFF)
        bags += tl.sum((ends[None, :] <= rows[:, None]).to(tl.int32), axis=1)
    return bags


@triton.jit
def part_of(offsets, bag, part, num_parts):
    """The first row of one part of a bag, and its last row + 1."""
    start, stop = tl.load(offsets + bag), tl.load(offsets + bag + 1)
    rows = tl.cdiv(stop - start, num_parts)
    first = start + part * rows
    return first, tl.minimum(first + rows, stop)


@triton.jit
def part_or_padding(offsets, bag, part, num_bags, num_parts, num_rows):
    """`part_of`, and for bag number `num_bags` a part of the rows that belong to no bag."""
    if bag < num_bags:
        first, stop = part_of(offsets, bag, part, num_parts)
    else:
        start = tl.load(offsets + num_bags)
        rows_a_part = tl.cdiv(num_rows - start, num_parts)
        first = start + part * rows_a_part
        stop = tl.minimum(first + rows_a_part, num_rows)
    return first, stop
