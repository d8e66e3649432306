"""Some rows of an array in a file: neighbours by one read, and no page that holds none of them.

Dimensions: K rows to read, R rows between the first and the last row of each run, D values of a row.
"""

import mmap
import os
import weakref
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from mhimdist.errors import CorruptShard

PAGE_BYTES = mmap.PAGESIZE
"""What the kernel reads from a disk at least."""


class HeldFile:
    """A file that stays open, to see whether it changes; closed when nobody holds it any more.

    Attributes:
        name: the file, for messages.
        descriptor: its descriptor.
    """

    def __init__(self, file: BinaryIO) -> None:
        """Open a file a second time.

        Args:
            file: the opened file; the caller may close it.
        """
        self.name, self.descriptor = file.name, os.dup(file.fileno())
        weakref.finalize(self, os.close, self.descriptor)
        self._state = self._look()

    def _look(self) -> tuple[int, int]:
        found = os.fstat(self.descriptor)
        return found.st_size, found.st_mtime_ns

    @property
    def is_changed(self) -> bool:
        """Whether the file was written to or cut since it was opened here."""
        return self._look() != self._state


class OpenFile(HeldFile):
    """A file to read rows of, in any thread; the kernel reads nothing ahead."""

    def __init__(self, file: BinaryIO) -> None:
        """See `HeldFile`."""
        super().__init__(file)
        os.posix_fadvise(self.descriptor, 0, 0, os.POSIX_FADV_RANDOM)


def read_rows(file: OpenFile, start: int, rows_K: np.ndarray, stored: torch.dtype, out_KD: Tensor) -> None:
    """Read rows of a row-major array into a tensor, which converts them.

    Rows whose pages are the same or touch are one read: no page is read that holds none of the rows.

    Args:
        file: the file.
        start: offset in bytes of the array's first row.
        rows_K: ascending int64 numbers of the rows, at least one.
        stored: dtype of the array.
        out_KD: where the rows go, on the CPU and without gaps.

    Raises:
        CorruptShard: the file ends before a row does.
    """
    row_bytes = out_KD.shape[1] * stored.itemsize
    first_K = start + rows_K * row_bytes
    after_K = first_K + row_bytes
    is_apart_K = first_K[1:] // PAGE_BYTES > (after_K[:-1] - 1) // PAGE_BYTES + 1
    heads = np.concatenate([[0], np.flatnonzero(is_apart_K) + 1])
    tails = np.append(heads[1:], len(rows_K)) - 1
    lengths = rows_K[tails] - rows_K[heads] + 1
    ends = lengths.cumsum()
    num_rows = int(ends[-1])
    if num_rows == len(rows_K) and stored == out_KD.dtype:
        _fill(file, _bytes_of(out_KD), first_K[heads].tolist(), (ends * row_bytes).tolist())
        return
    read_RD = torch.empty((num_rows, out_KD.shape[1]), dtype=stored)
    _fill(file, _bytes_of(read_RD), first_K[heads].tolist(), (ends * row_bytes).tolist())
    # Where each row is among those read: by its run, and by its place in the run.
    places_K = rows_K - np.repeat(rows_K[heads] - (ends - lengths), tails - heads + 1)
    index_K = torch.from_numpy(places_K)
    if stored == out_KD.dtype:
        torch.index_select(read_RD, 0, index_K, out=out_KD)
    else:
        out_KD.copy_(read_RD[index_K])


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.view(torch.uint8).view(-1).numpy().data


def _fill(file: OpenFile, memory: memoryview, offsets: list[int], ends: list[int]) -> None:
    """Fill the memory from the file: up to each end from the offset beside it."""
    done = 0
    for offset, end in zip(offsets, ends, strict=True):
        while done < end:
            got = os.preadv(file.descriptor, [memory[done:end]], offset)
            if not got:
                raise CorruptShard(f"{file.name}: expected {end - done} bytes at {offset}, got the end of it")
            done, offset = done + got, offset + got
