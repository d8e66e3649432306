"""What becomes of a job on a real Slurm, by how its command ends. The nodes' Ray is a shell script here."""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_cluster import VirtualSlurm, missing

from mhimdist.cluster.slurm import script
from mhimdist.cluster.slurm_options import SlurmScript

pytestmark = [
    pytest.mark.long,
    pytest.mark.slurm,
    pytest.mark.skipif(bool(missing()), reason=f"Slurm is not installed: no {', '.join(missing())}"),
]
PYTHON = f"""#!/bin/bash
case "$3" in
serve)
  trap 'echo "node $SLURM_PROCID ends"; exit 0' TERM
  touch "$4/served-$SLURM_PROCID"
  while true; do sleep 0.1; done ;;
drive)
  for node in 0 1; do until [ -e "$4/served-$node" ]; do sleep 0.1; done; done
  shift 5
  exec "$@" ;;
esac
exec {sys.executable} "$@"
"""
SAVES = """
trap 'echo saved; exit 75' TERM
echo "start ${SLURM_RESTART_COUNT:-0}"
[ "${SLURM_RESTART_COUNT:-0}" = 0 ] || exit 0
while true; do sleep 0.1; done
"""
"""A command that saves itself when it is asked to stop, and has finished after its second start."""


@pytest.fixture(scope="module")
def slurm() -> Iterator[VirtualSlurm]:
    with VirtualSlurm(num_nodes=2) as running:
        yield running


class Job:
    def __init__(self, slurm: VirtualSlurm, folder: Path, command: str, **options: int) -> None:
        self.slurm, self.folder, self.home = slurm, folder, folder / "home"
        self.home.mkdir()
        python = folder / "bin" / "python"
        python.parent.mkdir()
        python.write_text(PYTHON)
        python.chmod(0o755)
        (folder / "saves.sh").write_text(SAVES)
        settings = {
            **{"command": command.format(folder=folder), "nodes": 2, "gpus": 0, "cpus": 1, "memory_gib": 0},
            **{"time": "30", "signal_s": 110, "home": self.home, "venv": folder, "output": f"{folder}/log"},
        }
        file = folder / "job.sbatch"
        file.write_text(script(SlurmScript(**(settings | options))))
        self.number = slurm.run("sbatch", "--parsable", str(file))

    @property
    def state(self) -> str:
        return self.slurm.job(self.number)["JobState"]

    @property
    def restarts(self) -> int:
        return int(self.slurm.job(self.number)["Restarts"])

    @property
    def log(self) -> str:
        file = self.folder / "log"
        return file.read_text() if file.exists() else ""

    def until(self, what: str, within_s: float = 600) -> None:
        """Wait for a state, if it has the name of one, otherwise for words in the log."""
        deadline = time.monotonic() + within_s
        while what != self.state if what.isupper() else what not in self.log:
            told = f"no {what}: {self.slurm.job(self.number)}\n{self.log}\n{self.slurm.logs()}"
            assert time.monotonic() < deadline, told
            time.sleep(0.2)

    def ends(self, state: str, status: str, restarts: int) -> None:
        self.until(state)
        found = self.slurm.job(self.number)
        assert (found["ExitCode"], found["Restarts"]) == (status, str(restarts)), self.log
        assert list((self.home / "slurm").iterdir()) == []


@pytest.mark.parametrize(("status", "state"), [(0, "COMPLETED"), (1, "FAILED")])
def test_success_and_errors_are_the_jobs_own(slurm, tmp_path, status, state):
    job = Job(slurm, tmp_path, f"bash -c 'exit {status}'")
    job.ends(state, f"{status}:0", restarts=0)
    assert "queued again" not in job.log
    assert "node 0 ends" in job.log
    assert "node 1 ends" in job.log


@pytest.mark.slow
def test_what_was_saved_is_queued_again(slurm, tmp_path):
    job = Job(slurm, tmp_path, "bash -c 'exit $((SLURM_RESTART_COUNT ? 0 : 75))'")
    job.ends("COMPLETED", "0:0", restarts=1)
    assert job.log.count("stopped and saved: the job is queued again") == 1


def test_after_the_most_restarts_the_job_ends(slurm, tmp_path):
    job = Job(slurm, tmp_path, "bash -c 'exit 75'", restarts=0)
    job.ends("FAILED", "75:0", restarts=0)
    assert "stopped after 0 restarts, the most: submit the file again to resume" in job.log


def test_the_folder_of_the_token_is_private(slurm, tmp_path):
    job = Job(slurm, tmp_path, "bash {folder}/saves.sh")
    job.until("start 0")
    (folder,) = (job.home / "slurm").iterdir()
    assert folder.name == f"{job.number}-0"
    assert folder.stat().st_mode & 0o777 == 0o700
    slurm.run("scancel", job.number)
    job.until("CANCELLED")


def test_a_user_stops_a_job_gently_and_it_stays_stopped(slurm, tmp_path):
    job = Job(slurm, tmp_path, "bash {folder}/saves.sh")
    job.until("start 0")
    slurm.run("scancel", "--batch", "--signal=INT", job.number)
    job.ends("FAILED", "75:0", restarts=0)
    assert "stopped and saved, as you asked: submit the file again to resume" in job.log


def test_a_cancelled_job_is_not_queued_again(slurm, tmp_path):
    job = Job(slurm, tmp_path, "bash {folder}/saves.sh")
    job.until("start 0")
    slurm.run("scancel", job.number)
    job.until("CANCELLED")
    deadline = time.monotonic() + 60
    while slurm.left():
        assert time.monotonic() < deadline, slurm.left()
        time.sleep(0.2)
    assert (job.state, job.restarts) == ("CANCELLED", 0)
    assert "the job is queued again" not in job.log


@pytest.mark.slow
def test_the_time_limit_stops_the_command_alone_and_the_job_is_queued_again(slurm, tmp_path):
    job = Job(slurm, tmp_path, "bash {folder}/saves.sh")
    job.until("start 0")
    # Less than `signal_s` before the end: Slurm, which looks every 30 s, sends the signal when it looks.
    slurm.run("scontrol", "update", f"JobId={job.number}", "TimeLimit=2")
    job.until("saved")
    job.ends("COMPLETED", "0:0", restarts=1)
    lines = [line for line in job.log.splitlines() if line.startswith(("start", "saved", "stopped"))]
    assert lines == ["start 0", "saved", "stopped and saved: the job is queued again", "start 1"]


@pytest.mark.slow
def test_a_killed_node_queues_the_job_again(slurm, tmp_path):
    job = Job(slurm, tmp_path, "bash {folder}/saves.sh")
    job.until("start 0")
    deadline = time.monotonic() + 60
    while not (job.home / "slurm" / f"{job.number}-0" / "served-1").exists():
        assert time.monotonic() < deadline, job.log
        time.sleep(0.1)
    killed = slurm.kill_node("n2")
    assert len(killed) >= 3  # the daemon, the step's manager and its task
    assert not any(process.is_running() for process in killed)
    while job.restarts == 0:
        assert time.monotonic() < deadline + 300, slurm.logs()
        time.sleep(0.5)
    slurm.start_node("n2")  # as its administrator would
    job.ends("COMPLETED", "0:0", restarts=1)


def test_nothing_of_the_systems_slurm_is_used(slurm):
    config = Path(slurm.env["SLURM_CONF"])
    assert config.is_relative_to("/tmp")
    ports = [word for word in config.read_text().split() if word.startswith(("Port=", "SlurmctldPort="))]
    assert len(set(ports)) == 3
    assert not {"Port=6817", "Port=6818", "SlurmctldPort=6817"} & set(ports)
    assert "SLURM_JOB_ID" not in slurm.env
    assert os.environ.get("SLURM_CONF") != str(config)
