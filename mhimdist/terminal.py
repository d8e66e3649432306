"""The console: the only door of this package to a terminal, except for `foreign_text.say`."""

from collections.abc import Iterator
from functools import cache

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from mhimdist import foreign_text


class SafeConsole(Console):
    """A console that shows all text as `foreign_text.terminal` does, in tables, too."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """See `Console.render`."""
        for segment in super().render(renderable, options):
            text, style, control = segment
            yield segment if control else Segment(foreign_text.terminal(text), style)


_is_quiet = False


def be_quiet() -> None:
    """Show no `progress` in this process any more: only results, warnings and errors."""
    global _is_quiet
    _is_quiet = True


def is_quiet() -> bool:
    """Whether this process shows no progress."""
    return _is_quiet


def progress(*, stderr: bool = False) -> Console:
    """The console for progress; it shows nothing after `be_quiet`."""
    return _nothing() if _is_quiet else console(stderr=stderr)


@cache
def _nothing() -> Console:
    return SafeConsole(quiet=True, force_terminal=False)


@cache
def console(*, stderr: bool = False) -> Console:
    """The console of this process, to stdout or stderr; it reads no markup and highlights nothing."""
    return SafeConsole(stderr=stderr, markup=False, highlight=False)
