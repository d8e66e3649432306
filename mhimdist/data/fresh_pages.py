"""New memory, in huge pages as long as the system has them at hand.

A huge page that lies ready takes .2 ms, and 512 small ones take 1 ms. A hypervisor, however, takes back free
memory in blocks of just that size (free page reporting), and gives them again page by page while the guest
waits: 3.5 ms were measured. The memory of an epoch's first bags then took 400 ms in place of 20. So pages are
asked for before they are filled, and small ones follow where huge ones prove slow.
"""

import ctypes
import mmap
import time
from functools import cache

import numpy as np

HUGE_BYTES = 2**21
SLOW_S = 0.001
"""What 2 MiB of small pages take; a huge page that takes longer was not at hand."""
MOST_SLOW = 2
"""Slow huge pages until small ones are asked for; one may be an accident."""

_HUGEPAGE, _NOHUGEPAGE, _POPULATE_WRITE = 14, 15, 23  # Linux; the last one since 5.14


def new(num_bytes: int) -> np.ndarray:
    """Memory of this many bytes, uint8, which `populate` may give pages."""
    pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if _has_advice():
        pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, np.uint8)


def populate(part: np.ndarray) -> None:
    """Give pages to a part of `new` memory where it has none; before Linux 5.14 the first use does.

    Processor time decides what is slow, because the clock on the wall also counts the work of others.

    Args:
        part: contiguous; the pages at its ends may have neighbours in them.
    """
    if not part.nbytes or not _has_advice():
        return
    first = part.ctypes.data // mmap.PAGESIZE * mmap.PAGESIZE
    end = part.ctypes.data + part.nbytes
    held = np.zeros(-(-(end - first) // mmap.PAGESIZE), np.uint8)
    if _libc().mincore(first, end - first, held.ctypes.data) != 0:
        return
    num_slow, start = 0, first
    while start < end:
        stop = min(end, start // HUGE_BYTES * HUGE_BYTES + HUGE_BYTES)
        pages = slice((start - first) // mmap.PAGESIZE, -(-(stop - first) // mmap.PAGESIZE))
        if not (held[pages] & 1).all():
            if num_slow == MOST_SLOW:
                _advise(start, end, _NOHUGEPAGE)
                _advise(start, end, _POPULATE_WRITE)
                return
            started = time.thread_time()
            if not _advise(start, stop, _POPULATE_WRITE):
                return  # an old kernel, or there is no memory, which the first use will find
            num_slow += time.thread_time() - started > SLOW_S
        start = stop


def _has_advice() -> bool:
    return hasattr(mmap, "MADV_HUGEPAGE")


def _advise(start: int, end: int, advice: int) -> bool:
    return bool(_libc().madvise(start, end - start, advice) == 0)


@cache
def _libc() -> ctypes.CDLL:
    """The system's functions, by ctypes because those of `mmap` keep Python's lock meanwhile."""
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    return libc
