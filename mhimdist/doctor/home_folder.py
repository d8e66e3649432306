"""The home folder: where it is, and whether it keeps what is written there."""

import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mhimdist import files
from mhimdist.doctor.findings import Area, Finding, size
from mhimdist.doctor.mounts import finding_of, mount_of, nearest
from mhimdist.doctor.options import Doctor
from mhimdist.errors import DiskFullError

AREA = Area("home")

_LEAST_BYTES, _LITTLE_BYTES = 2**30, 10 * 2**30
_LEAST_FILES = 10_000
_WRITTEN_BYTES = 4 * 2**20
_RENAMING_S = 0.5
_SKEW_S, _LARGE_SKEW_S = 2.0, 60.0
_MOVE = "or choose another folder: `export MHIMDIST_HOME=/path/you/can/write`"


@contextmanager
def scratch(job: Doctor) -> Iterator[Path]:
    """A folder in the home folder, or above it where that does not exist yet; removed in the end.

    Raises:
        OSError: it cannot be made.
    """
    with tempfile.TemporaryDirectory(prefix=".doctor-", dir=nearest(job.home)) as folder:
        yield Path(folder)


def is_writable(job: Doctor) -> bool:
    """Whether there can be a `scratch`; `writable` says why not."""
    try:
        with scratch(job):
            return True
    except OSError:
        return False


def writable(job: Doctor) -> Iterator[Finding]:
    """Whether files can be made."""
    place = nearest(job.home)
    later = "" if place == job.home else f" (it does not exist yet and will be made in {place})"
    try:
        with scratch(job) as folder:
            files.write_bytes(folder / "written", bytes(_WRITTEN_BYTES))
    except DiskFullError as error:
        yield AREA.mend(
            "writing",
            f"{job.home}: {size(_WRITTEN_BYTES)} do not fit: {error}",
            f"make room, see what takes it by `du -xh --max-depth 2 {place} | sort -h`, {_MOVE}",
        )
    except OSError as error:
        yield AREA.mend(
            "writing",
            f"{job.home} cannot be written: {error.strerror or error}{later}",
            f"take it over: `sudo chown {os.geteuid()} {place}`, {_MOVE}",
        )
    else:
        yield AREA.fine("writing", f"{job.home} can be written{later}")


def file_system(job: Doctor) -> Iterator[Finding]:
    """The kind of file system."""
    host = (job.address or "").rpartition(":")[0]
    for_nodes = bool(host) and host not in ("127.0.0.1", "localhost", "[::1]")
    yield finding_of(AREA, mount_of(nearest(job.home)), str(job.home), for_nodes=for_nodes)


def space(job: Doctor) -> Iterator[Finding]:
    """Free bytes and free files."""
    place = nearest(job.home)
    disk = os.statvfs(place)
    free, total = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
    found = f"{size(free)} of {size(total)} free"
    room = f"make room, see what takes it by `du -xh --max-depth 2 {place} | sort -h`, {_MOVE}"
    if free < _LEAST_BYTES:
        yield AREA.mend("free space", f"{found}; a run wants {size(_LEAST_BYTES)} at least", room)
    elif free < _LITTLE_BYTES:
        yield AREA.warning("free space", f"{found}, which a sweep can fill", room)
    else:
        yield AREA.fine("free space", found)
    if disk.f_files and disk.f_favail < _LEAST_FILES:
        yield AREA.mend(
            "free files",
            f"room for {disk.f_favail:,} more files; a sweep makes some {_LEAST_FILES:,}",
            f"remove files, see where they are by `du -x --inodes --max-depth 2 {place} | sort -n`, {_MOVE}",
        )


def renames(job: Doctor) -> Iterator[Finding]:
    """Whether a file that is replaced is always whole for whoever reads it."""
    if not is_writable(job):
        return
    contents = [bytes([letter]) * 65536 for letter in b"ab"]
    with scratch(job) as folder:
        file, ended = folder / "replaced", threading.Event()
        file.write_bytes(contents[0])
        replaced, failed = 0, []

        def replace() -> None:
            nonlocal replaced
            try:
                while not ended.is_set():
                    part = folder / "part"
                    part.write_bytes(contents[replaced % 2])
                    part.replace(file)
                    replaced += 1
            except OSError as error:
                failed.append(str(error))

        writer = threading.Thread(target=replace, daemon=True)
        writer.start()
        torn, until = "", time.monotonic() + _RENAMING_S
        while not torn and time.monotonic() < until:
            try:
                torn = "" if file.read_bytes() in contents else "a reader saw half a file"
            except FileNotFoundError:
                torn = "a reader saw no file at all"
        ended.set()
        writer.join()
    if torn or failed:
        yield AREA.mend(
            "renaming",
            f"a file is not replaced in one step: {torn or failed[0]}",
            "results can be lost here, so choose another file system: "
            "`export MHIMDIST_HOME=/path/on/another/file/system`",
        )
    else:
        yield AREA.fine("renaming", f"a reader saw {replaced:,} replacements, each whole")


def clock(job: Doctor) -> Iterator[Finding]:
    """How far the clock of the file system is from this machine's."""
    if not is_writable(job):
        return
    with scratch(job) as folder:
        before = time.time()
        (folder / "timed").write_bytes(b"x")
        after, written = time.time(), (folder / "timed").stat().st_mtime
    yield skew_finding(max(before - written, written - after, 0.0))


def skew_finding(skew_s: float) -> Finding:
    """What a difference of clocks means.

    Args:
        skew_s: seconds between the file system's clock and this machine's.
    """
    sync = "have both machines follow a time server: `chronyc makestep`, or `timedatectl set-ntp true`"
    if skew_s > _LARGE_SKEW_S:
        return AREA.mend(
            "clock", f"files are {skew_s:,.0f} s off this machine's clock: runs seem silent or fresh", sync
        )
    if skew_s > _SKEW_S:
        return AREA.warning("clock", f"files are {skew_s:.1f} s off this machine's clock", sync)
    return AREA.fine("clock", f"files and this machine agree within {max(skew_s, 0.1):.1f} s")
