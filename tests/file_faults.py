"""A process that ends, or a disk that is full, at any chosen touch of a file; for the tests of writing."""

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from forked import status_of

from mhimdist.errors import DiskFullError

EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "fcntl.flock"}


def ended_at(number: int, folder: Path, act: Callable[[], object]) -> int:
    """Act in a child that ends at one of its touches of files below a folder; returns how many it made.

    Args:
        number: the touch at which it ends, from 1; 0 lets it finish.
        folder: counts what is below it.
        act: what the child does.
    """
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        count = 0

        def hook(event: str, arguments: tuple) -> None:
            nonlocal count
            if event == "fcntl.flock":  # it names its file by a descriptor
                arguments = (os.readlink(f"/proc/self/fd/{arguments[0]}"),)
            if event in EVENTS and str(folder) in str(arguments):
                count += 1
                if count == number:
                    os._exit(9)

        sys.addaudithook(hook)
        act()
        os.write(writing, str(count).encode())
        os._exit(0)
    os.close(writing)
    assert status_of(child) in (0, 9)
    with open(reading) as pipe:
        return int(pipe.read() or 0)


# All touches take a minute; every seventh includes the last.
TOUCHES = pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)])
FULL = (OSError, DiskFullError)


def disk_full_at(number: int, folder: Path, patch: pytest.MonkeyPatch) -> list[str]:
    """Let one of the files that are forced to disk find no room there; returns a list of them all.

    Args:
        number: the file that does not fit, from 1 in the order of the syncs; 0 lets all fit.
        folder: names are relative to it.
        patch: undoes this.
    """
    force, names = os.fsync, []

    def full(descriptor: int) -> None:
        name = Path(os.readlink(f"/proc/self/fd/{descriptor}")).relative_to(folder)
        names.append(str(name))
        if len(names) == number:
            raise OSError(errno.ENOSPC, "No space left on device")
        force(descriptor)

    patch.setattr(os, "fsync", full)
    return names


def files_of(folder: Path) -> dict[str, bytes]:
    """Content of every file in a folder, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}
