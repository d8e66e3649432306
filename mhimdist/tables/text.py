"""Delimited text: which encoding, which delimiter, and the cells of each line.

The standard library's `csv` reads it rather than pandas, because a message must name the line: pandas counts
records and not lines, fills short rows with empty cells, and accepts a quote that is never closed.
"""

import codecs
import csv
import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mhimdist.errors import DataError

Line = tuple[int, list[str]]
"""The number of a line in the file, from 1, and its cells; of a row over several lines, the last number."""

DELIMITERS = ("\t", ",", ";", "|", " ")
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SEPARATOR_LINE = re.compile(r"\"?sep=(.)\"?[\t;, ]*(?:\r\n|\r|\n|$)", re.IGNORECASE)
"""The line with which Excel is told a delimiter."""
_COMMENTS = re.compile(r"(?:[ \t]*(?:\"?#[^\r\n]*)?(?:\r\n|\r|\n))+")
"""Lines above the header that are blank or begin with "#"."""
_SPACED_QUOTE = re.compile(r"[,;\t] +\"")
_LOOKED_AT = 100


class TableWarning(UserWarning):
    """A table was read in a way that you may want to check."""


@dataclass(frozen=True)
class Text:
    """The lines of a table that are not blank, each with as many cells as the first.

    Attributes:
        lines: the header and the rows.
        delimiter: what divides the cells of a line; empty if it is no delimited text.
        comments: the lines above that begin with "#" and have as many cells.
    """

    lines: list[Line]
    delimiter: str = ""
    comments: list[Line] = field(default_factory=list)


def text_of(path: Path, content: bytes, error: type[DataError]) -> Text:
    """The lines of a delimited text.

    A header that lacks a name for numbers in front of the rows, as R writes them, gets the name "" for them.

    Args:
        path: names the file in messages.
        content: its bytes.
        error: type of the error to raise.

    Raises:
        DataError: as `error`; it is no text, its quotes are not closed, or a line has another number of
            cells.
    """
    text = _decoded(path, content, error)
    if said := _SEPARATOR_LINE.match(text):
        text = "\n" + text[said.end() :]  # a blank line, so that the others keep their numbers
    above, text = _divided(text)
    delimiter = said[1] if said else _delimiter(text, above)
    try:
        lines, comments = _parsed(text, delimiter), _parsed(above, delimiter)
    except csv.Error as problem:
        raise error(f"{path} cannot be read as CSV or TSV: {problem}") from None
    if not lines:
        return Text([])
    if _has_row_names(lines):
        lines[0] = (lines[0][0], ["", *lines[0][1]])
    width = len(lines[0][1])
    for number, cells in lines:
        # Longer by empty cells only: a delimiter at the end of the line.
        if len(cells) < width or any(cell.strip() for cell in cells[width:]):
            raise error(
                f"{path}, line {number}: expected {width} cells, got {len(cells)}{_why_all_differ(lines)}"
            )
    lines = [(number, cells[:width]) for number, cells in lines]
    return Text(lines, delimiter, [line for line in comments if len(line[1]) == width])


def _divided(text: str) -> tuple[str, str]:
    """The comments above a table, and the table, whose lines keep their numbers."""
    found = _COMMENTS.match(text)
    rest = text[found.end() :] if found else ""
    if found is None or not rest.strip() or rest.lstrip(' \t"').startswith("#"):  # then "#" begins every line
        return "", text
    num_lines = len(re.findall(r"\r\n|\r|\n", found[0]))
    return found[0], "\n" * num_lines + rest


def _has_row_names(lines: Sequence[Line]) -> bool:
    """Whether every row has one cell more than the header, and begins with a number of its own."""
    return _is_short_by_one(lines) and all(cells[0].strip().isdecimal() for _, cells in lines[1:])


def _is_short_by_one(lines: Sequence[Line]) -> bool:
    rows = [cells for _, cells in lines[1:]]
    return (
        bool(rows)
        and len(lines[0][1]) > 1
        and {len(row) for row in rows} == {len(lines[0][1]) + 1}
        and len({row[0].strip() for row in rows}) == len(rows)
        and any(row[-1].strip() for row in rows)
    )


def _why_all_differ(lines: Sequence[Line]) -> str:
    """What to do, if all rows have as many cells as each other and only the header has not."""
    (header_line, header), *rows = lines
    widths = {len(cells) for _, cells in rows}
    if len(rows) < 2 or len(widths) > 1:
        return ""
    if len(header) == 1:
        return (
            f", as in all lines below line {header_line}: the header must be the first line; if that is a "
            "title, remove it"
        )
    if widths == {len(header) + 1}:
        return (
            ", as in all lines below the header: if they begin with names of rows, as R writes them, name "
            "that column in the header too"
        )
    return ""


def _decoded(path: Path, content: bytes, error: type[DataError]) -> str:
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    if encoding.startswith("utf-8") and b"\0" in content:
        line = content[: content.index(b"\0")].count(b"\n") + 1
        raise error(
            f"{path}, line {line}: holds NUL bytes: it is no text, or UTF-16 without a byte-order mark; save "
            "it as CSV in UTF-8"
        )
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as problem:
        if encoding != "utf-8":
            raise error(f"{path} cannot be read as {encoding.upper()}: {problem.reason}") from None
        return _western(path, content)


def _western(path: Path, content: bytes) -> str:
    warnings.warn(
        f"{path} is not in UTF-8 and was read as Latin-1 (Windows-1252); if its letters with accents matter, "
        "check them, or save it in UTF-8",
        TableWarning,
        stacklevel=5,
    )
    try:
        return content.decode("cp1252")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _delimiter(text: str, above: str) -> str:
    """The delimiter that divides the first lines into equally many cells, and into the most.

    Otherwise the one that divides all but the header so. Of two, it is the one that also divides the last
    comment so, which can be the header.

    A space counts only if no other delimiter does, because names and headers hold spaces.
    """

    def quality(delimiter: str) -> tuple[int, bool, bool, int]:
        try:
            lines, comments = _parsed(text, delimiter, _LOOKED_AT), _parsed(above, delimiter)
        except csv.Error:
            return 0, False, False, 0
        widths = [len(cells) for _, cells in lines]
        is_even = len(set(widths)) == 1 and widths[0] > 1
        is_quoted = text.lstrip().startswith('"')
        has_row_names = _has_row_names(lines) or (is_quoted and _is_short_by_one(lines))
        has_title = (
            len(widths) > 2 and delimiter != " " and widths[0] == 1 and len(set(widths[1:])) == 1 < widths[1]
        )
        rank = 2 if is_even else int(has_row_names or has_title)
        fits = bool(comments and widths) and len(comments[-1][1]) == widths[0]
        return rank, delimiter != " ", fits, widths[0] if widths else 0

    return max(DELIMITERS, key=quality)


def _parsed(text: str, delimiter: str, most: int | None = None) -> list[Line]:
    try:
        return _rows(text, delimiter, most, strict=True)
    except csv.Error as problem:
        # A space between a closing quote and the delimiter; a quote that is never closed stays an error.
        if "expected after" not in str(problem) or text.count('"') % 2:
            raise
        return _rows(text, delimiter, most, strict=False)


def _rows(text: str, delimiter: str, most: int | None, *, strict: bool) -> list[Line]:
    reader = csv.reader(
        io.StringIO(text, newline=""),
        strict=strict,
        delimiter=delimiter,
        skipinitialspace=delimiter == " " or _SPACED_QUOTE.search(text) is not None,
    )
    lines: list[Line] = []
    while True:
        begin = reader.line_num + 1
        try:
            if (cells := next(reader, None)) is None:
                break
        except csv.Error as problem:
            raise csv.Error(f"{problem}, in the row that begins in line {begin}") from None
        if delimiter == " " and len(cells) > 1 and not cells[-1]:
            cells.pop()  # spaces at the end of the line
        if any(cell.strip() for cell in cells):
            lines.append((reader.line_num, cells))
        if most is not None and len(lines) == most:
            break
    return lines
