"""The kernels against the specification, by the interpreter on the CPU or on a CUDA device.

Where there is no device, `test_kernels.py` runs this file in a process of its own with TRITON_INTERPRET=1.
The interpreter is slow: its sizes are small, and so are the blocks that a kernel takes at a time.
"""

import os

import pytest
import torch
from torch.library import opcheck

from mhimdist import ops
from mhimdist.draws import Draws
from mhimdist.ops import reference

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
pytestmark = [
    pytest.mark.kernels if INTERPRETED else pytest.mark.gpu,
    pytest.mark.skipif(not INTERPRETED and not torch.cuda.is_available(), reason="needs a CUDA device"),
]
if INTERPRETED or torch.cuda.is_available():
    from triton.runtime.interpreter import GridExecutor
    from triton.runtime.jit import JITFunction

    from mhimdist.ops import _dropout, _pool, _select

BLOCK = 32 if INTERPRETED else 2048
# Rounding of bfloat16 is the device's to show: the interpreter truncates.
DTYPES = [torch.float32, torch.float16, *([] if INTERPRETED else [torch.bfloat16])]
EDGES = [1, BLOCK - 1, BLOCK, BLOCK + 1]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(_select, "BLOCK", BLOCK)
    monkeypatch.setattr(_pool, "BLOCK", BLOCK)


@pytest.fixture
def launches(monkeypatch):
    """The names of the kernels launched."""
    kind, name = (GridExecutor, "__call__") if INTERPRETED else (JITFunction, "run")
    launch, seen = getattr(kind, name), []

    def counted(self, *args, **kwargs):
        seen.append(self.fn.__name__)
        return launch(self, *args, **kwargs)

    monkeypatch.setattr(kind, name, counted)
    return seen


def _keys(num_bags, purpose="student_dropout"):
    return Draws(3, 0).keys(torch.arange(num_bags), purpose).to(DEVICE)


def _mask_problem(sizes, num_heads, shares, *, levels=10**6, dtype=torch.float32, padding=0, width=5):
    generator = torch.Generator().manual_seed(sum(sizes))
    total = sum(sizes) + padding
    scores = torch.randint(-levels, levels + 1, (total, num_heads), generator=generator) / levels
    sizes_B = torch.tensor(sizes).double()
    pool_B = (sizes_B * shares[0]).ceil()
    counts = [pool_B, pool_B * shares[1], sizes_B * shares[2], sizes_B * shares[3]]
    return {
        "features_TD": torch.randn(total, width, generator=generator).half().to(DEVICE),
        "scores_TH": scores.to(DEVICE, dtype),
        "offsets_B1": torch.tensor([0, *sizes]).cumsum(0).to(DEVICE),
        "counts": ops.MaskCounts(*(count.ceil().long().to(DEVICE) for count in counts)),
        "keys": ops.MaskKeys(*(_keys(len(sizes), name) for name in ("high_mask", "random_mask", "keep_one"))),
    }


def _arguments(problem, capacity, dtype):
    counts = vars(problem["counts"]).values()
    keys = vars(problem["keys"]).values()
    return (
        problem["features_TD"],
        problem["scores_TH"],
        problem["offsets_B1"],
        *counts,
        *keys,
        capacity,
        dtype,
    )


def _assert_as_specified(problem, *, spare=3, dtype=torch.float32):
    expected = reference.select_and_gather(**problem, dtype=dtype)
    num_kept = len(expected.kept_K)
    rows, kept, offsets, masked = _select.select_and_gather(*_arguments(problem, num_kept + spare, dtype))
    assert torch.equal(offsets, expected.offsets_B1)
    assert torch.equal(kept[:num_kept], expected.kept_K)
    assert (kept[num_kept:] == -1).all()
    assert rows.dtype == dtype
    assert torch.equal(rows[:num_kept], expected.features_KD)
    assert not rows[num_kept:].any()
    assert masked.tolist() == [
        int(expected.masked_high),
        int(expected.masked_low),
        int(expected.masked_random),
    ]


@pytest.mark.parametrize(
    ("num_heads", "shares", "levels"),
    [
        (1, (0.2, 0.5, 0.2, 0.3), 10**6),
        (1, (0.3, 1.0, 0.1, 0.0), 2),  # many ties, and the whole pool
        (3, (0.3, 0.5, 0.2, 0.1), 3),  # votes
        (1, (0.0, 0.0, 0.0, 1.0), 1),  # everything masked
        (2, (1.0, 1.0, 0.0, 0.0), 1),
        (1, (0.0, 0.0, 0.0, 0.0), 1),  # nothing masked
    ],
)
def test_masks_of_ragged_bags_are_bit_identical(num_heads, shares, levels):
    _assert_as_specified(_mask_problem([*EDGES, 3], num_heads, shares, levels=levels))


@pytest.mark.parametrize("dtype", DTYPES)
def test_masks_follow_scores_of_every_dtype_and_special_values(dtype):
    problem = _mask_problem([BLOCK + 9], 1, (0.4, 0.5, 0.4, 0.0), levels=30, dtype=dtype, padding=2)
    special = [0.0, -0.0, 1e-40, -1e-40, float("inf"), -float("inf"), float("nan"), -float("nan")]
    problem["scores_TH"][: len(special), 0] = torch.tensor(special)
    _assert_as_specified(problem, spare=0, dtype=torch.float16)


def test_rows_of_strided_inputs_and_wide_features():
    problem = _mask_problem([40, 9], 2, (0.2, 0.5, 0.2, 0.3), width=1030)
    problem["scores_TH"] = problem["scores_TH"].T.contiguous().T
    problem["features_TD"] = problem["features_TD"].repeat(1, 2)[:, :1030]
    _assert_as_specified(problem)


def test_three_launches_whatever_the_number_of_bags(launches):
    for sizes in ([20], [5] * (6 if INTERPRETED else 70)):
        launches.clear()
        problem = _mask_problem(sizes, 2 if len(sizes) == 1 else 1, (0.2, 0.5, 0.2, 0.3))
        _select.select_and_gather(*_arguments(problem, sum(sizes), torch.float32))
        assert launches == ["_find_limits", "_mask", "_gather"]


def _pool_problem(sizes, columns, width, dtype=torch.float32, padding=0):
    generator = torch.Generator().manual_seed(sum(sizes))
    total = sum(sizes) + padding
    scores = torch.randn(total, columns, generator=generator) * 3
    values = torch.randn(total, width, generator=generator).to(dtype)
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    return scores.to(DEVICE).requires_grad_(), values.to(DEVICE).requires_grad_(), offsets.to(DEVICE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("sizes", "columns", "width", "padding"),
    [([31, 32, 33, 1], 1, 20, 3), ([40], 3, 130, 0), ([70, 2], 2, 257, 1)],
)
def test_softmax_pool_and_its_gradients(sizes, columns, width, padding, dtype):
    scores, values, offsets = _pool_problem(sizes, columns, width, dtype, padding)
    results = []
    for pool in (lambda *args: _pool.segment_softmax_pool(*args)[0], reference.segment_softmax_pool):
        pooled = pool(scores, values, offsets)
        weights = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
        results.append((pooled, *torch.autograd.grad((pooled * weights).sum(), (scores, values))))
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs)


def test_softmax_pool_of_extreme_scores():
    scores, values, offsets = _pool_problem([40, 3], 1, 8)
    with torch.no_grad():
        scores[:20] = -float("inf")
        scores[30] = 90.0
        scores[41] = -1e30
    pooled, _ = _pool.segment_softmax_pool(scores, values, offsets)
    torch.testing.assert_close(pooled, reference.segment_softmax_pool(scores, values, offsets))


def test_pooling_takes_two_launches_and_its_gradient_one(launches):
    scores, values, offsets = _pool_problem([5] * (6 if INTERPRETED else 40), 1, 8)
    pooled, _ = _pool.segment_softmax_pool(scores, values, offsets)
    assert launches == ["_pool_parts", "_join_parts"]
    launches.clear()
    pooled.sum().backward()
    assert launches == ["_pool_backward"]


@pytest.mark.parametrize("largest", [True, False])
def test_top_k_with_ties_and_small_bags(largest, launches):
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-5, 5, (2 * BLOCK + 5, 2), generator=generator).float().to(DEVICE)
    offsets = torch.tensor([0, 2, BLOCK + 3, 2 * BLOCK + 2], device=DEVICE)
    best = _pool.segment_top_k(values, 4, offsets, largest)
    assert torch.equal(best, reference.segment_top_k(values, 4, offsets, largest=largest))
    assert launches == ["_top_k"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 40, 515])
@pytest.mark.parametrize("relu", [True, False])
def test_dropout_has_the_bits_of_the_specification_and_its_gradient(relu, width, dtype, launches):
    sizes = [1, 6, 3]
    generator = torch.Generator().manual_seed(width)
    values = torch.randn(12, width, generator=generator).to(DEVICE, dtype).requires_grad_()
    offsets = torch.tensor([0, *sizes], device=DEVICE).cumsum(0)
    out = _dropout.keyed_dropout(values, 77, offsets, _keys(3), 2, relu)
    before = values[:10].relu() if relu else values[:10]
    expected = reference.keyed_dropout(before, 77 / 256, offsets, _keys(3), 2)
    assert torch.equal(out[:10], expected)
    assert not out[10:].any()
    grad = torch.randn(out.shape, generator=generator).to(DEVICE, dtype)
    (ours,) = torch.autograd.grad(out, values, grad)
    (theirs,) = torch.autograd.grad(expected, values, grad[:10])
    torch.testing.assert_close(ours, theirs)
    assert launches == ["_drop", "_relu_backward" if relu else "_drop"]


CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")


def test_the_ops_are_registered_as_torch_wants_them():
    problem = _mask_problem([5, 3], 1, (0.4, 0.5, 0.2, 0.3), width=2)
    opcheck(_select.select_and_gather, _arguments(problem, 8, torch.float32), test_utils=CHECKS)
    scores, values, offsets = _pool_problem([3, 2], 2, 4)
    opcheck(_pool.segment_softmax_pool, (scores, values, offsets))
    opcheck(_pool.segment_top_k, (values.detach(), 2, offsets, True), test_utils=CHECKS)
    opcheck(_dropout.keyed_dropout, (values, 64, offsets, _keys(2), 0, True))
    opcheck(_dropout.keyed_dropout, (values, 64, offsets, _keys(2), 0, False), test_utils=CHECKS)


def test_a_float64_tensor_is_refused():
    with pytest.raises(TypeError, match=r"values_TE: expected one of torch.float32.*got torch.float64"):
        _dropout.keyed_dropout(
            torch.ones(2, 2, device=DEVICE).double(), 64, torch.tensor([0, 2]), _keys(1), 0, True
        )


@pytest.mark.skipif(INTERPRETED, reason="needs a CUDA device")
def test_large_bags_without_waiting():
    problem = _mask_problem([100_000, 9_075, 1], 8, (0.02, 0.5, 0.2, 0.3), width=64)
    scores, values, offsets = _pool_problem([100_000, 9_075, 1], 2, 512, torch.bfloat16)
    _assert_as_specified(problem)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        ops.select_and_gather(**problem, capacity=len(scores))
        pooled = ops.segment_softmax_pool(scores, values, offsets)
        hidden = ops.relu_dropout(values, 0.25, offsets, _keys(3))
        (pooled.sum() + hidden.float().sum()).backward()
        ops.segment_argmax(values, offsets)
        ops.segment_mean(values, offsets)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(pooled, reference.segment_softmax_pool(scores, values, offsets))
