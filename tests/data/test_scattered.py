"""Rows of an array in a file: the right ones, by few reads, and of no page that holds none of them."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mhimdist.data.scattered import PAGE_BYTES, OpenFile, read_rows
from mhimdist.errors import CorruptShard

pytestmark = pytest.mark.numeric
NUM_ROWS, WIDTH, START = 3000, 96, 1664  # rows of 192 bytes in float16, in no step with pages


@pytest.fixture(scope="module")
def stored_ND() -> torch.Tensor:
    return torch.randn(NUM_ROWS, WIDTH, generator=torch.Generator().manual_seed(0)).half()


@pytest.fixture(scope="module")
def file(stored_ND: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> OpenFile:
    path: Path = tmp_path_factory.mktemp("rows") / "array"
    path.write_bytes(bytes(START) + stored_ND.numpy().tobytes())
    with path.open("rb") as opened:
        return OpenFile(opened)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Offset and bytes of every read; each returns at most 1,000 bytes, as the kernel may."""
    done: list[tuple[int, int]] = []

    preadv = os.preadv

    def counted(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        done.append((offset, preadv(descriptor, [buffers[0][:1000]], offset)))
        return done[-1][1]

    monkeypatch.setattr(os, "preadv", counted)
    return done


def pages(first: int, after: int) -> set[int]:
    return set(range(first // PAGE_BYTES, (after - 1) // PAGE_BYTES + 1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "rows", [[0], [NUM_ROWS - 1], [0, 1, 2], [5, 6, 900, 901, 2999], list(range(0, NUM_ROWS, 7))]
)
def test_rows_come_converted(
    file: OpenFile, stored_ND: torch.Tensor, rows: list[int], dtype: torch.dtype
) -> None:
    out_KD = torch.full((len(rows), WIDTH), torch.nan, dtype=dtype)
    read_rows(file, START, np.array(rows), torch.float16, out_KD)
    assert torch.equal(out_KD, stored_ND[rows].to(dtype))


@settings(max_examples=40, deadline=None)
@given(rows=st.sets(st.integers(0, NUM_ROWS - 1), min_size=1, max_size=200).map(sorted))
def test_any_rows(file: OpenFile, stored_ND: torch.Tensor, rows: list[int]) -> None:
    out_KD = torch.empty((len(rows), WIDTH), dtype=torch.float16)
    read_rows(file, START, np.array(rows), torch.float16, out_KD)
    assert torch.equal(out_KD, stored_ND[rows])


def test_only_pages_of_the_rows_are_read(
    file: OpenFile, stored_ND: torch.Tensor, reads: list[tuple[int, int]]
) -> None:
    row_bytes = WIDTH * 2
    rows = np.sort(np.random.default_rng(1).choice(NUM_ROWS, 60, replace=False))
    out_KD = torch.empty((len(rows), WIDTH))
    read_rows(file, START, rows, torch.float16, out_KD)
    assert torch.equal(out_KD, stored_ND[rows].float())
    asked = set().union(*(pages(START + row * row_bytes, START + (row + 1) * row_bytes) for row in rows))
    touched = set().union(*(pages(offset, offset + got) for offset, got in reads))
    assert touched == asked
    assert len(rows) * row_bytes <= sum(got for _, got in reads) <= len(asked) * PAGE_BYTES
    assert sum(got for _, got in reads) < NUM_ROWS * row_bytes / 2


def test_neighbours_are_one_read(file: OpenFile, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda *arguments: calls.append(arguments[2]) or preadv(*arguments))
    rows = np.array([10, 11, 12, 14, 700, 701])
    read_rows(file, START, rows, torch.float16, torch.empty((6, WIDTH)))
    assert calls == [START + 10 * WIDTH * 2, START + 700 * WIDTH * 2]


def test_a_file_that_ends_too_early_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "short"
    path.write_bytes(bytes(1000))
    with path.open("rb") as opened:
        file = OpenFile(opened)
    with pytest.raises(CorruptShard, match=r"short: expected 152 bytes at 1000, got the end of it"):
        read_rows(file, 0, np.array([5]), torch.float16, torch.empty((1, WIDTH)))
    descriptor = file.descriptor
    del file
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
