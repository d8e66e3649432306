"""The sections of every task in a real Chromium: all figures are drawn, and no text overlaps or is cut."""

from pathlib import Path

import pytest
from browser import CHROMIUM, NEEDED, look
from outcome_bags import GRADES, followed, graded, labelled, valued

from mhimdist.pages.tasks.multilabel import multilabel_sections
from mhimdist.pages.tasks.ordinal import ordinal_sections
from mhimdist.pages.tasks.regression import regression_sections
from mhimdist.pages.tasks.survival import survival_sections
from mhimdist.report import page

pytestmark = pytest.mark.long


@pytest.mark.skipif(CHROMIUM is None, reason=NEEDED)
def test_every_tasks_figures_are_drawn(tmp_path: Path) -> None:
    name = "MHIM (abmil), a long name of a configuration"
    sections = [
        *ordinal_sections({name: [graded()]}, GRADES),
        *regression_sections({name: [valued()]}, unit="points"),
        *multilabel_sections({name: [labelled()]}),
        *survival_sections({name: [followed(num_groups=3)]}, unit="months"),
    ]
    html = page.render(
        "report.html", title="tasks", kind="run", lead="all", banners=[], headline=[], sections=sections
    )
    (tmp_path / "page.html").write_text(html, encoding="utf-8")
    seen = look(tmp_path / "page.html", tmp_path)
    assert seen.places == seen.drawn == 1 + 2 + 3 + 4
    assert (seen.errors, seen.requests, seen.overlaps, seen.cut, seen.wide) == ([], [], [], [], 0)
