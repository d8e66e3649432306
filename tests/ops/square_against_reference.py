"""The kernels of TransMIL's square against the specification; run as `kernels_against_reference.py` is."""

import pytest
import torch
from kernels_against_reference import DEVICE, DTYPES, INTERPRETED, _random

from mhimdist import ops
from mhimdist.ops import _square, reference

SIZES = [1, 5, 36, 37, 48, 49, 50, 64]
CASES = [(size, dtype) for size in SIZES for dtype in DTYPES]
if INTERPRETED:  # seconds each
    CASES = [(size, dtype) for size, dtype in CASES if size in (5, 37, 49) and dtype == torch.float32]
    CASES.append((5, torch.float16))


def _square_gradients(convolve, tokens, kernel_EJI, bias_E, weights):
    inputs = [tensor.clone().requires_grad_() for tensor in (tokens, kernel_EJI, bias_E)]
    encoded = convolve(*inputs)
    return encoded, *torch.autograd.grad(encoded, inputs, weights.to(encoded.dtype))


@pytest.mark.parametrize(("size", "dtype"), CASES)
def test_square_convolution_and_its_gradients(size, dtype, monkeypatch):
    """Rows after the bag are NaN, as are their gradients; nothing reads them. Several parts are summed."""
    monkeypatch.setattr(_square, "_ROWS_A_PART", 16)
    width, padding = 70 if size == 37 else 5, 9
    tokens_TE, weights_TE = (_random(size + padding, width, seed=seed).to(dtype) for seed in (0, 1))
    tokens_TE[size:] = weights_TE[size:] = torch.nan
    kernel_EJI, bias_E = (_random(width, 7, 7, seed=2) / 7).to(dtype), _random(width, seed=3).to(dtype)
    theirs = _square_gradients(
        reference.square_convolution, tokens_TE[:size], kernel_EJI, bias_E, weights_TE[:size]
    )
    offsets_2 = torch.tensor([0, size], device=DEVICE)
    inputs = [tensor.to(DEVICE) for tensor in (tokens_TE, kernel_EJI, bias_E, weights_TE)]
    twice = [
        _square_gradients(lambda *given: ops.square_convolution(*given, offsets_2), *inputs) for _ in range(2)
    ]
    for found, again, expected in zip(*twice, theirs, strict=True):
        assert torch.equal(found, again)
        assert found.dtype == dtype
        assert not found[len(expected) :].any()
        eps = torch.finfo(dtype).eps
        tolerance = {"rtol": 1e-5, "atol": 2e-5} if dtype == torch.float32 else {"rtol": 2 * eps, "atol": eps}
        torch.testing.assert_close(found[: len(expected)].cpu().float(), expected.float(), **tolerance)


def test_the_square_of_a_size_has_the_right_side():
    """The rounded root of a size is corrected; a wrong side would move every row of the square."""
    kernel_EJI, bias_E = torch.zeros(1, 7, 7, device=DEVICE), torch.zeros(1, device=DEVICE)
    kernel_EJI[0, 4, 3] = 1  # the instance below
    for size in (48, 49, 50, 99, 100, 101):
        tokens_TE = torch.arange(size + 3.0, device=DEVICE)[:, None]
        offsets_2 = torch.tensor([0, size], device=DEVICE)
        found_T = ops.square_convolution(tokens_TE, kernel_EJI, bias_E, offsets_2)[:size, 0].cpu().long()
        side = next(side for side in range(99) if side * side >= size)
        below_T = torch.arange(size) + side
        below_T = torch.where(below_T < side * side, below_T % size, 0)
        assert torch.equal(found_T, torch.arange(size) + below_T)
