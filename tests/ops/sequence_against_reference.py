"""The kernels of TransMIL's long convolution against the specification; run as the others are."""

import pytest
import torch
from kernels_against_reference import DEVICE, DTYPES, INTERPRETED, _random

from mhimdist import ops
from mhimdist.ops import reference

CASES = [(size, taps, dtype) for size in (1, 16, 40, 200) for taps in (5, 33) for dtype in DTYPES]
if INTERPRETED:  # a second each
    CASES = [(1, 5, torch.float32), (40, 5, torch.float32), (140, 5, torch.float16), (40, 33, torch.float32)]


def _gradients(convolve, values, kernel_EJ, weights):
    inputs = [tensor.clone().requires_grad_() for tensor in (values, kernel_EJ)]
    convolved = convolve(*inputs)
    return convolved, *torch.autograd.grad(convolved, inputs, weights.to(convolved.dtype))


@pytest.mark.parametrize(("size", "taps", "dtype"), CASES)
def test_sequence_convolution_and_its_gradients(size, taps, dtype):
    """The rows lie apart in memory, as a view of wider ones; several blocks and parts meet."""
    width = 70 if size == 40 else 5
    values_TE, weights_TE = (_random(size, width, seed=seed).to(dtype) for seed in (0, 1))
    kernel_EJ = (_random(width, taps, seed=2) / taps).to(dtype)
    theirs = _gradients(reference.sequence_convolution, values_TE, kernel_EJ, weights_TE)
    inputs = [tensor.to(DEVICE) for tensor in (values_TE, kernel_EJ, weights_TE)]
    wider = torch.full((size, width + 3), torch.nan, dtype=dtype, device=DEVICE)
    wider[:, :width] = inputs[0]

    def ours(values_TE, kernel_EJ):
        return ops.sequence_convolution(values_TE, kernel_EJ)

    twice = [_gradients(ours, *inputs) for _ in range(2)]
    for found, again, expected in zip(*twice, theirs, strict=True):
        assert torch.equal(found, again)
        assert found.dtype == dtype
        eps = torch.finfo(dtype).eps
        tolerance = {"rtol": 1e-5, "atol": 2e-5} if dtype == torch.float32 else {"rtol": 2 * eps, "atol": eps}
        torch.testing.assert_close(found.cpu().float(), expected.float(), **tolerance)
    assert torch.equal(ours(wider[:, :width], inputs[1]), twice[0][0])
