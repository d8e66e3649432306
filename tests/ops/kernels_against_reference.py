"""The Triton kernels against the specification and the CPU path; run by `test_kernels.py`.

It runs in a separate process, because TRITON_INTERPRET=1 must be set before triton is imported: with it
everything runs on the CPU, without it on the CUDA device.

Dimensions: T instances of a batch, B bags, B1 = B + 1 offsets, D features, H heads, C columns, E width.
"""

import os

import pytest
import torch

from mhimdist import ops
from mhimdist.ops import _dropout, _numbers, _pool, _reduce, _select, _sequence, _square, reference
from mhimdist.ops.draws import Draws, mix

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
# bf16 products are silently wrong under the interpreter.
DTYPES = [torch.float32, torch.float16] if INTERPRETED else [torch.float32, torch.float16, torch.bfloat16]
BLOCK = 16

if INTERPRETED:
    from triton.runtime import interpreter

    _patch_tensors = interpreter._patch_lang_tensor

    def _patch_tensors_and_their_index(tensor, scope):
        """Up to Triton 3.6, `range` of a loaded number asks NumPy for what NumPy 2.4 refuses."""
        _patch_tensors(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))

    interpreter._patch_lang_tensor = _patch_tensors_and_their_index


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _offsets(sizes: list[int]) -> torch.Tensor:
    return torch.tensor([0, *sizes]).cumsum(0)


def _mask_keys(num_bags: int) -> ops.MaskKeys:
    ids = torch.arange(num_bags)
    return ops.MaskKeys(
        *(Draws(0, 0).keys(ids, purpose) for purpose in ("high_mask", "random_mask", "keep_one"))
    )


def _mask_counts(sizes: list[int], pool: float, high: float, low: float, random: float) -> ops.MaskCounts:
    def share(of: torch.Tensor, ratio: float) -> torch.Tensor:
        return (of.double() * ratio).ceil().long()

    sizes_B = torch.tensor(sizes)
    pool_B = share(sizes_B, pool)
    return ops.MaskCounts(pool_B, share(pool_B, high), share(sizes_B, low), share(sizes_B, random))


def _to_device(record):
    return type(record)(**{name: value.to(DEVICE) for name, value in vars(record).items()})


def _assert_same_masks(scores_TH, sizes, shares, *, padding=0, extra=3, dtype=None, features_TD=None):
    """Kernels, CPU path and specification agree bit by bit, and padding follows the kept rows."""
    counts, keys, offsets_B1 = _mask_counts(sizes, *shares), _mask_keys(len(sizes)), _offsets(sizes)
    total = sum(sizes)
    if features_TD is None:
        features_TD = _random(total + padding, 5, seed=1).half()
    theirs = reference.select_and_gather(
        features_TD[:total], scores_TH[:total], offsets_B1, counts, keys, dtype=dtype
    )
    on_cpu = ops.select(scores_TH, offsets_B1, counts, keys)
    ours = _select.gathered(
        features_TD.to(DEVICE),
        scores_TH.to(DEVICE),
        offsets_B1.to(DEVICE),
        _to_device(counts),
        _to_device(keys),
        len(theirs.kept_K) + extra,
        dtype,
    )
    num_kept = len(theirs.kept_K)
    for name, value in vars(theirs).items():
        found = getattr(ours, name).cpu()
        if name in ("kept_K", "features_KD"):
            padding_value = -1 if name == "kept_K" else 0
            assert (found[num_kept:] == padding_value).all(), name
            found = found[:num_kept]
        assert found.dtype == value.dtype, name
        assert torch.equal(found, value), name
    assert torch.equal(on_cpu.kept_K, theirs.kept_K)
    assert torch.equal(on_cpu.offsets_B1, theirs.offsets_B1)


@pytest.fixture
def small_blocks(monkeypatch):
    """A bag of a few instances then takes several blocks."""
    monkeypatch.setattr(_select, "BLOCK", BLOCK)
    monkeypatch.setattr(_pool, "BLOCK", BLOCK)
    monkeypatch.setattr(_reduce, "BLOCK", 32 * BLOCK)


SHARES = {
    "all masks": (0.3, 0.5, 0.2, 0.4),
    "plain high": (0.3, 1.0, 0.0, 0.0),
    "low": (0.0, 0.0, 0.35, 0.0),
    "random": (0.0, 0.0, 0.0, 0.7),
    "pool is the bag": (1.0, 0.5, 0.0, 0.1),
    "everything masked": (0.2, 0.5, 0.1, 1.0),
    "nothing masked": (0.0, 0.0, 0.0, 0.0),
}


@pytest.mark.parametrize("shares", SHARES.values(), ids=SHARES)
@pytest.mark.parametrize("num_heads", [1, 3])
def test_masks_of_ragged_bags(small_blocks, shares, num_heads):
    """Bag sizes are at the edges of a block; scores have few levels, so that many tie."""
    sizes = [1, BLOCK - 1, 2 * BLOCK + 7, BLOCK, 2, BLOCK + 1]
    scores_TH = (_random(sum(sizes) + 4, num_heads, seed=num_heads) * 3).round() / 3
    _assert_same_masks(scores_TH, sizes, shares, padding=4)


@pytest.mark.parametrize("size", [1, BLOCK - 1, BLOCK, BLOCK + 1])
def test_masks_of_one_bag(small_blocks, size):
    _assert_same_masks(_random(size, 1, seed=size), [size], SHARES["all masks"], extra=0)


def test_masks_of_more_bags_than_a_program_takes_at_a_time(small_blocks):
    sizes = [2] + [1] * 65
    _assert_same_masks(_random(sum(sizes), 1), sizes, SHARES["all masks"])


@pytest.mark.parametrize("dtype", DTYPES)
def test_masks_by_scores_of_every_type_and_stride(dtype):
    scores_HT = _random(2, 40).to(dtype)
    _assert_same_masks(scores_HT.T, [30, 10], SHARES["all masks"])


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_special_scores_are_ranked_alike(share):
    inf, nan = float("inf"), float("nan")
    special = [0.0, -0.0, 1e-40, -1e-40, inf, -inf, nan, -nan, 1.2e-38, -1.2e-38, 3e38, -3e38, 0.0]
    scores_TH = torch.tensor(special)[:, None]
    for shares in ((share, 1.0, 0.0, 0.0), (0.0, 0.0, share, 0.0)):
        _assert_same_masks(scores_TH, [len(special)], shares)


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("asked", [None, *DTYPES])
def test_rows_are_converted_as_they_are_gathered(stored, asked):
    features_TD = _random(40, 2100)[:, ::2].to(stored)
    _assert_same_masks(_random(40, 1), [37, 3], SHARES["all masks"], dtype=asked, features_TD=features_TD)


@pytest.mark.parametrize("name", ["features_TD", "scores_TH"])
def test_a_type_that_the_kernels_do_not_know_is_named(name):
    tensors = {"features_TD": torch.zeros(4, 2, device=DEVICE), "scores_TH": torch.zeros(4, 1, device=DEVICE)}
    tensors[name] = tensors[name].double()
    counts, keys = _to_device(_mask_counts([4], *SHARES["random"])), _to_device(_mask_keys(1))
    with pytest.raises(TypeError, match=f"{name}: expected one of .*, got torch.float64"):
        _select.gathered(*tensors.values(), _offsets([4]).to(DEVICE), counts, keys, 4, None)


@pytest.mark.parametrize("num_bags", [1, 3, _numbers.BAGS + 1])
@pytest.mark.parametrize("large", [False, True])
def test_counts_and_keys_of_a_step(num_bags, large):
    """Bit for bit equal to `reference.share_of` and `Draws.keys`, as is the result on the CPU."""
    generator = torch.Generator().manual_seed(num_bags)
    sizes = torch.randint(1, 1 << 33 if large else 300, (num_bags,), generator=generator)
    offsets_B1, ids_B = torch.nn.functional.pad(sizes.cumsum(0), (1, 0)), sizes * 0x123456789ABCDEF
    draws = Draws(1, 2)
    for ratios in ((0.07, 0.5, 0.03, 0.7), (1.0, 0.1, 0.0, 1 / 3), (0.29, 0.57, 1.0, 0.071)):
        ratios_4 = torch.tensor(ratios, dtype=torch.float64)
        streams_S = torch.tensor([draws.stream(purpose) for purpose in ops.STREAMS])
        numbers_NP = _numbers.bag_numbers(*(t.to(DEVICE) for t in (offsets_B1, ids_B, ratios_4, streams_S)))
        pool_B = reference.share_of(sizes, ratios[0])
        expected = [pool_B, reference.share_of(pool_B, ratios[1])]
        expected += [reference.share_of(sizes, ratio) for ratio in ratios[2:]]
        expected += [draws.keys(ids_B, purpose) for purpose in ops.STREAMS]
        assert torch.equal(numbers_NP[:, :num_bags].cpu(), torch.stack(expected))
        on_cpu = ops.bag_numbers(offsets_B1, ids_B, ratios_4, streams_S)
        found = [*vars(on_cpu.counts).values(), *vars(on_cpu.keys).values()]
        found += [on_cpu.student_dropout_B, on_cpu.teacher_dropout_B]
        assert torch.equal(torch.stack(found), torch.stack(expected))


def _gradients(pool, scores_TC, values_TE, weights_BCE):
    inputs = [scores_TC.clone().requires_grad_(), values_TE.clone().requires_grad_()]
    pooled_BCE = pool(*inputs)
    assert pooled_BCE.dtype == torch.float32
    return pooled_BCE, *torch.autograd.grad((pooled_BCE * weights_BCE).sum(), inputs)


POOLED_SIZES = {
    "one": [1],
    "block - 1": [31],
    "block": [32],
    "block + 1": [33],
    "ragged": [1, 70, 5, 34],
}


@pytest.mark.parametrize(("dtype", "columns"), list(zip(DTYPES, [1, 3, 1], strict=False)))
@pytest.mark.parametrize("sizes", POOLED_SIZES.values(), ids=POOLED_SIZES)
def test_softmax_pool_and_its_gradients(sizes, columns, dtype):
    width, padding = 150, 3
    offsets_B1, total = _offsets(sizes), sum(sizes)
    scores_TC = _random(total + padding, columns) * 3
    values_TE = _random(total + padding, width, seed=1).to(dtype)
    weights_BCE = _random(len(sizes), columns, width, seed=2)
    theirs = _gradients(
        lambda scores, values: reference.segment_softmax_pool(scores, values, offsets_B1),
        scores_TC,
        values_TE,
        weights_BCE,
    )
    ours = _gradients(
        lambda scores, values: _pool.segment_softmax_pool(scores, values, offsets_B1.to(DEVICE))[0],
        scores_TC.to(DEVICE),
        values_TE.to(DEVICE),
        weights_BCE.to(DEVICE),
    )
    for found, expected in zip(ours, theirs, strict=True):
        assert found.dtype == expected.dtype
        # A 16-bit gradient may round the other way if float32 sums differ in their last bits.
        tolerance = (
            {"rtol": 2 * torch.finfo(dtype).eps, "atol": 1e-5} if expected.dtype != torch.float32 else {}
        )
        torch.testing.assert_close(found.cpu(), expected, **tolerance)
    assert not ours[1][total:].any()
    assert not ours[2][total:].any()


def test_softmax_pool_of_extreme_scores_and_of_strides():
    scores_TC = torch.tensor([[1e4, -1e4, 1e4, float("-inf"), 3e4], [float("-inf"), 0.0, -80.0, 80.0, 0.0]]).T
    values_TE = _random(5, 24)[:, ::2]
    offsets_B1 = _offsets([2, 3])
    ours, _ = _pool.segment_softmax_pool(scores_TC.to(DEVICE), values_TE.to(DEVICE), offsets_B1.to(DEVICE))
    torch.testing.assert_close(ours.cpu(), reference.segment_softmax_pool(scores_TC, values_TE, offsets_B1))


@pytest.mark.parametrize("is_max", [True, False], ids=["max", "mean"])
@pytest.mark.parametrize(("dtype", "width"), list(zip(DTYPES, [150, 3, 130], strict=False)))
@pytest.mark.parametrize("sizes", POOLED_SIZES.values(), ids=POOLED_SIZES)
def test_mean_and_max_and_their_gradients(small_blocks, sizes, width, dtype, is_max):
    """Values have few levels, so that rows tie: they share the gradient, as on a CPU."""
    offsets_B1, total, padding = _offsets(sizes), sum(sizes), 3
    values_TE = (_random(total + padding, 2 * width)[:, ::2] * 2).round().to(dtype)
    values_TE[total:] = torch.nan
    weights_BE = _random(len(sizes), width, seed=2).to(dtype)
    expected = values_TE.clone().requires_grad_()
    specified = reference.segment_max if is_max else reference.segment_mean
    theirs_BE = specified(expected, offsets_B1)
    (theirs_grad_TE,) = torch.autograd.grad((theirs_BE * weights_BE).sum(), expected)
    inputs = values_TE.to(DEVICE).requires_grad_()
    ours_BE, counts_BE = _reduce.segment_reduce(inputs, offsets_B1.to(DEVICE), is_max)
    (grad_TE,) = torch.autograd.grad((ours_BE * weights_BE.to(DEVICE)).sum(), inputs)
    assert ours_BE.dtype == grad_TE.dtype == dtype
    torch.testing.assert_close(ours_BE.cpu(), theirs_BE.detach())
    torch.testing.assert_close(grad_TE.cpu(), theirs_grad_TE)
    assert not grad_TE[total:].any()
    if is_max:
        assert torch.equal(ours_BE.cpu(), theirs_BE.detach())
        assert counts_BE.max() > 1 or total < 32
    else:
        assert torch.equal(counts_BE.cpu(), offsets_B1.diff()[:, None].expand(-1, width).int())


@pytest.mark.parametrize("is_max", [True, False], ids=["max", "mean"])
def test_nan_and_infinities_are_reduced_as_on_a_cpu(small_blocks, is_max):
    """A NaN stays in its bag and column, and takes the whole gradient of a maximum."""
    values_TE, offsets_B1 = _random(300, 4), _offsets([120, 100, 80])
    values_TE[[3, 77], 1], values_TE[130, 2] = torch.nan, torch.inf
    values_TE[220:, 3] = -torch.inf
    found = []
    for device in ("cpu", DEVICE):
        inputs = values_TE.to(device).requires_grad_()
        if device == "cpu" and not found:
            reduced_BE = (ops.segment_max if is_max else ops.segment_mean)(inputs, offsets_B1)
        else:
            reduced_BE, _ = _reduce.segment_reduce(inputs, offsets_B1.to(device), is_max)
        (grad_TE,) = torch.autograd.grad(reduced_BE.sum(), inputs)
        found.append((reduced_BE.detach().cpu(), grad_TE.cpu()))
    assert found[0][0].isnan().nonzero().tolist() == [[0, 1]]
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True)


@pytest.mark.parametrize("sizes", [[3, 0, 40, 0, 0], [1, 0]])
def test_a_bag_without_rows_is_pooled_to_zero_and_has_no_largest_row(sizes):
    """DTFD makes as many pseudo-bags of every bag, however few instances the bag has."""
    offsets_B1, padding = _offsets(sizes), 2
    scores_TC, values_TE = (
        _random(sum(sizes) + padding, columns, seed=columns).to(DEVICE) for columns in (2, 9)
    )
    inputs = [scores_TC.requires_grad_(), values_TE.requires_grad_()]
    pooled_BCE, _ = _pool.segment_softmax_pool(*inputs, offsets_B1.to(DEVICE))
    grads = torch.autograd.grad(pooled_BCE.square().sum(), inputs)
    expected = [each.detach().cpu().requires_grad_() for each in inputs]
    expected_BCE = reference.segment_softmax_pool(*expected, offsets_B1)
    expected_grads = torch.autograd.grad(expected_BCE.square().sum(), expected)
    for found, right in zip((pooled_BCE, *grads), (expected_BCE, *expected_grads), strict=True):
        torch.testing.assert_close(found.cpu(), right)
    rows_BKC = _pool.segment_top_k(values_TE.detach(), 1, offsets_B1.to(DEVICE), True)
    assert [bool((rows == -1).all()) for rows in rows_BKC] == [size == 0 for size in sizes]


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("k", [1, 4])
def test_top_k(small_blocks, k, largest):
    """Some bags have fewer than k rows, some have ties across several blocks, and one value is NaN."""
    sizes = [1, BLOCK - 1, BLOCK, BLOCK + 1, 2, 50]
    values_TC = _random(sum(sizes) + 2, 3).round()
    values_TC[20, 0] = torch.nan
    offsets_B1 = _offsets(sizes)
    ours = _pool.segment_top_k(values_TC.to(DEVICE), k, offsets_B1.to(DEVICE), largest)
    theirs = reference.segment_top_k(values_TC, k, offsets_B1, largest=largest)
    assert torch.equal(ours.cpu(), theirs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 7, 8, 515])
@pytest.mark.parametrize("sizes", [[1], [3, 1, 6, 7, 8, 9]], ids=["one", "ragged"])
def test_dropout_and_its_gradient(sizes, width, dtype):
    """The pattern is the specification's, bit for bit; the gradient of ReLU dropout needs only the result."""
    share, padding = 0.25, 2
    offsets_B1, keys_B = _offsets(sizes), Draws(0, 0).keys(torch.arange(len(sizes)), "student_dropout")
    total = sum(sizes)
    values_TE, weights_TE = (_random(total + padding, width, seed=seed).to(dtype) for seed in (0, 1))
    weights_TE[total:] = 0
    for relu in (False, True):
        expected_inputs = values_TE.clone().requires_grad_()
        through = expected_inputs.relu() if relu else expected_inputs
        expected_TE = reference.keyed_dropout(through, share, offsets_B1, keys_B, 1)
        (expected_grad_TE,) = torch.autograd.grad((expected_TE * weights_TE).sum(), expected_inputs)
        inputs = values_TE.to(DEVICE).requires_grad_()
        ours_TE = _dropout.keyed_dropout(inputs, 64, offsets_B1.to(DEVICE), keys_B.to(DEVICE), 1, relu)
        (grad_TE,) = torch.autograd.grad((ours_TE * weights_TE.to(DEVICE)).sum(), inputs)
        assert torch.equal(ours_TE.cpu()[:total], expected_TE[:total])
        assert not ours_TE[total:].any()
        torch.testing.assert_close(grad_TE.cpu(), expected_grad_TE)
        assert torch.equal(grad_TE.cpu() == 0, expected_grad_TE == 0)
        on_cpu_TE = (ops.relu_dropout if relu else ops.keyed_dropout)(values_TE, share, offsets_B1, keys_B, 1)
        assert torch.equal(on_cpu_TE == 0, ours_TE.cpu() == 0)
    assert mix(keys_B).unique().numel() == len(sizes)


def test_nan_goes_through_the_relu():
    """The loss must show a NaN. A NaN that is dropped is gone, like every dropped value."""
    values_TE = torch.full((40, 9), torch.nan)
    offsets_B1, keys_B = _offsets([40]), Draws(0, 0).keys(torch.arange(1), "student_dropout")
    arguments = (offsets_B1.to(DEVICE), keys_B.to(DEVICE))
    ours_TE = _dropout.keyed_dropout(values_TE.to(DEVICE), 64, *arguments, 0, True).cpu()
    expected_TE = reference.keyed_dropout(values_TE.relu(), 0.25, offsets_B1, keys_B, 0)
    assert 0 < expected_TE.isnan().sum() < expected_TE.numel()
    assert torch.equal(ours_TE.isnan(), expected_TE.isnan())
    assert torch.equal(ops.relu_dropout(values_TE, 0.25, offsets_B1, keys_B).isnan(), expected_TE.isnan())


def test_nan_stays_in_its_bag_when_pooled():
    scores_TC, values_TE, offsets_B1 = _random(100, 2), _random(100, 5, seed=1), _offsets([40, 60])
    scores_TC[3, 1] = torch.nan
    pooled_BCE, _ = _pool.segment_softmax_pool(*(t.to(DEVICE) for t in (scores_TC, values_TE, offsets_B1)))
    assert pooled_BCE.isnan().any(2).tolist() == [[False, True], [False, False]]


def _operators():
    offsets_B1 = _offsets([6, 3]).to(DEVICE)
    counts, keys = _to_device(_mask_counts([6, 3], *SHARES["all masks"])), _to_device(_mask_keys(2))
    values_TE = _random(9, 5).to(DEVICE)
    scores_TC = _random(9, 2, seed=1).to(DEVICE)
    pooled_BCE, log_BC = _pool.segment_softmax_pool(scores_TC, values_TE, offsets_B1)
    counts_of_masks = (counts.high_pool_B, counts.high_B, counts.low_B, counts.random_B)
    keys_of_masks = (keys.high_B, keys.random_B, keys.keep_B)
    with_grad = [tensor.clone().requires_grad_() for tensor in (scores_TC, values_TE)]
    reduced = {is_max: _reduce.segment_reduce(values_TE, offsets_B1, is_max) for is_max in (True, False)}
    return {
        _select.select_and_gather: (
            (values_TE, scores_TC, offsets_B1, *counts_of_masks, *keys_of_masks, 9, torch.float16),
        ),
        _pool.segment_softmax_pool: ((*with_grad, offsets_B1),),
        _pool.segment_softmax_pool_backward: (
            (scores_TC, values_TE, offsets_B1, pooled_BCE, log_BC, torch.ones_like(pooled_BCE)),
        ),
        _pool.segment_top_k: ((values_TE, 2, offsets_B1, True),),
        _dropout.keyed_dropout: (
            (with_grad[1], 64, offsets_B1, keys.high_B, 0, True),
            (with_grad[1], 64, offsets_B1, keys.high_B, 0, False),
        ),
        _numbers.bag_numbers: (
            (offsets_B1, keys.high_B, torch.rand(4, dtype=torch.float64).to(DEVICE), keys.random_B),
        ),
        _dropout.relu_dropout_backward: ((values_TE, values_TE.relu(), 64),),
        _reduce.segment_reduce: tuple((with_grad[1], offsets_B1, is_max) for is_max in reduced),
        _reduce.segment_reduce_backward: tuple(
            (values_TE, offsets_B1, *found, torch.ones_like(found[0]), is_max)
            for is_max, found in reduced.items()
        ),
        _sequence.sequence_convolution: ((with_grad[1], _random(3, 5).to(DEVICE)),),
        _sequence.sequence_convolution_kernel_backward: ((values_TE, values_TE, 3),),
        _square.square_convolution: (
            (with_grad[1], _random(49, 5).to(DEVICE), values_TE[0], offsets_B1[:2]),
        ),
        _square.square_convolution_backward: ((values_TE, _random(49, 5).to(DEVICE), offsets_B1[:2]),),
        _square.square_convolution_kernel_backward: ((values_TE, values_TE, offsets_B1[:2]),),
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("number", range(14))
def test_operators_are_registered_as_torch_wants_them(number):
    operator, inputs = list(_operators().items())[number]
    for arguments in inputs:
        torch.library.opcheck(operator, arguments)
