"""Keyed dropout on the CPU, block by block, so that words, bytes and values stay in a core's cache.

Dimensions: T instances of a batch, R rows of a block, B bags, B1 = B + 1 offsets, E embedding width.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mhimdist.ops.draws import stream_words

# Integers as wide as a value: its bits times 0 or 1 are zero or the value, bit for bit, and fast to compute.
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def _kept_blocks(
    values_TE: Tensor, threshold: int, offsets_B1: Tensor, keys_B: Tensor, first: int = 0
) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of rows, and per value an integer of the value's width: 1 if the value is kept, otherwise 0.

    `values_TE` are the rows from `first` on; padding has no block.
    """
    width = values_TE.shape[1]
    words = -(-width // 8)
    # One buffer for all blocks: the system would hand out a new one per block, page by page.
    bytes_, integers = np.empty(0, bool), torch.empty(0)
    rows = slice(first, first + len(values_TE))
    for start, stop, words_U in stream_words(keys_B, offsets_B1, words, rows=rows):
        if not len(bytes_):
            bytes_ = np.empty(words_U.nbytes, bool)
            integers = torch.empty(stop - start, width, dtype=_INTEGERS[values_TE.element_size()])
        kept = np.greater_equal(words_U.view(np.uint8), threshold, out=bytes_[: words_U.nbytes])
        kept_RE = torch.from_numpy(kept.view(np.uint8).reshape(stop - start, -1)[:, :width])
        yield slice(start - first, stop - first), integers[: stop - start].copy_(kept_RE)


def _scale(threshold: int) -> float:
    return 256 / (256 - threshold)


def _drop(values_TE: Tensor, threshold: int, offsets_B1: Tensor, keys_B: Tensor) -> Tensor:
    out_TE = torch.empty_like(values_TE, memory_format=torch.contiguous_format)
    bits_TE = out_TE.view(_INTEGERS[values_TE.element_size()])
    for rows, kept_RE in _kept_blocks(values_TE, threshold, offsets_B1, keys_B):
        torch.mul(values_TE[rows], _scale(threshold), out=out_TE[rows])
        bits_TE[rows].mul_(kept_RE)
    out_TE[int(offsets_B1[-1]) :] = 0
    return out_TE


class KeyedDropout(torch.autograd.Function):
    """See `ops.keyed_dropout`; the keys already include the site."""

    @staticmethod
    def forward(ctx: Any, values_TE: Tensor, threshold: int, offsets_B1: Tensor, keys_B: Tensor) -> Tensor:
        ctx.save_for_backward(offsets_B1, keys_B)
        ctx.threshold = threshold
        return _drop(values_TE, threshold, offsets_B1, keys_B)

    @staticmethod
    def backward(ctx: Any, grad_TE: Tensor) -> tuple[Tensor | None, ...]:
        return KeyedDropout.apply(grad_TE, ctx.threshold, *ctx.saved_tensors), None, None, None


def relu_drop(
    values_RE: Tensor, threshold: int, offsets_B1: Tensor, keys_B: Tensor, first: int, out_RE: Tensor
) -> None:
    """Write `ReluDropout` of some rows.

    Args:
        values_RE: consecutive rows of the packed instances, from row `first` on.
        threshold: a value is dropped if its byte is below it.
        offsets_B1: int64 offsets of the bags.
        keys_B: int64 keys of the bags' streams, which already include the site.
        first: number of the first row.
        out_RE: receives the result; may be `values_RE` itself.
    """
    bits_RE = out_RE.view(_INTEGERS[values_RE.element_size()])
    stop = 0
    for rows, kept_RE in _kept_blocks(values_RE, threshold, offsets_B1, keys_B, first):
        block_RE = out_RE[rows]
        torch.clamp_min(values_RE[rows], 0, out=block_RE)
        block_RE.mul_(_scale(threshold))
        bits_RE[rows].mul_(kept_RE)
        stop = rows.stop
    out_RE[stop:] = 0


class ReluDropout(torch.autograd.Function):
    """See `ops.relu_dropout`; the keys already include the site."""

    @staticmethod
    def forward(
        ctx: Any, values_TE: Tensor, threshold: int, offsets_B1: Tensor, keys_B: Tensor, inplace: bool
    ) -> Tensor:
        out_TE = values_TE if inplace else torch.empty_like(values_TE)
        relu_drop(values_TE, threshold, offsets_B1, keys_B, 0, out_TE)
        if inplace:
            ctx.mark_dirty(values_TE)
        ctx.threshold = threshold
        ctx.save_for_backward(out_TE)
        return out_TE

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TE: Tensor) -> tuple[Tensor | None, ...]:
        (out_TE,) = ctx.saved_tensors
        grad_values_TE = torch.empty_like(out_TE)
        rows = max(65536 // max(out_TE.shape[1], 1), 1)
        for block_RE, grad_RE, out_RE in zip(
            grad_values_TE.split(rows), grad_TE.split(rows), out_TE.split(rows), strict=True
        ):
            torch.ops.aten.threshold_backward.grad_input(grad_RE, out_RE, 0, grad_input=block_RE)
            block_RE.mul_(_scale(ctx.threshold))
        return grad_values_TE, None, None, None, None
