import pytest
import torch
from torch.nn import functional

from mhimdist.models.layers.depthwise import depthwise

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize(("height", "width", "kernel"), [(9, 8, (7, 7)), (2, 3, (5, 3)), (12, 1, (33, 1))])
def test_it_is_torchs_convolution_with_its_gradients(height, width, kernel):
    generator = torch.Generator().manual_seed(height)
    grid, weights, bias, probe = (
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((height, width, 6), (6, *kernel), (6,), (height, width, 6))
    )
    padding = kernel[0] // 2, kernel[1] // 2
    ours = depthwise(grid, weights, bias)
    image = functional.conv2d(grid.permute(2, 0, 1)[None], weights[:, None], bias, padding=padding, groups=6)
    expected = image[0].permute(1, 2, 0)
    torch.testing.assert_close(ours, expected)
    for grad, reference in zip(
        torch.autograd.grad(ours, [grid, weights, bias], probe),
        torch.autograd.grad(expected, [grid, weights, bias], probe),
        strict=True,
    ):
        torch.testing.assert_close(grad, reference)


def test_gradients_are_those_of_finite_differences():
    generator = torch.Generator().manual_seed(0)
    grid = torch.randn(4, 3, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(depthwise, (grid, weights))
