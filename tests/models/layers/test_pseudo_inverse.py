import pytest
import torch
from torch import Tensor

from mhimdist.models.layers.pseudo_inverse import PseudoInverse, inverse_times, times_inverse

pytestmark = pytest.mark.numeric


def _authors_inverse(matrix: Tensor, num_iterations: int) -> Tensor:
    """The iteration as the authors write it."""
    one = torch.eye(matrix.shape[-1], dtype=matrix.dtype)
    inverse = matrix.mT / (matrix.sum(-1).max() * matrix.sum(-2).max())
    for _ in range(num_iterations):
        product = matrix @ inverse
        inverse = 0.25 * inverse @ (13 * one - product @ (15 * one - product @ (7 * one - product)))
    return inverse


def _problem(size: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(size)
    logits, right, left = (
        torch.randn(2, *shape, generator=generator, dtype=dtype)
        for shape in ((size, size), (size, 3), (1, size))
    )
    return torch.softmax(logits, dim=-1), right, left


@pytest.mark.parametrize("iterations", [1, 2, 6])
def test_the_products_are_those_of_the_authors_iteration(iterations):
    matrix, right, left = _problem(9)
    inverse = _authors_inverse(matrix, iterations)
    prepared = PseudoInverse(matrix, iterations)
    for times in (inverse_times(matrix, right, iterations), prepared.times(right)):
        torch.testing.assert_close(times, inverse @ right, rtol=1e-11, atol=1e-11)
    for after in (times_inverse(left, matrix, iterations), prepared.after(left)):
        torch.testing.assert_close(after, left @ inverse, rtol=1e-11, atol=1e-11)


def test_it_is_moore_and_penroses_after_enough_iterations():
    matrix, right, left = _problem(5)
    torch.testing.assert_close(inverse_times(matrix, right, 60), torch.linalg.pinv(matrix) @ right)
    torch.testing.assert_close(times_inverse(left, matrix, 60), left @ torch.linalg.pinv(matrix))


@pytest.mark.parametrize("iterations", [1, 2, 4])
def test_gradients_are_those_of_finite_differences(iterations):
    _, right, left = (each.requires_grad_() for each in _problem(4))
    # Not a softmax: its rows all have the largest sum, where the scale has no derivative.
    matrix = torch.rand(2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrix.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: inverse_times(a, b, iterations), (matrix, right))
    assert torch.autograd.gradcheck(lambda a, b: times_inverse(b, a, iterations), (matrix, left))


@pytest.mark.parametrize("rank", [2, 64])
def test_float32_is_close_to_float64_values_and_gradients(rank):
    generator = torch.Generator().manual_seed(rank)
    queries, keys = torch.randn(2, 2, 64, 8, generator=generator)
    group = torch.arange(64) % rank  # equal rows and columns, as the landmarks of a small bag have
    logits = (queries @ keys.mT)[:, group][:, :, group]
    results = []
    for dtype in (torch.float64, torch.float32):
        inputs = logits.to(dtype).requires_grad_(), queries.to(dtype)[:, group].requires_grad_()
        product = inverse_times(torch.softmax(inputs[0], dim=-1), inputs[1], 6)
        results.append((product, *torch.autograd.grad(product.square().sum(), inputs)))
    for exact, close in zip(*results, strict=True):
        assert (exact - close).abs().max() < 1e-3 * exact.abs().max()
