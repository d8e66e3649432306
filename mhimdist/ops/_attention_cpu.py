"""Attention and softmax pooling on the CPU as one operation.

As two operations they would write two gradients of the instances, each as large as the instances, and add
them. Here a block of rows is read, and its gradient is written, while the block is in a core's cache.

Dimensions: T instances of a batch, R rows of a block, B bags, B1 = B + 1 offsets, E embedding width,
A attention width.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from mhimdist.ops import _pool_cpu

# Rows per block: with 512 float32 values it takes 2 MB, the size at which the small products are fastest.
_ROWS = 1024


def _parts(edges: list[int]) -> Iterator[tuple[slice, list[tuple[int, slice]]]]:
    """Blocks of rows, each with the bags that have rows in it and with those rows."""
    bag = 0
    for start in range(0, edges[-1], _ROWS):
        stop, parts = min(start + _ROWS, edges[-1]), []
        row = start
        while row < stop:
            while edges[bag + 1] <= row:
                bag += 1
            end = min(stop, edges[bag + 1])
            parts.append((bag, slice(row, end)))
            row = end
        yield slice(start, stop), parts


class AttentionPool(torch.autograd.Function):
    """See `ops.attention_pool`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_TE: Tensor,
        offsets_B1: Tensor,
        branch_AE: Tensor,
        gate_AE: Tensor | None,
        score_1A: Tensor,
        is_relu: bool,
    ) -> tuple[Tensor, Tensor]:
        shape_TA = len(hidden_TE), len(branch_AE)
        branch_TA = hidden_TE.new_empty(shape_TA)
        gate_TA = hidden_TE.new_empty(shape_TA) if gate_AE is not None else None
        wide = torch.promote_types(hidden_TE.dtype, torch.float32)
        score_1A = score_1A.to(wide)
        scores_T1 = hidden_TE.new_empty((len(hidden_TE), 1), dtype=wide)
        for start in range(0, len(hidden_TE), _ROWS):
            rows = slice(start, start + _ROWS)
            product_RA = functional.linear(hidden_TE[rows], branch_AE)
            if is_relu:
                attention_RA = torch.clamp_min(product_RA, 0, out=branch_TA[rows])
            else:
                attention_RA = torch.tanh(product_RA, out=branch_TA[rows])
            if gate_AE is not None and gate_TA is not None:
                product_RA = functional.linear(hidden_TE[rows], gate_AE)
                attention_RA = attention_RA * torch.sigmoid(product_RA, out=gate_TA[rows])
            torch.mm(attention_RA.to(wide), score_1A.T, out=scores_T1[rows])
        weights_T1 = _pool_cpu.softmax(scores_T1, offsets_B1)
        pooled_B1E = _pool_cpu.weighted_sums(weights_T1, hidden_TE, offsets_B1)
        ctx.save_for_backward(
            hidden_TE, offsets_B1, branch_AE, gate_AE, score_1A, branch_TA, gate_TA, weights_T1, pooled_B1E
        )
        ctx.is_relu = is_relu
        ctx.set_materialize_grads(False)
        return pooled_B1E, scores_T1

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_B1E: Tensor | None, grad_scores_T1: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        (hidden_TE, offsets_B1, branch_AE, gate_AE, score_1A, branch_TA, gate_TA, weights_T1, pooled_B1E) = (
            ctx.saved_tensors
        )
        if grad_B1E is None:
            grad_B1E = torch.zeros_like(pooled_B1E)
        wide, edges = weights_T1.dtype, offsets_B1.tolist()
        shares_B = (grad_B1E * pooled_B1E).sum((1, 2)).tolist()
        grad_TE = torch.empty_like(hidden_TE)
        grad_branch_AE = torch.zeros_like(branch_AE, dtype=wide)
        grad_gate_AE = torch.zeros_like(gate_AE, dtype=wide) if gate_AE is not None else None
        grad_score_1A = torch.zeros_like(score_1A)
        for rows, parts in _parts(edges):
            hidden_RE, grad_RE = hidden_TE[rows], grad_TE[rows]
            grad_scores_R1 = weights_T1.new_empty(len(hidden_RE), 1)
            for bag, part in parts:
                local = slice(part.start - rows.start, part.stop - rows.start)
                towards_R1 = hidden_RE[local].to(wide) @ grad_B1E[bag].T
                torch.mul(towards_R1.sub_(shares_B[bag]), weights_T1[part], out=grad_scores_R1[local])
                torch.mul(weights_T1[part], grad_B1E[bag], out=grad_RE[local])
            if grad_scores_T1 is not None:
                grad_scores_R1 += grad_scores_T1[rows]

            branch_RA = attention_RA = branch_TA[rows].to(wide)
            grad_RA = grad_scores_R1 * score_1A
            if gate_AE is not None and grad_gate_AE is not None:
                gate_RA = gate_TA[rows].to(wide)
                attention_RA = branch_RA * gate_RA
                of_gate_RA = (grad_RA * attention_RA * (1 - gate_RA)).to(hidden_RE.dtype)
                grad_RE.addmm_(of_gate_RA, gate_AE)
                _add_product(grad_gate_AE, of_gate_RA, hidden_RE)
                grad_RA *= gate_RA
            if ctx.is_relu:
                grad_RA *= branch_RA > 0
            else:
                grad_RA *= 1 - branch_RA.square()
            of_branch_RA = grad_RA.to(hidden_RE.dtype)
            grad_RE.addmm_(of_branch_RA, branch_AE)
            _add_product(grad_branch_AE, of_branch_RA, hidden_RE)
            grad_score_1A.addmm_(grad_scores_R1.T, attention_RA)
        grad_TE[edges[-1] :] = 0
        return (
            grad_TE,
            None,
            grad_branch_AE.to(branch_AE.dtype),
            grad_gate_AE.to(gate_AE.dtype) if grad_gate_AE is not None else None,
            grad_score_1A,
            None,
        )


def _add_product(total_AE: Tensor, grad_RA: Tensor, hidden_RE: Tensor) -> None:
    if total_AE.dtype == hidden_RE.dtype:
        total_AE.addmm_(grad_RA.T, hidden_RE)
    else:
        total_AE += grad_RA.T @ hidden_RE
