"""Mask selection on the CPU: an order-preserving integer for every score, and a threshold for every bag.

A score's integer carries its row in the lower half, so that no two are equal and ties go to the first row:
the k smallest are then those up to the k-th smallest, which takes no sort.

Dimensions: T instances of a batch, B bags, B1 = B + 1 offsets, H heads of scores, P instances of all pools,
K kept instances.
"""

import numpy as np
import torch
from torch import Tensor

from mhimdist.draws import instance_words, words_at
from mhimdist.ops.masks import MaskCounts, MaskKeys, Selection

_NONE, _ALL = np.iinfo(np.int64).min, np.iinfo(np.int64).max
# Bags of at most this size are sorted together, padded to the largest: a call for each would cost more.
_SORTED_TOGETHER = 256


def _ranks(scores_TH: Tensor) -> np.ndarray:
    """Integers in the order of the scores, head by head: int64 H x T below 2**31 in size.

    Subnormals count as zero and NaN as the largest, as in the specification.
    """
    if scores_TH.dtype == torch.float64:
        tiny = torch.finfo(torch.float32).tiny
        scores_HT = torch.where(scores_TH.abs() < tiny, 0.0, scores_TH).T
        return torch.stack([torch.unique(row, return_inverse=True)[1] for row in scores_HT]).numpy()
    bits_HT = scores_TH.T.float().contiguous().numpy().view(np.int32)
    size_HT = bits_HT & 0x7FFFFFFF
    ranks_HT = np.where(bits_HT < 0, -size_HT, size_HT)
    ranks_HT[size_HT < 0x00800000] = 0
    ranks_HT[size_HT > 0x7F800000] = 0x7FC00000
    return ranks_HT.astype(np.int64)


def _up_to_kth(keys_T: np.ndarray, edges: list[int], counts_B: np.ndarray) -> np.ndarray:
    """Which keys are among the `counts_B` smallest of their bag; the keys of a bag differ. Boolean, T."""
    sizes_B = np.diff(edges)
    limits_B = np.where(counts_B >= sizes_B, _ALL, _NONE)
    open_B = (counts_B > 0) & (counts_B < sizes_B)
    small = np.flatnonzero(open_B & (sizes_B <= _SORTED_TOGETHER))
    if len(small) > 1:
        column = np.arange(sizes_B[small].max())
        rows = np.asarray(edges)[small][:, None] + column
        padded = np.where(
            column < sizes_B[small][:, None], keys_T[np.minimum(rows, len(keys_T) - 1)], np.int64(_ALL)
        )
        padded.sort(axis=1)
        limits_B[small] = padded[np.arange(len(small)), counts_B[small] - 1]
        open_B[small] = False
    keys = torch.from_numpy(keys_T)
    for bag in np.flatnonzero(open_B).tolist():
        part = keys[edges[bag] : edges[bag + 1]]
        limits_B[bag] = torch.kthvalue(part, int(counts_B[bag])).values.item()
    return keys_T <= (limits_B[0] if len(limits_B) == 1 else np.repeat(limits_B, sizes_B))


def _most_voted(
    ranks_HT: np.ndarray, row_T: np.ndarray, edges: list[int], counts_B: np.ndarray
) -> np.ndarray:
    """Which rows most heads have among the smallest ranks of a bag: boolean, T."""
    among_HT = [_up_to_kth((ranks_T << 32) | row_T, edges, counts_B) for ranks_T in ranks_HT]
    if len(among_HT) == 1:
        return among_HT[0]
    votes_T = np.zeros(len(row_T), np.int64)
    for among_T in among_HT:
        votes_T += among_T
    return _up_to_kth((-votes_T << 32) | row_T, edges, counts_B)


def select(scores_TH: Tensor, offsets_B1: Tensor, counts: MaskCounts, keys: MaskKeys) -> Selection:
    """See `ops.select`."""
    edges = offsets_B1.tolist()
    total = edges[-1]
    pool_B, high_B, low_B, random_B = (
        c.numpy() for c in (counts.high_pool_B, counts.high_B, counts.low_B, counts.random_B)
    )
    row_T = np.arange(total)
    masked_T = np.zeros(total, bool)
    ranks_HT = _ranks(scores_TH[:total].detach()) if high_B.any() or low_B.any() else None
    if high_B.any():
        assert ranks_HT is not None
        pool_T = _most_voted(~ranks_HT, row_T, edges, np.where(high_B > 0, pool_B, 0))
        if (high_B < pool_B).any():
            rows_P = np.flatnonzero(pool_T)
            edges_P = np.searchsorted(rows_P, edges)
            bag_P = np.repeat(np.arange(len(high_B)), np.diff(edges_P))
            words_P = words_at(keys.high_B.numpy()[bag_P], rows_P - np.asarray(edges)[bag_P])
            masked_T[rows_P[_up_to_kth(words_P, edges_P.tolist(), high_B)]] = True
        else:
            masked_T |= pool_T
    if low_B.any():
        assert ranks_HT is not None
        masked_T |= _most_voted(ranks_HT, row_T, edges, low_B)
    if random_B.any():
        words_T = instance_words(keys.random_B, offsets_B1, total)[:, 0].numpy()
        masked_T |= _up_to_kth(words_T, edges, random_B)

    kept_K = np.flatnonzero(~masked_T)
    kept_edges = np.searchsorted(kept_K, edges)
    empty = np.flatnonzero((np.diff(kept_edges) == 0) & (np.diff(edges) > 0))
    if len(empty):
        for bag in empty:
            index_N = np.arange(edges[bag + 1] - edges[bag])
            words_N = words_at(keys.keep_B.numpy()[bag : bag + 1], index_N)
            masked_T[edges[bag] + words_N.argmin()] = False
        kept_K = np.flatnonzero(~masked_T)
        kept_edges = np.searchsorted(kept_K, edges)
    return Selection(
        kept_K=torch.from_numpy(kept_K),
        offsets_B1=torch.from_numpy(kept_edges),
        masked_high=counts.high_B.sum(),
        masked_low=counts.low_B.sum(),
        masked_random=counts.random_B.sum(),
    )
