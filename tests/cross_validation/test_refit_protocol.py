"""A cross-validation under all three protocols, on a private Ray."""

import json

import numpy as np
import pytest
from small_runs import BASE

from mhimdist.comparison.compare import compare as compare_runs
from mhimdist.cross_validation import compare as compare_module
from mhimdist.cross_validation.compare import run_cross_validation
from mhimdist.cross_validation.options import CrossValidation
from mhimdist.data.shards import BagShards
from mhimdist.data.splits import Split
from mhimdist.distributed.fold_tasks import Queue
from mhimdist.errors import ComparisonError, CrossValidationError, SplitError
from mhimdist.prediction.members import find_members
from mhimdist.training.result import PAPER_WARNING, REFIT_NOTE, STRICT_NOTE

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("cluster")]


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    return CrossValidation(
        home=home, name="test", folds=2, inner_folds=2, seeds=(1,), protocol="all", train=BASE
    )


@pytest.fixture(scope="module")
def done(job, data):
    """A finished cross-validation: 2 configurations x 2 folds x 3 protocols, and 8 inner runs."""
    return run_cross_validation(job, data=data)


def test_all_protocols_test_on_the_same_bags_and_refit_trains_on_all_others(job, done, data):
    bags = BagShards(data)
    rows = {(row.name, row.protocol): row for row in done.rows}
    assert [row.protocol for row in done.rows] == ["strict", "strict", "paper", "paper", "refit", "refit"]
    for fold in range(2):
        keys = {tuple(row.results[fold].keys) for row in rows.values()}
        assert len(keys) == 1
        for name in ("MHIM (abmil)", "abmil"):
            result = rows[name, "refit"].results[fold]
            assert result.inner_runs == 2
            assert sorted([*result.validation_keys, *result.keys]) == sorted(bags.keys)
    splits = {path.stem: Split.load(path) for path in (job.folder / "splits").iterdir()}
    for fold in (1, 2):
        strict, paper, refit = (splits[f"{name}-seed-1-fold-{fold}"] for name in ("strict", "paper", "refit"))
        assert strict.whole() == paper.whole() == refit


def test_inner_runs_are_folds_next_to_the_others_and_none_was_tested(job, done):
    inner = sorted((job.folder / "inner").glob("fold-*-seed-1-*"))
    assert len(inner) == 8
    for folder in inner:
        result = json.loads((folder / "result.json").read_text())
        assert not result["keys"]
        assert not result["test"]
        assert (folder / "history.jsonl").exists()
        assert (folder / "best_student").is_dir()
    assert len(list((job.folder / "folds").glob("fold-*"))) == 12


def test_every_table_and_file_says_what_refit_is(job, done):
    text = " ".join((job.folder / "table.md").read_text().split())
    for fragment in (REFIT_NOTE, STRICT_NOTE, PAPER_WARNING, "With 2 inner folds.", "protocols side by side"):
        assert fragment in text
    body = json.loads((job.folder / "table.json").read_text())
    assert body["notes"]["refit"].startswith(REFIT_NOTE)
    assert [row["selects_on_test"] for row in body["rows"]] == [False, False, True, True, False, False]
    assert [row["inner_runs"] for row in body["rows"]] == [0, 0, 0, 0, 2, 2]
    page = (job.folder / "report.html").read_text()
    assert "mean curve of a fold&#39;s inner runs" in page
    assert REFIT_NOTE in page
    grid = next(grid for grid in done.grids() if grid.title.endswith("side by side"))
    assert list(grid.header[1:4]) == ["AUC, strict", "AUC, paper", "AUC, refit"]
    assert "30 under refit" in grid.caption
    (refit,) = {
        path.parent
        for path in job.folder.glob("folds/fold-1-*/result.json")
        if json.loads(path.read_text())["test"] == done.rows[5].results[0].test
        and json.loads(path.read_text())["protocol"] == "refit"
    }
    card = (refit / "model_card.md").read_text()
    assert REFIT_NOTE in card
    assert "held out by 2 inner runs" in card
    assert "from Youden's J on the training bags, each scored by the one of 2 inner runs" in card


def test_predict_and_compare_tell_the_protocols_apart(job, done):
    members = find_members([job.folder])
    assert {member.protocol for member in members} == {"strict"}
    refit = [
        path.parent
        for path in job.folder.glob("folds/*/result.json")
        if json.loads(path.read_text())["protocol"] == "refit"
        and "init_momentum" in (path.parent / "config.json").read_text()
    ]
    members = find_members(refit)
    assert {member.protocol for member in members} == {"refit"}
    assert all("2 inner runs" in member.threshold_from for member in members)
    assert sorted(len(member.seen) for member in members) == [29, 31]
    compared = compare_runs(job.folder, protocol="refit", num_resamples=100)
    assert "refit protocol" in compared.sentences[0]
    assert compared.warnings == []
    with pytest.raises(ComparisonError, match="holds no runs of the nested protocol, but of strict, paper"):
        compare_runs(job.folder, protocol="nested")


def test_finished_runs_are_only_read_and_a_lost_refit_needs_no_inner_run_again(job, done, data, capsys):
    before = {path: path.stat().st_mtime_ns for path in (job.folder / "inner").rglob("result.json")}
    lost = next(
        path
        for path in job.folder.glob("folds/*/result.json")
        if json.loads(path.read_text())["protocol"] == "refit"
    )
    lost.unlink()
    again = run_cross_validation(job, data=data)
    assert again.num_found == 11
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert [row.results for row in again.rows] == [row.results for row in done.rows]
    assert "12 runs, 11 of them finished before; 8 inner runs" in " ".join(capsys.readouterr().out.split())


def test_a_refit_waits_for_its_inner_runs_and_for_the_plain_one(job, data):
    planned = compare_module.FoldSet(job, job.candidates, job.home / "elsewhere" / "folds")
    bags = BagShards(data)
    (split, *_) = job.splits(bags, "refit", 1)
    planned.add(split, 1, 1, "refit", bags, job.inner_splits(bags, split, 1))
    queue = Queue(folds := planned.missing())
    names = {digest: fold.name for digest, fold in folds.items()}
    order = []
    while ready := list(queue.ready()):
        order.append(sorted(names[digest] for digest in ready))
        for digest in ready:
            queue.done(digest)
    masked, plain = "MHIM (abmil), refit, seed 1, fold 1", "abmil, refit, seed 1, fold 1"
    inner = [f", inner fold {number}" for number in (1, 2)]
    assert order == [
        [plain + each for each in inner],
        [*(masked + each for each in inner), plain],
        [masked],
    ]


def test_a_failed_inner_run_is_named_by_the_refit_that_needs_it(job, data):
    diverges = job.model_copy(
        update={
            "name": "diverges",
            "protocol": "refit",
            "run_folds": 1,
            "train": BASE.first_stage().override({"optimizer.learning_rate": 1e30}),
        }
    )
    with pytest.raises(
        CrossValidationError, match=r"refit, seed 1, fold 1: .*inner fold 1 failed: NonFinite"
    ):
        run_cross_validation(diverges, data=data)


def test_too_few_cases_for_the_inner_folds_are_refused_with_the_option(job, data):
    many = job.model_copy(update={"name": "many", "inner_folds": 15, "protocol": "refit"})
    with pytest.raises(SplitError, match=r"training fold \(--inner-folds\): class .* too few for 15 folds"):
        run_cross_validation(many, data=data)
    assert not (many.folder / "folds").exists()


def test_the_threshold_of_a_refit_is_that_of_the_inner_runs_at_the_chosen_epoch(job, done):
    for row in done.rows[4:]:
        for result in row.results:
            assert result.validation["threshold"] == result.test["threshold"]
            assert len(result.validation_curve) == 2
            assert result.num_epochs in (1, 2)
            assert np.isfinite(result.validation_curve).all()
