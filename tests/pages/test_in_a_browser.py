"""Every kind of page in a real Chromium: it draws all figures, asks for nothing, and no text overlaps."""

from collections.abc import Callable
from pathlib import Path

import pytest
from browser import CHROMIUM, NEEDED, look, print_pdf
from page_folders import HOSTILE, write_paper_tables, write_predictions, write_whole_run

import mhimdist as mh

pytestmark = [pytest.mark.long, pytest.mark.skipif(CHROMIUM is None, reason=NEEDED)]


@pytest.fixture
def pages(whole_run: Path, tmp_path: Path) -> Callable[[str], tuple[Path, int]]:
    """Writes a page of some kind; returns it and the number of its figures."""

    def write(kind: str) -> tuple[Path, int]:
        page = tmp_path / "page.html"
        if kind == "cross-validation":
            return mh.write_report(whole_run, page, temperature=True), 14
        if kind == "run":
            return mh.write_report(next((whole_run / "folds").glob("fold-2-seed-1-0*")), page), 10
        if kind == "final runs":
            sweep = write_whole_run(tmp_path / "sweep", holder="final", slides_a_case=2)
            found = mh.write_report(sweep)
            assert found == sweep / "final.html"
            return found, 14
        if kind == "hostile predictions":
            classes = ("normal", HOSTILE)
            return mh.write_report(write_predictions(tmp_path / "p", classes=classes, name=HOSTILE), page), 5
        if kind == "paper tables":
            return mh.write_report(write_paper_tables(tmp_path / "paper", HOSTILE), page), 6
        return mh.write_report(write_predictions(tmp_path / "p", classes=("a", "b", "c")), page), 6

    return write


@pytest.mark.parametrize(
    "kind",
    ["cross-validation", "run", "final runs", "paper tables", "predictions", "hostile predictions"],
)
def test_a_page_draws_everything_and_asks_for_nothing(
    pages: Callable[[str], tuple[Path, int]], kind: str, tmp_path: Path
) -> None:
    page, num_figures = pages(kind)
    (tmp_path / "browser").mkdir()
    seen = look(page, tmp_path / "browser", dark=kind == "run")
    assert not seen.errors
    assert not seen.requests
    assert (seen.places, seen.drawn) == (num_figures, num_figures)
    assert all(width > 300 and height > 80 for width, height in seen.sizes)
    assert not seen.overlaps
    assert not seen.cut
    assert seen.wide == 0


def test_a_page_that_fails_is_noticed(tmp_path: Path) -> None:
    """The test above can fail: a page with every fault shows each of them."""
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<!doctype html><html><head><title>bad</title></head><body>"
        '<script>missing()</script><img src="http://example.test/a.png">'
        '<div class="plot"></div><h2>one</h2><h2 style="margin-top:-40px">two</h2>'
        '<p style="width:2000px">wide</p></body></html>'
    )
    (tmp_path / "browser").mkdir()
    seen = look(bad, tmp_path / "browser")
    assert any("missing is not defined" in error for error in seen.errors)
    assert any("example.test" in request for request in seen.requests)
    assert (seen.places, seen.drawn) == (1, 0)
    assert ["one", "two"] in seen.overlaps
    assert seen.wide > 700


def test_a_page_prints(whole_run: Path, tmp_path: Path) -> None:
    page = mh.write_report(whole_run, tmp_path / "report.html")
    (tmp_path / "browser").mkdir()
    pdf = print_pdf(page, tmp_path / "browser")
    assert pdf.startswith(b"%PDF")
    assert pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") >= 4
