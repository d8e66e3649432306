"""How a command ends: its exit status, and its response to SIGTERM and Ctrl-C."""

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

from mhimdist.errors import MhimdistError, PreemptedError


def run(main: Callable[[], None]) -> None:
    """Run a command's `main`; an error that a user can cause becomes one line instead of a traceback.

    Ends the process with status 75 after a `PreemptedError` (the run is saved, and the same command resumes
    it), with status 1 after a `MhimdistError` or an `OSError` (a full disk, a missing permission), and with
    status 130 after Ctrl-C. Any other exception is our own fault and keeps its traceback.
    """
    try:
        main()
        return
    except PreemptedError as error:
        said, status = " ".join(str(error).split()), os.EX_TEMPFAIL
    except (MhimdistError, OSError) as error:
        said, status = f"error: {' '.join(_message(error).split())}", 1
    except KeyboardInterrupt:
        said, status = "interrupted", 130
    print(said, file=sys.stderr)
    leave(status)


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
    second ends the code. Outside the main thread the context does nothing, because Python handles signals in
    the main thread only.

    Attributes:
        is_asked: whether a signal has arrived.
    """

    def __init__(self, message: str) -> None:
        """Install nothing yet; `message` becomes the message of the `PreemptedError`."""
        self.is_asked = False
        self._message = message
        self._is_preempted = self._is_gentle = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if isinstance(error, KeyboardInterrupt) and self._is_preempted:
            raise PreemptedError(self._message) from None

    def _note(self, number: int, frame: FrameType | None) -> None:
        is_first, self.is_asked = not self.is_asked, True
        self._is_preempted = self._is_preempted or number == signal.SIGTERM
        if not (self._is_gentle and is_first):
            raise KeyboardInterrupt

    @contextmanager
    def gently(self) -> Iterator[None]:
        """Only note the first signal, so that the code within can stop at a good point."""
        self._is_gentle = True
        try:
            yield
        finally:
            self._is_gentle = False


@contextmanager
def signals_afterwards() -> Iterator[None]:
    """Deliver a SIGTERM or Ctrl-C that arrives within at the end, to the handler that was set before.

    It is for a library's code that must not be interrupted half-way and sets handlers. The library's handler
    stays only where none of ours was set.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    set_handler, arrived, theirs = signal.signal, list[int](), dict[int, Any]()
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: set_handler(number, lambda number, _: arrived.append(number)) for number in numbers}

    def set_later(number: int, handler: Any) -> Any:
        if number not in before:
            return set_handler(number, handler)
        found, theirs[number] = theirs.get(number, before[signal.Signals(number)]), handler
        return found

    signal.signal = set_later  # type: ignore[assignment]
    try:
        yield
    finally:
        signal.signal = set_handler
        for number, handler in before.items():
            set_handler(number, handler if callable(handler) else theirs.get(number, handler))
        if arrived:
            os.kill(os.getpid(), arrived[0])
