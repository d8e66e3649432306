"""Sweeps inside outer folds, and the refit of what they choose, in this process and on a private Ray."""

import html
import json
from contextlib import nullcontext

import pytest
import ray
from small_runs import BASE, small_digits

from mhimdist.comparison.compare import compare
from mhimdist.cross_validation.folds import FoldSet
from mhimdist.cross_validation.options import Candidate
from mhimdist.data.shards import BagShards
from mhimdist.data.splits import Split
from mhimdist.errors import SplitError, SweepError
from mhimdist.report.comparison import PAPER_WARNING
from mhimdist.report.summary import Trial
from mhimdist.search.options import Sweep
from mhimdist.search.space import Space
from mhimdist.sweep import untuned
from mhimdist.sweep.finals import PLAIN, Finished, _add_refits
from mhimdist.sweep.folder import SweepFolder
from mhimdist.sweep.nested import run_nested
from mhimdist.sweep.run import run_sweep
from mhimdist.sweep.task import Task
from mhimdist.training.fold import run_fold
from mhimdist.training.result import NESTED_NOTE

pytestmark = pytest.mark.long


def space(s: Space) -> None:
    s.uniform("masking.high.start", 0.005, 0.2, log=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_digits(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return Sweep(
        home=tmp_path_factory.mktemp("home"),
        name="it",
        protocol="nested",
        num_trials=2,
        folds=2,
        outer_folds=2,
        final_seeds=2,
        scheduler="none",
        warm_presets=False,
        train=BASE,
    )


@pytest.fixture(scope="module")
def cluster():
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def _searching(data, bags):
    """A sweep inside an outer fold with one trial, the base, whose runs train in this process."""

    def search(inside, splits, number, finals):
        own, stages = SweepFolder(inside, finals), inside.first_stages
        task = Task(inside, splits, data, own.path / "trials", own.stop_file, outer=number)
        for each, split in enumerate(splits, 1):
            own.path.mkdir(parents=True, exist_ok=True)
            split.save(own.path / f"split-{each}.json")
        folds = own.folds(0, BASE, splits)
        for fold in folds:
            run_fold(fold, bags, stages, 1)
        # Named as in a sweep that chooses among encoders.
        candidates = [Candidate("trial 0, uni", BASE), Candidate(PLAIN, BASE.first_stage())]
        planned = FoldSet(inside, candidates, own.finals)
        _add_refits(planned, candidates, task, own, bags)
        for fold in planned.missing().values():
            run_fold(fold, bags, stages, 1)
        value = sum(fold.result().validation["auc"] for fold in folds) / len(folds)
        best = Trial(0, "complete", value, {"masking.high.start": 0.01}, [], 1.0)
        tuned, plain = (
            [planned.folds[digest].ended_result() for digest in planned.members[each.name, "nested"]]
            for each in candidates
        )
        return Finished(own.path, best, tuned, plain)

    return search


@pytest.fixture(scope="module")
def folder(data, sweep):
    """The folder of a nested sweep with one trial per outer fold, whose runs train in this process."""
    alone, bags = sweep.model_copy(update={"name": "in-process"}), BagShards(data)
    return run_nested(alone, bags, _searching(data, bags), data)


@pytest.fixture(scope="module")
def everything(data, sweep):
    """The same under all protocols, and the names of the folds that were trained beside the sweeps."""
    every = sweep.model_copy(update={"name": "everything", "protocol": "all"})
    bags, trained = BagShards(data), []

    def run_folds(execution, folds, data, stopping):
        for fold in sorted(folds.values(), key=lambda fold: (not fold.is_inner, not fold.is_plain)):
            trained.append(fold.name)
            run_fold(fold, bags, execution.first_stages, 1)
        return {digest: fold.ended_result() for digest, fold in folds.items()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(untuned, "run_folds", run_folds)
        patch.setattr(untuned, "stoppable", lambda execution: nullcontext())
        yield run_nested(every, bags, _searching(data, bags), data), trained


@pytest.fixture(scope="module")
def by_ray(data, sweep, cluster):
    """The folder of a finished nested sweep: 2 outer folds x 2 trials x 2 inner folds, then 8 refits."""
    return run_sweep(sweep, space, data=data)


def _check_cases(folder, data):
    bags = BagShards(data)
    case_of = dict(zip(bags.keys, bags.cases, strict=True))
    tested = []
    for number in (1, 2):
        inside = folder / f"outer-{number}"
        splits = [Split.load(path) for path in sorted(inside.glob("split-*.json"))]
        assert len(splits) == 2
        test = {case_of[key] for key in splits[0].test}
        tested.extend(test)
        for path in inside.glob("trials/*/fold-*/split.json"):
            split = Split.load(path)
            assert not test & {case_of[key] for key in (*split.train, *split.validation)}
            assert not json.loads((path.parent / "result.json").read_text())["keys"]
        refits = [path.parent for path in folder.glob(f"folds/fold-{number}-*/split.json")]
        assert len(refits) == 4  # the best configuration and its plain network, with two seeds each
        for refit in refits:
            split, result = Split.load(refit / "split.json"), json.loads((refit / "result.json").read_text())
            assert (set(split.train), split.validation) == (set(splits[0].train) | set(splits[1].train), ())
            assert set(result["keys"]) == set(splits[0].test)
            assert (result["protocol"], result["inner_runs"]) == ("nested", 2)
            assert sorted(result["validation_keys"]) == sorted(split.train)
    assert sorted(tested) == sorted(set(bags.cases))


def _check_choice(folder):
    outer = json.loads((folder / "result.json").read_text())["outer"]
    for number, chosen in enumerate(outer, 1):
        trial = folder / f"outer-{number}" / "trials" / f"{chosen['trial']:04d}"
        histories = [
            [json.loads(line)["student_validation_score"] for line in path.read_text().splitlines()]
            for path in sorted(trial.glob("fold-*/history.jsonl"))
        ]
        curve = [sum(scores) / 2 for scores in zip(*histories, strict=True)]
        of_fold = [
            json.loads((path.parent / "result.json").read_text())
            for path in folder.glob(f"folds/fold-{number}-*/config.json")
            if "init_momentum" in path.read_text()
        ]
        assert len(of_fold) == 2
        for result in of_fold:
            assert result["validation_curve"] == pytest.approx(curve)
            assert result["num_epochs"] == chosen["num_epochs"]


def _check_report(folder):
    result = json.loads((folder / "result.json").read_text())
    assert result["test_auc_low"] <= result["test_auc"] <= result["test_auc_high"]
    table = json.loads((folder / "table.json").read_text())
    assert [row["name"] for row in table["rows"]] == ["tuned MHIM (abmil)", "tuned abmil, without masking"]
    assert [row["runs"] for row in table["rows"]] == [4, 4]
    assert table["rows"][0]["auc"] == result["test_auc"]
    text = " ".join((folder / "table.md").read_text().split())
    for fragment in (
        NESTED_NOTE,
        "With 2 inner folds.",
        "what each outer fold's search chose",
        "nested protocol",
    ):
        assert fragment in text
    page = (folder / "report.html").read_text()
    assert NESTED_NOTE in page
    assert "Each outer fold has its own settings" in page
    compared = compare(folder, num_resamples=100)
    assert "nested protocol" in compared.sentences[0]


def test_no_search_sees_the_cases_that_test_what_it_chose(folder, data):
    _check_cases(folder, data)


def test_a_winner_is_refitted_by_the_folds_of_its_own_trial(folder):
    _check_choice(folder)


def test_one_report_has_the_outer_mean_its_interval_and_what_each_fold_chose(folder):
    _check_report(folder)


def test_all_protocols_stand_beside_what_the_search_chose_on_the_same_cases(everything):
    folder, _ = everything
    table = json.loads((folder / "table.json").read_text())
    rows = [(row["name"], row["protocol"], row["runs"]) for row in table["rows"]]
    assert rows == [
        ("tuned MHIM (abmil)", "nested", 4),
        ("tuned abmil, without masking", "nested", 4),
        *((name, each, 4) for name in ("MHIM (abmil)", "abmil") for each in ("strict", "paper", "refit")),
    ]
    tested = {
        row["protocol"]: sorted((r["fold"], r["seed"]) for r in row["results"]) for row in table["rows"][:5]
    }
    assert tested["strict"] == tested["paper"] == tested["refit"] == tested["nested"]
    text = " ".join((folder / "table.md").read_text().split())
    for fragment in ("protocols side by side", "inflation, paper minus strict", NESTED_NOTE, PAPER_WARNING):
        assert fragment in text
    assert "--paper-validation-share" not in text  # no option of a sweep
    for number in (1, 2):
        tests = {
            (result["protocol"], tuple(sorted(result["keys"])))
            for path in folder.glob(f"folds/fold-{number}-*/result.json")
            if (result := json.loads(path.read_text()))
        }
        assert {protocol for protocol, _ in tests} == {"strict", "paper", "refit", "nested"}
        assert len({keys for _, keys in tests}) == 1
    assert PAPER_WARNING in html.unescape((folder / "report.html").read_text())


def test_inner_runs_of_the_base_are_those_of_its_trial(everything):
    folder, trained = everything
    assert not [name for name in trained if "inner" in name]
    results = {
        result["protocol"]: result
        for path in sorted(folder.glob("folds/fold-1-*/config.json"))
        if "init_momentum" in path.read_text()
        and (result := json.loads((path.parent / "result.json").read_text()))["seed"] == BASE.seed + 1
    }
    # The search had one trial, the base: what it chose is what refit has been given.
    assert results["refit"]["test"] == results["nested"]["test"]
    assert results["refit"]["validation_curve"] == results["nested"]["validation_curve"]
    assert results["refit"]["inner_runs"] == 2


def test_what_the_search_gained_is_tested(everything):
    folder, _ = everything
    text = " ".join((folder / "table.md").read_text().replace("\\", "").split())
    sentence = json.loads((folder / "gain.json").read_text())["pairs"][0]["sentence"]
    assert sentence in text
    assert "nested and refit protocols" in sentence
    assert "tuned MHIM (abmil) reached AUC" in sentence
    assert "difference .000" in sentence  # see above
    untuned_rows = json.loads((folder / "result.json").read_text())["untuned"]
    assert len(untuned_rows) == 6


@pytest.mark.slow
@pytest.mark.ray
def test_ray_tunes_inside_each_outer_fold(by_ray, data):
    _check_cases(by_ray, data)
    _check_choice(by_ray)
    _check_report(by_ray)
    inside = (by_ray / "outer-1" / "report.html").read_text()
    assert "Each run trained on all cases that do not test" in inside
    assert len(list((by_ray / "outer-1" / "trials").glob("*"))) == 2


@pytest.mark.slow
@pytest.mark.ray
def test_the_same_command_finds_a_finished_one_and_changes_nothing(by_ray, data, sweep):
    folder = by_ray
    names = ("table.csv", "result.json")
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/*/*/result.json")}
    texts = [(folder / name).read_text() for name in names]
    assert run_sweep(sweep, space, data=data) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/*/*/result.json")} == before
    assert [(folder / name).read_text() for name in names] == texts


@pytest.mark.slow
@pytest.mark.ray
def test_all_protocols_may_be_asked_for_later(by_ray, data, sweep):
    trials = {path: path.stat().st_mtime_ns for path in by_ray.glob("outer-*/trials/*/*/result.json")}
    finals = {path: path.stat().st_mtime_ns for path in by_ray.glob("folds/*/result.json")}
    assert run_sweep(sweep.model_copy(update={"protocol": "all"}), space, data=data) == by_ray
    assert {path: path.stat().st_mtime_ns for path in (*trials, *finals)} == trials | finals
    rows = json.loads((by_ray / "table.json").read_text())["rows"]
    assert [(row["protocol"], row["runs"]) for row in rows] == [
        *([("nested", 4)] * 2),
        *([("strict", 4), ("paper", 4), ("refit", 4)] * 2),
    ]
    # What is new are strict, paper and refit of two configurations, on two folds with two seeds.
    assert len(list(by_ray.glob("folds/*/result.json"))) == len(finals) + 24


@pytest.mark.slow
@pytest.mark.ray
def test_a_sweep_can_be_refitted_without_outer_folds(cluster, data, sweep):
    alone = sweep.model_copy(update={"name": "alone", "protocol": "refit", "num_trials": 1, "final_seeds": 1})
    path = run_sweep(alone, space, data=data)
    results = [json.loads(file.read_text()) for file in (path / "final").glob("*/result.json")]
    assert {result["protocol"] for result in results} == {"refit"}
    assert len(results) == 2
    split = Split.load(next((path / "final").glob("*/split.json")))
    assert split == Split.load(path / "split-1.json").whole()


def test_options_that_cannot_be_nested_are_refused(tmp_path):
    with pytest.raises(ValueError, match="give two or more by folds, such as --folds 5"):
        Sweep(home=tmp_path, protocol="nested")
    with pytest.raises(ValueError, match="set final_top to 1"):
        Sweep(home=tmp_path, protocol="nested", folds=2, final_top=2)


def test_a_folder_of_another_sweep_and_too_few_cases_are_refused_before_anything_runs(data, sweep, tmp_path):
    bags = BagShards(data)

    def search(*_):
        raise AssertionError("nothing must run")

    many = sweep.model_copy(update={"home": tmp_path, "folds": 15})
    with pytest.raises(SplitError, match=r"inner folds of outer fold 1 \(--folds\): class .* too few"):
        run_nested(many, bags, search, data)
    other = sweep.model_copy(update={"home": tmp_path, "name": "other"})
    other.folder.mkdir(parents=True)
    (other.folder / "sweep.json").write_text("{}")
    with pytest.raises(SweepError, match="holds a sweep that is not nested"):
        run_nested(other, bags, search, data)
    few = sweep.model_copy(update={"home": tmp_path, "protocol": "all", "validation_share": 0.99})
    with pytest.raises(SplitError, match=r"validation cases of the outer folds \(--validation-share\): "):
        run_nested(few, bags, search, data)
