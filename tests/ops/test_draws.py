import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mhimdist.data.bags import bag_id
from mhimdist.ops.draws import Draws, instance_words, mix

pytestmark = pytest.mark.numeric
_MASK = (1 << 64) - 1


def _splitmix64(state: int) -> int:
    """The finaliser of the published algorithm, in Python integers."""
    z = state & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


@given(st.integers(-(2**63), 2**63 - 1))
def test_mix_is_splitmix64(value):
    assert int(mix(torch.tensor([value]))) & _MASK == _splitmix64(value)


def test_known_outputs_of_splitmix64():
    """The first outputs for seed 1234567 are those that the reference implementation in C prints."""
    words = instance_words(torch.tensor([1234567]), torch.tensor([0, 3]), 3).squeeze(1)
    assert [int(w) & _MASK for w in words] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


def test_a_bags_words_do_not_depend_on_where_it_lies_in_a_batch():
    keys = torch.tensor([11, 22, 33])
    packed = instance_words(keys, torch.tensor([0, 2, 7, 8]), 8, width=3)
    alone = instance_words(keys[1:2], torch.tensor([0, 5]), 5, width=3)
    assert torch.equal(packed[2:7], alone)


def test_streams_differ_by_seed_epoch_purpose_and_bag():
    ids = torch.tensor([bag_id("a"), bag_id("b")])
    keys = [
        Draws(0, 0).keys(ids, "high_mask"),
        Draws(1, 0).keys(ids, "high_mask"),
        Draws(0, 1).keys(ids, "high_mask"),
        Draws(0, 0).keys(ids, "random_mask"),
    ]
    assert len(torch.cat(keys).unique()) == 8


def test_words_are_uniform_over_all_bits():
    words = instance_words(torch.tensor([5]), torch.tensor([0, 20_000]), 20_000, width=2)
    bits = np.unpackbits(words.numpy().view(np.uint8)).reshape(-1, 64)
    assert abs(bits.mean(0) - 0.5).max() < 0.02
