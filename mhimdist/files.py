"""Files that appear whole or not at all, the one lock, and the home folder of a user's files."""

import errno
import json
import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, cast

from filelock import FileLock, Timeout

from mhimdist.errors import DiskFullError, MhimdistError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def open_file(path: Path) -> BufferedReader:
    """Open a file that others may have sent: a folder that is copied can bring named pipes and devices.

    Whoever opens or reads one of these waits for ever, or reads without end.

    Raises:
        OSError: the file cannot be opened, or it is no regular file.
    """

    def regular(name: str, flags: int) -> int:
        descriptor = os.open(name, flags | os.O_NONBLOCK)  # of regular files, it changes nothing
        mode = os.fstat(descriptor).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # Python refuses folders
            os.close(descriptor)
            raise OSError(errno.ENOTSUP, "expected a file, got a named pipe or a device", name)
        return descriptor

    return open(path, "rb", opener=regular)


@contextmanager
def mapped(path: Path) -> Iterator[IO[bytes]]:
    """A file's content as a file whose reads end where the content does.

    A read from an opened file takes memory for whatever is asked for, and a forged pickle asks for anything.

    Raises:
        OSError: as in `open_file`.
        ValueError: the file is empty.
    """
    with open_file(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as pages:
        yield cast(IO[bytes], pages)


def write_text(path: Path, text: str) -> None:
    """Replace a UTF-8 file in one step: a reader sees the old text or the new, even after a crash.

    Raises:
        DiskFullError: the new text does not fit on the disk; the old text is intact.
    """
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file in one step: a reader sees the old content or the new, even after a crash.

    Raises:
        DiskFullError: the new content does not fit on the disk; the old content is intact.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with full_disk(path):
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def full_disk(path: Path) -> Iterator[None]:
    """Turn the system's error for a full disk into one that names the file or folder that does not fit.

    Raises:
        DiskFullError: a write within this context exceeds the disk, a quota or this process's limit.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise DiskFullError(f"disk full: {path} cannot be written ({os.strerror(error.errno)})") from None


def sync(path: Path) -> None:
    """Force a file, or the entries of a folder, to disk; otherwise a crash can lose new and renamed files."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Lock:
    """A lock file that one process at a time holds, until it releases the file or ends in any way.

    The lock is an exclusive flock(2), so it also excludes holders of a flock that do not use this class. The
    kernel releases the lock of a killed process; an NFS server releases it when the lease of a lost client
    expires. A forked child does not hold the lock. The file stays, because another process may be waiting for
    it. A file system without flock causes an error: `filelock` would fall back to marker files, which outlive
    a killed process.

    Two objects in one process exclude each other, too. An object that is garbage-collected releases its file.

    Attributes:
        path: path of the lock file; `acquire` creates it and its folder if they are missing.
    """

    def __init__(self, path: Path, *, signed: bool = False) -> None:
        """Describe the lock without taking it.

        Args:
            path: path of the lock file.
            signed: write the holder into the file, for `holder`. An unsigned lock needs no disk block, so it
                works on a full disk.
        """
        self.path = path
        self._lock = FileLock(
            path,
            thread_local=False,  # one thread opens a run, and another may close it
            fallback_to_soft=False,
            preserve_lock_file=True,
            on_acquired=_sign if signed else None,
        )

    @property
    def is_held(self) -> bool:
        """Whether this object holds the file."""
        return self._lock.is_locked

    @property
    def holder(self) -> str:
        """The holder of a signed lock, such as "process 4711"."""
        return self.path.read_text(encoding="utf-8").strip() or "another process"

    def acquire(self, wait_s: float | None = None) -> bool:
        """Take the lock unless another holder has it; returns whether this object holds it now.

        If this object already holds the lock, the call changes nothing: one `release` is enough.

        Args:
            wait_s: seconds to wait for another holder; None waits without limit.

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
        """Release the lock; does nothing if this object does not hold it."""
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
    """The folder in MHIMDIST_HOME, otherwise `~/mhimdist`, as an absolute path; it need not exist yet.

    Commands write below it by default: `data/` (data sets), `runs/` (checkpoints, histories, reports) and
    `cache/` (files that can be made again). On a cluster it must be on storage that every node sees under
    the same path.
    """
    return Path(os.environ.get("MHIMDIST_HOME") or "~/mhimdist").expanduser().absolute()


def inside(folder: Path, name: str, what: str, *, error: type[MhimdistError]) -> Path:
    """The path of a name below a folder: the one door for names that come from a file, a table or an option.

    Args:
        folder: what the path must stay below.
        name: the name, with `/` between folders.
        what: where the name comes from, for messages.
        error: the type of error to raise.

    Raises:
        MhimdistError: of the type `error`, if the name is empty, absolute or leads out of the folder.
    """
    parts = name.split("/")
    if "\0" in name or not name or any(part in ("", ".", "..") for part in parts):
        raise error(f"{what} is {name!r}: expected a name that stays below {folder}")
    return folder.joinpath(*parts)


def first_link(folder: Path, path: Path) -> Path | None:
    """The first symbolic link on the way from a folder to a path below it; None if there is none."""
    way = [folder.joinpath(*path.relative_to(folder).parts[: end + 1]) for end in range(len(path.parts))]
    return next((step for step in way if step.is_symlink()), None)


def run_folder(given: str | Path, below: Path | None = None) -> Path | None:
    """An existing folder of results, named by its path, by that below home (runs/it), or by its name (it).

    Args:
        given: the path or name.
        below: the home folder; None for `home()`.

    Returns:
        Its absolute path; None if there is no such folder.
    """
    path, below = Path(given).expanduser(), below or home()
    places = (path, below / path, below / "runs" / path)
    return next((place.absolute() for place in places if place.is_dir()), None)


def parse_json(text: str | bytes) -> Any:
    """What a JSON text holds; the one door for text that others may have written.

    Raises:
        ValueError: it is not JSON, or nests deeper than Python reads.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("its lists or objects nest too deep") from None


def json_object(path: Path, error: type[MhimdistError]) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        MhimdistError: of the type `error`, if the file cannot be read or holds something else.
    """
    try:
        with open_file(path) as file:
            content = parse_json(file.read().decode())
    except (OSError, ValueError) as problem:
        raise error(f"{path} cannot be read: {problem}") from None
    if not isinstance(content, dict):
        raise error(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content
