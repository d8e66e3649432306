"""A sweep on a real Slurm: its time limit cuts it off, and a node is lost. Every trial is counted once."""

import json
import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from optuna.trial import TrialState
from slurm_cluster import VirtualSlurm, missing

from data_prep import digits
from mhimdist.cluster.slurm import script
from mhimdist.cluster.slurm_options import SlurmScript
from mhimdist.search import storage

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.slurm,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(bool(missing()), reason=f"Slurm is not installed: no {', '.join(missing())}"),
]
ROOT = Path(__file__).parents[2]
NUM_TRIALS, EPOCHS = 6, 60


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> Iterator[VirtualSlurm]:
    with VirtualSlurm(num_nodes=2) as running:
        running.env |= {
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
            "OMP_NUM_THREADS": "1",
        }
        before = set(Path(tempfile.gettempdir()).glob("mhim-*"))
        yield running
        assert running.left() == []
        left = set(Path(tempfile.gettempdir()).glob("mhim-*")) - before
    assert not [folder for folder in left if (folder / "log").exists()]


class Job:
    """A sweep that is submitted to Slurm."""

    def __init__(self, slurm: VirtualSlurm, folder: Path) -> None:
        self.slurm, self.home = slurm, folder / "home"
        self.folder = self.home / "runs" / "batch"
        self.home.mkdir()
        data = digits.build("digits-c16", folder / "digits-c16", scale=0.01)
        options = f"--name batch --num-trials {NUM_TRIALS} --scheduler none --no-between-folds --folds 1"
        sweep = f"python {ROOT}/tests/sweep_once.py {data} {self.home} {options} --train.epochs {EPOCHS}"
        job = SlurmScript(
            command=sweep,
            nodes=2,
            gpus=0,
            cpus=1,
            memory_gib=0,
            time="60",
            signal_s=110,
            home=self.home,
            venv=Path(sys.prefix),
            output=str(folder / "log"),
        )
        self._log = folder / "log"
        file = folder / "sweep.sbatch"
        file.write_text(script(job))
        self.number = slurm.run("sbatch", "--parsable", str(file))

    def is_(self, *states: str) -> bool:
        return self.slurm.job(self.number)["JobState"] in states

    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def until(self, what: str, is_so: Callable[[], bool], within_s: float = 1200) -> None:
        deadline = time.monotonic() + within_s
        while not is_so():
            told = f"{what}: {self.slurm.job(self.number)}\n{self.log()}\n{self.slurm.logs()}"
            assert time.monotonic() < deadline, told
            assert not self.is_("FAILED", "TIMEOUT", "CANCELLED") or what == "the end", told
            time.sleep(0.5)

    def restarts(self) -> int:
        return int(self.slurm.job(self.number)["Restarts"])

    def epochs(self) -> int:
        """Epochs that all trials have trained so far."""
        files = self.folder.glob("trials/*/fold-*/history.jsonl")
        return sum(len(file.read_text().splitlines()) for file in files)

    def ended(self) -> int:
        """Trials that have ended, read without disturbing the sweep."""
        try:
            with closing(sqlite3.connect(f"file:{self.folder / 'study.db'}?mode=ro", uri=True)) as opened:
                return opened.execute("SELECT COUNT(*) FROM trials WHERE state != 'RUNNING'").fetchone()[0]
        except sqlite3.OperationalError:
            return 0  # it does not exist yet


def _assert_every_trial_counts_once(job: Job) -> None:
    trials = storage.read(storage.sqlite_url(job.folder / "study.db"), "batch")
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * NUM_TRIALS
    assert [trial.number for trial in trials] == list(range(NUM_TRIALS))
    assert len({json.dumps(trial.params, sort_keys=True) for trial in trials}) == NUM_TRIALS
    names = sorted(path.name for path in (job.folder / "trials").iterdir())
    assert names == [f"{number:04d}" for number in range(NUM_TRIALS)]
    for trial in trials:  # every epoch was trained once, and reported
        (history,) = (job.folder / "trials" / f"{trial.number:04d}").glob("fold-*/history.jsonl")
        epochs = [json.loads(line)["epoch"] for line in history.read_text().splitlines()]
        assert epochs == list(range(EPOCHS))
        assert sorted(trial.intermediate_values) == list(range(1, EPOCHS + 1))
    assert json.loads((job.folder / "result.json").read_text())["num_trials"] == NUM_TRIALS


def test_a_time_limit_cuts_a_sweep_off_and_the_job_resumes_it(slurm, tmp_path):
    job = Job(slurm, tmp_path)
    job.until("a trial's first epochs", lambda: job.epochs() > 3)
    token = job.home / "slurm" / f"{job.number}-0" / "token"
    assert (token.stat().st_mode & 0o777, token.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    # Slurm counts in minutes: the new limit is one to two minutes away, and its signal less than one.
    minutes = int(slurm.run("squeue", "--noheader", f"--jobs={job.number}", "--format=%M").split(":")[0])
    slurm.run("scontrol", "update", f"JobId={job.number}", f"TimeLimit={minutes + 2}")
    job.until("the restart", lambda: job.restarts() == 1)
    assert "stopped and saved: the job is queued again" in job.log()
    ended, before = job.ended(), job.epochs()
    assert ended < NUM_TRIALS
    slurm.run("scontrol", "update", f"JobId={job.number}", "TimeLimit=60")
    job.until("the end", lambda: job.is_("COMPLETED", "FAILED", "TIMEOUT"))
    assert slurm.job(job.number)["JobState"] == "COMPLETED", job.log()
    assert (job.restarts(), slurm.job(job.number)["ExitCode"]) == (1, "0:0")
    assert job.log().count("Ray runs on 2 of 2 nodes") == 2
    assert "resumed: " in job.log()
    assert 0 < before < NUM_TRIALS * EPOCHS
    _assert_every_trial_counts_once(job)
    assert list((job.home / "slurm").iterdir()) == []


def test_a_killed_node_queues_the_job_again_and_no_trial_is_lost(slurm, tmp_path):
    job = Job(slurm, tmp_path)
    job.until("a trial's first epochs", lambda: job.epochs() > 3)
    killed = [process.pid for process in slurm.kill_node("n2")]
    assert len(killed) > 3  # the daemon, the step's manager, its task and Ray
    job.until("the restart", lambda: job.restarts() == 1)
    assert job.ended() < NUM_TRIALS
    slurm.start_node("n2")  # as its administrator would
    job.until("the end", lambda: job.is_("COMPLETED", "FAILED", "TIMEOUT"))
    assert slurm.job(job.number)["JobState"] == "COMPLETED", job.log()
    assert (job.restarts(), slurm.job(job.number)["ExitCode"]) == (1, "0:0")
    _assert_every_trial_counts_once(job)
