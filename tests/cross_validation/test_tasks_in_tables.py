"""Cross-validations of every task under every protocol: what their tables, files and pages say."""

import csv
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from html_pages import Page
from task_bags import TASKS, config, task_bags
from task_shards import GRADES, shards_of

from mhimdist.config.train import TrainConfig
from mhimdist.cross_validation.compare import run_cross_validation
from mhimdist.cross_validation.options import CrossValidation
from mhimdist.errors import ConfigError, SplitError
from mhimdist.paper import ablation
from mhimdist.paper.ablation import run_ablation
from mhimdist.paper.options import Ablation
from mhimdist.tasks import task_of

pytestmark = pytest.mark.usefixtures("in_this_process")
PROTOCOLS = ("strict", "paper", "refit")
LONG = [pytest.param(key, marks=pytest.mark.long) for key in ("multilabel", "regression", "cox")]


@pytest.mark.parametrize("key", ["corn", "nll", *LONG])
def test_all_protocols_of_a_task_stand_side_by_side(tmp_path: Path, key: str, capsys) -> None:
    bags = shards_of(task_bags(TASKS[key][0], num_bags=60), tmp_path)
    settings = config("abmil", key, epochs=1)
    job = CrossValidation(
        home=tmp_path, name="it", train=settings, protocol="all", folds=2, inner_folds=2, seeds=(1,)
    )
    comparison = run_cross_validation(job, data=bags.folder)
    task = task_of(bags, settings.task)
    assert [row.protocol for row in comparison.rows] == [each for each in PROTOCOLS for _ in range(2)]
    assert all(len(row.results) == 2 for row in comparison.rows)
    text = " ".join((job.folder / "table.md").read_text().split())
    page = Page((job.folder / "report.html").read_text())
    shown = capsys.readouterr().out
    for title in task.headings.values():
        assert title in text
        assert title in shown
        assert title in page.text
    with (job.folder / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row, line in zip(comparison.rows, rows, strict=True):
        for metric in task.headings:
            values = [result.test[metric] for result in row.results]
            assert None not in values
            assert float(line[metric]) == pytest.approx(sum(values) / 2)
    assert "means over the classes" not in text


def test_a_missing_grade_is_said_without_the_metrics_of_classes(tmp_path: Path) -> None:
    source = task_bags("ordinal", num_bags=60)
    source.labels_N[source.labels_N == 2] = 1
    source.labels_N[:2] = 2  # two patients of the highest grade: one trains and one tests
    bags = shards_of(source, tmp_path)
    train = config("abmil", "corn", epochs=1)
    job = CrossValidation(
        home=tmp_path, name="it", train=train, test_share=0.3, validation_share=0.2, seeds=(1,)
    )
    run_cross_validation(job, data=bags.folder)
    text = " ".join((job.folder / "table.md").read_text().split())
    assert f"no case of {GRADES[2]} in validation of fold 1: the figures there do not say how" in text
    assert "AUC" not in text


def test_an_official_split_of_followed_patients_needs_no_stratum_in_every_set(tmp_path: Path) -> None:
    bags = shards_of(task_bags("survival", num_bags=120), tmp_path)
    last = max(row for row, name in enumerate(bags.classes) if name.startswith("event"))
    assert last > 0, "other patients have events, too"
    train, rest = np.flatnonzero(bags.labels_N != last), np.flatnonzero(bags.labels_N == last)
    path = tmp_path / "split.csv"

    def split(**rows: np.ndarray) -> CrossValidation:
        lines = [f"{bags.slides[row]},{name}" for name, each in rows.items() for row in each]
        path.write_text("\n".join(["slide,set", *lines]))
        settings = config("abmil", "nll", epochs=1)
        return CrossValidation(home=tmp_path, name="it", train=settings, split_file=path, seeds=(1,))

    events = bags.targets_NK[:, 1] == 1
    mixed = np.flatnonzero(events[train])[:6], np.flatnonzero(~events[train])[:3]
    validation = train[np.concatenate(mixed)]
    train = np.setdiff1d(train, validation)
    comparison = run_cross_validation(split(train=train, validation=validation, test=rest), data=bags.folder)
    (result, _) = (row.results[0] for row in comparison.rows)
    assert result.test["harrell_c"] is not None
    censored = np.flatnonzero(~events)
    job = split(train=censored[:9], validation=censored[9:], test=np.flatnonzero(events))
    with pytest.raises(SplitError, match=r"the train set: no event among .* all are censored"):
        run_cross_validation(job.model_copy(update={"name": "other"}), data=bags.folder)


def test_the_papers_tables_of_another_task_have_its_measures(tmp_path: Path, monkeypatch) -> None:
    bags = shards_of(task_bags("survival", num_bags=60), tmp_path)
    monkeypatch.setattr(ablation, "measure_costs", lambda *args, **kwargs: {})

    def base(model: str) -> TrainConfig:
        return config(model, "nll", epochs=1)

    arguments = ["--name", "it", "--tables", "1,4", "--seeds", "1", "--home", str(tmp_path)]
    job = partial(Ablation.from_job, quick={}, name="it", data="it", folds=2, validation_share=0.2)
    with pytest.raises(ConfigError, match="clam"):
        run_ablation(job(arguments=arguments), base, data=bags.folder)
    without = [*arguments, "--without", "clam_sb,clam_mb,transmil,dtfd,dsmil"]
    run_ablation(job(arguments=without), base, data=bags.folder)
    folder = next((tmp_path / "runs").glob("*/tables.md")).parent
    text = " ".join((folder / "tables.md").read_text().split())
    assert "| Method | C-index | Uno's C | AUC over time | Brier (IBS) |" in " ".join(
        " ".join(line.split()) for line in (folder / "tables.md").read_text().splitlines()
    )
    assert "C-index. All runs" in text
    assert "per cent" not in text
    cells = json.loads((folder / "tables.json").read_text())["cells"]
    row = next(cell for cell in cells if cell["row"] == "Max-pooling")
    assert f"| {row['harrell_c']:.3f} +- " in text
