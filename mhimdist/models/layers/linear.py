"""A linear layer that computes in the dtype of its input, by products as fast as the CPU allows."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from mhimdist import ops
from mhimdist.data.bags import PackedBags

MIN_PRODUCTS = 1 << 28
"""Fewest multiplications at which a oneDNN kernel gains more than the .8 ms that it takes to make. Every new
shape needs a kernel: with bags of all sizes, nearly every product does."""

BLOCK_ROWS = 2048
"""Most rows per block: a weight's gradient adds up the products of blocks."""


def _by_onednn(rows_RD: Tensor, num_columns: int) -> bool:
    """Whether to call oneDNN's product in place of MKL's, which torch calls in float32.

    On an AMD CPU with AVX-512, oneDNN makes a step of AB-MIL or DSMIL 1.1 times as fast and a step of
    TransMIL 1.03 times; with AVX2 alone it makes none faster (`benchmarks/RESULTS.md`). In bf16 torch itself
    calls oneDNN.
    """
    # Full blocks recur, so their kernel is used again.
    at_least = MIN_PRODUCTS // 4 if len(rows_RD) == BLOCK_ROWS else MIN_PRODUCTS
    return (
        rows_RD.device.type == "cpu"
        and rows_RD.dtype == torch.float32
        and rows_RD.dim() == 2
        and rows_RD.numel() * num_columns >= at_least
        and torch.backends.mkldnn.is_available()
    )


def _product(rows_RD: Tensor, weight_ED: Tensor, bias_E: Tensor | None = None, after: str = "none") -> Tensor:
    """`rows @ weight.T + bias` by oneDNN, followed by `after`: "none" or "relu"."""
    return torch.ops.mkldnn._linear_pointwise(rows_RD, weight_ED, bias_E, after, [], "")


def _weight_gradient(grad_RE: Tensor, rows_RD: Tensor, total_ED: Tensor | None = None) -> Tensor:
    """`grad.T @ rows`, E x D in at least float32, added to `total_ED` if it is given.

    A sum in 16 bits would lose more with every block; autograd rounds the total once, to the weight's dtype.
    """
    by_onednn = _by_onednn(rows_RD, grad_RE.shape[1])
    # Both factors have the wrong order for oneDNN: it copies one itself, the other more slowly than this.
    product_ED = _product(grad_RE.T.contiguous(), rows_RD.T) if by_onednn else grad_RE.T @ rows_RD
    return product_ED.to(_total_dtype(product_ED)) if total_ED is None else total_ED.add_(product_ED)


def _total_dtype(summand: Tensor) -> torch.dtype:
    return torch.promote_types(summand.dtype, torch.float32)


def _blocks(rows: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Blocks of rows, nearly equal in size, because oneDNN copies its factors into its own order."""
    num_blocks = max(-(-len(rows) // BLOCK_ROWS), 1)
    return zip(*(each.tensor_split(num_blocks) for each in (rows, *others)), strict=True)


class _Linear(torch.autograd.Function):
    """`functional.linear` by oneDNN, R x D to R x E."""

    @staticmethod
    def forward(ctx: Any, rows_RD: Tensor, weight_ED: Tensor, bias_E: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows_RD, weight_ED)
        return _product(rows_RD, weight_ED, bias_E)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RE: Tensor) -> tuple[Tensor | None, ...]:
        rows_RD, weight_ED = ctx.saved_tensors
        for_rows, for_weight, for_bias = ctx.needs_input_grad
        weight_grad_ED = None
        for grad_BE, rows_BD in _blocks(grad_RE, rows_RD) if for_weight else ():
            weight_grad_ED = _weight_gradient(grad_BE, rows_BD, weight_grad_ED)
        return (
            _product(grad_RE, weight_ED.T) if for_rows else None,
            weight_grad_ED,
            grad_RE.sum(0) if for_bias else None,
        )


def _feature_blocks(bags: PackedBags) -> Iterator[tuple[slice, Tensor]]:
    """The instances block by block: their place among all, and their features until the next block."""
    num_rows = bags.num_rows
    num_blocks = max(-(-num_rows // BLOCK_ROWS), 1)
    size = max(-(-num_rows // num_blocks), 1)  # nearly equal sizes
    is_gathered = bags.rows_K is not None
    buffer_BD = bags.features_TD.new_empty(size if is_gathered else 0, bags.features_TD.shape[1])
    for start in range(0, num_rows, size):
        rows = slice(start, min(start + size, num_rows))
        yield rows, bags.block(rows, out=buffer_BD[: rows.stop - start] if is_gathered else None)


class _Projection(torch.autograd.Function):
    """`relu_dropout(linear(rows))` of bags whose features need no gradient, on a CPU.

    Both passes work block by block: neither the features of a selection nor the gradient of the linear
    layer's output ever exists as a whole.
    """

    @staticmethod
    def forward(
        ctx: Any,
        bags: PackedBags,
        weight_ED: Tensor,
        bias_E: Tensor | None,
        share: float,
        keys_B: Tensor | None,
    ) -> Tensor:
        out_TE = weight_ED.new_empty(bags.num_rows, len(weight_ED))
        for rows, features_BD in _feature_blocks(bags):
            linear_BE = linear(features_BD, weight_ED, bias_E)
            ops.relu_dropout_block(linear_BE, share, bags.offsets_B1, keys_B, rows.start, out_TE[rows])
        ctx.save_for_backward(out_TE)
        ctx.bags = bags
        threshold = 0 if keys_B is None else round(share * 256)
        ctx.scale = 256 / (256 - threshold)
        return out_TE

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TE: Tensor) -> tuple[Tensor | None, ...]:
        (out_TE,) = ctx.saved_tensors
        weight_grad_ED, bias_grad_E = None, None
        for rows, features_BD in _feature_blocks(ctx.bags):
            linear_grad_BE = torch.ops.aten.threshold_backward(grad_TE[rows], out_TE[rows], 0)
            linear_grad_BE.mul_(ctx.scale)
            weight_grad_ED = _weight_gradient(linear_grad_BE, features_BD, weight_grad_ED)
            sum_E = linear_grad_BE.sum(0, dtype=_total_dtype(linear_grad_BE))
            bias_grad_E = sum_E if bias_grad_E is None else bias_grad_E.add_(sum_E)
        return None, weight_grad_ED, bias_grad_E if ctx.needs_input_grad[2] else None, None, None


def projection(bags: PackedBags, layer: nn.Linear, share: float, keys_B: Tensor | None) -> Tensor:
    """`ops.relu_dropout` of a linear layer's output for the bags' instances, T x E.

    Args:
        bags: whole or selected instances, with features in the dtype to compute in.
        layer: the linear layer; its parameters are cast to that dtype.
        share, keys_B: see `ops.relu_dropout`.
    """
    features_TD = bags.features_TD
    weight_ED = layer.weight.to(features_TD.dtype)
    bias_E = layer.bias.to(features_TD.dtype) if layer.bias is not None else None
    if features_TD.device.type == "cpu" and not features_TD.requires_grad:
        return _Projection.apply(bags, weight_ED, bias_E, share, keys_B)
    linear_TE = linear(bags.block(slice(None)), weight_ED, bias_E)
    return ops.relu_dropout(linear_TE, share, bags.offsets_B1, keys_B, inplace=True)


def linear(rows_RD: Tensor, weight_ED: Tensor, bias_E: Tensor | None = None) -> Tensor:
    """`rows @ weight.T + bias`, R x E, in the dtype of the rows.

    Args:
        rows_RD: rows to multiply.
        weight_ED, bias_E: parameters, which are cast to the dtype of the rows.
    """
    weight_ED = weight_ED.to(rows_RD.dtype)
    bias_E = bias_E.to(rows_RD.dtype) if bias_E is not None else None
    if not _by_onednn(rows_RD, len(weight_ED)):
        return functional.linear(rows_RD, weight_ED, bias_E)
    if torch.is_grad_enabled():
        return _Linear.apply(rows_RD, weight_ED, bias_E)
    return _product(rows_RD, weight_ED, bias_E)


def linear_relu(rows_RD: Tensor, weight_ED: Tensor, bias_E: Tensor | None = None) -> Tensor:
    """`relu(linear(...))`, in one pass for large float32 products on a CPU while gradients are off.

    Args:
        rows_RD, weight_ED, bias_E: see `linear`.
    """
    if not torch.is_grad_enabled() and _by_onednn(rows_RD, len(weight_ED)):
        return _product(rows_RD, weight_ED, bias_E, "relu")
    return torch.relu_(linear(rows_RD, weight_ED, bias_E))


def wide(values: Tensor) -> Tensor:
    """16-bit values as float32, the dtype of scores and logits; other values as they are."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


class Linear(nn.Linear):
    """`nn.Linear` that computes by `linear`: its parameters are cast to the dtype of the input."""

    def forward(self, rows_RD: Tensor) -> Tensor:
        """The layer's output, from R x D to R x E."""
        return linear(rows_RD, self.weight, self.bias)

    def relu(self, rows_RD: Tensor) -> Tensor:
        """The layer's output after a ReLU."""
        return linear_relu(rows_RD, self.weight, self.bias)
