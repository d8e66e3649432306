"""Foreign text on each medium: shown as it is, and without power there.

Names of slides, cases, classes, data sets and folders come from other people's files and tables. A name may
be a formula, a link, a tag or a control sequence. Whatever leaves this package goes through here; HTML alone
goes through Jinja and markupsafe, which escape all that is not `Markup` (`report/page.py`,
`report/blocks.py`).
"""

import csv
import io
import re
import sys
import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

_ACTS = re.compile(r"([\\`*_\[\]#$~|])")
_LINKS = re.compile(r"(?<=[A-Za-z]):(?=//)|(?<=[Ww][Ww][Ww])\.|(?<=\S)@(?=\S)|(?<=\])\(")
_STARTS = re.compile(r"(?<!\S)([+-](?=\s)|=+(?!\S)|-{2,}(?!\S))")
_NUMBERS = re.compile(r"(?<!\S)([0-9]{1,9})([.)])(?=\s)")
"""What begins a list or underlines a heading, if a text happens to be wrapped there."""
_RUNS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What begins a formula in a spreadsheet; the last four are the full-width forms of the first four."""
_REORDERS = frozenset("\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that show text in another order than it has."""


def one_line(value: object, limit: int | None = None) -> str:
    """A text on one line, without characters that no one sees.

    Args:
        value: the text, or a number.
        limit: its longest length; a longer text is cut off.
    """
    letters = str(value)
    kinds = ("Cc", "Cf", "Zl", "Zp", "Cs")
    text = "".join(" " if unicodedata.category(letter) in kinds else letter for letter in letters)
    text = " ".join(text.split())
    return text if limit is None or len(text) <= limit else f"{text[: limit - 3]}..."


def markdown(value: object, limit: int | None = None) -> str:
    """A text as one line of Markdown without meaning: no tag, link, picture, cell, emphasis or formula.

    Args:
        value, limit: see `one_line`.
    """
    text = _ACTS.sub(r"\\\1", one_line(value, limit))
    text = _LINKS.sub(lambda found: f"\\{found.group()}", text)
    text = _STARTS.sub(lambda found: f"\\{found.group()}", text)
    text = _NUMBERS.sub(r"\1\\\2", text)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def plotly(text: str) -> str:
    """A text as one line of at most 40 characters for plotly.

    It reads a subset of HTML in names and axis titles, links included, and `%{...}`.
    """
    line = " ".join(text.split())
    line = line if len(line) <= 40 else line[:39] + "…"
    return escape(line, quote=False).replace("%{", "%&#123;")


def qupath_class(name: str) -> str:
    """The name of a class for QuPath, which refuses line breaks and reads `a: b` as two classes."""
    return one_line(name).replace(":", "-") or "unnamed"


def cell(value: Any) -> Any:
    """A cell of a spreadsheet: of a text that it would run, the text after an apostrophe; None is empty."""
    if isinstance(value, str):
        return f"'{value}" if value.lstrip("'").startswith(_RUNS) else value
    return "" if value is None else value


def of_cell(text: str) -> str:
    """The text of which `cell` made this one."""
    return text[1:] if text.startswith("'") and text.lstrip("'").startswith(_RUNS) else text


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table as CSV of which a spreadsheet runs no `cell`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(cell, header))
    writer.writerows(map(cell, row) for row in rows)
    return text.getvalue()


def terminal(text: str) -> str:
    """A text for a terminal or a log; characters that would move, colour or reorder it are written out."""
    return "".join(letter if _is_shown(letter) else _written(letter) for letter in text)


def _is_shown(letter: str) -> bool:
    return letter in "\n\t" or not (unicodedata.category(letter) in ("Cc", "Cs") or letter in _REORDERS)


def _written(letter: str) -> str:
    number = ord(letter)
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"


def say(text: str, *, stderr: bool = False) -> None:
    """Print a line at once, however long."""
    print(terminal(text), file=sys.stderr if stderr else sys.stdout, flush=True)


def put(text: str) -> None:
    """Print a file of ours as it is: what it has of foreign text, its writer has made safe in its own way."""
    print(text, end="", flush=True)


def quiet_warnings() -> None:
    """Let Python show warnings, which name slides and files, as `terminal` text."""
    shown = warnings.formatwarning
    if getattr(shown, "is_terminal_text", False):
        return

    def formatted(*args: Any, **options: Any) -> str:
        return terminal(shown(*args, **options))

    formatted.is_terminal_text = True  # type: ignore[attr-defined]
    warnings.formatwarning = formatted
