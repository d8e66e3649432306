"""How much memory this process may still take, for a check before a large batch is allocated.

Linux grants memory that it does not have and kills the process that touches it, so the check must come first.

Dimensions: T instances of a batch, D features.
"""

import ctypes
import resource
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor

from mhimdist.data import cgroups
from mhimdist.data.bags import BagSource
from mhimdist.errors import DataError

ASKED_FROM_BYTES = 64 << 20
"""Smaller amounts are allocated without a check, which takes a fraction of a millisecond."""

USED_SHARE = 0.9
"""Largest share of the free memory to take: other processes need memory, too."""

CGROUPS, OWN_CGROUPS = cgroups.ROOT, cgroups.OWN


def free_bytes() -> tuple[int, str]:
    """The bytes that this process can still take, and a description of the limit."""
    limits = [(psutil.virtual_memory().available, "available on this machine")]
    addresses, _ = resource.getrlimit(resource.RLIMIT_AS)
    if addresses != resource.RLIM_INFINITY:
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limits.append((addresses - in_use, "left of this process's address space (ulimit -v)"))
    limits += [(left, "left in its control group (a container's or a job's)") for left in _left_of_cgroups()]
    left, what = min(limits)
    return max(left, 0), what


def require(num_bytes: int, what: str) -> None:
    """Make sure that there is enough memory for an allocation.

    Args:
        num_bytes: bytes to allocate.
        what: name of what needs them; the message begins with it.

    Raises:
        DataError: there is not enough memory; the message names the limit.
    """
    if num_bytes < ASKED_FROM_BYTES:
        return
    left, limit = free_bytes()
    if num_bytes > USED_SHARE * left:
        raise DataError(f"{what}: needs {gib(num_bytes)}, but {gib(left)} is {limit}; a tenth must stay free")


def describe(bags: BagSource, rows: Sequence[int] | np.ndarray, dtype: object) -> str:
    """A batch in words: its largest bag, and the number of its other bags.

    Args:
        bags: the data set.
        rows: row numbers of the batch's bags, at least one.
        dtype: dtype of the batch's features.
    """
    rows_B = np.asarray(rows, np.int64)
    largest = int(rows_B[bags.sizes_N[rows_B].argmax()])
    more = f" and {len(rows_B) - 1} more in its batch" if len(rows_B) > 1 else ""
    return f"bag {bags.keys[largest]!r} ({bags.sizes_N[largest]:,} x {bags.num_features:,}){more} as {dtype}"


def gib(num_bytes: float) -> str:
    """Bytes for messages: in GiB from 1 GiB on, as settings are, below that in MiB."""
    return f"{num_bytes / 2**30:,.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:,.1f} MiB"


def _left_of_cgroups() -> Iterator[int]:
    """The bytes that each control group around this process leaves it; versions 1 and 2."""
    for version, group in cgroups.groups("memory", root=CGROUPS, own=OWN_CGROUPS):
        if version == 2:
            names = ("memory.max", "memory.current", "inactive_file")
        else:
            names = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
        with suppress(OSError, ValueError, LookupError):  # no group here, or no limit ("max")
            limit, used = (int((group / name).read_text()) for name in names[:2])
            counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            yield limit - used + int(counts[names[2]])  # the kernel reclaims inactive file pages


def buffer(
    bags: BagSource, rows_B: np.ndarray, num_instances: int, dtype: torch.dtype, out: Tensor | None
) -> Tensor:
    """Room for the features of bags, T x D, if this process may take it: a part of `out`, or new.

    Args:
        bags: the data set.
        rows_B: rows of the bags.
        num_instances: T.
        dtype: dtype of the features.
        out: a buffer of `dtype`, at least T x D; None allocates one.

    Raises:
        DataError: `out` does not fit, or the memory is not there.
    """
    if out is None:
        num_bytes = num_instances * bags.num_features * dtype.itemsize
        if num_bytes >= ASKED_FROM_BYTES:
            require(num_bytes, describe(bags, rows_B, dtype))
        return torch.empty((num_instances, bags.num_features), dtype=dtype)
    if out.dtype != dtype or len(out) < num_instances or out.shape[1:] != (bags.num_features,):
        raise DataError(
            f"out: expected {dtype}, at least {num_instances} x {bags.num_features}, "
            f"got {out.dtype}, {tuple(out.shape)}"
        )
    return out[:num_instances]


M_MMAP_THRESHOLD, MMAP_BYTES = -3, 2**18


def give_back_large_blocks() -> None:
    """Have the C library return blocks of `MMAP_BYTES` or more to the system as soon as they are freed.

    glibc raises that size to the largest block that was freed, up to 32 MiB, and keeps smaller ones in an
    arena for each thread. Features of thousands of slides, which one thread reads and another frees, leave
    holes there: with 1,800 slides of 2,000 x 256 a process grew from 363 to 488 MiB, with this it stayed at
    305. Without glibc it does nothing.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(M_MMAP_THRESHOLD, MMAP_BYTES)
