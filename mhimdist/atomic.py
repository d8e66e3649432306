"""Files that are there whole or not at all."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
