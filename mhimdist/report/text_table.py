"""A table of texts, for a terminal, a log, Markdown or a README."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mhimdist.foreign_text import markdown


@dataclass(frozen=True)
class Grid:
    """Rows of texts under a header; the first column names the row, the others hold its values.

    Attributes:
        title: one line above it.
        header: a text per column.
        rows: the rows, each with a text per column.
        caption: text below the table that a reader of the values must know.
        optional: columns that a narrow terminal may omit, in the order in which they are omitted.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str
    optional: Sequence[str] = ()

    def markdown(self) -> str:
        """GitHub's Markdown, with padded columns, so that the source is readable, too."""
        lines = [[markdown(text) for text in row] for row in (self.header, *self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
        padded = [
            [text.ljust(width) if i == 0 else text.rjust(width) for i, (text, width) in enumerate(pairs)]
            for pairs in (list(zip(line, widths, strict=True)) for line in lines)
        ]
        body = ["| " + " | ".join(line) + " |" for line in (padded[0], rule, *padded[1:])]
        caption = textwrap.fill(markdown(self.caption), 110, break_on_hyphens=False)
        return "\n".join([f"**{markdown(self.title)}**", "", *body, "", caption, ""])

    def print(self, console: Console) -> None:
        """Print the table with as many columns as fit, its caption, and an empty line."""
        hidden: list[str] = []
        table = self._table(hidden)
        for name in self.optional:
            if Console(width=1000).measure(table).maximum <= console.width:
                break
            hidden.append(name)
            table = self._table(hidden)
        console.print(Text(self.title, style="bold"))
        console.print(table)
        more = f" The files also have: {', '.join(hidden)}." if hidden else ""
        console.print(Text(self.caption + more), end="\n\n")

    def _table(self, hidden: Sequence[str]) -> Table:
        table = Table(
            box=SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
            header_style="bold",
        )
        shown = [number for number, heading in enumerate(self.header) if heading not in hidden]
        for number in shown:
            table.add_column(
                Text(self.header[number]),
                justify="right" if number else "left",
                overflow="fold",
                no_wrap=number > 0,
            )
        for row in self.rows:
            table.add_row(*(Text(row[number]) for number in shown))
        return table
