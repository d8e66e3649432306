"""Foreign text is shown on every medium and acts on none."""

import ast
import csv
import io
import sys
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.table import Table
from rich.text import Text

from mhimdist import foreign_text, process, terminal
from mhimdist.errors import DataError

ROOT = Path(__file__).parent.parent
RUNS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
ACTING = [
    *(
        "<script>alert(1)</script>",
        "![x](http://a.b/c.png)",
        "[a](javascript:x)",
        "<http://a.b>",
        "http://a.b",
    ),
    *("www.a.b", "me@a.b", "**bold**", "_it_", "`code`", "~~gone~~", "a|b", "&lt;b&gt;", "# head", "> quote"),
    *("- item", "+ item", "1. item", "2) item", "===", "---", "$x$", "a\nb", "\\", "\\<b>", "[^1]", "***"),
]
SEQUENCES = ["\x1b[2J", "\x1b]0;title\x07", "a\rb", "\x9b31m", "\x00", "\u202egnp.exe", "\x7f"]


@pytest.mark.parametrize(
    "text", ["=cmd|' /C calc'!A0", "+1", "-1", "@x", "\t=1", "\r=1", "\n=1", "'=1", "''=1"]
)
def test_no_cell_begins_as_a_formula_does(text):
    assert foreign_text.cell(text) == f"'{text}"
    assert foreign_text.of_cell(f"'{text}") == text


@pytest.mark.parametrize("value", ["plain", "a=b", "it's", "'quoted'", -1.5, 3, ""])
def test_other_cells_stay_as_they_are(value):
    assert foreign_text.cell(value) == value


@given(st.lists(st.tuples(st.text("=+-@'\n\r\t,\"ab|;\uff1d"), st.text()), max_size=5))
def test_every_text_survives_a_spreadsheet(rows):
    rows = [tuple(cell.replace("\r", "").replace("\x00", "") for cell in row) for row in rows]
    text = foreign_text.csv_text(("=a", "b"), rows)
    header, *read = csv.reader(io.StringIO(text, newline=""))
    assert header == ["'=a", "b"]
    assert not any(cell.startswith(RUNS) for row in read for cell in row)
    assert [tuple(map(foreign_text.of_cell, row)) for row in read] == rows


def _kinds(text):
    """What a Markdown parser with all extensions finds: kinds of tokens, and the text that a reader sees."""
    parser = MarkdownIt("gfm-like", {"linkify": False, "html": True})
    found, seen = set(), []
    for token in parser.parse(text):
        found.add(token.type)
        for child in token.children or ():
            found.add(child.type)
            seen.append(child.content)
    return found, "".join(seen)


@pytest.mark.parametrize("text", ACTING)
def test_markdown_shows_the_text_and_nothing_else(text):
    wrapped = f"name {text} end"
    for place in (text, wrapped):
        kinds, seen = _kinds(foreign_text.markdown(place))
        assert kinds <= {"paragraph_open", "paragraph_close", "inline", "text", "text_special"}
        assert seen == " ".join(place.split())
    # What is wrapped may stand at the start of a line.
    kinds, _ = _kinds(foreign_text.markdown(wrapped).replace(" ", "\n"))
    assert kinds <= {"paragraph_open", "paragraph_close", "inline", "text", "text_special", "softbreak"}


def test_no_address_is_left_that_a_page_would_link():
    for text in ("http://a.b", "https://a.b", "www.a.b", "me@a.b"):
        assert text not in foreign_text.markdown(text)


def test_a_table_has_as_many_cells_as_its_header():
    row = f"| {foreign_text.markdown('a|b')} | {foreign_text.markdown('x')} |"
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(f"| h | i |\n| - | - |\n{row}\n")
    cells = [t.children[0].content for i, t in enumerate(tokens) if i and tokens[i - 1].type == "td_open"]
    assert len(cells) == 2


@pytest.mark.parametrize("text", SEQUENCES)
def test_a_terminal_gets_no_control(text, capsys):
    shown = foreign_text.terminal(f"slide {text}\tend\n")
    assert shown.endswith("\tend\n")
    foreign_text.say(text)
    foreign_text.say(text, stderr=True)
    table = Table(title=text)
    table.add_column(text)
    table.add_row(Text(text))
    console = terminal.console()
    console.print(text)
    console.print(table)
    out, err = capsys.readouterr()
    for letter in {letter for letter in text if not letter.isprintable()}:
        assert letter not in shown + out.replace("\n", "") + err.replace("\n", "")


def test_words_of_all_scripts_and_marks_are_shown(capsys):
    text = "Müller 病理 наука [bold]x[/bold] é\u200d"
    terminal.console().print(text)
    assert capsys.readouterr().out == f"{text}\n"


def test_a_failed_command_and_a_warning_move_no_cursor(capsys, monkeypatch):
    ended = []
    monkeypatch.setattr(process, "leave", ended.append)
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)

    def main():
        sys.stderr.write(warnings.formatwarning("slide \x1b[2J", UserWarning, "file.py", 1))
        raise DataError("slide '\x1b]0;mine\x07' is empty")

    process.run(main)
    err = capsys.readouterr().err
    assert ended == [1]
    assert "error: slide '\\x1b]0;mine\\x07' is empty" in err
    assert "slide \\x1b[2J" in err
    assert "\x1b" not in err


def test_there_is_no_other_way_out():
    """No module writes CSV or to the terminal past this one."""
    found = {}
    for path in [p for folder in ("mhimdist", "data_prep", "jobs") for p in (ROOT / folder).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                if name in ("print", "csv.writer", "csv.DictWriter", "get_console", "Console"):
                    found.setdefault(name, set()).add(str(path.relative_to(ROOT)))
    assert found == {
        "print": {"mhimdist/foreign_text.py", "mhimdist/process.py"},
        # The embedded and the classic sets have names of ours.
        "csv.writer": {"mhimdist/foreign_text.py", "data_prep/digits.py", "data_prep/classic.py"},
        "Console": {"mhimdist/report/sweep_tables.py", "mhimdist/report/text_table.py"},  # they measure
    }
