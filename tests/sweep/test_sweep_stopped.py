"""Sweeps that are asked to stop: by Ctrl-C, by SIGTERM, and as jobs."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from local_cluster import LocalCluster
from optuna.trial import TrialState

from data_prep import digits
from mhimdist.search import storage
from mhimdist.training import checkpoint

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
EPOCHS = 12
OPTIONS = [
    *("--num-trials", "3", "--scheduler", "none", "--no-between-folds", "--at-once", "2"),
    *("--train.epochs", str(EPOCHS), "--final-seeds", "1"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return digits.build("digits-c16", tmp_path_factory.mktemp("data") / "digits-c16", scale=0.01)


def _histories(folder: Path) -> dict[str, list[str]]:
    """The lines of every fold's history, by the history's path."""
    paths = sorted((folder / "trials").glob("*/fold-*/history.jsonl"))
    return {str(path.relative_to(folder)): path.read_text().splitlines() for path in paths}


def _runs_again(folder: Path, before: dict[str, list[str]]) -> bool:
    """Whether a fold that was cut off has gained epochs."""
    now = _histories(folder)
    return any(len(lines) < EPOCHS and len(now[name]) > len(lines) + 1 for name, lines in before.items())


@pytest.mark.faults(20)
def test_stopped_by_ctrl_c_or_sigterm_it_saves_itself_and_the_same_command_resumes_it(data, tmp_path):
    folder = tmp_path / "runs" / "sweep"
    command = [sys.executable, str(ROOT / "tests" / "sweep_once.py"), str(data), str(tmp_path), *OPTIONS]
    before: dict[str, list[str]] = {}
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 75)):
        driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while not _histories(folder) or (before and not _runs_again(folder, before)):
            assert driver.poll() is None
            time.sleep(0.05)
        started = psutil.Process(driver.pid).children(recursive=True)
        assert len(started) > 4
        driver.send_signal(number)
        out, err = driver.communicate()
        assert driver.returncode == status, out + err
        assert "asked to stop: " in out
        assert "Traceback" not in err
        assert ("interrupted" if status == 130 else "the same command resumes it") in err
        _, alive = psutil.wait_procs(started, timeout=120)
        assert not alive, [process.cmdline() for process in alive]

        trials = storage.read(storage.sqlite_url(folder / "study.db"), "sweep")
        running = [trial.number for trial in trials if trial.state == TrialState.RUNNING]
        assert running
        assert {trial.state for trial in trials} <= {TrialState.RUNNING, TrialState.COMPLETE}
        found = _histories(folder)
        for name, lines in before.items():  # nothing was trained twice: the records are the very same
            assert found[name][: len(lines)] == lines
        before = found
        assert any(len(lines) < EPOCHS for lines in before.values())

    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resumed: " in done.stdout
    trials = storage.read(storage.sqlite_url(folder / "study.db"), "sweep")
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 3
    found = _histories(folder)
    assert [len(lines) for lines in found.values()] == [EPOCHS] * 6
    for name, lines in before.items():
        assert found[name][: len(lines)] == lines


def _finals(folder: Path) -> dict[str, tuple]:
    """Every final run's result, but for its time, and its best weights."""
    found = {}
    for path in sorted(folder.glob("final/fold-*")):
        result = json.loads((path / "result.json").read_text()) | {"epoch_s": 0}
        found[path.name] = result, checkpoint.load(path / "best_student")[0]["student"]
    return found


def test_a_sigterm_in_a_final_run_loses_at_most_16_steps(data, tmp_path):
    def command(home: Path) -> list[str]:
        script = [sys.executable, str(ROOT / "tests" / "sweep_once.py"), str(data), str(home)]
        return [*script, *OPTIONS, "--num-trials", "1", "--save-every-s", "0"]

    whole, cut = (tmp_path / name / "runs" / "sweep" for name in ("whole", "cut"))
    done = subprocess.run(command(tmp_path / "whole"), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

    def steps() -> list[int]:
        names = [path.name for path in cut.glob("final/fold-*/checkpoints/epoch-*-step-*")]
        return [int(name.split("-")[3]) for name in names]

    driver = subprocess.Popen(
        command(tmp_path / "cut"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not any(steps()):
        assert driver.poll() is None, driver.communicate()
        time.sleep(0.01)
    driver.send_signal(signal.SIGTERM)
    out, err = driver.communicate()
    assert driver.returncode == 75, out + err
    assert "Traceback" not in err
    assert any(steps()), "a final run was saved within an epoch"

    done = subprocess.run(command(tmp_path / "cut"), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    expected, found = _finals(whole), _finals(cut)
    assert {name: result for name, (result, _) in found.items()} == {
        name: result for name, (result, _) in expected.items()
    }
    for name, (_, weights) in expected.items():
        assert all(torch.equal(value, weights[key]) for key, value in found[name][1].items())


def test_a_stopped_job_resumes_when_it_is_submitted_again(data, tmp_path):
    folder = tmp_path / "runs" / "sweep"
    with LocalCluster(num_cpus=2) as cluster:

        def ray(*arguments: str) -> str:
            done = subprocess.run(
                ["ray", "job", *arguments], cwd=ROOT, env=cluster.env, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout

        job = ["--", "python", "tests/sweep_once.py", str(data), str(tmp_path), *OPTIONS]
        ray("submit", "--no-wait", "--submission-id", "first", "--working-dir", ".", *job)
        while not _histories(folder):
            time.sleep(0.05)  # until the test's time is up
        assert "was stopped" in ray("stop", "first")
        before = _histories(folder)
        assert any(len(lines) < EPOCHS for lines in before.values())
        assert "Final runs" in ray("submit", "--working-dir", ".", *job)
    found = _histories(folder)
    assert [len(lines) for lines in found.values()] == [EPOCHS] * 6
    for name, lines in before.items():
        assert found[name][: len(lines)] == lines
    assert json.loads((folder / "result.json").read_text())["num_trials"] == 3
