"""Reductions of each bag's rows: softmax-weighted mean, mean, maximum, and the rows of the largest values.

Dimensions: T instances of a batch, B bags, B1 = B + 1 offsets, C columns, E embedding width.
"""

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


def segment_mean(values_TE: Tensor, offsets_B1: Tensor) -> Tensor:
    """The mean of each bag's rows, B x E; rows after the last bag are padding."""
    return torch.segment_reduce(values_TE, "mean", offsets=offsets_B1)


def segment_max(values_TE: Tensor, offsets_B1: Tensor) -> Tensor:
    """The maximum of each column over each bag's rows, B x E; rows after the last bag are padding."""
    return torch.segment_reduce(values_TE, "max", offsets=offsets_B1)
