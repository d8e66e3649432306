"""Keeps SIGTERM with the command while Ray starts and ends in its process.

Ray takes SIGTERM three times. `ray.init` and Ray's `Node` register Python functions that end the process with
status 15 or 1. Ray's C++ core registers a function that prints a stack and aborts; Python's own handling
returns only with the next `signal.signal`, so a SIGTERM in between is fatal. And the end of the core puts the
default action in place, up to seconds before Ray's processes have ended.

Signals cannot be blocked meanwhile: Ray's processes would inherit that, and threads of other libraries would
receive the signal instead.
"""

import ctypes
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import ray

from mhimdist.process import signals_after

_INSTALL = "_ZN3ray6RayLog27InstallFailureSignalHandlerEPKcb"
"""`ray::RayLog::InstallFailureSignalHandler(char const*, bool)`; Ray calls it once per start of its core."""


@contextmanager
def started_with_our_signals() -> Iterator[None]:
    """Start Ray within this context: a signal is noted, and ends the code when the context ends.

    Without a `Stopping` around it, Ray's own functions stay in place.
    """
    with signals_after() as are_ours:
        if not are_ours:
            yield
            return
        install_failure_handlers()  # now, so that the core does not do it later
        _take_back()
        utils: Any = ray._private.utils
        register, utils.set_sigterm_handler = utils.set_sigterm_handler, _leave_sigterm_alone
        try:
            yield
        finally:
            utils.set_sigterm_handler = register
            _take_back()
        _take_back_before_processes_end()


def install_failure_handlers() -> bool:
    """Have Ray's core install its functions for fatal signals now; returns whether this Ray can do that."""
    core = ctypes.CDLL(ray._raylet.__file__)
    install = getattr(core, _INSTALL, None)
    if install is None:  # another release: SIGTERM is fatal for a moment in which nothing has begun
        return False
    install.argtypes, install.restype = [ctypes.c_char_p, ctypes.c_bool], None
    install(None, False)
    return True


def _take_back() -> None:
    """Have Python handle SIGTERM again, by the function that it still knows."""
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


def _take_back_before_processes_end() -> None:
    """Take SIGTERM back when Ray's core has ended, before the processes that Ray has started are ended."""
    node: Any = ray._private.worker._global_node
    end = node.kill_all_processes

    @wraps(end)
    def taking_back(*arguments: Any, **named: Any) -> None:
        _take_back()
        end(*arguments, **named)

    node.kill_all_processes = taking_back


def _leave_sigterm_alone(handler: Any) -> None:
    """Register nothing."""
