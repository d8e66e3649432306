"""Forks of the test process, for code that ends or limits a process; in a new one imports take seconds."""

import contextlib
import ctypes
import os
import resource
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path


def fork(function: Callable[[], object], said: Path | None = None) -> int:
    """Start a child process that runs a function; returns its process id, for `status_of`.

    Args:
        function: the function to run; the child ends with it, or with the status of its `SystemExit`.
        said: file for its output, both stdout and stderr.
    """
    with warnings.catch_warnings():
        # Python 3.12 warns if libraries have threads; the functions here take none of their locks.
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        child = os.fork()
    if child:
        return child
    status = 1
    try:
        warnings.simplefilter("ignore")
        with contextlib.ExitStack() as stack:
            if said is not None:
                file = stack.enter_context(said.open("w"))
                stack.enter_context(contextlib.redirect_stdout(file))
                stack.enter_context(contextlib.redirect_stderr(file))
            try:
                function()
                status = 0
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else int(end.code is not None)
            except BaseException:
                traceback.print_exc()
    finally:
        os._exit(status)


def status_of(child: int) -> int:
    """Wait for a child; returns its exit status, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def limit_addresses(room: int) -> None:
    """Limit this process to `room` more bytes of address space."""
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + room,) * 2)


CAP_DAC_OVERRIDE = 1
CAPABILITIES_VERSION_3 = 0x20080522


def give_up_override() -> None:
    """Apply file permissions to this process even if it belongs to root; nothing else changes.

    A switch to another user would not do: that user could not read a checkout in a folder that only its owner
    may enter.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(CAPABILITIES_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; again for capabilities from 32 on
    for call in (libc.capget, libc.capset):
        if call(header, sets):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        sets[0] &= ~(1 << CAP_DAC_OVERRIDE)
