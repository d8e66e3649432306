"""The table of figures by slide and by case, of every task."""

import json
from pathlib import Path

import pytest
from html_pages import Page
from page_folders import write_predictions
from task_bags import TASKS, config, paired

import mhimdist as mh
from mhimdist.report import formats
from mhimdist.training.fold import run_fold
from mhimdist.training.folds import Fold

pytestmark = pytest.mark.usefixtures("without_plotly")


def page_of(folder: Path) -> Page:
    return Page(mh.write_report(folder).read_text(encoding="utf-8"))


@pytest.mark.parametrize("key", ["corn", "multilabel", "regression", "nll", "cox"])
def test_every_task_has_its_figures_by_slide_beside_those_by_case(tmp_path: Path, key: str) -> None:
    bags = paired(TASKS[key][0])
    folder = tmp_path / "fold-1-seed-1"
    fold = Fold("it", config("abmil", key, epochs=1), bags.holdout(), 1, folder, is_tested=True)
    run_fold(fold, bags, tmp_path / "cache", 1)
    result, page = fold.ended_result(), page_of(folder)
    headings = result.meaning.headings
    head, *rows = page.rows["by-case"]
    assert head[2:] == list(headings.values())
    assert [row[1] for row in rows] == ["mean", "max"]
    for row in rows:
        of_cases = result.by_case[row[1]]
        assert row[2:] == [
            f"{formats.auc(result.test[name])} / {formats.auc(of_cases[name])}" for name in headings
        ]
    assert page.text.index("By case") < page.text.index("Every fold")


def test_cases_of_one_slide_have_no_figures_by_case(whole_run: Path, tmp_path: Path) -> None:
    assert "by-case" not in Page(mh.write_report(whole_run, tmp_path / "page.html").read_text()).rows


def test_predictions_have_both_with_their_intervals(tmp_path: Path) -> None:
    folder = write_predictions(tmp_path / "predicted")
    assert "by-case" not in page_of(folder).rows, "files of earlier releases do not say how"
    about = json.loads((folder / "prediction.json").read_text())
    about["how"] = "attention"
    about["metrics"] = {
        "slides": {"rows": 40, "auc": {"value": 0.75, "interval": [0.5, 1.0]}},
        "cases": {"rows": 19, "auc": {"value": None, "interval": None}},
    }
    (folder / "prediction.json").write_text(json.dumps(about))
    page = page_of(folder)
    assert page.rows["by-case"] == [
        ["", "known", "AUC"],
        ["slides", "40", "0.750\n0.500 to 1.000"],
        ["cases", "19", formats.NONE],
    ]
    assert "weighed by attention over all its slides" in page.text
