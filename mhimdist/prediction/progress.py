"""Progress of a prediction: a bar at a terminal, a line every now and then in a log."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mhimdist import terminal
from mhimdist.report import formats

LINE_EVERY_S = 30.0


@contextmanager
def counted(total: int, done: int) -> Iterator[Callable[[], None]]:
    """Show how many slides are predicted while the context lasts.

    Args:
        total: number of slides.
        done: number that an earlier start predicted.

    Yields:
        A function to call for every further slide.
    """
    console = terminal.progress()
    if console.is_terminal:
        columns = (TextColumn("slides"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task("", total=total, completed=done)
            yield lambda: progress.advance(task)
        return
    started = said = time.monotonic()
    count = done

    def advance() -> None:
        nonlocal count, said
        count, now = count + 1, time.monotonic()
        if now > said + LINE_EVERY_S:
            said = now
            per_s = (count - done) / (now - started)
            left = formats.duration((total - count) / per_s)
            console.print(
                f"{count:,} of {total:,} slides, {per_s:.1f}/s, {left} left", highlight=False, soft_wrap=True
            )

    yield advance
