"""Random numbers that belong to a bag: pure functions of (seed, epoch, bag, purpose, index).

A mask or a dropout pattern must not depend on the step, the rank, the packing of a batch or earlier draws.
Then batched training equals single bags, two workers equal one, a resumed run equals an uninterrupted one,
and no generator state needs saving. So nothing here has state: word i of a stream is the i-th output of
SplitMix64 (Steele et al. 2014) for the stream's key, and every device computes the same integers.

Dimensions: T instances, B bags, B1 = B + 1 offsets.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Purpose = Literal[
    "random_mask",
    "high_mask",
    "keep_one",
    "student_dropout",
    "teacher_dropout",
    "pseudo_bags",
    "sub_bags",
    "evaluated_sub_bags",
]


def _signed(value: int) -> int:
    """The int64 with the same bits as an unsigned 64-bit integer: torch has no full uint64 arithmetic."""
    return value - (1 << 64) if value >> 63 else value


_GAMMA = _signed(0x9E3779B97F4A7C15)
_MULTIPLY_1 = _signed(0xBF58476D1CE4E5B9)
_MULTIPLY_2 = _signed(0x94D049BB133111EB)


def _shift_right(words: Tensor, bits: int) -> Tensor:
    """Logical shift to the right: torch's `>>` on int64 copies the sign."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)


def mix(words: Tensor) -> Tensor:
    """SplitMix64's finaliser, a bijection of int64 that scatters every bit."""
    words = (words ^ _shift_right(words, 30)) * _MULTIPLY_1
    words = (words ^ _shift_right(words, 27)) * _MULTIPLY_2
    return words ^ _shift_right(words, 31)


@dataclass(frozen=True)
class Draws:
    """The random streams of one epoch of a run.

    Attributes:
        seed: the run's seed.
        epoch: counted from 0.
    """

    seed: int
    epoch: int

    def stream(self, purpose: Purpose) -> int:
        """The signed 64-bit constant from which the streams of all bags start, for one purpose."""
        return _stream(self.seed, self.epoch, purpose)

    def keys(self, ids_B: Tensor, purpose: Purpose) -> Tensor:
        """The key of each bag's stream for one purpose, int64 of shape B."""
        return mix(ids_B ^ self.stream(purpose))


@lru_cache(maxsize=64)
def _stream(seed: int, epoch: int, purpose: Purpose) -> int:
    digest = hashlib.blake2b(f"{seed}/{epoch}/{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def instance_words(keys_B: Tensor, offsets_B1: Tensor, num_instances: int, width: int = 1) -> Tensor:
    """`width` words for every instance of packed bags: int64 of shape T x width, uniform over all 64 bits.

    Word j of the i-th instance of a bag is output i * width + j of the bag's stream, wherever the bag is in
    the batch. Rows after the last bag get words without meaning.

    Args:
        keys_B: int64 keys of the bags' streams (`Draws.keys`).
        offsets_B1: int64 offsets of the bags.
        num_instances: T, including the padding after the last bag.
        width: words per instance.
    """
    if keys_B.device.type == "cpu":
        words_TW = np.empty((num_instances, width), np.int64)
        for _ in stream_words(keys_B, offsets_B1, width, out=words_TW.view(np.uint64).reshape(-1)):
            pass
        words_TW[int(offsets_B1[-1]) :] = 0
        return torch.from_numpy(words_TW)
    row_T = torch.arange(num_instances, device=keys_B.device)
    if len(keys_B) == 1:
        index_T, key_T = row_T, keys_B
    else:
        bag_T = torch.bucketize(row_T, offsets_B1[1:-1], right=True)
        index_T = row_T - offsets_B1[bag_T]
        key_T = keys_B[bag_T]
    counter_TW = index_T[:, None] * width + torch.arange(1, width + 1, device=keys_B.device)
    return mix(key_T[:, None] + counter_TW * _GAMMA)


# Words made at a time: a block, its scratch and the values that it decides on fit in a core's cache.
_BLOCK = 16384
_WORD = (1 << 64) - 1
_STEPS = [(np.uint64(30), np.uint64(_MULTIPLY_1 & _WORD)), (np.uint64(27), np.uint64(_MULTIPLY_2 & _WORD))]
_LAST_SHIFT = np.uint64(31)


@cache
def _counters() -> np.ndarray:
    """The first `_BLOCK` states of the stream with key 0."""
    return np.arange(1, _BLOCK + 1, dtype=np.uint64) * np.uint64(_GAMMA & _WORD)


def mix_(words: np.ndarray, scratch: np.ndarray) -> None:
    """`mix` in place, for uint64 on the CPU; `scratch` has the shape of `words`."""
    for shift, multiplier in _STEPS:
        np.right_shift(words, shift, out=scratch)
        np.bitwise_xor(words, scratch, out=words)
        np.multiply(words, multiplier, out=words)
    np.right_shift(words, _LAST_SHIFT, out=scratch)
    np.bitwise_xor(words, scratch, out=words)


def words_at(keys: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Outputs number `indices` (int64, from 0) of the streams with `keys` (int64): int64 words."""
    words = (indices + 1).view(np.uint64)
    np.multiply(words, np.uint64(_GAMMA & _WORD), out=words)
    np.add(words, keys.view(np.uint64), out=words)
    mix_(words, np.empty_like(words))
    return words.view(np.int64)


def stream_words(
    keys_B: Tensor,
    offsets_B1: Tensor,
    width: int = 1,
    *,
    out: np.ndarray | None = None,
    rows: slice = slice(None),
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Make the words of `instance_words` block by block, on the CPU.

    The words are uint64 in one dimension. They are written to `out` if it is given, which must have room for
    all rows, and otherwise to one reused buffer that stays in cache, so that you need not hold all words at
    once. A row wider than a block has its own block.

    Args:
        keys_B, offsets_B1, width: see `instance_words`.
        out: uint64, one-dimensional; None for the reused buffer.
        rows: the rows to make words for; by default all.

    Yields:
        The first row of a block, its last row + 1, and its words.
    """
    rows_a_block = max((_BLOCK if out is None else 2 * _BLOCK) // width, 1)
    edges, keys = offsets_B1.tolist(), keys_B.tolist()
    first, last, _ = rows.indices(edges[-1])
    size = max(min(rows_a_block, last - first), 0) * width
    scratch = np.empty(size, np.uint64)
    buffer = np.empty(size, np.uint64) if out is None else out
    bag = 0
    for start in range(first, last, rows_a_block):
        stop, row = min(start + rows_a_block, last), start
        at = 0 if out is None else (start - first) * width
        words = buffer[at : at + (stop - start) * width]
        while row < stop:
            while edges[bag + 1] <= row:
                bag += 1
            end = min(stop, edges[bag + 1])
            state = keys[bag] + (row - edges[bag]) * width * _GAMMA
            _write_states(words[(row - start) * width : (end - start) * width], state)
            row = end
        mix_(words, scratch[: len(words)])
        yield start, stop, words


def _write_states(states: np.ndarray, before: int) -> None:
    """Write the states of a stream that follow the state `before`, an integer of any size."""
    for first in range(0, len(states), _BLOCK):
        part = states[first : first + _BLOCK]
        np.add(_counters()[: len(part)], np.uint64((before + first * _GAMMA) & _WORD), out=part)


def weight_seed(seed: int) -> int:
    """The seed of the generator that draws a network's initial weights, separate from every other stream."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/weights".encode(), digest_size=7).digest(), "little")
