import io

import pytest
from rich.console import Console

from mhimdist.report.text_table import Grid

GRID = Grid(
    title="Numbers",
    header=["name", "AUC", "F1", "runs"],
    rows=[["a | b", "0.961 +- 0.005", "0.900 +- 0.010", "9"], ["second", "0.5", "-", "8 of 9"]],
    caption="What it is of.",
    optional=["F1", "runs"],
)


def _printed(width):
    out = io.StringIO()
    GRID.print(Console(file=out, width=width))
    return out.getvalue()


def test_markdown_is_a_table_of_equal_columns():
    title, _, *table, _, caption, _ = GRID.markdown().split("\n")
    assert (title, caption) == ("**Numbers**", "What it is of.")
    assert len({len(line) for line in table}) == 1
    assert table[1].count(":") == 3
    assert table[2].startswith(r"| a \| b |")


@pytest.mark.parametrize(("width", "hidden"), [(80, []), (40, ["F1"]), (28, ["F1", "runs"])])
def test_a_narrow_terminal_leaves_columns_out_and_says_so(width, hidden):
    text = _printed(width)
    assert max(map(len, text.splitlines())) <= width
    assert "0.961 +- 0.005" in text
    said = " ".join(text.split())
    assert (f"The files also have: {', '.join(hidden)}." in said) == bool(hidden)
    assert ("8 of 9" in text) == ("runs" not in hidden)
