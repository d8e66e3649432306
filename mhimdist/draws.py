"""Random numbers that belong to a bag: pure functions of (seed, epoch, bag, purpose, index).

A mask or a dropout pattern must not depend on the step, the rank, the packing of a batch or what was drawn
before: then batched training equals single bags, two workers equal one, and a resumed run an uninterrupted
one, with no generator state to save. So nothing here has state: word i of a stream is SplitMix64's i-th
output (Steele et al. 2014) for the stream's key, and the same integers come out on every device.

Dimensions: T instances, B bags, B1 = B + 1 offsets.
"""

import hashlib
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Purpose = Literal["random_mask", "high_mask", "keep_one", "student_dropout", "teacher_dropout", "pseudo_bags"]


def _signed(value: int) -> int:
    """The int64 with the bits of an unsigned 64-bit integer: torch has no full uint64 arithmetic."""
    return value - (1 << 64) if value >> 63 else value


_GAMMA = _signed(0x9E3779B97F4A7C15)
_MULTIPLY_1 = _signed(0xBF58476D1CE4E5B9)
_MULTIPLY_2 = _signed(0x94D049BB133111EB)


def _shift_right(words: Tensor, bits: int) -> Tensor:
    """Logical shift: torch's `>>` on int64 copies the sign."""
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

    def keys(self, ids_B: Tensor, purpose: Purpose) -> Tensor:
        """The key of each bag's stream for one purpose, int64 of shape B."""
        text = f"{self.seed}/{self.epoch}/{purpose}".encode()
        stream = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)
        return mix(ids_B ^ stream)


def instance_words(keys_B: Tensor, offsets_B1: Tensor, num_instances: int, width: int = 1) -> Tensor:
    """`width` words for every instance of packed bags: int64 of shape T x width, uniform over all 64 bits.

    Word j of the i-th instance of a bag is output i * width + j of the bag's stream, wherever the bag lies
    in the batch.
    """
    row_T = torch.arange(num_instances, device=keys_B.device)
    if len(keys_B) == 1:
        index_T, key_T = row_T, keys_B
    else:
        bag_T = torch.repeat_interleave(offsets_B1.diff(), output_size=num_instances)
        index_T = row_T - offsets_B1[bag_T]
        key_T = keys_B[bag_T]
    counter_TW = index_T[:, None] * width + torch.arange(1, width + 1, device=keys_B.device)
    return mix(key_T[:, None] + counter_TW * _GAMMA)


def weight_seed(seed: int) -> int:
    """The seed of the generator that draws a network's first weights, apart from every other stream."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/weights".encode(), digest_size=7).digest(), "little")
