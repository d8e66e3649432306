"""The processes that a Ray of ours starts: each ends with its parent, and all of them by their ids."""

import ctypes
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import psutil

from mhimdist import files
from mhimdist.errors import ClusterError

MAX_TEMP_ROOT_BYTES = 30
"""Longest temporary folder that Ray can use, in bytes: its Unix sockets add some 65, and 107 are allowed."""

ONE_NODE_SETTINGS = {"health_check_failure_threshold": 100}
"""Ray's settings for a cluster of one node. Ray calls a node dead that leaves 5 checks unanswered, within
about a minute. The only node of a busy machine may be that slow, and its end is the end of everything."""

_OWNER = "owner"
"""In a private folder, the file that its owner holds locked."""

_TERMINATE_GRACE_S = 8.0  # from SIGTERM to SIGKILL; normally all processes are gone after 3 s
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # <linux/prctl.h>


def short_enough(root: str) -> Path:
    """A temporary folder, or `/tmp` if its path is too long for Ray's sockets, as a batch system's may be."""
    return Path(root if len(os.fsencode(root)) <= MAX_TEMP_ROOT_BYTES else "/tmp")


@contextmanager
def private_folder() -> Iterator[Path]:
    """A folder that only this user may enter, for the token and for all of Ray's files; removed at the end.

    Nothing removes the folder of a process that is killed, until this user next asks for one on this machine.
    """
    root = short_enough(tempfile.gettempdir())
    _remove_left(root)
    made = Path(tempfile.mkdtemp(prefix="mhim.", dir=root))
    owner = files.Lock(made / _OWNER)
    owner.acquire()
    folder = made.rename(root / made.name.replace(".", "-", 1))  # seen by others only now that it is locked
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        owner.release()


def _remove_left(root: Path) -> None:
    """Remove this user's folders whose owners have ended without removing them."""
    for folder in root.glob("mhim-*"):
        with suppress(OSError):
            lock = files.Lock(folder / _OWNER)
            if folder.lstat().st_uid == os.geteuid() and lock.path.exists() and lock.acquire(0):
                shutil.rmtree(folder, ignore_errors=True)
                lock.release()


def free_ports(count: int, address: str = "127.0.0.1") -> list[int]:
    """Ports that were free a moment ago on an address of this machine.

    Raises:
        OSError: this machine does not have the address.
    """
    with ExitStack() as stack:
        sockets = [stack.enter_context(closing(socket.socket())) for _ in range(count)]
        for each in sockets:
            each.bind((address, 0))
        return [each.getsockname()[1] for each in sockets]


def adopt_orphans() -> None:
    """Make this process the parent of its descendants whose own parents end."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def end_with_parent() -> None:
    """In a new child: have the kernel send it SIGTERM if this process dies before it can do so."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def end_all_children() -> None:
    """End every descendant of this process; orphaned descendants have become its children.

    Children get SIGTERM and end their own children: the head stops its daemons in an order in which none
    waits for another. Workers and jobs, further down, get SIGTERM too, as the daemons wait for them.

    Raises:
        ClusterError: a process outlives SIGKILL.
    """
    myself = psutil.Process()
    start = time.monotonic()
    terminated: set[psutil.Process] = set()
    while descendants := set(myself.children(recursive=True)):
        waited_s = time.monotonic() - start
        if waited_s > 2 * _TERMINATE_GRACE_S:
            raise ClusterError(f"these processes could not be ended: {', '.join(map(str, descendants))}")
        if waited_s > _TERMINATE_GRACE_S:
            _send(signal.SIGKILL, descendants)
        else:
            left_to_parents = {each for child in myself.children() for each in _children(child)}
            _send(signal.SIGTERM, descendants - left_to_parents - terminated)
            terminated |= descendants - left_to_parents
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:  # a zombie counts as a child until it is waited for
                pass
        time.sleep(0.05)


def _children(process: psutil.Process) -> list[psutil.Process]:
    with suppress(psutil.Error):
        return process.children()
    return []


def _send(number: signal.Signals, processes: set[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.Error):
            process.send_signal(number)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl failed")
