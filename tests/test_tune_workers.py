"""A sweep whose every run is trained by two workers of Ray Train."""

import json

import pytest
import ray
from optuna.trial import TrialState
from test_tune import BASE, numbers
from trained_run import load_run

from data_prep import digits
from mhimdist import storage
from mhimdist.sweep import Sweep
from mhimdist.tune import run_sweep


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
@pytest.mark.timeout(600)
def test_two_workers_train_each_run_of_a_sweep(tmp_path, capsys):
    data = digits.build("digits-c16", tmp_path / "digits-c16", scale=0.01)
    sweep = Sweep(
        home=tmp_path,
        name="together",
        num_trials=3,
        workers=2,
        at_once=1,
        scheduler="asha",
        grace_epochs=1,
        reduction_factor=2,
        final_seeds=1,
        train=BASE.override({"bags_per_step": 4, "optimizer.rate_rule": "none"}),
    )
    try:
        folder = run_sweep(sweep, numbers, data=data)
        left = ray.util.placement_group_table()
    finally:
        ray.shutdown()
    said = capsys.readouterr().out
    assert "plan: 1 trial at once x 2 workers" in said
    trials = storage.read(storage.sqlite_url(folder / "study.db"), "together")
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    for trial in trials:
        run = folder / "trials" / f"{trial.number:04d}" / f"fold-1-seed-{BASE.seed}"
        history = load_run(run)[2]
        assert (
            sorted(trial.intermediate_values)
            == list(range(1, len(history) + 1))[: len(trial.intermediate_values)]
        )
        if trial.state == TrialState.COMPLETE:
            assert len(history) == 3
            assert trial.value == max(record.student_validation_auc for record in history)
        state = json.loads(sorted(run.glob("checkpoints/*/state.json"))[-1].read_text())["state"]
        assert len(state["totals"]) == 2, "both workers trained it"
    assert {group["state"] for group in left.values()} <= {"REMOVED"}
