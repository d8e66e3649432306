"""A sweep of every task, all on one private Ray."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from html_pages import Page
from task_bags import TASKS, config, task_bags
from task_shards import shards_of

from mhimdist.report import formats
from mhimdist.search.options import Sweep
from mhimdist.search.space import Space
from mhimdist.sweep.run import run_sweep
from mhimdist.tasks import task_of

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def space(s: Space) -> None:
    s.uniform("masking.high.start", 0.05, 0.3)


@pytest.mark.parametrize(
    "key", [pytest.param(key, marks=() if key == "corn" else pytest.mark.long) for key in TASKS]
)
def test_a_sweep_searches_by_the_score_of_its_task_and_reports_its_figures(tmp_path: Path, key: str) -> None:
    bags = shards_of(task_bags(TASKS[key][0], num_bags=50), tmp_path)
    settings = config("abmil", key)
    meaning = task_of(bags, settings.task)
    options = {"num_trials": 2, "scheduler": "none", "warm_presets": False, "final_seeds": 1}
    folder = run_sweep(Sweep(home=tmp_path, name="it", train=settings, **options), space, data=bags.folder)

    score, scores = meaning.selection, []
    for history in sorted((folder / "trials").glob("*/fold-*/history.jsonl")):
        rows = [json.loads(line) for line in history.read_text().splitlines()]
        assert len(rows) == settings.epochs
        scores.append(max(row["student_validation_score"] for row in rows))
    assert len(scores) == 2
    found = json.loads((folder / "result.json").read_text())
    assert found[f"validation_{score}"] == pytest.approx(max(scores))
    finals = [json.loads(path.read_text()) for path in (folder / "final").glob("*/result.json")]
    assert len(finals) == 2, "the best configuration, and its network without masking"
    assert all(result["test"].keys() >= meaning.headings.keys() for result in finals)
    assert found[f"test_{score}"] in [result["test"][score] for result in finals]
    page = Page((folder / "report.html").read_text())
    for title in meaning.headings.values():
        assert title in page.text
    assert formats.auc(found[f"test_{score}"]) in page.text
