"""Softmax attention whose matrix exists one block at a time, in the forward and in the backward pass.

Nystrom attention multiplies two factors of H x N x P, softmax(Q K~^T) and softmax(Q~ K^T). As a whole, each
factor is H * P / E times as large as the tokens. Here a block of some heads and rows is formed, used and
discarded; the backward pass forms it again.

`scaled_dot_product_attention` cannot return the weighted sum of the matrix's rows, which `attend_both` and
`attend_weighted` need: the blocks stay for them. In place of `attend` it makes TransMIL's step take .95 to
1.00 times as long in float32 and 1.04 times in bfloat16 (an AMD CPU; `benchmarks/RESULTS.md`).

Dimensions: H heads, R rows (queries), S columns (keys), K width of a head.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK_VALUES = {"cpu": 1 << 21, "gpu": 1 << 26}
"""Values of the attention matrix held at a time: close to a core on a CPU, few launches on a GPU."""


def attend(queries_HRK: Tensor, keys_HSK: Tensor, values_HSK: Tensor) -> Tensor:
    """softmax(Q K^T) V, laid out in memory as R x H x K.

    Args:
        queries_HRK, keys_HSK: the caller scales one of the two.
        values_HSK: the values, which the rows of the softmax average.
    """
    return _Attention.apply(queries_HRK, keys_HSK, values_HSK)


def attend_weighted(weights_HR: Tensor, queries_HRK: Tensor, keys_HSK: Tensor) -> Tensor:
    """The weighted sum of the rows of softmax(Q K^T), H x S in the dtype of the weights.

    Args:
        weights_HR: in at least float32; the softmax is computed in their dtype.
        queries_HRK, keys_HSK: see `attend`.
    """
    return _WeightedRows.apply(weights_HR, queries_HRK, keys_HSK)


def attend_both(
    weights_HR: Tensor, queries_HRK: Tensor, keys_HSK: Tensor, values_HSK: Tensor
) -> tuple[Tensor, Tensor]:
    """`attend` and `attend_weighted` in one pass over the matrix; without gradients.

    Args:
        weights_HR: see `attend_weighted`.
        queries_HRK, keys_HSK, values_HSK: see `attend`.
    """
    assert not torch.is_grad_enabled(), "for gradients call attend and attend_weighted separately"
    gathered_HRK, rows_HS = _empty_rows(queries_HRK, values_HSK), weights_HR.new_zeros(keys_HSK.shape[:2])
    blocks = _Blocks(queries_HRK, keys_HSK, weights_HR.dtype)
    for heads, rows, block_HRS in blocks:
        rows_HS[heads] += (weights_HR[heads, None, rows] @ block_HRS)[:, 0]
        _product(blocks.as_values(block_HRS), values_HSK[heads], gathered_HRK[heads, rows])
    return gathered_HRK, rows_HS


class _Blocks:
    """The blocks of softmax(Q K^T), one after the other, in the same memory.

    Memory fresh from the system would cost more time than the computation in it.
    """

    def __init__(self, queries_HRK: Tensor, keys_HSK: Tensor, dtype: torch.dtype) -> None:
        """Take queries and keys; the softmax is returned in `dtype` and computed in at least float32."""
        self.queries_HRK, self.keys_HSK, self.dtype = queries_HRK, keys_HSK, dtype
        self.num_heads, self.num_rows, self.num_columns = *queries_HRK.shape[:2], keys_HSK.shape[1]
        limit = BLOCK_VALUES["cpu" if queries_HRK.device.type == "cpu" else "gpu"]
        # Nearly equal sizes, so that the last block of a head is not much smaller than the others.
        num_blocks = -(-self.num_rows // max(1, limit // self.num_columns))
        self.rows_at_once = -(-self.num_rows // num_blocks)
        self.heads_at_once = min(max(1, limit // (self.num_rows * self.num_columns)), self.num_heads)
        self._memory: dict[tuple[str, torch.dtype], Tensor] = {}

    def __iter__(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """Heads, rows and block: as many whole heads as fit, or as many rows of one head."""
        for head in range(0, self.num_heads, self.heads_at_once):
            heads = slice(head, head + self.heads_at_once)
            # Copied once here, not in each product: 16-bit products accept no rows that are apart in memory.
            keys_HKS = self.keys_HSK[heads].contiguous().mT
            for row in range(0, self.num_rows, self.rows_at_once):
                rows = slice(row, row + self.rows_at_once)
                logits_HRS = self.product("logits", self.queries_HRK[heads, rows].contiguous(), keys_HKS)
                out = logits_HRS if logits_HRS.dtype == self.dtype else self._take("softmax", logits_HRS)
                yield heads, rows, torch.softmax(logits_HRS, dim=-1, dtype=self.dtype, out=out)

    def product(self, name: str, left_HRK: Tensor, right_HKS: Tensor) -> Tensor:
        """A matrix product as large as a block, in the memory kept under `name`."""
        shape = (*left_HRK.shape[:2], right_HKS.shape[2])
        return torch.bmm(left_HRK, right_HKS, out=self._take(name, left_HRK, shape))

    def as_values(self, block_HRS: Tensor) -> Tensor:
        """A block in the dtype of the queries, written over the logits that it came from."""
        if block_HRS.dtype == self.queries_HRK.dtype:
            return block_HRS
        return self._take("logits", self.queries_HRK, tuple(block_HRS.shape)).copy_(block_HRS)

    def _take(self, name: str, like: Tensor, shape: tuple[int, ...] | None = None) -> Tensor:
        dtype = self.dtype if name == "softmax" else like.dtype
        size = self.heads_at_once * self.rows_at_once * self.num_columns
        memory = self._memory.setdefault((name, dtype), like.new_empty(0, dtype=dtype))
        if not len(memory):
            memory = self._memory[name, dtype] = like.new_empty(size, dtype=dtype)
        shape = shape or tuple(like.shape)
        return memory[: math.prod(shape)].view(shape)


class _Sums:
    """The sums of a head's blocks, in at least float32, rounded when the head is done.

    In 16 bits every added block would cost digits.
    """

    def __init__(self, like_HSK: Tensor) -> None:
        self.result_HSK = torch.empty_like(like_HSK)
        self._dtype = torch.promote_types(like_HSK.dtype, torch.float32)
        self._total_HSK = like_HSK.new_empty(0)

    def add(self, heads: slice, rows: slice, left_HRS: Tensor, right_HRK: Tensor) -> None:
        """Add `left.T @ right` of a block."""
        if rows.start == 0:
            self._total_HSK = (left_HRS.mT @ right_HRK).to(self._dtype)
        elif left_HRS.dtype == self._dtype:
            self._total_HSK.baddbmm_(left_HRS.mT, right_HRK)
        else:
            self._total_HSK += left_HRS.mT @ right_HRK
        self.result_HSK[heads] = self._total_HSK


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries_HRK: Tensor, keys_HSK: Tensor, values_HSK: Tensor) -> Tensor:
        ctx.save_for_backward(queries_HRK, keys_HSK, values_HSK)
        gathered_HRK = _empty_rows(queries_HRK, values_HSK)
        for heads, rows, block_HRS in _Blocks(queries_HRK, keys_HSK, queries_HRK.dtype):
            _product(block_HRS, values_HSK[heads], gathered_HRK[heads, rows])
        return gathered_HRK

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        queries_HRK, keys_HSK, values_HSK = ctx.saved_tensors
        grad_queries, grad_keys, grad_values = (
            torch.empty_like(queries_HRK),
            _Sums(keys_HSK),
            _Sums(values_HSK),
        )
        blocks = _Blocks(queries_HRK, keys_HSK, queries_HRK.dtype)
        for heads, rows, block_HRS in blocks:
            grad_HRK = grads[0][heads, rows]
            grad_values.add(heads, rows, block_HRS, grad_HRK)
            grad_HRS = blocks.product("gradient", grad_HRK, values_HSK[heads].mT)
            torch.ops.aten._softmax_backward_data.out(
                grad_HRS, block_HRS, -1, block_HRS.dtype, grad_input=grad_HRS
            )
            grad_queries[heads, rows] = grad_HRS @ keys_HSK[heads]
            grad_keys.add(heads, rows, grad_HRS, queries_HRK[heads, rows])
        return grad_queries, grad_keys.result_HSK, grad_values.result_HSK


class _WeightedRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights_HR: Tensor, queries_HRK: Tensor, keys_HSK: Tensor) -> Tensor:
        ctx.save_for_backward(weights_HR, queries_HRK, keys_HSK)
        rows_HS = weights_HR.new_zeros(keys_HSK.shape[:2])
        for heads, rows, block_HRS in _Blocks(queries_HRK, keys_HSK, weights_HR.dtype):
            rows_HS[heads] += (weights_HR[heads, None, rows] @ block_HRS)[:, 0]
        return rows_HS

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weights_HR, queries_HRK, keys_HSK = ctx.saved_tensors
        grad_weights, grad_queries = torch.empty_like(weights_HR), torch.empty_like(queries_HRK)
        grad_keys = _Sums(keys_HSK)
        blocks = _Blocks(queries_HRK, keys_HSK, weights_HR.dtype)
        for heads, rows, block_HRS in blocks:
            mean_HR1 = block_HRS @ grads[0][heads, :, None]
            grad_weights[heads, rows] = mean_HR1[..., 0]
            # The softmax's gradient is p (g - sum p g); here g is the same for every row, but for a weight.
            block_HRS.mul_(grads[0][heads, None] - mean_HR1).mul_(weights_HR[heads, rows, None])
            grad_HRS = blocks.as_values(block_HRS)
            grad_queries[heads, rows] = grad_HRS @ keys_HSK[heads]
            grad_keys.add(heads, rows, grad_HRS, queries_HRK[heads, rows])
        return grad_weights, grad_queries, grad_keys.result_HSK


def _product(block_HRS: Tensor, values_HSK: Tensor, out_HRK: Tensor) -> None:
    """Write a product head by head: a single product can write rows that are apart, a batched one cannot."""
    if block_HRS.device.type != "cpu":
        out_HRK.copy_(block_HRS @ values_HSK)
        return
    for block_RS, values_SK, out_RK in zip(block_HRS, values_HSK, out_HRK, strict=True):
        torch.mm(block_RS, values_SK, out=out_RK)


def _empty_rows(queries_HRK: Tensor, values_HSK: Tensor) -> Tensor:
    num_heads, num_rows, _ = queries_HRK.shape
    return values_HSK.new_empty(num_rows, num_heads, values_HSK.shape[-1]).transpose(0, 1)
