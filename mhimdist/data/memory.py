"""How much memory this process may still take, asked before a large batch is allocated.

Linux promises memory that it does not have, and ends the process when it is touched; so the answer has to
come first.

Dimensions: T instances of a batch, D features.
"""

import resource
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil

from mhimdist.data.bags import BagSource
from mhimdist.errors import DataError

ASKED_FROM_BYTES = 64 << 20
"""What is smaller is allocated without asking, which takes a fraction of a millisecond."""

USED_SHARE = 0.9
"""What is left is never taken whole: other processes need memory, too."""

CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def free_bytes() -> tuple[int, str]:
    """Bytes that this process can still take, and what sets that limit."""
    limits = [(psutil.virtual_memory().available, "available on this machine")]
    addresses, _ = resource.getrlimit(resource.RLIMIT_AS)
    if addresses != resource.RLIM_INFINITY:
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limits.append((addresses - in_use, "left of this process's address space (ulimit -v)"))
    limits += [(left, "left in its control group (a container's or a job's)") for left in _left_of_cgroups()]
    left, what = min(limits)
    return max(left, 0), what


def require(num_bytes: int, what: str) -> None:
    """Make sure that so much memory is there.

    Args:
        num_bytes: about to be allocated.
        what: needs them; begins the message.

    Raises:
        DataError: it is not; the message says what limits it.
    """
    if num_bytes < ASKED_FROM_BYTES:
        return
    left, limit = free_bytes()
    if num_bytes > USED_SHARE * left:
        raise DataError(f"{what}: needs {gib(num_bytes)}, but {gib(left)} is {limit}, and a tenth stays free")


def describe(bags: BagSource, rows: Sequence[int] | np.ndarray, dtype: object) -> str:
    """A batch in words: its largest bag, and how many more there are.

    Args:
        bags: the data set.
        rows: of the batch's bags, at least one.
        dtype: of the batch's features.
    """
    rows_B = np.asarray(rows, np.int64)
    largest = int(rows_B[bags.sizes_N[rows_B].argmax()])
    more = f" and {len(rows_B) - 1} more in its batch" if len(rows_B) > 1 else ""
    return f"bag {bags.keys[largest]!r} ({bags.sizes_N[largest]:,} x {bags.num_features:,}){more} as {dtype}"


def gib(num_bytes: float) -> str:
    """Bytes as messages have them: settings are in GiB, small data sets in MiB."""
    return f"{num_bytes / 2**30:,.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:,.1f} MiB"


def _left_of_cgroups() -> Iterator[int]:
    """What each control group around this process leaves it; those of version 1 and 2."""
    with suppress(OSError):
        for line in OWN_CGROUPS.read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            if number == "0":
                root, names = CGROUPS, ("memory.max", "memory.current", "inactive_file")
            elif "memory" in controllers.split(","):
                root = CGROUPS / "memory"
                names = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
            else:
                continue
            # In a container its path may be the host's, and its own group stands at the root.
            folder = root / path.lstrip("/")
            for group in (folder, *folder.parents[: len(folder.parts) - len(root.parts)]):
                with suppress(OSError, ValueError, LookupError):  # none here, or no limit ("max")
                    limit, used = (int((group / name).read_text()) for name in names[:2])
                    counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                    yield limit - used + int(counts[names[2]])  # files' pages make room
