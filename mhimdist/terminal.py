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


@cache
def console(*, stderr: bool = False) -> Console:
    """The console of this process, to stdout or stderr; it reads no markup and highlights nothing."""
    return SafeConsole(stderr=stderr, markup=False, highlight=False)
