"""Progress of a long command: a bar at a terminal, a line every now and then in a log."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from mhimdist import terminal
from mhimdist.foreign_text import say

LINE_EVERY_S = 30.0
_POLL_S = 0.25


class Count:
    """A number that threads add to."""

    def __init__(self) -> None:
        self.total = 0
        self._lock = threading.Lock()

    def add(self, count: int = 1) -> None:
        """Add to the number."""
        with self._lock:
            self.total += count


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Show what is being done while the context lasts; in a log, also how long it has taken so far."""
    console = terminal.progress(stderr=True)
    if console.is_terminal:
        with console.status(escape(what)):
            yield
        return
    start = time.monotonic()
    with _now_and_then(lambda: f"{what}: {time.monotonic() - start:.0f} s so far"):
        yield


@contextmanager
def bar(
    total: int,
    done: Callable[[], int],
    what: str = "",
    console: Console | None = None,
    *,
    unit: str | None = None,
) -> Iterator[None]:
    """Show a number of bytes or things, its rate and the time left while the context lasts.

    Args:
        total: total number of bytes or things.
        done: returns the number so far; a thread calls it several times per second.
        what: the text next to the bar.
        console: where to show the bar; by default on stderr.
        unit: name of the things that are counted; None counts bytes.
    """
    console = console or terminal.progress(stderr=True)
    start, first = time.monotonic(), done()
    if not console.is_terminal:
        with _now_and_then(lambda: _line(what, unit, first, done(), total, time.monotonic() - start)):
            yield
        return
    counted = (MofNCompleteColumn(),) if unit else (DownloadColumn(), TransferSpeedColumn())
    columns = (TextColumn("{task.description}"), BarColumn(), *counted, TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(escape(what), total=total, completed=first)
        with _repeating(lambda: progress.update(task, completed=done()), _POLL_S):
            yield
        progress.update(task, completed=total)


def _line(what: str, unit: str | None, first: int, by_now: int, total: int, elapsed_s: float) -> str:
    rate = (by_now - first) / elapsed_s
    left = f", {(total - by_now) / rate:.0f} s left" if rate > 0 else ""
    if unit is None:
        return f"{what} {decimal(by_now)} of {decimal(total)}, {decimal(int(rate))}/s{left}"
    return f"{what} {by_now:,} of {total:,} {unit}, {rate:.1f}/s{left}"


@contextmanager
def _now_and_then(line: Callable[[], str]) -> Iterator[None]:
    if terminal.is_quiet():
        yield
        return
    with _repeating(lambda: say(line().strip(), stderr=True), LINE_EVERY_S):
        yield


@contextmanager
def _repeating(act: Callable[[], None], every_s: float) -> Iterator[None]:
    """Act at regular intervals, from a thread, while the context lasts."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(every_s):
            act()

    thread = threading.Thread(target=watch, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
