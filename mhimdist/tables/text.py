"""Delimited text: which encoding, which delimiter, and the cells of each line.

The standard library's `csv` reads it rather than pandas, because a message must name the line: pandas counts
records and not lines, fills short rows with empty cells, and accepts a quote that is never closed.
"""

import codecs
import csv
import io
import re
import warnings
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
_SPACED_QUOTE = re.compile(r"[,;\t] +\"")
_LOOKED_AT = 100


class TableWarning(UserWarning):
    """A table was read in a way that you may want to check."""


def lines_of(path: Path, content: bytes, error: type[DataError]) -> list[Line]:
    """The lines of a delimited text that are not blank, each with as many cells as the first.

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
    delimiter = said[1] if said else _delimiter(text)
    try:
        lines = _parsed(text, delimiter)
    except csv.Error as problem:
        raise error(f"{path} cannot be read as CSV or TSV: {problem}") from None
    if not lines:
        return []
    width = len(lines[0][1])
    for number, cells in lines:
        # Longer by empty cells only: a delimiter at the end of the line.
        if len(cells) < width or any(cell.strip() for cell in cells[width:]):
            raise error(f"{path}, line {number}: expected {width} cells, got {len(cells)}")
    return [(number, cells[:width]) for number, cells in lines]


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


def _delimiter(text: str) -> str:
    """The delimiter that divides the first lines into equally many cells, and into the most.

    A space counts only if no other delimiter does, because names and headers hold spaces.
    """

    def quality(delimiter: str) -> tuple[bool, bool, int]:
        try:
            widths = [len(cells) for _, cells in _parsed(text, delimiter, _LOOKED_AT)]
        except csv.Error:
            return False, False, 0
        is_even = len(set(widths)) == 1 and widths[0] > 1
        return is_even, delimiter != " ", widths[0] if widths else 0

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
