"""How a command ends: with an exit status, and what SIGTERM and Ctrl-C do to it meanwhile."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

from mhimdist.errors import MhimdistError, PreemptedError


def run(main: Callable[[], None]) -> None:
    """Run a command's `main`; an error that a user can cause becomes one line instead of a traceback.

    Exits with status 75 after a `PreemptedError`: the run is saved, and the same command goes on with it.
    Exits with status 1 after a `MhimdistError` or an `OSError` (a full disk, a missing permission), and
    with 130 after Ctrl-C. Any other exception is a fault of ours and keeps its traceback.
    """
    try:
        main()
    except PreemptedError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        sys.exit(os.EX_TEMPFAIL)
    except (MhimdistError, OSError) as error:
        print("error:", " ".join(_message(error).split()), file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _message(error: Exception) -> str:
    """The text for a user: an `OSError` without its number, with the file it is about."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error) or type(error).__name__


class Stopping:
    """What SIGTERM and Ctrl-C do to a command, while this is entered.

    Either ends what runs; a `PreemptedError` comes of a SIGTERM and a `KeyboardInterrupt` of Ctrl-C. Within
    `gently` the first of them is only noted, for whoever looks at `is_asked`; the second ends what runs. In
    another thread than the main one this does nothing: only that one may handle signals.

    Attributes:
        is_asked: whether there was one.
    """

    def __init__(self, message: str) -> None:
        """Prepare; `message` is that of the `PreemptedError`."""
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
        """Note the first signal, and let what runs find out by itself."""
        self._is_gentle = True
        try:
            yield
        finally:
            self._is_gentle = False
