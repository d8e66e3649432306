"""Forks of the tests' process, for what ends or limits a process: imports in a new one take seconds."""

import contextlib
import os
import resource
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path


def fork(function: Callable[[], object], said: Path | None = None) -> int:
    """Start a child that runs a function; its process id, to be waited for.

    Args:
        function: what to run; its end, or that by `SystemExit`, is the child's.
        said: a file for what it prints, on stdout and stderr.
    """
    if child := os.fork():
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
    """Wait for a child; its exit status, negative for the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def limit_addresses(room: int) -> None:
    """Let this process take so many bytes of addresses more."""
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + room,) * 2)
