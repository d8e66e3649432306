"""The limits of this machine: shared memory, open files, processes, cores, threads and memory."""

import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from mhimdist.data import cgroups
from mhimdist.doctor.findings import Area, Finding, size
from mhimdist.doctor.options import Doctor

AREA = Area("machine")
SHARED_MEMORY = Path("/dev/shm")

# Ray's own rule: its object store takes this share of the memory, and at most so much.
_OBJECT_STORE_SHARE, _OBJECT_STORE_MOST = 0.3, 200 * 10**9
_LEAST_SHARED_BYTES = 2**28
_LEAST_FILES, _FEW_FILES = 1024, 4096
_LEAST_PROCESSES, _FEW_PROCESSES = 512, 4096
_LITTLE_MEMORY = 4 * 2**30


def memory_bytes() -> int:
    """The memory that this process may use: the machine's, or less in a container or a batch job."""
    limit = cgroups.least("memory", ("memory.limit_in_bytes", "memory.max"))
    return min(psutil.virtual_memory().total, limit or 2**62)


def cores() -> float:
    """The CPU cores that this process may use."""
    return min(float(len(os.sched_getaffinity(0))), cgroups.cpus() or 1e9)


def shared_memory(job: Doctor) -> Iterator[Finding]:
    """Whether /dev/shm holds Ray's object store, and the copies of loading.cache=ram."""
    disk = os.statvfs(SHARED_MEMORY)
    total, free = disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize
    yield shared_memory_finding(total, free, memory_bytes())


def shared_memory_finding(total: int, free: int, memory: int) -> Finding:
    """What the size of /dev/shm means.

    Args:
        total, free: bytes of /dev/shm.
        memory: bytes of memory that this process may use.
    """
    store = int(min(_OBJECT_STORE_SHARE * memory, _OBJECT_STORE_MOST))
    found = f"{SHARED_MEMORY} has {size(total)}, {size(free)} free"
    larger = (
        f"make it larger: `docker run --shm-size={max(1, round(store * 1.1 / 2**30))}g`, or on the machine "
        f"itself `sudo mount -o remount,size=50% {SHARED_MEMORY}`"
    )
    if total < min(store, _LEAST_SHARED_BYTES):
        return AREA.mend("/dev/shm", f"{found}; Ray's object store wants {size(store)}", larger)
    if free < store:
        return AREA.warning(
            "/dev/shm",
            f"{found}; Ray's object store wants {size(store)} and uses a disk instead, and loading.cache=ram "
            "has no room",
            larger if total < store else f"see who fills it: `ls -lS {SHARED_MEMORY} | head`",
        )
    return AREA.fine("/dev/shm", f"{found}; Ray's object store wants {size(store)}")


def open_files(job: Doctor) -> Iterator[Finding]:
    """The limit on open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        yield AREA.fine("open files", "no limit (ulimit -n)")
        return
    found = f"{soft:,} open files per process (ulimit -n)"
    wanted = 65536
    reachable = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    mend = f"raise it in the shell that starts Ray: `ulimit -n {reachable}`"
    if reachable <= soft or reachable < _LEAST_FILES:
        mend = (
            "raise the hard limit as root in /etc/security/limits.conf, or `docker run --ulimit nofile=65536`"
        )
    if soft < _LEAST_FILES:
        yield AREA.mend("open files", f"{found}; Ray's processes need {_LEAST_FILES:,} at least", mend)
    elif soft < _FEW_FILES:
        yield AREA.warning("open files", f"{found}; many workers or shards need more", mend)
    else:
        yield AREA.fine("open files", found)


def processes(job: Doctor) -> Iterator[Finding]:
    """The limits on processes and threads, which count against the same number."""
    limits = [(resource.getrlimit(resource.RLIMIT_NPROC)[0], "ulimit -u")]
    if (group := cgroups.least("pids", ("pids.max", "pids.max"))) is not None:
        limits.append((group, "this container or job"))
    limits = [(limit, whose) for limit, whose in limits if limit != resource.RLIM_INFINITY]
    if not limits:
        yield AREA.fine("processes", "no limit on processes and threads")
        return
    limit, whose = min(limits)
    found = f"{limit:,} processes and threads ({whose})"
    mend = "raise it: `ulimit -u 65536`" if whose == "ulimit -u" else "raise it: `docker run --pids-limit=-1`"
    if limit < _LEAST_PROCESSES:
        yield AREA.mend("processes", f"{found}; Ray alone starts hundreds", mend)
    elif limit < _FEW_PROCESSES:
        yield AREA.warning("processes", f"{found}; a machine with many cores needs more", mend)
    else:
        yield AREA.fine("processes", found)


def threads(job: Doctor) -> Iterator[Finding]:
    """The cores that may be used, and the threads that libraries would start."""
    may, has = cores(), os.cpu_count() or 1
    found = f"{may:g} of the machine's {has} cores" if may < has else f"{has} cores"
    if may < 1:
        yield AREA.warning(
            "cores", f"{found} by its quota: less than one", "ask for a whole core: `docker run --cpus=2`"
        )
    else:
        yield AREA.fine("cores", found)
    told = os.environ.get("OMP_NUM_THREADS", "")
    if not told:
        yield AREA.fine("threads", "OMP_NUM_THREADS is not set: each run computes with cpus-per-run threads")
        return
    wanted = int(told) if told.isdecimal() else 0
    if not wanted:
        yield AREA.warning(
            "threads",
            f"OMP_NUM_THREADS is {told!r}, expected a number from 1",
            "unset it: `unset OMP_NUM_THREADS`",
        )
    elif wanted > may:
        yield AREA.warning(
            "threads",
            f"OMP_NUM_THREADS is {wanted}, and this process may use {may:g} cores",
            "unset it, so that each run takes its own share: `unset OMP_NUM_THREADS`",
        )
    else:
        yield AREA.fine("threads", f"OMP_NUM_THREADS is {wanted}")


def memory(job: Doctor) -> Iterator[Finding]:
    """The memory of the machine, and the limit of the container or batch job."""
    total, may = psutil.virtual_memory().total, memory_bytes()
    free = min(psutil.virtual_memory().available, may)
    used = None
    for version, group in cgroups.groups("memory"):
        with suppress(OSError, ValueError):
            used = int((group / ("memory.usage_in_bytes", "memory.current")[version - 1]).read_text())
            break
    if may < total and used is not None:
        free = min(free, max(0, may - used))
    found = f"{size(free)} of {size(may)} free" + (
        f" (this container or job; the machine has {size(total)})" if may < total else ""
    )
    if free < _LITTLE_MEMORY:
        yield AREA.warning(
            "memory",
            f"{found}; Ray and one run want {size(_LITTLE_MEMORY)}",
            "end what takes it, see `ps aux --sort=-rss | head`, or ask for more: `docker run --memory=16g`, "
            "`sbatch --mem=16G`",
        )
    else:
        yield AREA.fine("memory", found)
