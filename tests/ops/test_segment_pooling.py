"""Pooling and ranking of ragged bags on the CPU against the specification."""

from contextlib import nullcontext

import pytest
import torch
from as_on_a_gpu import AsOnAGpu, kernels_as_specified
from hypothesis import given, settings
from hypothesis import strategies as st

from mhimdist import ops
from mhimdist.ops import reference

pytestmark = pytest.mark.numeric


def _problem(sizes, columns, width, dtype=torch.float32, padding=0):
    generator = torch.Generator().manual_seed(sum(sizes))
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    total = sum(sizes) + padding
    scores = torch.randn(total, columns, generator=generator) * 3
    values = torch.randn(total, width, generator=generator).to(dtype)
    return scores, values, offsets


@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize("sizes", [[1], [600], [1, 300, 5]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_softmax_pool_and_its_gradients(dtype, sizes, columns):
    scores, values, offsets = _problem(sizes, columns, 17, dtype)
    weights = torch.randn(len(sizes), columns, 17, generator=torch.Generator().manual_seed(1))
    results = []
    for pool in (ops.segment_softmax_pool, reference.segment_softmax_pool):
        inputs = [scores.clone().requires_grad_(), values.clone().requires_grad_()]
        pooled = pool(*inputs, offsets)
        assert pooled.dtype == torch.float32
        results.append((pooled, *torch.autograd.grad((pooled * weights).sum(), inputs)))
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs)


def test_softmax_pool_in_float64_is_exact_to_gradcheck():
    scores, values, offsets = _problem([4, 1, 3], 2, 3, torch.float64)
    inputs = (scores.double().requires_grad_(), values.requires_grad_())
    assert torch.autograd.gradcheck(lambda s, v: ops.segment_softmax_pool(s, v, offsets), inputs)


def test_softmax_pool_of_scores_without_columns():
    scores, values, offsets = _problem([4, 2], 1, 3)
    pooled = ops.segment_softmax_pool(scores[:, 0], values, offsets)
    assert torch.equal(pooled, ops.segment_softmax_pool(scores, values, offsets)[:, 0])


def test_padding_behind_the_last_bag_has_no_weight_and_no_gradient():
    scores, values, offsets = _problem([5, 2], 2, 3, padding=4)
    scores.requires_grad_()
    values.requires_grad_()
    pooled = ops.segment_softmax_pool(scores, values, offsets)
    expected = ops.segment_softmax_pool(scores[:7], values[:7], offsets)
    torch.testing.assert_close(pooled, expected)
    pooled.sum().backward()
    assert not scores.grad[7:].any()
    assert not values.grad[7:].any()
    assert values.grad[:7].abs().sum() > 0


@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    k=st.integers(1, 9),
    levels=st.integers(1, 50),
    largest=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_top_k_and_argmax_are_those_of_the_specification(sizes, k, levels, largest):
    generator = torch.Generator().manual_seed(levels)
    values = torch.randint(-levels, levels, (sum(sizes) + 3, 2), generator=generator).float()
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    best = ops.segment_top_k(values, k, offsets, largest=largest)
    assert torch.equal(best, reference.segment_top_k(values, k, offsets, largest=largest))
    assert torch.equal(ops.segment_argmax(values, offsets), reference.segment_argmax(values, offsets))


def test_subnormal_and_special_values_are_ranked_as_specified():
    """A flag of the CPU decides whether a subnormal number compares as zero; here it always does."""
    inf, nan = float("inf"), float("nan")
    values = torch.tensor([0.0, 1e-40, -1e-40, -0.0, -1.0, 2e-39, nan, inf, -nan, -inf, nan])[:, None]
    for offsets in (torch.tensor([0, 6]), torch.tensor([0, 6, 11])):
        for largest in (True, False):
            best = ops.segment_top_k(values, 4, offsets, largest=largest)
            assert torch.equal(best, reference.segment_top_k(values, 4, offsets, largest=largest))
        assert ops.segment_argmax(values, offsets)[:, 0].tolist() == [0, 6][: len(offsets) - 1]


def test_the_argmax_of_a_segment_is_the_first_of_its_largest_rows():
    values = torch.tensor([[1.0, 5.0], [3.0, 5.0], [9.0, 0.0], [2.0, -1.0], [2.0, 7.0]])
    assert ops.segment_argmax(values, torch.tensor([0, 2, 3, 5])).tolist() == [[1, 0], [2, 2], [3, 4]]


@pytest.mark.parametrize("name", ["segment_mean", "segment_max"])
def test_mean_and_max(name):
    _, values, offsets = _problem([5, 1, 2], 1, 3)
    torch.testing.assert_close(getattr(ops, name)(values, offsets), getattr(reference, name)(values, offsets))


@pytest.fixture(params=["cpu", "as on a gpu"])
def way(request, monkeypatch):
    """The way of a CPU and that of CUDA, the latter with the kernels' specification in their place."""
    if request.param == "cpu":
        return nullcontext
    pytest.importorskip("triton", reason="the kernels' operators need triton, from the extra dev")
    for operator, kernel in kernels_as_specified().items():
        monkeypatch.setitem(operator._backend_fns, None, kernel)
    return AsOnAGpu


@pytest.mark.parametrize("name", ["segment_mean", "segment_max"])
def test_mean_and_max_take_values_without_columns_and_padding(way, name):
    _, values, offsets = _problem([5, 1, 2], 1, 3, padding=4)
    expected = getattr(reference, name)(values, offsets)
    for columns, theirs in ((values, expected), (values[:, 0], expected[:, 0])):
        columns = columns.clone().requires_grad_()
        with way():
            found = getattr(ops, name)(columns, offsets)
        torch.testing.assert_close(found, theirs)
        found.sum().backward()
        assert not columns.grad[8:].any()
        torch.testing.assert_close(columns.grad[:8].sum(0), torch.full_like(columns[0], 3).detach())


def test_softmax_is_that_of_each_bag_and_zero_for_padding(way):
    scores, _, offsets = _problem([5, 1, 2], 1, 3, padding=4)
    scores[8:] = torch.nan
    with way():
        weights = ops.segment_softmax(scores[:, 0].requires_grad_(), offsets)
        of_empty = ops.segment_softmax(scores[:8, 0].detach(), torch.tensor([0, 5, 6, 8, 8]))
    expected = torch.cat([torch.softmax(each, 0) for each in scores[:8, 0].split([5, 1, 2])])
    torch.testing.assert_close(weights, torch.cat([expected, torch.zeros(4)]).detach())
    torch.testing.assert_close(of_empty, expected.detach())
    assert not weights.requires_grad
