import pytest
import torch

from mhimdist.models.layers import block_attention
from mhimdist.models.layers.block_attention import attend, attend_both, attend_weighted

pytestmark = pytest.mark.numeric


def _problem(dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    """Weights, queries, keys and values; the last three are views, like the heads of tokens."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(3, 7, 2, 4, generator=generator, dtype=torch.float64).to(dtype)
    queries, keys, values = (each.transpose(0, 1) for each in tokens)
    weights = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    return [weights.to(torch.promote_types(dtype, torch.float32)), queries[:, :5], keys, values]


@pytest.fixture(params=[1, 20, 40, 1 << 20], ids=lambda size: f"blocks of {size}")
def _block_size(request, monkeypatch):
    monkeypatch.setitem(block_attention.BLOCK_VALUES, "cpu", request.param)


@pytest.mark.usefixtures("_block_size")
def test_attention_by_blocks_is_attention_with_its_gradients():
    weights, *parts = (each.requires_grad_() for each in _problem())
    queries, keys, values = parts
    matrix = torch.softmax(queries @ keys.mT, dim=-1)
    gathered, rows = attend(queries, keys, values), attend_weighted(weights, queries, keys)
    for ours, expected in ((gathered, matrix @ values), (rows, (weights[:, None] @ matrix)[:, 0])):
        torch.testing.assert_close(ours, expected)
        probe = torch.rand_like(ours)
        for grad, reference in zip(
            torch.autograd.grad(ours, [weights, *parts], probe, allow_unused=True),
            torch.autograd.grad(expected, [weights, *parts], probe, allow_unused=True, retain_graph=True),
            strict=True,
        ):
            assert (grad is None) == (reference is None)
            if reference is not None:
                torch.testing.assert_close(grad, reference)
    with torch.no_grad():
        for ours, expected in zip(attend_both(weights, *parts), (gathered, rows), strict=True):
            torch.testing.assert_close(ours, expected)


def test_gradients_are_those_of_finite_differences():
    weights, *parts = (each.requires_grad_() for each in _problem())
    assert torch.autograd.gradcheck(attend, parts)
    assert torch.autograd.gradcheck(attend_weighted, (weights, *parts[:2]))


@pytest.mark.usefixtures("_block_size")
def test_bfloat16_tokens_give_bfloat16_values_and_float32_rows():
    exact = [each.requires_grad_() for each in _problem()]
    rounded = [each.requires_grad_() for each in _problem(torch.bfloat16)]
    for function, arguments in ((attend, slice(1, 4)), (attend_weighted, slice(0, 3))):
        reference, close = function(*exact[arguments]), function(*rounded[arguments])
        assert close.dtype == (torch.bfloat16 if function is attend else torch.float32)
        torch.testing.assert_close(close.double(), reference, rtol=0.05, atol=0.05)
        grads = torch.autograd.grad(close.sum(), rounded[arguments])
        for grad, expected in zip(grads, torch.autograd.grad(reference.sum(), exact[arguments]), strict=True):
            torch.testing.assert_close(grad.double(), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("num_blocks", [1, 64])
def test_the_error_of_16_bit_gradients_does_not_grow_with_the_number_of_blocks(monkeypatch, num_blocks):
    """The summands of the values' gradient have one sign; softmax, product and total are rounded."""
    num_rows, num_keys = 128, 4
    monkeypatch.setitem(block_attention.BLOCK_VALUES, "cpu", num_rows // num_blocks * num_keys)
    generator = torch.Generator().manual_seed(0)
    queries, keys, values = (
        torch.randn(1, size, 4, generator=generator).bfloat16() for size in (num_rows, num_keys, num_keys)
    )
    values.requires_grad_()
    attend(queries, keys, values).sum().backward()
    exact = torch.softmax(queries.double() @ keys.double().mT, dim=-1).sum(1)[..., None].expand_as(values)
    torch.testing.assert_close(values.grad.double(), exact, rtol=2**-7, atol=0)


def test_only_a_block_of_the_matrix_is_held(monkeypatch):
    monkeypatch.setitem(block_attention.BLOCK_VALUES, "cpu", 35)
    _, queries, keys, _ = _problem()
    blocks = block_attention._Blocks(queries, keys, torch.float64)
    held = [block for _, _, block in blocks]
    assert [block.numel() for block in held] == [35, 35]  # a head at a time
    assert held[0].data_ptr() == held[1].data_ptr()
