"""Cross-validations of slides and of cases: what their tables and pages say."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from case_shards import case_shards

from mhimdist.config.presets import preset
from mhimdist.cross_validation.compare import run_cross_validation
from mhimdist.cross_validation.options import CrossValidation
from mhimdist.report.comparison import Comparison
from mhimdist.statistics import metrics
from mhimdist.tasks import Judged
from mhimdist.tasks.cases import by_case, case_metrics

BASE = preset("c16", "abmil").override(
    {
        "model.hidden_dim": 8,
        "model.attention_dim": 4,
        "epochs": 1,
        "device": "cpu",
        "teacher.kind": "momentum",
    }
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return case_shards(tmp_path_factory.mktemp("data"))[0]


@pytest.fixture
def cross_validate(
    in_this_process: None, tmp_path: Path, data: Path
) -> Callable[..., tuple[CrossValidation, Comparison]]:
    def run(**options):
        job = CrossValidation(home=tmp_path, seeds=(1,), folds=2, validation_share=0.4, **options)
        return job, run_cross_validation(job, data=data)

    return run


def words(path: Path) -> str:
    return " ".join(path.read_text(encoding="utf-8").split())


def test_figures_by_slide_and_by_case_stand_side_by_side(cross_validate) -> None:
    job, comparison = cross_validate(name="slides", train=BASE)
    row = comparison.rows[0]
    for result in row.results:
        scores = result.validation_scores
        selecting = Judged(
            scores.labels_N, np.zeros((len(scores.cases), 0)), scores.probabilities_NC, scores.cases
        )
        assert result.by_case == case_metrics(result.meaning, [selecting], result.judged)
        for how in ("mean", "max"):
            cases = by_case(result.meaning, result.judged, how)
            assert len(cases) == len(set(result.cases)) == result.by_case[how]["cases"]
            threshold = result.by_case[how]["threshold"]
            expected = metrics.classification(cases.labels_N, cases.predictions_NP, threshold)
            assert {name: result.by_case[how][name] for name in expected} == expected
    table = words(job.folder / "table.md")
    assert "case AUC, mean" in table
    assert "case AUC, max" in table
    assert "a case has the mean, or the largest, of its slides' predictions" in table
    record = json.loads((job.folder / "table.json").read_text())["rows"][0]
    aucs = [result.by_case["mean"]["auc"] for result in row.results]
    assert record["auc_case_mean"] == pytest.approx(np.mean(aucs))
    (line, *_) = csv.DictReader((job.folder / "table.csv").read_text().splitlines())
    assert float(line["auc_case_max"]) == pytest.approx(record["auc_case_max"])
    page = words(job.folder / "report.html")
    assert "By case" in page


def test_bags_of_cases_and_samples_are_told_everywhere(cross_validate) -> None:
    train = BASE.override({"instances_per_bag": 8, "evaluation_samples": 2})
    job, comparison = cross_validate(name="cases", train=train, bag_of="case")
    assert (comparison.num_bags, comparison.num_cases) == (12, 12)
    assert not any(row.has_cases for row in comparison.rows)
    told = (
        "a bag is all slides of a case (bag_of case), so that all figures are by case",
        "trained on 8 instances a bag, drawn anew in each epoch; evaluated by the mean of 2 samples",
    )
    card = words(job.folder / "model_card.md")
    places = {
        "table.md": words(job.folder / "table.md"),
        "table.json": words(job.folder / "table.json"),
        "report.html": words(job.folder / "report.html"),
        "model_card.md": card,
    }
    for name, text in places.items():
        for each in told:
            assert each in text.replace("\\", "").replace("A bag", "a bag"), (name, each)
    assert "12 bags of 12 cases" in places["table.md"]
    # The same command finds its runs; with slides as bags they are others.
    assert run_again(cross_validate, "cases", train, "case") == len(list((job.folder / "folds").iterdir()))
    assert run_again(cross_validate, "cases", train, "slide") == 0


def run_again(cross_validate, name: str, train, bag_of: str) -> int:
    return cross_validate(name=name, train=train, bag_of=bag_of)[1].num_found
