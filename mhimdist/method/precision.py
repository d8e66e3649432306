"""The number format of the matrix products: float32, or bfloat16 with float32 masters.

In bfloat16 a network's parameters stay in float32, where the optimiser and the moving average work; each
step casts all of them at once into one 16-bit copy that the products use. Scores, softmaxes, pooled
embeddings and losses are float32 in either case.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mhimdist.method.flat_parameters import FlatParameters, flatten_parameters

Precision = Literal["auto", "float32", "bf16"]


def compute_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The dtype of matrix products: `auto` means float32 on a CPU and bfloat16 on a GPU."""
    if precision == "bf16" or (precision == "auto" and device.type == "cuda"):
        return torch.bfloat16
    return torch.float32


@contextmanager
def tensor_float32(allowed: bool) -> Iterator[None]:
    """Allow or forbid that float32 products on a GPU round their factors to TF32, 10 bits; then restore."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class _Cast(torch.autograd.Function):
    """All parameters in another dtype by one copy, and their gradients in float32 by one copy."""

    @staticmethod
    def forward(ctx: Any, parameters: FlatParameters, dtype: torch.dtype, *masters: Tensor) -> Any:
        ctx.parameters = parameters
        return tuple(parameters.views(parameters.values.to(dtype)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        wide = ctx.parameters.views(torch.empty_like(ctx.parameters.values))
        torch._foreach_copy_(wide, list(grads))
        return None, None, *wide


def cast(network: nn.Module, dtype: torch.dtype) -> Mapping[str, Tensor]:
    """The parameters by name, in `dtype`; gradients reach the float32 masters."""
    parameters = flatten_parameters(network)
    copies = _Cast.apply(parameters, dtype, *parameters.masters)
    return dict(zip(parameters.names, copies, strict=True))


def call(network: nn.Module, dtype: torch.dtype, *args: Any) -> Any:
    """`network(*args)` with its matrix products in `dtype`, which is the dtype of the features in `args`."""
    if dtype.itemsize >= 4:
        return network(*args)
    return torch.func.functional_call(network, dict(cast(network, dtype)), args)
