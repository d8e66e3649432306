"""Real sweeps on a private Ray; other modules test the parts of a sweep."""

import json
import math
import os
import re
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import optuna
import pytest
import ray
from optuna.trial import TrialState
from trained_run import load_run

from data_prep import digits
from mhimdist.config.presets import preset
from mhimdist.data.shards import BagShards
from mhimdist.data.splits import Split
from mhimdist.errors import RunLockedError, SweepError
from mhimdist.run_files.read import read_job
from mhimdist.search import proposals, storage, study
from mhimdist.search.options import Sweep
from mhimdist.search.space import Space
from mhimdist.sweep.run import run_sweep
from mhimdist.sweep.trackers import trackers

pytestmark = [pytest.mark.long, pytest.mark.ray]
BASE = preset("c16", "abmil").override(
    {
        "model.hidden_dim": 16,
        "model.attention_dim": 8,
        "epochs": 3,
        "device": "cpu",
        "optimizer.learning_rate": 1e-3,
    }
)
DIVERGES = 1e30
TESTS = Path(__file__).parents[1]


def space(s: Space) -> None:
    s.uniform("masking.high.start", 0.005, 0.2, log=True)
    # With the seed below, one of the random trials takes a rate at which the loss overflows.
    s.choice("optimizer.learning_rate", [1e-3, DIVERGES])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "digits-c16"
    digits.build("digits-c16", folder, scale=0.01)
    return folder


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return Sweep(
        home=tmp_path_factory.mktemp("home"),
        name="test",
        num_trials=7,
        num_startup=3,
        folds=2,
        grace_epochs=1,
        reduction_factor=2,
        final_seeds=1,
        seed=3,
        train=BASE,
    )


def _note_reads(folder: Path) -> None:
    """In a worker of Ray: write down which bags it reads, and when."""
    checked = BagShards._checked  # every read of a bag passes through it

    def noted(self, rows):
        with (folder / str(os.getpid())).open("a") as file:
            file.write("".join(f"{time.time()} {self.keys[row]}\n" for row in rows))
        return checked(self, rows)

    BagShards._checked = noted


@pytest.fixture(scope="module")
def reads(tmp_path_factory):
    """Folder in which each worker notes its reads."""
    return tmp_path_factory.mktemp("reads")


@pytest.fixture(scope="module")
def cluster(reads):
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={
            "worker_process_setup_hook": lambda: _note_reads(reads),
            "env_vars": {
                "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(TESTS), str(TESTS.parent)])
            },
        },
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def folder(data, sweep, cluster):
    """The folder of a finished sweep."""
    return run_sweep(sweep, space, data=data)


def _trials(folder):
    return storage.read(storage.sqlite_url(folder / "study.db"), folder.name)


def test_the_first_trial_is_the_base_on_every_fold(folder):
    for fold in (1, 2):
        config, split, history = load_run(folder / "trials" / "0000" / f"fold-{fold}-seed-{BASE.seed}")
        assert config == BASE
        assert len(history) == 3
        assert split == Split.load(folder / f"split-{fold}.json")


@pytest.mark.faults(32)
def test_every_trial_is_recorded_in_its_true_state_with_its_reason(folder):
    trials = _trials(folder)
    assert [t.number for t in trials] == list(range(7))
    assert {t.state for t in trials} == {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL}
    for trial in trials:
        runs = sorted((folder / "trials" / f"{trial.number:04d}").glob("fold-*"))
        if trial.state == TrialState.FAIL:
            assert trial.params["optimizer.learning_rate"] == DIVERGES
            assert "NonFiniteError: the loss became" in trial.user_attrs["reason"]
            continue
        histories = [load_run(run)[2] for run in runs]
        best = [max(record.student_validation_score for record in history) for history in histories]
        assert load_run(runs[0])[0].masking.high.start == trial.params["masking.high.start"]
        if trial.state == TrialState.COMPLETE:
            assert [len(history) for history in histories] == [3, 3]
            assert trial.value == pytest.approx(sum(best) / 2)
            assert list(trial.user_attrs["folds"].values()) == best
            assert sorted(trial.intermediate_values) == [1, 2, 3, 4, 5, 6]
            assert (runs[0] / "best_student" / "student.safetensors").exists()
        else:
            assert sum(map(len, histories)) < 6
            assert "scheduler asha" in trial.user_attrs["reason"] or "folds" in trial.user_attrs["reason"]
        environment = json.loads((runs[0].parent / "environment.json").read_text())
        assert environment["device"] == "cpu"


def test_the_result_is_that_of_the_best_complete_trial_and_the_report_names_failures(folder):
    result = json.loads((folder / "result.json").read_text())
    complete = [t.value for t in _trials(folder) if t.state == TrialState.COMPLETE]
    assert result["validation_auc"] == max(complete)
    assert result["num_trials"] == 7
    assert 0 <= result["test_auc"] <= 1
    html = (folder / "report.html").read_text()
    assert "NonFiniteError" in html
    assert "How far to trust these numbers" in html


def test_the_model_card_is_of_the_best_configurations_final_runs(folder):
    card = (folder / "model_card.md").read_text()
    assert re.search(r"^# Model card: .*, trial [0-9]+$", card, re.MULTILINE)
    listed = {name.replace("\\", "") for name in re.findall(r"^\| (\S+) \| test \|", card, re.MULTILINE)}
    finals = {path.parent.name for path in folder.glob("final/*/result.json")}
    assert listed
    assert listed <= finals
    for trial in folder.glob("trials/*/fold-*/result.json"):
        assert "It was not tested" in (trial.parent / "model_card.md").read_text()


def test_no_test_bag_is_in_any_fold_and_none_was_read_before_the_final_runs(folder, data, reads):
    bags = BagShards(data)
    splits = [Split.load(folder / f"split-{fold}.json") for fold in (1, 2)]
    for split in splits:
        split.check(bags.keys, bags.cases, bags.labels_N)
    assert splits[0].test == splits[1].test
    assert not set(splits[0].validation) & set(splits[1].validation)
    for history in (folder / "trials").glob("*/*/history.jsonl"):
        for line in history.read_text().splitlines():
            row = json.loads(line)
            assert row.pop("selects_on_test") is False
            assert not [field for field in row if "test" in field]
    finals_began = min(path.stat().st_mtime for path in (folder / "final").glob("*/config.json"))
    before, after = set(), set()
    for process in reads.iterdir():
        for line in process.read_text().splitlines():
            at, key = line.split(" ", 1)
            (before if float(at) < finals_began else after).add(key)
    seen = {key for split in splits for key in (*split.train, *split.validation)}
    assert before == seen
    assert after >= set(splits[0].test)


def test_final_runs_are_the_best_configuration_and_its_plain_network_on_all_folds(folder):
    best = max((t for t in _trials(folder) if t.value is not None), key=lambda t: (t.state == 1, t.value))
    found = {}
    for run in (folder / "final").iterdir():
        config, split, _ = load_run(run)
        assert (run / "result.json").exists()
        found.setdefault(config.teacher.kind, []).append(split)
        if config.teacher.kind != "none":
            assert config.masking.high.start == best.params["masking.high.start"]
    assert {kind: len(splits) for kind, splits in found.items()} == {"init_momentum": 2, "none": 2}


def test_it_leaves_the_file_that_repeats_it(folder, sweep):
    job = read_job("tune", folder / "repeat.yaml")
    assert job.options == sweep
    identity = json.loads((folder / "sweep.json").read_text())
    assert proposals.examine(job.space, sweep.train).digest == identity["space"]


def test_the_study_opens_with_optuna_alone(folder):
    opened = optuna.load_study(study_name="test", storage=storage.sqlite_url(folder / "study.db"))
    assert opened.best_trial.state == TrialState.COMPLETE
    assert all(math.isfinite(share) for share in study.importances(opened).values())


def test_the_same_command_finds_a_finished_sweep_and_changes_nothing(folder, sweep, data, capsys):
    before = (folder / "result.json").read_text()
    stamps = {path: path.stat().st_mtime_ns for path in (folder / "trials").rglob("*") if path.is_file()}
    run_sweep(sweep, space, data=data)
    assert (folder / "result.json").read_text() == before
    assert {p: p.stat().st_mtime_ns for p in (folder / "trials").rglob("*") if p.is_file()} == stamps
    assert "resumed: 7 of 7 trials have ended" in capsys.readouterr().out


def test_another_sweep_is_refused_in_its_folder(folder, sweep, data):
    with pytest.raises(SweepError, match=r"holds another sweep \(seed 3, now 4\): give another --name"):
        run_sweep(sweep.model_copy(update={"seed": 4}), space, data=data)
    with pytest.raises(SweepError, match=r"holds another sweep \(space '"):
        run_sweep(sweep, lambda s: s.uniform("loss.alpha", 0, 1), data=data)
    with sweep.driving(), pytest.raises(RunLockedError, match=r"being driven by process \d+"):
        run_sweep(sweep, space, data=data)
    other = folder.parent / "other"
    other.mkdir()
    (other / "thesis.doc").write_text("mine")
    with pytest.raises(SweepError, match=r"is not a sweep's folder .* does not delete it"):
        run_sweep(sweep.model_copy(update={"name": "other", "fresh": True}), space, data=data)
    with pytest.raises(SweepError, match="holds something other than a sweep"):
        run_sweep(sweep.model_copy(update={"name": "other"}), space, data=data)
    assert (other / "thesis.doc").exists()


def numbers(s: Space) -> None:
    s.uniform("masking.high.start", 0.005, 0.2, log=True)
    s.uniform("loss.alpha", 0.01, 1.0, log=True)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_trials_and_values_one_after_the_other(data, sweep, cluster):
    options = {"at_once": 1, "num_trials": 4, "folds": 1, "warm_presets": False, "num_startup": 2}
    found = []
    for name in ("once", "twice"):
        again = sweep.model_copy(update={**options, "name": name})
        trials = _trials(run_sweep(again, numbers, data=data))
        found.append([(t.params, t.state, t.value, t.intermediate_values) for t in trials])
    assert found[0] == found[1]
    assert len({json.dumps(params) for params, *_ in found[0]}) == 4


@pytest.mark.slow
def test_folds_run_in_parallel_to_the_same_values_and_a_front_is_reported(data, sweep, cluster):
    options = {"num_trials": 2, "against": "kept_share", "scheduler": "none", "final_top": 2}
    values = []
    for name, num_parallel in (("one", 1), ("both", 2)):
        changed = {**options, "name": name, "parallel_folds": num_parallel}
        folder = run_sweep(sweep.model_copy(update=changed), numbers, data=data)
        values.append([trial.values for trial in _trials(folder)])
    assert values[0] == values[1]
    assert all(0 < kept < 1 for _, kept in values[0])
    assert "Pareto front" in (folder / "report.html").read_text()


def test_a_logger_that_is_not_installed_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(SweepError, match=r"pip install 'mhimdist\[wandb\]'"):
        trackers(Sweep(track="wandb"))
    stub = ModuleType("wandb")
    stub.api = SimpleNamespace(api_key=None)
    monkeypatch.setitem(sys.modules, "wandb", stub)
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SweepError, match="nobody is logged in; run `wandb login`, or set WANDB_API_KEY"):
        trackers(Sweep(track="wandb"))
    assert [type(each).__name__ for each in trackers(Sweep())] == ["TensorBoard"]


@pytest.mark.faults(37)
@pytest.mark.slow
def test_a_password_is_in_nothing_that_a_sweep_leaves_or_says(
    data, sweep, cluster, monkeypatch, capfd, tmp_path
):
    secret = "tok3n"
    url = storage.sqlite_url(tmp_path / "elsewhere.db")
    opened = storage.open_storage
    monkeypatch.setattr(storage, "open_storage", lambda _: opened(url))
    monkeypatch.setenv("MHIMDIST_STORAGE", f"postgresql://ada:{secret}@db/studies")
    options = {"name": "secret", "num_trials": 2, "home": tmp_path}
    hidden = Sweep(**sweep.model_dump(exclude={"storage", "train", *options}), **options, train=BASE)
    folder = run_sweep(hidden, space, data=data)
    with pytest.raises(SweepError, match=r"ada:\*\*\*@db/studies already has a study 'secret'"):
        run_sweep(hidden.model_copy(update={"home": tmp_path / "bob"}), space, data=data)
    said = capfd.readouterr()
    assert "watch: optuna-dashboard postgresql://ada:***@db/studies" in said.out
    assert secret not in said.out + said.err
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert folder / "report.html" in files
    assert [path for path in files if secret.encode() in path.read_bytes()] == []
