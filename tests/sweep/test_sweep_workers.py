"""A sweep in which two workers of Ray Train train every run."""

import json
import threading
from contextlib import suppress
from pathlib import Path

import pytest
import ray
from optuna.trial import TrialState
from test_run import BASE, numbers
from trained_run import load_run

from data_prep import digits
from mhimdist.search import storage
from mhimdist.search.options import Sweep
from mhimdist.sweep.run import run_sweep

pytestmark = pytest.mark.ray


def _count_workers(folder: Path, found: set[int], is_over: threading.Event) -> None:
    """Collect how many workers have trained the runs, from their checkpoints."""
    while not is_over.wait(0.02):
        for state in folder.glob("runs/*/trials/*/*/checkpoints/*/state.json"):
            with suppress(FileNotFoundError, ValueError):
                found.add(len(json.loads(state.read_text())["state"]["totals"]))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
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
    num_workers, is_over = set(), threading.Event()
    watching = threading.Thread(target=_count_workers, args=(tmp_path, num_workers, is_over))
    watching.start()
    try:
        folder = run_sweep(sweep, numbers, data=data)
        left = ray.util.placement_group_table()
    finally:
        is_over.set()
        watching.join()
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
            assert trial.value == max(record.student_validation_score for record in history)
            assert (run / "result.json").exists()
        assert (run / "best_student").exists()
        assert not (run / "checkpoints").exists()
    assert num_workers == {2}, "both workers trained every run"
    assert {group["state"] for group in left.values()} <= {"REMOVED"}
