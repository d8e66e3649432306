"""How a command ends: its exit status, and its response to SIGTERM and Ctrl-C."""

import atexit
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any, ClassVar, NoReturn, Self

from mhimdist.errors import MhimdistError, PreemptedError
from mhimdist.foreign_text import quiet_warnings, terminal

SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""The signals that ask a command to stop."""


_is_verbose = False


def be_verbose() -> None:
    """Show where the error came from that ends this process."""
    global _is_verbose
    _is_verbose = True


def run(main: Callable[[], None]) -> None:
    """Run a command's `main`; an error that a user can cause becomes one line instead of a traceback.

    Ends the process with status 75 after a SIGTERM or a `PreemptedError` (the run is saved, and the same
    command resumes it), with status 1 after a `MhimdistError` or an `OSError` (a full disk, a missing
    permission), and with status 130 after Ctrl-C. Any other exception is our own fault and keeps its
    traceback. A signal that arrives once `main` has ended changes nothing, so let nothing follow `run`.
    """
    quiet_warnings()
    command = _Command("stopped by SIGTERM; the same command resumes it")
    try:
        with command:
            main()
        return
    except (MhimdistError, OSError, KeyboardInterrupt) as error:
        if _is_verbose:
            traceback.print_exc()
        said, status = _how_it_ended(error)
    command.status = status
    print(terminal(said), file=sys.stderr)
    leave(status)


def _how_it_ended(error: Exception | KeyboardInterrupt) -> tuple[str, int]:
    """What a command says of an error, and its exit status."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    if isinstance(error, PreemptedError):
        return " ".join(str(error).split()), os.EX_TEMPFAIL
    return f"error: {' '.join(_message(error).split())}", 1


def leave(status: int) -> NoReturn:
    """End the process with this status, after the exit functions of Python and of every library.

    `sys.exit` would take the interpreter apart while threads of libraries still run. If one of Arrow's
    threads lets go of Python's memory at that moment, as after `pyarrow.parquet.read_table` of bytes, it
    aborts the process: in about 1 of 10 runs, SIGABRT (status 134) followed the message of a failed command.
    `multiprocessing` ends its forked children in the same way.
    """
    threading._shutdown()  # type: ignore[attr-defined]  # waits for the threads that Python waits for
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads it any more, or it is closed
            stream.flush()
    os._exit(status)


def _message(error: Exception) -> str:
    """The text for the user: an `OSError` without its number but with its file."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error) or type(error).__name__


class Stopping:
    """A context that handles SIGTERM and Ctrl-C for a command.

    Either signal ends the code in the context: SIGTERM with a `PreemptedError`, Ctrl-C with a
    `KeyboardInterrupt`. Within `gently` the first signal only sets `is_asked`, which the code can check; the
    second ends the code. Contexts nest, and the inner one handles a signal; none can be entered after one.
    Outside the main thread the context does nothing, because Python handles signals in the main thread only.

    Attributes:
        is_asked: whether a signal has arrived.
    """

    _innermost: ClassVar["Stopping | None"] = None

    def __init__(self, message: str) -> None:
        """Install nothing yet; `message` becomes the message of the `PreemptedError`."""
        self.is_asked = False
        self._message = message
        self._is_preempted = self._is_gentle = False
        self._before: dict[int, Any] = {}
        self._outer: Stopping | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            outer = Stopping._innermost
            if outer is not None and outer.is_asked:  # a library has swallowed the exception
                raise KeyboardInterrupt
            self._outer, Stopping._innermost = outer, self
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before:
            self._give_back()
            Stopping._innermost = self._outer
        if isinstance(error, KeyboardInterrupt) and self._is_preempted:
            raise PreemptedError(self._message) from None

    def _give_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        is_first = not self.is_asked
        each: Stopping | None = self
        while each is not None:
            each.is_asked = True
            each._is_preempted = each._is_preempted or number == signal.SIGTERM
            each = each._outer
        if not (self._is_gentle and is_first):
            raise KeyboardInterrupt

    @contextmanager
    def gently(self) -> Iterator[None]:
        """Only note the first signal, so that the code within can stop at a good point."""
        before, self._is_gentle = self._is_gentle, True
        try:
            yield
        finally:
            self._is_gentle = before


class _Command(Stopping):
    """A whole command: when it has ended, signals no longer disturb the exit functions.

    Attributes:
        status: the exit status of the command.
    """

    status = 0

    def _give_back(self) -> None:
        self._is_leaving = False
        for number in SIGNALS:
            signal.signal(number, self._leave)

    def _leave(self, number: int, frame: FrameType | None) -> None:
        if self._is_leaving:  # asked twice: an exit function may hang
            os._exit(self.status)
        self._is_leaving = True


@contextmanager
def signals_after() -> Iterator[bool]:
    """Have a signal wait for the end of a block that it must not cut, unless a second signal follows it.

    It yields whether a `Stopping` handles signals here; otherwise they do what they always do.
    """
    stopping = Stopping._innermost
    if stopping is None or threading.current_thread() is not threading.main_thread():
        yield False
        return
    try:
        with stopping.gently():
            yield True
    finally:
        if stopping.is_asked and not stopping._is_gentle:
            raise KeyboardInterrupt
