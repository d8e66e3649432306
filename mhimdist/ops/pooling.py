"""Reductions of each bag's rows: softmax-weighted mean, mean, maximum, and the rows of the largest values.

Dimensions: T instances of a batch, B bags, B1 = B + 1 offsets, C columns, E embedding width.
"""

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from mhimdist.ops import _attention_cpu, _pool_cpu, _select_cpu


def segment_softmax_pool(scores_TC: Tensor, values_TE: Tensor, offsets_B1: Tensor) -> Tensor:
    """The mean of each bag's values, weighted by the softmax of each column of scores (paper, equation 1).

    Softmax, sums and result are in float32, even for 16-bit values; float64 stays float64.

    Args:
        scores_TC: scores before the softmax, any floating dtype; one-dimensional scores T are one column.
        values_TE: packed rows; rows after the last bag are padding, without weight and gradient.
        offsets_B1: int64 offsets of the bags.

    Returns:
        B x C x E; B x E for one-dimensional scores.

    Raises:
        TypeError: scores or values on CUDA are not in float32, fp16 or bf16.
    """
    if scores_TC.dim() == 1:
        return segment_softmax_pool(scores_TC[:, None], values_TE, offsets_B1)[:, 0]
    if values_TE.device.type != "cpu":
        from mhimdist.ops import _pool

        return _pool.segment_softmax_pool(scores_TC, values_TE, offsets_B1)[0]
    return _pool_cpu.SoftmaxPool.apply(scores_TC, values_TE, offsets_B1)


def attention_pool(
    hidden_TE: Tensor,
    offsets_B1: Tensor,
    *,
    branch_AE: Tensor,
    gate_AE: Tensor | None,
    score_1A: Tensor,
    is_relu: bool,
) -> tuple[Tensor, Tensor]:
    """Attention scores, w(act(V z)) or gated w(act(V z) * sigmoid(U z)), and the bags pooled by them.

    For the CPU only. The scores and their `segment_softmax_pool` are one operation here, whose backward pass
    writes the gradient of the instances once.

    Args:
        hidden_TE: packed instances z.
        offsets_B1: int64 offsets of the bags.
        branch_AE, gate_AE, score_1A: V, U and w; the first two in the dtype of the instances.
        is_relu: act is ReLU, otherwise tanh.

    Returns:
        The pooled bags, B x 1 x E, and the scores, T x 1, in float32; in float64 for float64 instances.
    """
    return _attention_cpu.AttentionPool.apply(hidden_TE, offsets_B1, branch_AE, gate_AE, score_1A, is_relu)


def segment_top_k(values_TC: Tensor, k: int, offsets_B1: Tensor, *, largest: bool = True) -> Tensor:
    """The rows of the k largest (or smallest) values per bag and column, best first: int64, B x k x C.

    Subnormal values count as zero and NaN as the largest. Ties go to the earlier row. A bag with fewer than
    k rows is padded with -1.

    Args:
        values_TC: packed rows; each column is ranked separately.
        k: rows to return per bag and column.
        offsets_B1: int64 offsets of the bags.
        largest: rank the largest first, otherwise the smallest.

    Raises:
        TypeError: values on CUDA are not in float32, fp16 or bf16.
    """
    values_TC = values_TC.detach()
    if values_TC.device.type != "cpu":
        from mhimdist.ops import _pool

        return _pool.segment_top_k(values_TC, k, offsets_B1, largest)
    return torch.from_numpy(_select_cpu.top_k(values_TC, k, offsets_B1.tolist(), largest=largest))


def segment_argmax(values_TC: Tensor, offsets_B1: Tensor) -> Tensor:
    """The row of the largest value per bag and column, the first of equal ones: int64, B x C."""
    return segment_top_k(values_TC, 1, offsets_B1).squeeze(1)


def segment_softmax(scores_T: Tensor, offsets_B1: Tensor) -> Tensor:
    """The softmax over each bag's scores, without gradient; shape T, zero for rows after the last bag.

    Args:
        scores_T: scores before the softmax, in at least float32.
        offsets_B1: int64 offsets of the bags.

    Raises:
        TypeError: scores on CUDA are not in float32, fp16 or bf16.
    """
    scores_T = scores_T.detach()
    if scores_T.device.type != "cpu":
        from mhimdist.ops import _pool

        _, log_B1 = _pool.segment_softmax_pool(scores_T[:, None], scores_T[:, None], offsets_B1)
        row_T = torch.arange(len(scores_T), device=scores_T.device)
        bag_T = torch.bucketize(row_T, offsets_B1[1:-1], right=True)
        return torch.where(row_T < offsets_B1[-1], torch.exp(scores_T - log_B1[bag_T, 0]), 0)
    weights = [torch.softmax(scores_T[start:stop], 0) for start, stop in pairwise(offsets_B1.tolist())]
    return torch.cat([*weights, torch.zeros_like(scores_T[int(offsets_B1[-1]) :])])


def segment_mean(values_TE: Tensor, offsets_B1: Tensor) -> Tensor:
    """The mean of each bag's rows, B x E, or B for one-dimensional values.

    Args:
        values_TE: packed rows; rows after the last bag are padding, without weight and gradient.
        offsets_B1: int64 offsets of the bags.

    Raises:
        TypeError: values on CUDA are not in float32, fp16 or bf16.
    """
    return _reduce(values_TE, offsets_B1, "mean")


def segment_max(values_TE: Tensor, offsets_B1: Tensor) -> Tensor:
    """The maximum of each column over each bag's rows, B x E; equal rows share its gradient.

    Args:
        values_TE, offsets_B1: see `segment_mean`.

    Raises:
        TypeError: values on CUDA are not in float32, fp16 or bf16.
    """
    return _reduce(values_TE, offsets_B1, "max")


def _reduce(values_TE: Tensor, offsets_B1: Tensor, how: Literal["mean", "max"]) -> Tensor:
    if values_TE.device.type == "cpu":
        return torch.segment_reduce(values_TE, how, offsets=offsets_B1)
    if values_TE.dim() == 1:
        return _reduce(values_TE[:, None], offsets_B1, how).squeeze(1)
    # On CUDA one thread of `torch.segment_reduce` goes over all rows of a bag, per column.
    from mhimdist.ops import _reduce as kernels

    return kernels.segment_reduce(values_TE, offsets_B1, how == "max")[0]
