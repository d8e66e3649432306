import pytest
import torch
from torch.nn import functional

from mhimdist.data.bags import PackedBags
from mhimdist.models.layers.blocks import BagPool, blocks
from mhimdist.models.layers.linear import Linear, linear, linear_relu, projection

pytestmark = pytest.mark.numeric
MIN_ROWS = 256


@pytest.fixture(autouse=True)
def _small_products_take_both_ways(monkeypatch):
    monkeypatch.setattr("mhimdist.models.layers.linear.MIN_PRODUCTS", MIN_ROWS * 40 * 24)


def _tensors(rows, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = ((rows, 40), (24, 40), (24,), (rows, 24))
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


@pytest.mark.parametrize("rows", [1, MIN_ROWS - 1, MIN_ROWS, MIN_ROWS + 37])
@pytest.mark.parametrize("with_bias", [True, False])
def test_products_and_gradients_are_those_of_float64(rows, with_bias):
    found = []
    for dtype in (torch.float32, torch.float64):
        x, weight, bias, grad = _tensors(rows, dtype)
        inputs = [tensor.requires_grad_() for tensor in (x, weight, bias)][: 2 + with_bias]
        out = linear(*inputs)
        out.backward(grad)
        found.append([out, *(each.grad for each in inputs)])
    for single, double in zip(*found, strict=True):
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_relu_is_the_same_with_and_without_gradient(dtype):
    x, weight, bias, _ = _tensors(MIN_ROWS, dtype)
    with torch.no_grad():
        alone = linear_relu(x, weight, bias)
    with_gradient = linear_relu(x, weight.requires_grad_(), bias)
    torch.testing.assert_close(alone, with_gradient.detach(), rtol=2e-2, atol=1e-5)
    assert (alone == 0).any()
    assert (alone > 0).any()


@pytest.mark.parametrize("num_blocks", [1, 8, 64])
def test_the_error_of_16_bit_gradients_does_not_grow_with_the_number_of_blocks(monkeypatch, num_blocks):
    """Each block's product is rounded, and the total once more; nothing cancels, so errors show."""
    monkeypatch.setattr("mhimdist.models.layers.linear.BLOCK_ROWS", 16)
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(16 * num_blocks, 40, generator=generator).bfloat16()
    grad = torch.rand(len(features), 24, generator=generator).bfloat16()
    layer = Linear(40, 24)
    torch.nn.init.ones_(layer.weight)  # so that the ReLU passes everything
    projection(PackedBags.from_list([features]), layer, 0.0, None).backward(grad)
    exact = grad.double().T @ features.double()
    torch.testing.assert_close(layer.weight.grad.double(), exact, rtol=2**-7, atol=0)
    torch.testing.assert_close(layer.bias.grad.double(), grad.double().sum(0), rtol=2**-8, atol=0)


def test_parameters_follow_the_rows():
    layer = Linear(40, 24)
    x = _tensors(5, torch.bfloat16)[0]
    assert layer(x).dtype == torch.bfloat16
    assert torch.equal(layer(x), functional.linear(x, layer.weight.bfloat16(), layer.bias.bfloat16()))


@pytest.mark.parametrize("rows", [4, 7, 100])
def test_pooling_in_blocks_is_the_softmax_of_the_whole_bag(monkeypatch, rows):
    monkeypatch.setattr("mhimdist.models.layers.blocks.ROWS", rows)
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(size, 5, generator=generator) for size in (1, 30, 7)]
    scores = [torch.randn(len(bag), 2, generator=generator) * 30 for bag in values]
    bags = PackedBags.from_list(values)
    pool = BagPool(bags)
    for block in blocks(bags):
        assert block.stop - block.start <= rows
        pool.add(block, torch.cat(scores)[block], bags.features_TD[block])
    expected = [torch.softmax(s, dim=0).T @ v for s, v in zip(scores, values, strict=True)]
    torch.testing.assert_close(pool.result(), torch.stack(expected))
