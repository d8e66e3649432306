"""Mask selection and ranking on the CPU, by order-preserving integers and the k-th smallest of a bag.

Every score becomes an integer. A large bag is not sorted: its k smallest are the integers below the k-th
smallest, and the first ones equal to it.

Dimensions: T instances of a batch, N of one bag, B bags, B1 = B + 1 offsets, H heads of scores, P instances
of all pools, S bags sorted together, K kept instances.
"""

import sys
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from mhimdist.ops.draws import stream_words, words_at
from mhimdist.ops.masks import MaskCounts, MaskKeys, Selection

# Bags up to this size are padded to the largest and sorted together: one call per bag would cost more.
_SORTED_TOGETHER = 256
_UPPER_HALF = 1 if sys.byteorder == "little" else 0


def _ranks(scores_TH: Tensor) -> np.ndarray:
    """Integers that order the scores of each head: int32, H x T.

    Subnormals count as zero and NaN as the largest, as in the specification.
    """
    if scores_TH.dtype == torch.float64:
        tiny = torch.finfo(torch.float32).tiny
        scores_HT = torch.where(scores_TH.abs() < tiny, 0.0, scores_TH).T
        ranks = [torch.unique(scores_T, return_inverse=True)[1] for scores_T in scores_HT]
        return torch.stack(ranks).int().numpy()
    bits_HT = np.ascontiguousarray(scores_TH.float().numpy().T).view(np.int32)
    ranks_HT = bits_HT & 0x7FFFFFFF
    is_nan_HT = ranks_HT > 0x7F800000 if ranks_HT.max(initial=0) > 0x7F800000 else None
    if ranks_HT.min(initial=0x00800000) < 0x00800000:
        ranks_HT[ranks_HT < 0x00800000] = 0
    sign_HT = bits_HT >> 31  # -1 or 0: the next two lines negate where it is -1
    np.bitwise_xor(ranks_HT, sign_HT, out=ranks_HT)
    np.subtract(ranks_HT, sign_HT, out=ranks_HT)
    if is_nan_HT is not None:
        ranks_HT[is_nan_HT] = 0x7FC00000
    return ranks_HT


def top_k(values_TC: Tensor, k: int, edges: list[int], *, largest: bool) -> np.ndarray:
    """See `ops.segment_top_k`.

    Args:
        values_TC, k, largest: as there.
        edges: the bags' offsets.
    """
    ranks_CT = _ranks(values_TC)
    rows_BKC = np.full((len(edges) - 1, k, len(ranks_CT)), -1)
    # The row in the lower half makes all keys different, and the first of tied values the smallest.
    keys_CT = (~ranks_CT if largest else ranks_CT).astype(np.int64) << 32 | np.arange(ranks_CT.shape[1])
    for rows_KC, (start, stop) in zip(rows_BKC, pairwise(edges), strict=True):
        keys_CN, count = keys_CT[:, start:stop], min(k, stop - start)
        best_CK = np.sort(np.partition(keys_CN, count - 1)[:, :count])
        rows_KC[:count] = (best_CK & 0xFFFFFFFF).T
    return rows_BKC


def _smallest(keys_N: np.ndarray, count: int) -> np.ndarray:
    """Whether each key is among the `count` smallest, ties going to the first: boolean, N."""
    if count >= len(keys_N):
        return np.ones(len(keys_N), bool)
    # The upper half of random words nearly always decides, and selecting by it takes half the time.
    halves_N = keys_N.view(np.int32)[_UPPER_HALF::2].copy() if keys_N.dtype == np.int64 else keys_N
    # NumPy partitions keys of 16 to 64 bits by the CPU's vector instructions. Where it has no code for them,
    # as on ARM, it runs the scalar quickselect with which any other way would begin, too.
    limit = np.partition(halves_N, count - 1)[count - 1]
    chosen_N = halves_N <= limit
    too_many = np.count_nonzero(chosen_N) - count
    if too_many:
        equal = np.flatnonzero(halves_N == limit)
        if halves_N is not keys_N:
            equal = equal[np.argsort(keys_N[equal], kind="stable")]
        chosen_N[equal[-too_many:]] = False
    return chosen_N


def _smallest_of_bags(keys_T: np.ndarray, edges_B1: np.ndarray, counts_B: np.ndarray) -> np.ndarray:
    """Whether each key is among the `counts_B` smallest of its bag, ties going to the first: boolean, T."""
    if len(counts_B) == 1 and counts_B[0]:
        return _smallest(keys_T, int(counts_B[0]))
    chosen_T = np.zeros(len(keys_T), bool)
    sizes_B = np.diff(edges_B1)
    is_small_B = sizes_B <= _SORTED_TOGETHER
    small = np.flatnonzero(is_small_B & (counts_B > 0))
    if len(small):
        column = np.arange(sizes_B[small].max())
        rows_SN = edges_B1[small][:, None] + column
        inside_SN = column < sizes_B[small][:, None]
        keys_SN = np.full(rows_SN.shape, np.iinfo(np.int64).max)
        keys_SN[inside_SN] = keys_T[rows_SN[inside_SN]]
        if keys_T.dtype != np.int64:  # the column in the lower half makes all keys different
            keys_SN[inside_SN] <<= 32
            keys_SN |= column
        limits_S = np.sort(keys_SN, axis=1)[np.arange(len(small)), counts_B[small] - 1]
        chosen_T[rows_SN[inside_SN]] = (keys_SN <= limits_S[:, None])[inside_SN]
    for bag in np.flatnonzero(~is_small_B & (counts_B > 0)):
        rows = slice(edges_B1[bag], edges_B1[bag + 1])
        chosen_T[rows] = _smallest(keys_T[rows], int(counts_B[bag]))
    return chosen_T


def _most_voted(ranks_HT: np.ndarray, edges_B1: np.ndarray, counts_B: np.ndarray) -> np.ndarray:
    """Whether each row is among the `counts_B` of its bag that most heads rank smallest: boolean, T."""
    among_HT = [_smallest_of_bags(ranks_T, edges_B1, counts_B) for ranks_T in ranks_HT]
    if len(among_HT) == 1:
        return among_HT[0]
    votes_T: np.ndarray = np.zeros(ranks_HT.shape[1], np.int16 if len(ranks_HT) < 1 << 15 else np.int32)
    for among_T in among_HT:
        votes_T -= among_T
    return _smallest_of_bags(votes_T, edges_B1, counts_B)


def _edges_among(rows_K: np.ndarray, edges_B1: np.ndarray) -> np.ndarray:
    """The offsets of the bags among some rows of the batch, which are ascending."""
    if len(edges_B1) == 2:
        return np.array([0, len(rows_K)])
    return np.searchsorted(rows_K, edges_B1)


def _words_of_rows(
    keys_B: Tensor, rows_P: np.ndarray, edges_P: np.ndarray, edges_B1: np.ndarray
) -> np.ndarray:
    """The words of the bags' streams for some rows of the batch: int64, P."""
    keys = keys_B.numpy()
    if len(keys) == 1:
        return words_at(keys, rows_P)
    sizes_B = np.diff(edges_P)
    return words_at(np.repeat(keys, sizes_B), rows_P - np.repeat(edges_B1[:-1], sizes_B))


def select(scores_TH: Tensor, offsets_B1: Tensor, counts: MaskCounts, keys: MaskKeys) -> Selection:
    """See `ops.select`."""
    edges_B1 = offsets_B1.numpy()
    total = int(edges_B1[-1])
    pool_B, high_B, low_B, random_B = (
        c.numpy() for c in (counts.high_pool_B, counts.high_B, counts.low_B, counts.random_B)
    )
    num_high, num_low, num_random = (sum(c.tolist()) for c in (high_B, low_B, random_B))
    masked_T = np.zeros(total, bool)
    ranks_HT = _ranks(scores_TH.detach()[:total]) if num_high or num_low else np.empty((0, total), np.int32)
    if num_high:
        pool_T = _most_voted(~ranks_HT, edges_B1, pool_B * (high_B > 0))
        rows_P = np.flatnonzero(pool_T)
        if num_high < len(rows_P):
            edges_P = _edges_among(rows_P, edges_B1)
            words_P = _words_of_rows(keys.high_B, rows_P, edges_P, edges_B1)
            rows_P = rows_P[_smallest_of_bags(words_P, edges_P, high_B)]
        masked_T[rows_P] = True
    if num_low:
        masked_T |= _most_voted(ranks_HT, edges_B1, low_B)
    if num_random:
        words_T = np.empty(total, np.uint64)
        for _ in stream_words(keys.random_B, offsets_B1, out=words_T):
            pass
        masked_T |= _smallest_of_bags(words_T.view(np.int64), edges_B1, random_B)

    kept_K = np.flatnonzero(~masked_T)
    kept_edges = _edges_among(kept_K, edges_B1)
    is_empty_B = (kept_edges[1:] == kept_edges[:-1]) & (edges_B1[1:] > edges_B1[:-1])
    if is_empty_B.any():
        for bag in np.flatnonzero(is_empty_B):
            index_N = np.arange(edges_B1[bag + 1] - edges_B1[bag])
            words_N = words_at(keys.keep_B.numpy()[bag : bag + 1], index_N)
            masked_T[edges_B1[bag] + words_N.argmin()] = False
        kept_K = np.flatnonzero(~masked_T)
        kept_edges = _edges_among(kept_K, edges_B1)
    return Selection(
        torch.from_numpy(kept_K),
        torch.from_numpy(kept_edges),
        *torch.from_numpy(np.array([num_high, num_low, num_random])).unbind(),
    )
