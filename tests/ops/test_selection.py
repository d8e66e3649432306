"""Mask selection on the CPU against the specification."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mhimdist import ops
from mhimdist.ops import _select_cpu, reference
from mhimdist.ops.draws import Draws

pytestmark = pytest.mark.numeric


def mask_keys(num_bags: int, seed: int = 0) -> ops.MaskKeys:
    ids = torch.arange(num_bags)
    purposes = ("high_mask", "random_mask", "keep_one")
    return ops.MaskKeys(*(Draws(seed, 0).keys(ids, purpose) for purpose in purposes))


def mask_counts(sizes: list[int], pool: float, high: float, low: float, random: float) -> ops.MaskCounts:
    def share(of, ratio):
        return (of.double() * ratio).ceil().long()

    sizes_B = torch.tensor(sizes)
    pool_B = share(sizes_B, pool)
    return ops.MaskCounts(pool_B, share(pool_B, high), share(sizes_B, low), share(sizes_B, random))


def assert_as_specified(scores, sizes, counts, keys, dtype=None):
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    features = torch.randn(len(scores), 3, generator=torch.Generator().manual_seed(1)).half()
    arguments = (features, scores, offsets, counts, keys)
    ours = ops.select_and_gather(*arguments, capacity=len(scores), dtype=dtype)
    theirs = reference.select_and_gather(*arguments, dtype=dtype)
    for name, value in vars(theirs).items():
        assert torch.equal(getattr(ours, name), value), name
        assert getattr(ours, name).dtype == value.dtype, name


ratios = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1))


@given(
    sizes=st.lists(st.one_of(st.integers(1, 40), st.integers(250, 700)), min_size=1, max_size=5),
    num_heads=st.sampled_from([1, 2, 8]),
    shares=st.tuples(ratios, ratios, ratios, ratios),
    levels=st.sampled_from([1, 3, 10_000]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 99),
)
@settings(max_examples=150, deadline=None)
def test_masks_are_those_of_the_specification(sizes, num_heads, shares, levels, dtype, seed):
    """The scores have few levels, so that many tie."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(-levels, levels + 1, (sum(sizes), num_heads), generator=generator) / levels
    assert_as_specified(scores.to(dtype), sizes, mask_counts(sizes, *shares), mask_keys(len(sizes), seed))


@pytest.mark.parametrize("highest", [True, False])
def test_special_scores_are_ranked_alike(highest):
    inf, nan = float("inf"), float("nan")
    special = [0.0, -0.0, 1e-40, -1e-40, inf, -inf, nan, -nan, 1.2e-38, -1.2e-38, 3e38, -3e38, 0.0]
    scores = torch.tensor(special)[:, None]
    for k in range(len(special) + 1):
        share = k / len(special) - (1e-9 if k else 0)
        shares = (share, 1.0, 0.0, 0.0) if highest else (0.0, 0.0, share, 0.0)
        counts = mask_counts([len(special)], *shares)
        assert int(counts.high_B + counts.low_B) == k
        assert_as_specified(scores, [len(special)], counts, mask_keys(1))


def test_rows_are_converted_as_they_are_gathered():
    sizes = [300, 20]
    scores = torch.randn(320, 1, generator=torch.Generator().manual_seed(0))
    counts = mask_counts(sizes, 0.2, 0.5, 0.1, 0.1)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert_as_specified(scores, sizes, counts, mask_keys(2), dtype)


def test_everything_masked_keeps_one_instance_of_each_bag():
    sizes = [1, 50, 400]
    scores = torch.randn(451, 2, generator=torch.Generator().manual_seed(0))
    counts = mask_counts(sizes, 0.3, 1.0, 0.0, 1.0)
    selection = ops.select(scores, torch.tensor([0, 1, 51, 451]), counts, mask_keys(3))
    assert selection.offsets_B1.tolist() == [0, 1, 2, 3]
    assert_as_specified(scores, sizes, counts, mask_keys(3))


def test_rows_behind_the_last_bag_are_ignored():
    scores = torch.randn(60, 1, generator=torch.Generator().manual_seed(0))
    counts, keys, offsets = mask_counts([30, 20], 0.3, 0.5, 0.1, 0.2), mask_keys(2), torch.tensor([0, 30, 50])
    padded = ops.select(scores, offsets, counts, keys)
    assert torch.equal(padded.kept_K, ops.select(scores[:50], offsets, counts, keys).kept_K)


def test_words_of_equal_upper_halves_are_told_apart_by_the_lower():
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(-3, 3, (500,), generator=generator) << 32 | torch.randint(
        0, 2**32, (500,), generator=generator
    )
    for count in (1, 100, 499):
        expected = torch.zeros(500, dtype=torch.bool)
        expected[torch.sort(words, stable=True).indices[:count]] = True
        assert torch.equal(torch.from_numpy(_select_cpu._smallest(words.numpy(), count)), expected)
