"""Whether locks in the home folder keep two processes apart, tried with two processes."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from mhimdist.doctor.findings import Finding
from mhimdist.doctor.home_folder import AREA, is_writable, scratch
from mhimdist.doctor.options import Doctor
from mhimdist.files import Lock

_MOVE = (
    "use a file system with locks, or have this one mounted with them: "
    "`export MHIMDIST_HOME=/path/on/another/file/system`"
)
_RELEASE_WAIT_S = 10.0


class Takes(Protocol):
    """What `files.Lock` does here."""

    def acquire(self, wait_s: float | None = None) -> bool:
        """Take the lock; whether it is held now."""
        ...

    def release(self) -> None:
        """Release it."""
        ...


def locks(job: Doctor, make: Callable[[Path], Takes] = Lock) -> Iterator[Finding]:
    """Hold both kinds of lock in another process, try to take them here, then kill the other one.

    Args:
        job: names the home folder.
        make: makes the lock of a path.
    """
    if not is_writable(job):
        return
    with scratch(job) as folder:
        path = folder / "lock"
        try:
            with _held(path, job.timeout_s):
                whole, posix = make(path), path.with_name("lock.posix")
                faults = []
                if whole.acquire(wait_s=0):
                    whole.release()
                    faults.append("flock, which keeps two commands out of one run")
                if _takes_posix(posix):
                    faults.append("fcntl, which SQLite needs for the study of a sweep")
        except OSError as error:
            why = os.strerror(error.errno) if error.errno else str(error)
            yield AREA.mend("locks", f"a lock cannot be taken: {why}", _MOVE)
            return
        if faults:
            both = " and ".join(faults)
            yield AREA.mend("locks", f"two processes held the same lock at a time: {both}", _MOVE)
        elif not whole.acquire(wait_s=_RELEASE_WAIT_S):
            yield AREA.mend("locks", "the lock of a killed process is not released", _MOVE)
        else:
            whole.release()
            yield AREA.fine("locks", "flock and fcntl kept two processes apart; a killed one let go")


@contextmanager
def _held(path: Path, timeout_s: float) -> Iterator[None]:
    """Another process holds both locks while the context lasts; it is killed in the end.

    Raises:
        OSError: it cannot take them.
    """
    command = [sys.executable, "-m", "mhimdist.doctor.probes", "hold", str(path)]
    holder = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    overdue = threading.Timer(timeout_s, holder.kill)
    overdue.start()
    try:
        assert holder.stdout is not None
        if "held" not in holder.stdout.readline():
            _, said = holder.communicate()
            last = (said.strip().splitlines() or [f"nothing said within {timeout_s:g} s"])[-1]
            raise OSError(last)
        yield
    finally:
        overdue.cancel()
        holder.send_signal(signal.SIGKILL)
        holder.communicate()


def _takes_posix(path: Path) -> bool:
    with path.open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise
    return True
