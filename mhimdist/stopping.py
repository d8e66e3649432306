"""Being asked to stop: SIGTERM by whoever lent the machine, Ctrl-C by a person."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

from mhimdist.errors import PreemptedError


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
