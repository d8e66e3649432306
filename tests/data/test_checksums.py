"""The checksums of members, which another library computes than the one that defines them."""

import itertools
import threading
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from feature_folders import shard_folder, write_features
from hypothesis import given
from hypothesis import strategies as st
from isal import isal_zlib

from mhimdist.data.shards import BagShards


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_features(tmp_path)
    return shard_folder(tmp_path)


@given(st.binary(max_size=3000), st.lists(st.integers(0, 3000), max_size=4), st.integers(0, 2**32 - 1))
def test_the_crc32_is_that_of_zlib_in_any_pieces(content: bytes, cuts: list[int], start: int) -> None:
    found = start
    for first, end in itertools.pairwise([0, *sorted(cuts), len(content)]):
        found = isal_zlib.crc32(memoryview(content)[first:end], found)
    expected = start
    for first, end in itertools.pairwise([0, *sorted(cuts), len(content)]):
        expected = zlib.crc32(content[first:end], expected)
    assert found == expected


def test_another_thread_runs_while_a_member_is_checked() -> None:
    """A reader's thread would otherwise hold up the step that it is to overlap with."""
    content, done, counted = np.zeros(2**29, np.uint8), threading.Event(), 0

    def check() -> None:
        isal_zlib.crc32(content)
        done.set()

    thread = threading.Thread(target=check)
    thread.start()
    while not done.is_set():
        counted += 1
    thread.join()
    assert counted > 1000


@pytest.mark.parametrize("verify", ["first_read", "never"])
def test_a_reader_computes_a_checksum_for_the_first_read_alone(
    verify: Literal["first_read", "never"], shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[int] = []
    real = isal_zlib.crc32

    def noted(payload: memoryview) -> int:
        checked.append(len(payload))
        return real(payload)

    bags = BagShards(shards, verify=verify)
    monkeypatch.setattr("mhimdist.data.shards.isal_zlib.crc32", noted)
    for _ in range(3):
        bags.load(range(len(bags)))
    expected = [128 + 2 * int(size) * bags.num_features for size in bags.sizes_N]
    assert sorted(checked) == (sorted(expected) if verify == "first_read" else [])
