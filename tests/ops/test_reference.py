import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mhimdist.ops import reference

pytestmark = pytest.mark.numeric


def _counts(pool, high, low, random):
    return reference.MaskCounts(*(torch.tensor([v]) for v in (pool, high, low, random)))


def _select(scores, counts, offsets=None):
    total = len(scores)
    generator = torch.Generator().manual_seed(0)
    words = [torch.randint(-(2**62), 2**62, (total,), generator=generator) for _ in range(3)]
    offsets = torch.tensor([0, total]) if offsets is None else offsets
    return reference.select(
        scores, offsets, counts, high_words_T=words[0], random_words_T=words[1], keep_words_T=words[2]
    )


def test_plain_high_and_low_masks_take_the_extremes():
    scores = torch.tensor([0.1, 0.9, 0.5, 0.7, 0.3])[:, None]
    kept = _select(scores, _counts(2, 2, 1, 0))
    assert kept.kept_K.tolist() == [2, 4]
    assert kept.offsets_B1.tolist() == [0, 2]


def test_randomised_high_masks_some_of_the_pool_and_nothing_else():
    scores = torch.arange(20.0)[:, None]
    kept = set(_select(scores, _counts(10, 4, 0, 0)).kept_K.tolist())
    assert set(range(10)) <= kept
    assert len(kept) == 16


def test_the_random_mask_is_a_uniform_subset_of_exact_size():
    seen = torch.zeros(10)
    for seed in range(400):
        words = torch.randint(-(2**62), 2**62, (10,), generator=torch.Generator().manual_seed(seed))
        kept = reference.select(
            torch.zeros(10, 1),
            torch.tensor([0, 10]),
            _counts(0, 0, 0, 3),
            high_words_T=words,
            random_words_T=words,
            keep_words_T=words,
        ).kept_K
        assert len(kept) == 7
        seen[kept] += 1
    assert (seen / 400 - 0.7).abs().max() < 0.1


def test_heads_vote_and_ties_go_to_the_first_instance():
    # Top 2 of each head: {0, 1}, {1, 2}, {1, 3}. Instance 1 has three votes, 0, 2 and 3 one each.
    scores = torch.tensor([[5.0, 0, 0], [4, 5, 5], [0, 4, 0], [0, 0, 4]])
    assert reference.most_voted(scores, 2, highest=True).tolist() == [1, 0]


def test_equal_scores_are_ranked_by_place():
    scores = torch.zeros(5, 1)
    assert reference.most_voted(scores, 2, highest=True).tolist() == [0, 1]
    assert reference.most_voted(scores, 2, highest=False).tolist() == [0, 1]


@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    num_heads=st.sampled_from([1, 3]),
    shares=st.tuples(*[st.floats(0, 1)] * 4),
    seed=st.integers(0, 99),
)
@settings(max_examples=100, deadline=None)
def test_batches_equal_single_bags_and_always_keep_one(sizes, num_heads, shares, seed):
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    total = sum(sizes)
    scores = torch.randn(total, num_heads, generator=generator)
    words = [torch.randint(-(2**62), 2**62, (total,), generator=generator) for _ in range(3)]
    sizes_B = torch.tensor(sizes).double()
    pool = (sizes_B * shares[0]).ceil().long()
    rest = [(n * share).ceil().long() for n, share in zip((pool, sizes_B, sizes_B), shares[1:], strict=True)]
    counts = (pool, *rest)

    def select(rows: slice, bags: slice, offsets: torch.Tensor) -> reference.Selection:
        return reference.select(
            scores[rows],
            offsets,
            reference.MaskCounts(*(c[bags] for c in counts)),
            high_words_T=words[0][rows],
            random_words_T=words[1][rows],
            keep_words_T=words[2][rows],
        )

    packed = select(slice(None), slice(None), offsets)
    assert packed.offsets_B1[-1] == len(packed.kept_K)
    assert (packed.kept_K.diff() > 0).all()
    for b, size in enumerate(sizes):
        start = int(offsets[b])
        alone = select(slice(start, start + size), slice(b, b + 1), torch.tensor([0, size]))
        mine = packed.kept_K[packed.offsets_B1[b] : packed.offsets_B1[b + 1]]
        assert 1 <= len(mine) <= size
        assert torch.equal(mine - start, alone.kept_K)


@pytest.mark.parametrize("sizes", [[1], [5], [1, 4, 2]])
def test_softmax_pool_and_its_gradient(sizes):
    generator = torch.Generator().manual_seed(0)
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    scores = torch.randn(sum(sizes), 1, generator=generator, dtype=torch.float64, requires_grad=True)
    values = torch.randn(sum(sizes), 3, generator=generator, dtype=torch.float64, requires_grad=True)
    pooled = reference.segment_softmax_pool(scores, values, offsets)
    for b in range(len(sizes)):
        part = slice(int(offsets[b]), int(offsets[b + 1]))
        weights = scores[part].exp() / scores[part].exp().sum()
        torch.testing.assert_close(pooled[b, 0], (weights * values[part]).sum(0))
    assert torch.autograd.gradcheck(
        lambda s, v: reference.segment_softmax_pool(s, v, offsets), (scores, values)
    )


def test_segment_mean_and_max():
    values = torch.tensor([[1.0, 8], [3, 2], [5, 5]])
    offsets = torch.tensor([0, 2, 3])
    assert reference.segment_mean(values, offsets).tolist() == [[2, 5], [5, 5]]
    assert reference.segment_max(values, offsets).tolist() == [[3, 8], [5, 5]]
