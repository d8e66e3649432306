"""Softmax attention whose matrix exists one block at a time, in the forward and in the backward pass.

Nystrom attention multiplies two factors of H x N x P, softmax(Q K~^T) and softmax(Q~ K^T). Held whole, each
of them is H * P / E times as large as the tokens. Here a block of some heads and rows is formed, used and
dropped; the backward pass forms it again.

Dimensions: H heads, R rows (queries), S columns (keys), K width of a head.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

BLOCK_VALUES = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Values of the attention matrix held at a time: in a core's reach on a CPU, few launches on a GPU."""


def attend(queries_HRK: Tensor, keys_HSK: Tensor, values_HSK: Tensor) -> Tensor:
    """softmax(Q K^T) V, in memory laid out as R x H x K; the caller scales the queries or the keys."""
    return _Attention.apply(queries_HRK, keys_HSK, values_HSK)


def attend_weighted(weights_HR: Tensor, queries_HRK: Tensor, keys_HSK: Tensor) -> Tensor:
    """The rows of softmax(Q K^T) added up by weights: float32 H x S (float64 if the weights are)."""
    return _WeightedRows.apply(weights_HR, queries_HRK, keys_HSK)


def attend_both(
    weights_HR: Tensor, queries_HRK: Tensor, keys_HSK: Tensor, values_HSK: Tensor
) -> tuple[Tensor, Tensor]:
    """`attend` and `attend_weighted` from one look at the matrix; without gradients."""
    assert not torch.is_grad_enabled(), "the two have gradients one by one"
    gathered_HRK, rows_HS = _empty_rows(queries_HRK, values_HSK), _zero_sums(weights_HR, keys_HSK)
    for heads, rows in _blocks(queries_HRK, keys_HSK):
        block_HRS = _softmax(queries_HRK[heads, rows], keys_HSK[heads], weights_HR.dtype)
        _add_rows(rows_HS[heads], weights_HR[heads, rows], block_HRS)
        _product(block_HRS.to(values_HSK.dtype), values_HSK[heads], gathered_HRK[heads, rows])
    return gathered_HRK, rows_HS


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries_HRK: Tensor, keys_HSK: Tensor, values_HSK: Tensor) -> Tensor:
        ctx.save_for_backward(queries_HRK, keys_HSK, values_HSK)
        gathered_HRK = _empty_rows(queries_HRK, values_HSK)
        for heads, rows in _blocks(queries_HRK, keys_HSK):
            block_HRS = _softmax(queries_HRK[heads, rows], keys_HSK[heads], queries_HRK.dtype)
            _product(block_HRS, values_HSK[heads], gathered_HRK[heads, rows])
        return gathered_HRK

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        queries_HRK, keys_HSK, values_HSK = ctx.saved_tensors
        grad_queries, grad_keys, grad_values = (_sums_like(each) for each in ctx.saved_tensors)
        for heads, rows in _blocks(queries_HRK, keys_HSK):
            block_HRS = _softmax(queries_HRK[heads, rows], keys_HSK[heads], queries_HRK.dtype)
            grad_HRK = grads[0][heads, rows]
            grad_values[heads].baddbmm_(block_HRS.mT, grad_HRK)
            grad_HRS = _back_to_logits(grad_HRK @ values_HSK[heads].mT, block_HRS)
            grad_queries[heads, rows] = grad_HRS @ keys_HSK[heads]
            grad_keys[heads].baddbmm_(grad_HRS.mT, queries_HRK[heads, rows])
        return grad_queries, grad_keys, grad_values


class _WeightedRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights_HR: Tensor, queries_HRK: Tensor, keys_HSK: Tensor) -> Tensor:
        ctx.save_for_backward(weights_HR, queries_HRK, keys_HSK)
        rows_HS = _zero_sums(weights_HR, keys_HSK)
        for heads, rows in _blocks(queries_HRK, keys_HSK):
            block_HRS = _softmax(queries_HRK[heads, rows], keys_HSK[heads], weights_HR.dtype)
            _add_rows(rows_HS[heads], weights_HR[heads, rows], block_HRS)
        return rows_HS

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weights_HR, queries_HRK, keys_HSK = ctx.saved_tensors
        grad_weights, grad_queries, grad_keys = (_sums_like(each) for each in ctx.saved_tensors)
        for heads, rows in _blocks(queries_HRK, keys_HSK):
            block_HRS = _softmax(queries_HRK[heads, rows], keys_HSK[heads], weights_HR.dtype)
            mean_HR1 = block_HRS @ grads[0][heads, :, None]
            grad_weights[heads, rows] = mean_HR1[..., 0]
            # Of the softmax's gradient, p (g - sum p g), g is the same for every row but for its weight.
            block_HRS.mul_(grads[0][heads, None] - mean_HR1).mul_(weights_HR[heads, rows, None])
            grad_HRS = block_HRS.to(queries_HRK.dtype)
            grad_queries[heads, rows] = grad_HRS @ keys_HSK[heads]
            grad_keys[heads].baddbmm_(grad_HRS.mT, queries_HRK[heads, rows])
        return grad_weights, grad_queries, grad_keys


def _blocks(queries_HRK: Tensor, keys_HSK: Tensor) -> Iterator[tuple[slice, slice]]:
    """Heads and rows of each block: as many whole heads as fit, or of one head as many rows."""
    num_heads, num_rows, num_columns = *queries_HRK.shape[:2], keys_HSK.shape[1]
    limit = BLOCK_VALUES[queries_HRK.device.type]
    heads_at_once = max(1, limit // (num_rows * num_columns))
    rows_at_once = max(1, limit // num_columns)
    for head in range(0, num_heads, heads_at_once):
        for row in range(0, num_rows, rows_at_once):
            yield slice(head, head + heads_at_once), slice(row, row + rows_at_once)


def _softmax(queries_HRK: Tensor, keys_HSK: Tensor, dtype: torch.dtype) -> Tensor:
    """softmax(Q K^T) of a block, computed in float32 at least and given in `dtype`."""
    logits_HRS = queries_HRK @ keys_HSK.mT
    if logits_HRS.dtype == dtype and logits_HRS.device.type == "cpu":
        return torch.softmax(logits_HRS, dim=-1, out=logits_HRS)
    return torch.softmax(logits_HRS, dim=-1, dtype=dtype)


def _back_to_logits(grad_HRS: Tensor, softmax_HRS: Tensor) -> Tensor:
    """The gradient of a softmax's input from that of its output."""
    return torch.ops.aten._softmax_backward_data(grad_HRS, softmax_HRS, -1, softmax_HRS.dtype)


def _product(block_HRS: Tensor, values_HSK: Tensor, out_HRK: Tensor) -> None:
    """Written head by head: a matrix product can write rows that lie apart, a batched one cannot."""
    if block_HRS.device.type != "cpu":
        out_HRK.copy_(block_HRS @ values_HSK)
        return
    for block_RS, values_SK, out_RK in zip(block_HRS, values_HSK, out_HRK, strict=True):
        torch.mm(block_RS, values_SK, out=out_RK)


def _empty_rows(queries_HRK: Tensor, values_HSK: Tensor) -> Tensor:
    num_heads, num_rows, _ = queries_HRK.shape
    return values_HSK.new_empty(num_rows, num_heads, values_HSK.shape[-1]).transpose(0, 1)


def _zero_sums(weights_HR: Tensor, keys_HSK: Tensor) -> Tensor:
    return weights_HR.new_zeros(keys_HSK.shape[:2])


def _add_rows(rows_HS: Tensor, weights_HR: Tensor, block_HRS: Tensor) -> None:
    rows_HS += (weights_HR[:, None] @ block_HRS)[:, 0]


def _sums_like(values: Tensor) -> Tensor:
    """Zeros to sum a gradient in, laid out as the tensor itself."""
    return torch.zeros_like(values)
