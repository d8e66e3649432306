"""`make site` makes one site of all pages, offline, without a warning."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = re.compile(r'<(?:script|img|iframe|source)\b[^>]*\bsrc="([^"]*)"|<link\b[^>]*\bhref="([^"]*)"')


def test_every_page_of_docs_stands_in_the_contents():
    contents = (ROOT / "docs/index.md").read_text()
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")} - {"index"}
    assert pages <= set(re.findall(r"^(\w+)$", contents, flags=re.MULTILINE))


@pytest.mark.slow  # .ci/run makes the site, too
def test_the_site_has_every_page_and_fetches_nothing(tmp_path):
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-c",
        "docs",
        "-b",
        "html",
        "-n",
        "-W",
        "-q",
        ".",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    made = {page.relative_to(tmp_path).as_posix() for page in tmp_path.rglob("*.html")}
    assert made >= {f"docs/{page.stem}.html" for page in (ROOT / "docs").glob("*.md")}
    assert made >= {"index.html", "README.html", "benchmarks/RESULTS.html", "data_prep/DATA_CARD.html"}
    for name in made:
        found = SOURCES.findall((tmp_path / name).read_text())
        assert found or name == "index.html"
        outside = [each for pair in found for each in pair if each.startswith(("http:", "https:", "//"))]
        assert not outside, (name, outside)
