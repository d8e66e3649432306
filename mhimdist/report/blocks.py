"""The parts of a page: paragraphs, tables, figures, notes. They take data and return HTML.

Text is escaped here, in one place: a slide, a case or a class may have any name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
from markupsafe import Markup, escape

from mhimdist.report import page


@dataclass(frozen=True)
class Section:
    """A part of a page with a heading.

    Attributes:
        name: its address in the page, in plain letters.
        title: its heading.
        body: its HTML; empty if there is nothing to show.
    """

    name: str
    title: str
    body: Markup


@dataclass(frozen=True)
class Fact:
    """A number at the top of a page: what it is, the number, and what it depends on."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: its text.
        note: a second, smaller line.
        share: how strongly it is coloured, in [0, 1]; None: not at all.
        key: what it is sorted by; None: by its text.
    """

    text: str
    note: str = ""
    share: float | None = None
    key: float | None = None


def section(name: str, title: str, *parts: Markup) -> Section:
    """A section of these parts; one whose parts are all empty is left out of its page."""
    return Section(name, title, Markup("\n").join(part for part in parts if part))


def paragraph(text: str, *, muted: bool = False) -> Markup:
    """A paragraph."""
    return Markup('<p class="muted">{}</p>' if muted else "<p>{}</p>").format(text)


def heading(text: str) -> Markup:
    """A heading within a section."""
    return Markup("<h3>{}</h3>").format(text)


def warning(strong: str, text: str) -> Markup:
    """A note that a reader must not miss."""
    return Markup('<p class="banner" role="note"><strong>{}</strong> {}</p>').format(strong, text)


def table(
    name: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str | Cell]],
    *,
    caption: str = "",
    texts: int = 1,
    sortable: bool = False,
) -> Markup:
    """A table; empty without rows.

    Args:
        name: its address in the page, in plain letters.
        header: a text per column.
        rows: cells, as many as there are columns.
        caption: text below it.
        texts: number of first columns that hold text; the others hold numbers.
        sortable: whether a click on a heading sorts the rows.
    """
    if not rows:
        return Markup("")
    lines = Markup("\n").join(
        Markup("<tr>{}</tr>").format(Markup("").join(_cell(cell, i, texts) for i, cell in enumerate(row)))
        for row in rows
    )
    wide = "trials" if sortable else "plain"
    return Markup(
        '<div class="scroll fit"><table id="{}" class="{}"><thead><tr>{}</tr></thead>\n<tbody>\n{}\n</tbody>'
        "</table></div>{}"
    ).format(
        name,
        wide,
        Markup("").join(_head(text, i, texts, sortable=sortable) for i, text in enumerate(header)),
        lines,
        paragraph(caption, muted=True) if caption else "",
    )


def _head(text: str, column: int, texts: int, *, sortable: bool) -> Markup:
    inner = Markup("<button>{}</button>").format(text) if sortable else escape(text)
    kind = Markup("") if column < texts else Markup(' class="number"')
    return Markup('<th scope="col"{}>{}</th>').format(kind, inner)


def _cell(cell: str | Cell, column: int, texts: int) -> Markup:
    cell = cell if isinstance(cell, Cell) else Cell(cell)
    kind = "name-cell" if column < texts else "number"
    style = "" if cell.share is None else Markup(' style="--share: {}"').format(f"{cell.share:.3f}")
    note = Markup('<br><span class="muted small">{}</span>').format(cell.note) if cell.note else ""
    tag = "th" if column == 0 else "td"
    scope = Markup(' scope="row"') if column == 0 else ""
    shade = " shaded" if cell.share is not None else ""
    return Markup('<{}{} class="{}{}"{} data-sort="{}">{}{}</{}>').format(
        Markup(tag),
        scope,
        kind,
        shade,
        style,
        cell.text if cell.key is None else cell.key,
        cell.text,
        note,
        Markup(tag),
    )


def facts(name: str, rows: Mapping[str, str]) -> Markup:
    """A table of names and values; values that are empty are left out."""
    lines = [
        Markup('<tr><th scope="row">{}</th><td class="reason">{}</td></tr>').format(key, value)
        for key, value in rows.items()
        if value
    ]
    if not lines:
        return Markup("")
    return Markup('<div class="scroll fit"><table id="{}"><tbody>\n{}\n</tbody></table></div>').format(
        name, Markup("\n").join(lines)
    )


def figure(drawn: go.Figure, caption: str = "", *, title: str = "") -> Markup:
    """A figure; empty if there is nothing to draw.

    Args:
        drawn: the figure.
        caption: text below it.
        title: text above it, which also names it for screen readers.
    """
    html = page.figure_html(drawn)
    if not html:
        return Markup("")
    head = Markup('<p class="figure-title">{}</p>').format(title) if title else ""
    below = Markup("<figcaption>{}</figcaption>").format(caption) if caption else ""
    return Markup("<figure>{}{}{}</figure>").format(head, html, below)


def side_by_side(*parts: Markup) -> Markup:
    """Parts in columns as wide as the window allows."""
    shown = [part for part in parts if part]
    if len(shown) < 2:
        return Markup("").join(shown)
    return Markup('<div class="row">{}</div>').format(
        Markup("").join(Markup("<div>{}</div>").format(part) for part in shown)
    )


def details(summary: str, text: str) -> Markup:
    """Text that a click opens; on paper it is open."""
    return Markup("<details><summary>{}</summary><pre>{}</pre></details>").format(summary, text)
