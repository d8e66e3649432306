"""Real sweeps in which the driver fails, a process is killed and a trial is stopped in the middle."""

import os
import threading
import time
from pathlib import Path

import psutil
import pytest
import ray
from optuna.trial import TrialState

from data_prep import digits
from mhimdist.config.presets import preset
from mhimdist.errors import SweepError
from mhimdist.search import storage
from mhimdist.search.options import Sweep
from mhimdist.search.space import Space
from mhimdist.search.study import SweepStudy
from mhimdist.sweep.run import run_sweep
from mhimdist.sweep.trial import FoldRun

pytestmark = pytest.mark.ray
EPOCHS = 8
BASE = preset("c16", "abmil").override(
    {"model.hidden_dim": 16, "model.attention_dim": 8, "epochs": EPOCHS, "device": "cpu"}
)
TESTS = Path(__file__).parents[1]


def space(s: Space) -> None:
    s.uniform("loss.alpha", 0.01, 1.0, log=True)


def _slow_down() -> None:
    """In a worker of Ray: make epochs slow enough that a kill hits the middle of a trial."""
    train = FoldRun.next_epoch

    def next_epoch(self):
        time.sleep(0.3)
        return train(self)

    FoldRun.next_epoch = next_epoch


def _lines(folder: Path, number: int) -> dict[str, list[str]]:
    """The histories of a trial's folds."""
    paths = sorted((folder / "trials" / f"{number:04d}").glob("fold-*/history.jsonl"))
    return {path.parent.name: path.read_text().splitlines() for path in paths}


def _kill_once(folder: Path, title: str, before: dict[str, list[str]]) -> None:
    """Kill the newest process with a title once the first trial has trained another epoch."""
    while sum(map(len, _lines(folder, 0).values())) <= sum(map(len, before.values())):
        time.sleep(0.05)
    found = [
        process
        for process in psutil.Process().children(recursive=True)
        if title in " ".join(process.cmdline())
    ]
    max(found, key=lambda process: process.create_time()).kill()


@pytest.mark.faults(33)
@pytest.mark.slow
@pytest.mark.parametrize(("num_parallel", "victim"), [(1, "Trainable"), (2, "FoldServer")])
def test_a_driver_that_fails_a_killed_process_and_a_stop_in_the_middle(
    tmp_path, monkeypatch, capsys, num_parallel, victim
):
    data = digits.build("digits-c16", tmp_path / "digits-c16", scale=0.01)
    sweep = Sweep(
        home=tmp_path,
        name="killed",
        num_trials=2,
        folds=2,
        parallel_folds=num_parallel,
        scheduler="none",
        between_folds=False,
        at_once=1,
        final_seeds=1,
        max_failures=1,
        train=BASE,
    )
    folder = tmp_path / "runs" / "killed"
    report, failed = SweepStudy.report, []

    def hiccup(self, number, step, *arguments, **named):
        if number == 0 and step == 3 and not failed:
            failed.append(step)
            raise ConnectionError("the database is away")
        report(self, number, step, *arguments, **named)
        return "stopped by the test" if number == 1 and step == 3 else None

    monkeypatch.setattr(SweepStudy, "report", hiccup)
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={
            "worker_process_setup_hook": _slow_down,
            "env_vars": {
                "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(TESTS), str(TESTS.parent)])
            },
        },
    )
    try:
        with pytest.raises(SweepError, match="same command resumes it: ConnectionError: the database"):
            run_sweep(sweep, space, data=data)
        before = _lines(folder, 0)
        assert len(before) == num_parallel
        for name, lines in before.items():
            assert 3 <= len(lines) < EPOCHS
            newest = f"epoch-{len(lines):05d}-step-000000"
            assert (folder / "trials" / "0000" / name / "checkpoints" / newest).exists()
        assert "ConnectionError" in (folder / "error.txt").read_text()
        (trial,) = storage.read(storage.sqlite_url(folder / "study.db"), "killed")
        assert (trial.state, trial.user_attrs["starts"]) == (TrialState.RUNNING, 0)

        killing = threading.Thread(target=_kill_once, args=(folder, victim, before))
        killing.start()
        run_sweep(sweep, space, data=data)
        killing.join()
    finally:
        ray.shutdown()
    assert "trial 0 lost its process; it resumes from its last checkpoint" in capsys.readouterr().out
    first, second = storage.read(storage.sqlite_url(folder / "study.db"), "killed")
    assert [first.state, second.state] == [TrialState.COMPLETE, TrialState.PRUNED]
    after = _lines(folder, 0)
    assert [len(lines) for lines in after.values()] == [EPOCHS] * 2
    for name, lines in before.items():  # nothing was trained twice: the records are the very same
        assert after[name][: len(lines)] == lines
    assert len(_lines(folder, 1)) == num_parallel
    for name in _lines(folder, 1):
        left = folder / "trials" / "0001" / name
        assert (left / "best_student" / "student.safetensors").exists()
        assert not (left / "checkpoints").exists()
