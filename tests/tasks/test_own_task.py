"""The task of docs/tasks.md, in one file of its own, does all that the others do."""

import re
from pathlib import Path

import numpy as np
import pytest
from html_pages import Page
from task_bags import MODELS, TaskBags, task_bags

import mhimdist as mh
from mhimdist.config.train import load_config
from mhimdist.data.targets import TaskInfo
from mhimdist.errors import ConfigError, SplitError
from mhimdist.report import formats
from mhimdist.training.fold import run_fold
from mhimdist.training.folds import Fold
from mhimdist.training.requirements import check_run
from mhimdist.training.student import load_student

PAGE = Path(__file__).parents[2] / "docs" / "tasks.md"


@pytest.fixture
def bags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TaskBags:
    """Counted cells; the module of the page is on the path."""
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(code.splitlines()) < 120
    (tmp_path / "cell_count.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    bags = task_bags("regression", num_bags=60)
    bags.task = TaskInfo(name="regression", columns=("cells",))
    bags.targets_NK = np.round(np.exp(bags.targets_NK[:, 1:] * 12))
    return bags


def _config(model: str):
    return load_config(
        {
            "model": {"name": model, **MODELS[model]},
            "task": {"name": "custom", "entry": "cell_count:CellCount"},
            "masking": {"high": 0.1, "random": 0.2},
            "teacher": {"kind": "init_momentum", "momentum": {"start": 0.9}},
            "optimizer": {"learning_rate": 1e-2},
            "epochs": 15,
            "device": "cpu",
        }
    )


@pytest.mark.parametrize("model", ["abmil", "dsmil"])
def test_the_task_of_the_page_trains_and_is_judged(bags: TaskBags, tmp_path: Path, model: str):
    fold = Fold("fold 1", _config(model), bags.holdout(), 1, tmp_path / "fold-1-seed-1", is_tested=True)
    run_fold(fold, bags, tmp_path / "cache", 1)
    result, student = fold.result(), load_student(fold.folder)
    assert student.task.columns == ("expected_cells",)
    assert student.task.learnt["log_mean"] == pytest.approx(
        [np.log(bags.targets_NK[bags.rows_of(fold.split.train)].mean())]
    )
    assert np.array(result.predictions).min() > 0
    assert result.validation["spearman"] == max(r.student_validation_score for r in fold.records())
    assert result.validation["spearman"] > 0.5
    assert "Spearman's r" in (fold.folder / "model_card.md").read_text()
    page = Page(mh.write_report(fold.folder).read_text())
    told = formats.auc(result.test["spearman"])
    assert page.rows["results-measures"][0][1:] == ["Spearman's r", "MAE (cells)"]
    assert page.rows["results-measures"][1][1].startswith(told)
    cells = bags.targets_NK[bags.rows_of(fold.split.test)].sum(), np.sum(result.predictions)
    assert page.rows["cells"][1][1:] == [f"{number:,.0f}" for number in cells]
    (sentence,) = mh.compare(fold.folder, fold.folder, num_resamples=100).sentences
    assert f"reached Spearman's r {told.removeprefix('0')}" in sentence
    with pytest.raises(
        ConfigError, match=r"got one for cell count, a class of your own \(cell_count:CellCount\)"
    ):
        mh.export_model(fold.folder, tmp_path / "export")


def test_what_the_page_refuses_is_refused_before_the_first_step(bags: TaskBags):
    bags.targets_NK[bags.rows_of(bags.holdout().train)[0]] = 2.5
    with pytest.raises(SplitError, match=r"the train set: expected counts of cells, got 2.5"):
        check_run(_config("abmil"), bags, bags.holdout())
