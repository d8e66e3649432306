"""Softmax pooling of ragged bags on the CPU, bag by bag: a softmax, then a matrix product.

Dimensions: T instances of a batch, N instances of one bag, B bags, B1 = B + 1 offsets, C columns of scores,
E embedding width.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Rows of 16-bit values converted to float32 at a time: few enough to stay in cache.
_ROWS_A_BLOCK = 256


def softmax(scores_TC: Tensor, offsets_B1: Tensor) -> Tensor:
    """Softmax over each bag's rows, column by column; zero for rows after the last bag."""
    if len(offsets_B1) == 2 and int(offsets_B1[1]) == len(scores_TC):
        return torch.softmax(scores_TC, dim=0)
    weights_TC = torch.zeros_like(scores_TC)
    for start, stop in pairwise(offsets_B1.tolist()):
        torch.softmax(scores_TC[start:stop], dim=0, out=weights_TC[start:stop])
    return weights_TC


def _blocks(values_NE: Tensor, dtype: torch.dtype) -> list[Tensor]:
    return [values_NE] if values_NE.dtype == dtype else list(values_NE.split(_ROWS_A_BLOCK))


def weighted_sums(weights_TC: Tensor, values_TE: Tensor, offsets_B1: Tensor) -> Tensor:
    """The sum of each bag's values weighted by each column of weights, B x C x E in the weights' dtype.

    Args:
        weights_TC: weights of the rows.
        values_TE: packed rows.
        offsets_B1: int64 offsets of the bags.
    """
    pooled_BCE = weights_TC.new_zeros(len(offsets_B1) - 1, weights_TC.shape[1], values_TE.shape[1])
    for pooled_CE, (start, stop) in zip(pooled_BCE, pairwise(offsets_B1.tolist()), strict=True):
        blocks = _blocks(values_TE[start:stop], weights_TC.dtype)
        rows = len(blocks[0])
        for weights_RC, values_RE in zip(weights_TC[start:stop].split(rows), blocks, strict=True):
            pooled_CE.addmm_(weights_RC.T, values_RE.to(weights_TC.dtype))
    return pooled_BCE


class SoftmaxPool(torch.autograd.Function):
    """See `ops.segment_softmax_pool`."""

    @staticmethod
    def forward(ctx: Any, scores_TC: Tensor, values_TE: Tensor, offsets_B1: Tensor) -> Tensor:
        wide = torch.promote_types(values_TE.dtype, torch.float32)
        weights_TC = softmax(scores_TC.to(wide), offsets_B1)
        pooled_BCE = weighted_sums(weights_TC, values_TE, offsets_B1)
        ctx.save_for_backward(weights_TC, values_TE, offsets_B1, pooled_BCE)
        ctx.scores_dtype = scores_TC.dtype
        return pooled_BCE

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BCE: Tensor) -> tuple[Tensor | None, ...]:
        weights_TC, values_TE, offsets_B1, pooled_BCE = ctx.saved_tensors
        wide = weights_TC.dtype
        needs_scores, needs_values = ctx.needs_input_grad[:2]
        grad_scores_TC = torch.zeros_like(weights_TC)
        grad_values_TE = torch.empty_like(values_TE) if needs_values else None
        shares_BC = (grad_BCE * pooled_BCE).sum(2)
        for bag, (start, stop) in enumerate(pairwise(offsets_B1.tolist())):
            blocks = _blocks(values_TE[start:stop], wide)
            row = start
            for values_RE in blocks:
                rows = slice(row, row + len(values_RE))
                row = rows.stop
                if needs_scores:
                    torch.mm(values_RE.to(wide), grad_BCE[bag].T, out=grad_scores_TC[rows])
                if grad_values_TE is not None:
                    _outer(weights_TC[rows], grad_BCE[bag], grad_values_TE[rows])
            grad_scores_TC[start:stop].sub_(shares_BC[bag]).mul_(weights_TC[start:stop])
        if grad_values_TE is not None:
            grad_values_TE[int(offsets_B1[-1]) :] = 0
        grad_scores = grad_scores_TC.to(ctx.scores_dtype) if needs_scores else None
        return grad_scores, grad_values_TE, None


def _outer(weights_RC: Tensor, grad_CE: Tensor, out_RE: Tensor) -> None:
    if out_RE.dtype != weights_RC.dtype:
        out_RE.copy_(weights_RC @ grad_CE)
    elif len(grad_CE) == 1:
        torch.mul(weights_RC, grad_CE, out=out_RE)
    else:
        torch.mm(weights_RC, grad_CE, out=out_RE)
