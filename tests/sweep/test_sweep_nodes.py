"""A sweep on two simulated nodes: one node is lost, and the driver is killed."""

import json
import os
import sqlite3
import subprocess
import sys
import time
import warnings
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from optuna.trial import TrialState
from ray.cluster_utils import Cluster

from data_prep import digits
from mhimdist.search import storage

pytestmark = pytest.mark.ray
NUM_TRIALS = 8


@pytest.fixture
def cluster():
    warnings.simplefilter("ignore")  # this test is not about Ray's own sockets
    running = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [running.add_node(num_cpus=1) for _ in range(2)]
    try:
        yield running, nodes
    finally:
        running.shutdown()


def _ended(database: Path) -> int:
    """Number of trials that have ended, read without disturbing the sweep."""
    try:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as opened:
            return opened.execute("SELECT COUNT(*) FROM trials WHERE state != 'RUNNING'").fetchone()[0]
    except sqlite3.OperationalError:
        return 0  # it does not exist yet


@pytest.mark.faults(21, 23)
@pytest.mark.slow
def test_a_sweep_survives_a_node_and_its_driver(cluster, tmp_path):
    running, nodes = cluster
    data = digits.build("digits-c16", tmp_path / "digits-c16", scale=0.01)
    home = tmp_path / "home"
    folder = home / "runs" / "nodes"
    url = storage.sqlite_url(folder / "study.db")
    options = [
        "--name",
        "nodes",
        "--num-trials",
        str(NUM_TRIALS),
        "--scheduler",
        "none",
        "--no-between-folds",
    ]
    command = [
        sys.executable,
        str(Path(__file__).parents[1] / "sweep_once.py"),
        str(data),
        str(home),
        *options,
    ]
    env = os.environ | {"RAY_ADDRESS": running.address}
    before = {process.pid for process in psutil.process_iter()}

    with (tmp_path / "first.log").open("w") as log:
        driver = subprocess.Popen(command, env=env, stdout=log, stderr=log)

    def until(num_ended: int) -> None:
        while _ended(folder / "study.db") < num_ended:
            assert driver.poll() is None, (tmp_path / "first.log").read_text()
            time.sleep(0.2)

    until(1)
    while not _trains(nodes[1]):
        assert driver.poll() is None, (tmp_path / "first.log").read_text()
        time.sleep(0.05)
    running.remove_node(nodes[1], allow_graceful=False)
    while "lost its process; it resumes from its last" not in (tmp_path / "first.log").read_text():
        assert driver.poll() is None, (tmp_path / "first.log").read_text()
        time.sleep(0.2)
    until(3)
    driver.kill()
    driver.wait()
    assert _ended(folder / "study.db") < NUM_TRIALS

    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resumed: " in done.stdout
    trials = storage.read(url, "nodes")
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * NUM_TRIALS
    assert [trial.number for trial in trials] == list(range(NUM_TRIALS))
    assert len({json.dumps(trial.params, sort_keys=True) for trial in trials}) == NUM_TRIALS
    assert sorted(path.name for path in (folder / "trials").iterdir()) == [
        f"{n:04d}" for n in range(NUM_TRIALS)
    ]
    for trial in trials:  # every epoch of every fold was trained once, and reported
        histories = sorted((folder / "trials" / f"{trial.number:04d}").glob("fold-*/history.jsonl"))
        assert [len(path.read_text().splitlines()) for path in histories] == [4, 4]
        assert sorted(trial.intermediate_values) == list(range(1, 9))
    assert json.loads((folder / "result.json").read_text())["num_trials"] == NUM_TRIALS

    # No process of either driver is left, except the cluster's own, which the fixture ends.
    deadline = time.monotonic() + 300
    while left := [p for p in psutil.process_iter(["pid", "cmdline"]) if _is_of_a_sweep(p, before)]:
        assert time.monotonic() < deadline, [process.info for process in left]
        time.sleep(0.5)


def _trains(node) -> bool:
    """Whether a trial is training an epoch on a node."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    return any("Trainable.train" in " ".join(process.cmdline()) for process in raylet.children())


def _is_of_a_sweep(process: psutil.Process, before: set[int]) -> bool:
    """Whether a new process drives a sweep or trains."""
    text = " ".join(process.info["cmdline"] or ())
    return process.pid not in before and ("sweep_once" in text or "SweepTrial" in text)
