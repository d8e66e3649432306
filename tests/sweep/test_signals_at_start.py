"""SIGTERM and Ctrl-C at any moment of a command's start: one line, the promised status, and no training."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from local_cluster import LocalCluster

from data_prep import digits

pytestmark = [pytest.mark.long, pytest.mark.ray]

ROOT = Path(__file__).parents[2]
MOMENTS = 20
SMALL = ["--train.model.hidden-dim", "16", "--train.epochs", "30", "--train.device", "cpu"]

CONNECT = """
import os, subprocess, sys
import ray
from mhimdist.cluster.connect import connect
from mhimdist.process import Stopping, run

number, moment = map(int, sys.argv[1:3])
send = f"import os, time; time.sleep({0.02 * moment}); os.kill({os.getpid()}, {number})"

def main():
    with Stopping("it was stopped"):
        start = ray._private.worker.connect

        def starting(*arguments, **named):  # Ray's core, which replaces the handling of SIGTERM
            subprocess.Popen([sys.executable, "-S", "-c", send])
            return start(*arguments, **named)

        ray._private.worker.connect = starting
        connect()
        for _ in range(100_000_000):  # until the signal comes
            pass
        print("it was swallowed")

run(main)
"""

END = """
import os, subprocess, sys
import ray
from mhimdist.cluster.connect import connect
from mhimdist.errors import DataError
from mhimdist.process import Stopping, run

def main():
    with Stopping("it was stopped"):
        connect()
        node = ray._private.worker._global_node
        end = type(node).kill_all_processes

        def ending(*arguments, **named):
            os.kill(os.getpid(), int(sys.argv[1]))
            end(*arguments, **named)

        type(node).kill_all_processes = ending  # what ours calls
        raise DataError("no column")

run(main)
"""


def test_this_release_of_ray_lets_its_handlers_be_installed_before_its_start():
    code = "from mhimdist.cluster.ray_signals import install_failure_handlers as install; assert install()"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("number", "moments"),
    [
        (signal.SIGTERM, [2]),
        pytest.param(signal.SIGTERM, range(MOMENTS), marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, range(0, MOMENTS, 5), marks=pytest.mark.slow),
    ],
)
def test_a_signal_while_rays_core_starts(number, moments):
    for moment in moments:
        command = [sys.executable, "-c", CONNECT, str(int(number)), str(moment)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        expected = (75, "it was stopped") if number == signal.SIGTERM else (130, "interrupted")
        assert (done.returncode, done.stderr.splitlines()[-1]) == expected, (moment, done.stderr)
        assert "SIGTERM received" not in done.stderr
        assert done.stdout == ""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_rays_processes_end_changes_no_status(number):
    done = subprocess.run(
        [sys.executable, "-c", END, str(int(number))], capture_output=True, text=True, cwd=ROOT
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == "error: no column"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return digits.build("digits-c16", tmp_path_factory.mktemp("data") / "digits-c16", scale=0.01)


def _sweep(data: Path, home: Path) -> list[str]:
    options = ["--num-trials", "2", "--scheduler", "none", "--final-seeds", "1", *SMALL]
    return [sys.executable, "tests/sweep_once.py", str(data), str(home), *options]


def _cross_validation(data: Path, home: Path) -> list[str]:
    folds = ["--folds", "2", "--run-folds", "1", "--seeds", "1", *SMALL]
    return [sys.executable, "jobs/train_c16.py", "--data", str(data), "--home", str(home), *folds]


def _histories(home: Path) -> dict[Path, str]:
    return {path: path.read_text() for path in home.rglob("history.jsonl")}


def _ended(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=120)
    assert not alive, [process.cmdline() for process in alive]


def _start_s(command: list[str], home: Path) -> float:
    """Seconds until a command trains; it is ended then."""
    started = time.monotonic()
    driver = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not _histories(home):
        assert driver.poll() is None
        time.sleep(0.02)
    start_s = time.monotonic() - started
    processes = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(signal.SIGTERM)
    assert driver.wait() == 75
    _ended(processes)
    return start_s


@pytest.mark.slow
@pytest.mark.parametrize(("command", "moments"), [(_sweep, MOMENTS), (_cross_validation, MOMENTS // 2)])
def test_a_signal_at_any_moment_of_the_start(
    data, tmp_path, command: Callable[[Path, Path], list[str]], moments
):
    start_s, statuses = _start_s(command(data, tmp_path / "first"), tmp_path / "first"), []
    for i in range(moments):
        home = tmp_path / str(i)
        number = signal.SIGINT if i % 4 == 3 else signal.SIGTERM
        driver = subprocess.Popen(
            command(data, home), cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        time.sleep(start_s * (i + 0.5) / moments)
        processes = psutil.Process(driver.pid).children(recursive=True)
        driver.send_signal(number)
        out, err = driver.communicate()
        _ended(processes)
        statuses.append(driver.returncode)
        if driver.returncode == -number:  # Python still imported the command: nothing had begun
            assert out == ""
            assert not (home / "runs").exists()
            continue
        assert driver.returncode == (75 if number == signal.SIGTERM else 130), (i, out + err)
        assert "Traceback" not in err
        assert ("resume" if number == signal.SIGTERM else "interrupted") in err.splitlines()[-1]
        assert "final" not in out
        before = _histories(home)
        time.sleep(0.5)
        assert _histories(home) == before
    assert 75 in statuses[: len(statuses) // 2]


@pytest.mark.slow
def test_a_job_that_is_stopped_while_it_starts_trains_nothing(data, tmp_path):
    with LocalCluster(num_cpus=2) as cluster:

        def ray(*arguments: str) -> str:
            done = subprocess.run(
                ["ray", "job", *arguments], cwd=ROOT, env=cluster.env, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout

        for i, wait_s in enumerate((0.5, 2.0, 4.0, 6.0)):
            home, name = tmp_path / str(i), f"job-{i}"
            job = ["--", "python", *_sweep(data, home)[1:]]
            ray("submit", "--no-wait", "--submission-id", name, "--working-dir", ".", *job)
            time.sleep(wait_s)
            assert "was stopped" in ray("stop", name)
            before = _histories(home)
            time.sleep(2)
            assert _histories(home) == before
            assert not (home / "runs" / "sweep" / "result.json").exists()
            commands = [
                " ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])
            ]
            assert not [command for command in commands if f"sweep_once.py {data} {home}" in command]
