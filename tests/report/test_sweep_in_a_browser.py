"""The page of a sweep in a real Chromium."""

from collections.abc import Callable
from pathlib import Path

import pytest
from browser import CHROMIUM, NEEDED, look

from mhimdist.report.summary import SweepSummary
from mhimdist.report.sweep_page import write_sweep_report

pytestmark = pytest.mark.long


@pytest.mark.skipif(CHROMIUM is None, reason=NEEDED)
def test_the_page_draws_everything_and_asks_for_nothing(
    make_sweep: Callable[..., SweepSummary], tmp_path: Path
) -> None:
    write_sweep_report(make_sweep(), tmp_path / "report.html")
    (tmp_path / "browser").mkdir()
    seen = look(tmp_path / "report.html", tmp_path / "browser")
    assert (seen.errors, seen.requests, seen.overlaps, seen.wide) == ([], [], [], 0)
    assert seen.drawn == seen.places > 5
