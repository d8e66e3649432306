"""How far a long command is: a bar at a terminal, a line now and then in a log."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

LINE_EVERY_S = 30.0
_POLL_S = 0.25


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Say what is being done, where there is a terminal, while the context lasts."""
    console = Console(stderr=True, highlight=False)
    with console.status(escape(what)) if console.is_terminal else nullcontext():
        yield


@contextmanager
def bar(
    total: int, done: Callable[[], int], what: str = "", console: Console | None = None
) -> Iterator[None]:
    """Show bytes, their rate and the time left while the context lasts.

    Args:
        total: bytes in all.
        done: asked for the bytes by now, several times a second, from a thread.
        what: said beside the bar.
        console: where to show it, by default stderr.
    """
    console = console or Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        *(BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()),
    )
    ended = threading.Event()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total, completed=done())

        def watch() -> None:
            start, said = time.monotonic(), time.monotonic()
            first = done()
            while not ended.wait(_POLL_S):
                now, by_now = time.monotonic(), done()
                progress.update(task, completed=by_now)
                if not console.is_terminal and now - said >= LINE_EVERY_S:
                    said, rate = now, (by_now - first) / (now - start)
                    left = f", {(total - by_now) / rate:.0f} s left" if rate else ""
                    line = f"{what} {decimal(by_now)} of {decimal(total)}, {decimal(int(rate))}/s{left}"
                    print(line.strip(), file=sys.stderr, flush=True)

        thread = threading.Thread(target=watch, name="progress", daemon=True)
        thread.start()
        try:
            yield
            progress.update(task, completed=total)
        finally:
            ended.set()
            thread.join()
