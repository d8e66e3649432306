"""No file, class or function is too long to be read at once, and few modules lie outside a package."""

import ast
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(
    path
    for folder in ("mhimdist", "data_prep", "jobs", "benchmarks", "tests")
    for path in (ROOT / folder).rglob("*.py")
)
MAX_LINES = 450
MAX_LINES_OF = {ast.FunctionDef: 70, ast.AsyncFunctionDef: 70, ast.ClassDef: 250}
MAX_MODULES = 6


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_too_long(path):
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_LINES
    if path.is_relative_to(ROOT / "tests"):
        return
    for node in ast.walk(ast.parse(text)):
        if limit := MAX_LINES_OF.get(type(node)):
            num_lines = node.end_lineno - node.lineno + 1
            assert num_lines <= limit, f"{node.name} has {num_lines} lines, and may have {limit}"


def test_the_package_is_a_tree_of_packages():
    found = {path.stem for path in (ROOT / "mhimdist").glob("*.py")}
    assert len(found - {"__main__"}) <= MAX_MODULES  # Python wants that one where it is
    names = [path.name for path in FILES]
    assert not {"utils.py", "util.py", "helpers.py", "common.py", "misc.py"} & set(names)


def test_test_files_have_names_of_their_own():
    """Pytest imports them by their names alone, because the folders of tests are no packages."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py")
    assert [name for name, count in names.items() if count > 1] == []
