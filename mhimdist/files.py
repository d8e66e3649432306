"""Files that are there whole or not at all, and the folder that a user's files live in."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import FileLock, Timeout

from mhimdist.errors import DiskFullError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_text(path: Path, text: str) -> None:
    """Replace a UTF-8 file in one step: a reader sees the old text or the new, also after a crash.

    Raises:
        DiskFullError: the new text does not fit; the old one is still there.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with full_disk(path):
            with part.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def full_disk(path: Path) -> Iterator[None]:
    """Say of a full disk that it is one, and which file or folder does not fit; the system's error need not.

    Raises:
        DiskFullError: what is written inside does not fit on its disk, into its quota, or into the limit of
            this process.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise DiskFullError(f"disk full: {path} cannot be written ({os.strerror(error.errno)})") from None


def sync(path: Path) -> None:
    """Force a file, or a folder's entries, to disk: what is new or renamed could be lost else."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Lock:
    """A file that one process at a time holds, until it releases the file or ends, however it ends.

    The lock is an exclusive flock(2), so it also keeps out whatever takes one without this class. The kernel
    releases it when a process is killed; an NFS server does when a lost client's lease has run out. A forked
    child does not hold it. The file stays, as another process may be waiting for it. A file system without
    flock is an error: the marker files that `filelock` would fall back to outlive a killed process.

    Two objects exclude each other within a process, too. A dropped object releases its file.

    Attributes:
        path: of the file; made where it is missing, with its folder.
    """

    def __init__(self, path: Path, *, signed: bool = False) -> None:
        """Take nothing yet.

        Args:
            path: of the file.
            signed: whether to write into the file who holds it, for `holder`. Without it a lock needs no
                block of a disk, and so works on a full one.
        """
        self.path = path
        self._lock = FileLock(
            path,
            thread_local=False,  # a run is opened by one thread, and may be closed by another
            fallback_to_soft=False,
            preserve_lock_file=True,
            on_acquired=_sign if signed else None,
        )

    @property
    def is_held(self) -> bool:
        """Whether this very object holds the file."""
        return self._lock.is_locked

    @property
    def holder(self) -> str:
        """Who holds a signed lock, such as "process 4711"."""
        return self.path.read_text(encoding="utf-8").strip() or "another process"

    def acquire(self, wait_s: float | None = None) -> bool:
        """Take the file, unless others hold it; returns whether this object holds it now.

        A second call of an object that holds the file changes nothing: one `release` ends both.

        Args:
            wait_s: how long to wait for the others; None waits as long as it takes.

        Raises:
            OSError: the file cannot be opened, locked or signed.
        """
        if self.is_held:
            return True
        try:
            self._lock.acquire(timeout=-1 if wait_s is None else wait_s)
        except Timeout:
            return False
        return True

    def release(self) -> None:
        """Let others have the file; does nothing where it is not held."""
        self._lock.release()

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _sign(descriptor: int) -> None:
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()}\n".encode())


def home() -> Path:
    """The folder named by MHIMDIST_HOME, or `~/mhimdist`, as an absolute path; it need not exist yet.

    Everything a command makes without being told where lives below it: `data/` (data sets), `runs/`
    (checkpoints, histories, reports) and `cache/` (what can be made again). On a cluster it must be on
    storage that every node sees under the same path.
    """
    return Path(os.environ.get("MHIMDIST_HOME") or "~/mhimdist").expanduser().absolute()
