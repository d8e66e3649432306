"""A real cross-validation on a private Ray; other files test its parts."""

import csv
import json
import re
import threading
import time
from dataclasses import asdict

import pytest
import torch
from pydantic import ValidationError
from small_runs import BASE

from mhimdist.config.presets import preset
from mhimdist.config.train import TrainConfig
from mhimdist.cross_validation import compare as compare_module
from mhimdist.cross_validation import folds as folds_module
from mhimdist.cross_validation.compare import compare, run_cross_validation
from mhimdist.cross_validation.options import Candidate, CrossValidation, Experiment
from mhimdist.data.shards import BagShards
from mhimdist.data.splits import Split
from mhimdist.distributed import fold_tasks
from mhimdist.errors import ConfigError, CrossValidationError, PreemptedError, RunLockedError
from mhimdist.models import build
from mhimdist.paper import costs
from mhimdist.paper.costs import measure_costs
from mhimdist.report.comparison import PAPER_WARNING, STRICT_NOTE
from mhimdist.run_files.read import read_job
from mhimdist.training import first_stage
from mhimdist.training.model_card import escaped
from mhimdist.training.result import OUTSIDE_WEIGHTS

pytestmark = pytest.mark.usefixtures("cluster")
DIVERGES = BASE.override({"optimizer.learning_rate": 1e30})


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    return CrossValidation(home=home, name="test", folds=2, seeds=(1,), protocol="both", train=BASE)


@pytest.fixture(scope="module")
def done(job, data):
    """A finished cross-validation: 2 configurations x 2 folds x 2 protocols."""
    return run_cross_validation(job, data=data)


def test_a_protocol_of_sweeps_is_refused_with_the_command_that_has_it():
    with pytest.raises(ValidationError, match=r"use `mhimdist tune --protocol nested`"):
        CrossValidation(protocol="nested")


def test_it_leaves_the_file_that_repeats_it(job, done):
    assert read_job("cross-validate", job.folder / "repeat.yaml").options == job


def test_every_fold_is_tested_under_both_protocols(job, done, data):
    bags = BagShards(data)
    assert [(row.name, row.protocol, len(row.results)) for row in done.rows] == [
        ("MHIM (abmil)", "strict", 2),
        ("abmil", "strict", 2),
        ("MHIM (abmil)", "paper", 2),
        ("abmil", "paper", 2),
    ]
    for row in done.rows:
        assert sorted(key for result in row.results for key in result.keys) == sorted(bags.keys)
    strict, paper = done.rows[0].results[0], done.rows[2].results[0]
    assert list(strict.keys) == list(paper.keys)
    splits = {path.stem: Split.load(path) for path in (job.folder / "splits").iterdir()}
    assert {name: split.selects_on_test for name, split in splits.items()} == {
        f"{protocol}-seed-1-fold-{fold}": protocol == "paper"
        for protocol in ("strict", "paper")
        for fold in (1, 2)
    }
    for split in splits.values():
        split.check(bags.keys, bags.cases, bags.labels_N)


def test_the_tables_are_files_that_state_the_protocol(job, done):
    rows = list(csv.DictReader((job.folder / "table.csv").read_text().splitlines()))
    assert [row["protocol"] for row in rows] == ["strict", "strict", "paper", "paper"]
    body = json.loads((job.folder / "table.json").read_text())
    assert body["warning"] == PAPER_WARNING
    assert float(rows[0]["auc"]) == body["rows"][0]["auc"] == done.rows[0].spread("auc")[0]
    text = " ".join((job.folder / "table.md").read_text().split())
    for fragment in ("2-fold by case, 1 seed (1)", "inflation, paper minus strict", "PAPER PROTOCOL"):
        assert fragment in text


def test_the_model_card_is_of_the_first_configuration_under_the_strict_protocol(job, done):
    text = (job.folder / "model_card.md").read_text()
    assert "# Model card: test, MHIM (abmil), strict\n" in text
    assert STRICT_NOTE in text
    assert PAPER_WARNING not in text
    assert "ensemble of 2 networks" in text
    for result in done.rows[0].results:
        (folder,) = {
            path.parent
            for path in job.folder.glob(f"folds/fold-{result.fold}-seed-1-*/result.json")
            if json.loads(path.read_text())["test"] == result.test
            and json.loads(path.read_text())["split_digest"] == result.split_digest
            and json.loads(path.read_text())["config_digest"] == result.config_digest
        }
        assert escaped(folder.name) in text
        own = (folder / "model_card.md").read_text()
        assert f"test | {result.test['auc']:.3f} |" in own
        assert "data set: digits-c16\n- synthetic: no" in own
        assert "Its maker describes it: " in own


def test_finished_folds_are_only_read_and_a_lost_one_is_made_again(job, done, data, capsys):
    files = {path: path.stat().st_mtime_ns for path in job.folder.glob("folds/*/result.json")}
    assert len(files) == 8
    lost = next(iter(files))
    lost.unlink()
    again = compare(job, job.candidates, data=data)
    assert again.num_found == 7
    assert "8 runs, 7 of them finished before" in " ".join(capsys.readouterr().out.split())
    assert {p for p, t in files.items() if p.stat().st_mtime_ns != t} == {lost}
    assert [row.spread("auc") for row in again.rows] == [row.spread("auc") for row in done.rows]


def test_identical_configurations_run_once_and_failures_are_named(job, data, capsys):
    experiment = Experiment(home=job.home, name="failing", folds=2, run_folds=1, seeds=(1,))
    candidates = [
        Candidate("good", BASE.first_stage()),
        Candidate("the same", BASE.first_stage().override({"seed": 77})),
        Candidate("bad", DIVERGES.first_stage()),
        Candidate("needs bad", DIVERGES),
    ]
    comparison = compare(experiment, candidates, data=data)
    good, same, bad, needs_bad = comparison.rows
    assert good.results == same.results
    assert len(list((experiment.folder / "folds").iterdir())) == 3
    assert bad.num_runs == needs_bad.num_runs == "0 of 1"
    (reason,) = bad.failures.values()
    assert reason.startswith("NonFiniteError: the loss became")
    printed = capsys.readouterr().out
    assert len(re.findall(r"^\[\d/3\] ", printed, re.MULTILINE)) == 3
    assert "bad, strict, seed 1, fold 1: FAILED NonFiniteError" in printed
    assert len(list(experiment.folder.glob("folds/*/error.txt"))) == 2
    with pytest.raises(
        CrossValidationError, match=r"2 runs of failing failed.* bad, strict, seed 1, fold 1: "
    ):
        compare_module.raise_failures(comparison, experiment.folder)


@pytest.mark.long
@pytest.mark.faults(33)
def test_a_process_that_dies_is_a_failure_of_its_fold_alone(job, data, monkeypatch):
    experiment = Experiment(home=job.home, name="dying", folds=2, seeds=(1,))

    task = fold_tasks._task

    def dies_on_fold_1(fold, *given):
        import os

        if fold.fold == 1:
            os._exit(1)
        return task(fold, *given)

    monkeypatch.setattr(fold_tasks, "_task", dies_on_fold_1)
    comparison = compare(experiment, [Candidate("plain", BASE.first_stage())], data=data)
    (row,) = comparison.rows
    assert [result.fold for result in row.results] == [2]
    assert list(row.failures) == ["plain, strict, seed 1, fold 1"]
    assert row.failures["plain, strict, seed 1, fold 1"].startswith("its process was lost")


@pytest.mark.long
def test_a_stop_file_by_hand_saves_the_runs_and_the_same_call_resumes_them(job, data):
    experiment = Experiment(home=job.home, name="by_hand", folds=2, seeds=(1,))
    candidate = Candidate("plain", BASE.first_stage().override({"epochs": 400}))
    stop = experiment.folder / "stop"

    def once_it_trains() -> None:
        while not list((job.home / "cache").glob("first_stage/*.run/history.jsonl")):
            time.sleep(0.01)
        stop.touch()

    thread = threading.Thread(target=once_it_trains)
    thread.start()
    with pytest.raises(PreemptedError, match=r"by_hand was stopped by .*stop; the same command resumes it"):
        compare(experiment, [candidate], data=data)
    thread.join()
    saved = [path.name for path in (job.home / "cache").glob("first_stage/*.run/checkpoints/*")]
    assert "epoch-00000-step-000000" < max(saved) < "epoch-00400"
    assert not list(experiment.folder.glob("folds/*/result.json"))


@pytest.mark.faults(31)
def test_two_commands_do_not_drive_one_cross_validation(job, data):
    experiment = Experiment(home=job.home, name="driven", folds=2, run_folds=1, seeds=(1,))
    with experiment.driving(), pytest.raises(RunLockedError, match=r"driven is being driven by process \d+"):
        compare(experiment, [Candidate("plain", BASE.first_stage())], data=data)


def test_folders_of_an_earlier_release_are_refused_by_name(job, data):
    experiment = Experiment(home=job.home, name="old", folds=2, run_folds=1, seeds=(1,))
    (experiment.folder / "units" / "0123").mkdir(parents=True)
    with pytest.raises(CrossValidationError, match=r"old/units: an earlier release wrote it"):
        compare(experiment, [Candidate("plain", BASE.first_stage())], data=data)


@pytest.mark.slow  # each cost in a new process; Table 2 alone uses it
def test_costs_are_measured_once_and_one_that_fails_keeps_no_other_from_it(job, data, monkeypatch):
    configs = {"bad": DIVERGES.first_stage(), "plain": BASE.first_stage()}
    made = measure_costs(job, configs, data=data)
    assert made["plain"].num_parameters == 16 * 16 + 16 + 16 * 8 + 8 + 16 * 2 + 2
    assert made["bad"].startswith("NonFiniteError: the loss became")
    monkeypatch.setattr(costs, "_measure", lambda *_: "measured again")
    assert measure_costs(job, configs, data=data) == {"plain": made["plain"], "bad": "measured again"}
    monkeypatch.setattr(first_stage, "RECIPE_VERSION", first_stage.RECIPE_VERSION + 1)
    assert measure_costs(job, configs, data=data) == dict.fromkeys(configs, "measured again")


def test_a_holdout_is_tested_once_and_both_protocols_test_on_the_same(job, data):
    holdout = Experiment(home=job.home, name="holdout", test_share=0.3, seeds=(1,), protocol="both")
    comparison = compare(holdout, [Candidate("plain", BASE.first_stage())], data=data)
    strict, paper = comparison.rows
    assert [len(row.results) for row in comparison.rows] == [1, 1]
    assert list(strict.results[0].keys) == list(paper.results[0].keys)
    assert "a holdout of 30% of the cases, 1 seed (1)" in comparison.setting
    assert comparison.num_train["paper"] > comparison.num_train["strict"]
    assert "--paper-validation-share 0.15 to see the first effect alone" in comparison.inflation_note
    with pytest.raises(ConfigError, match="expected test_share or split_file, got both"):
        Experiment.from_command_line(["--test-share", "0.3", "--split-file", "official.csv"])


def test_a_split_file_is_named_in_the_caption(job, data, tmp_path):
    bags = BagShards(data)
    splits = job.splits(bags, "strict", 1)
    file = tmp_path / "official.json"
    file.write_text(json.dumps([asdict(split) for split in splits]))
    official = Experiment(home=job.home, name="official", split_file=file, run_folds=1, seeds=(1,))
    assert (official.num_splits(bags), official.split_by(bags)) == (2, "2 splits of official.json")
    assert official.splits(bags, "strict", 1) == splits[:1]


def test_a_teacher_from_outside_is_warned_of_in_every_table_and_file(job, data, tmp_path, capsys):
    network = build(BASE.model, num_features=16, num_classes=2, seed=5)
    theirs = {
        "patch_to_emb.0.weight": network.projection.linear.weight,
        "patch_to_emb.0.bias": network.projection.linear.bias,
        "predictor.weight": network.head.weight,
        "predictor.bias": network.head.bias,
        "online_encoder.attention.attention.0.weight": network.attention.branch.weight,
        "online_encoder.attention.attention.2.weight": network.attention.score.weight,
    }
    weights = {name: value.detach().clone() for name, value in theirs.items()}
    torch.save(
        {"model": {"none": weights["predictor.bias"]}, "teacher": weights}, tmp_path / "fold-1-seed-3.pt"
    )
    config = BASE.override(
        {
            "teacher.weights": tmp_path / "fold-{fold}-seed-{seed}.pt",
            "teacher.weights_of": "teacher",
            "epochs": 1,
        }
    )
    experiment = Experiment(home=job.home, name="outside", folds=2, run_folds=1, seeds=(3,))
    comparison = compare(
        experiment, [Candidate("it", config), Candidate("plain", BASE.first_stage())], data=data
    )
    ours, plain = comparison.rows
    assert ours.failures == {}
    assert (ours.results[0].note, ours.record()["note"]) == (OUTSIDE_WEIGHTS, OUTSIDE_WEIGHTS)
    assert (plain.results[0].note, plain.record()["note"]) == ("", "")
    assert f"it: {OUTSIDE_WEIGHTS}." in " ".join(comparison.markdown().split())
    assert f"WARNING: {OUTSIDE_WEIGHTS}" in " ".join(capsys.readouterr().out.split())


def test_folds_wait_for_the_first_stage_that_another_one_is(job, data):
    bags = BagShards(data)
    (split, *_) = job.splits(bags, "strict", 1)
    folds = {
        name: folds_module.make_fold(
            Candidate(name, config), split, 1, 1, "strict", bags, job.folder, torch.device("cpu")
        )[1]
        for name, config in (
            ("copy", BASE.override({"teacher": {"kind": "student_copy"}})),
            ("masked", BASE),
            ("plain", BASE.first_stage()),
            ("longer", BASE.override({"epochs": 3})),
        )
    }
    queue = fold_tasks.Queue(folds)
    assert list(queue.ready()) == ["plain", "copy", "longer"]
    assert list(queue.ready()) == []
    queue.done("copy")
    assert list(queue.ready()) == []
    queue.done("plain")
    assert list(queue.ready()) == ["masked"]


def test_the_model_and_the_data_choose_what_train_starts_from():
    def base(model, data):
        return preset("c16", model).override({"epochs": 3 if data == "mine" else 4})

    def parsed(*arguments):
        return CrossValidation.of_model(
            base, model="abmil", data="digits-c16", arguments=list(arguments), name="it"
        )

    assert parsed().train == base("abmil", "digits-c16")
    job = parsed("--model", "dsmil", "--data=mine", "--train.epochs", "9", "--seeds", "4,5")
    assert job.train == base("dsmil", "mine").override({"epochs": 9})
    assert (job.model, job.data, job.seeds) == ("dsmil", "mine", (4, 5))
    assert [candidate.name for candidate in job.candidates] == ["MHIM (dsmil)", "dsmil"]
    assert [candidate.note for candidate in job.candidates] == ["", ""]
    narrow = parsed("--train.model.hidden-dim", "64", "--train.optimizer.learning-rate", "0.01")
    sizes = "width 64 (the authors' 512), learning rate 0.01 (the authors' 0.0002)"
    assert [candidate.note for candidate in narrow.candidates] == [sizes, sizes]
    assert [candidate.name for candidate in parsed("--model", "clam_sb").candidates] == ["clam_sb"]
    with pytest.raises(ConfigError, match="no preset"):
        parsed("--model", "nope")
    with pytest.raises(ConfigError, match="expected each seed once"):
        parsed("--seeds", "1,1")


def test_the_default_is_the_papers_configuration():
    assert CrossValidation().train == TrainConfig()
    assert CrossValidation().seeds == (2021, 2022, 2023)
