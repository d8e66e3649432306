"""A real sweep on a Ray of its own; the sweep's parts are tested in test_study.py and test_space.py."""

import json
import math

import optuna
import pytest
import ray
from optuna.trial import TrialState

from data_prep import digits
from mhimdist import study
from mhimdist.config import TrainConfig
from mhimdist.data.loader import BagShards
from mhimdist.data.splits import Split
from mhimdist.engine import load_run
from mhimdist.errors import ConfigError, SweepError
from mhimdist.presets import preset
from mhimdist.space import Space
from mhimdist.tune import Sweep, run_sweep

BASE = preset("c16", "abmil").override(
    {
        "model.hidden_dim": 16,
        "model.attention_dim": 8,
        "epochs": 4,
        "device": "cpu",
        "optimizer.learning_rate": 1e-3,
    }
)
DIVERGES = 1e30


def space(s: Space) -> None:
    s.uniform("masking.high.start", 0.005, 0.2, log=True)
    # With the seed below one of the random trials takes a rate at which the loss overflows.
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
        num_trials=6,
        num_startup=3,
        grace_epochs=1,
        reduction_factor=2.0,
        final_seeds=2,
        seed=3,
        train=BASE,
    )


@pytest.fixture(scope="module")
def folder(data, sweep):
    """The folder of a finished sweep of six trials."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        yield run_sweep(sweep, space, data=data)
    finally:
        ray.shutdown()


def test_the_first_trial_is_the_base(folder):
    config, _, history = load_run(folder / "trials" / "0000")
    assert config == BASE
    assert len(history) == 4


def test_every_trial_is_recorded_in_its_true_state(folder):
    trials = study.read(folder / "study.db")
    assert [t.number for t in trials] == list(range(6))
    states = {t.state for t in trials}
    assert states == {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL}
    for trial in trials:
        run = folder / "trials" / f"{trial.number:04d}"
        if trial.state == TrialState.FAIL:
            assert trial.params["optimizer.learning_rate"] == DIVERGES
            continue
        config, _, history = load_run(run)
        assert config.masking.high.start == trial.params["masking.high.start"]
        assert trial.value == max(r.student_validation_auc for r in history)
        if trial.state == TrialState.COMPLETE:
            assert len(history) == 4
        else:
            assert len(history) < 4
            assert sorted(trial.intermediate_values) == list(range(1, len(history) + 1))


def test_the_result_is_that_of_the_best_complete_trial_and_the_report_names_failures(folder):
    result = json.loads((folder / "result.json").read_text())
    complete = [t.value for t in study.read(folder / "study.db") if t.state == TrialState.COMPLETE]
    assert result["validation_auc"] == max(complete)
    assert result["num_trials"] == 6
    assert 0 <= result["test_auc"] <= 1
    html = (folder / "report.html").read_text()
    assert "NonFiniteError" in html


def test_no_test_bag_was_read_before_the_final_runs(folder, data):
    split, bags = Split.load(folder / "split.json"), BagShards(data)
    split.check(bags.keys, bags.cases, bags.labels_N)
    for run in (folder / "trials").iterdir():
        for line in (
            (run / "history.jsonl").read_text().splitlines() if (run / "history.jsonl").exists() else ()
        ):
            assert not [field for field in json.loads(line) if "test" in field]


def test_final_runs_are_the_best_configuration_with_other_seeds(folder):
    trials = study.read(folder / "study.db")
    best = max((t for t in trials if t.state == TrialState.COMPLETE), key=lambda t: t.value)
    best_config, _, _ = load_run(folder / "trials" / f"{best.number:04d}")
    seeds = []
    for run in sorted((folder / "final").iterdir()):
        config, _, history = load_run(run)
        seeds.append(config.seed)
        assert config.override({"seed": best_config.seed}) == best_config
        assert len(history) == 4
    assert seeds == [BASE.seed, BASE.seed + 1]


def test_the_study_opens_with_optuna_alone(folder):
    opened = optuna.load_study(study_name=study.STUDY_NAME, storage=study.storage_url(folder / "study.db"))
    assert opened.best_trial.state == TrialState.COMPLETE
    assert all(math.isfinite(share) for share in study.importances(folder / "study.db").values())


def test_an_earlier_sweep_is_not_overwritten(folder, sweep, data):
    with pytest.raises(SweepError, match="holds an earlier sweep: give another --name, or --fresh"):
        run_sweep(sweep, space, data=data)
    other = folder.parent / "other"
    other.mkdir()
    (other / "thesis.doc").write_text("mine")
    with pytest.raises(SweepError, match=r"is no sweep's folder .* not deleting it"):
        run_sweep(
            sweep.model_copy(update={"name": "other", "fresh": True}),
            space,
            data=data,
        )
    assert (other / "thesis.doc").exists()


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ("test_auc", "makes that metric worthless as a test; use validation_auc"),
        ("accuracy", "objective accuracy is unknown; use validation_auc"),
    ],
)
def test_a_test_metric_is_no_objective(objective, message):
    with pytest.raises(ConfigError, match=message):
        Sweep.from_command_line(["--objective", objective])


def test_the_default_base_is_a_valid_first_trial():
    assert Sweep().train == TrainConfig()
