"""A real cluster, real jobs and real signals: what passes through, what is shut, and that nothing stays."""

import ipaddress
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from local_cluster import LocalCluster

from mhimdist.errors import ClusterError

pytestmark = pytest.mark.ray("idle heads")  # which train nothing, so that another Ray may run beside them
CLI = [sys.executable, "-m", "mhimdist.cluster.local", "--num-cpus=1"]
# Prints where the cluster is, and keeps running.
WAIT = [
    sys.executable,
    "-c",
    "import os, time; print(os.environ['RAY_AUTH_TOKEN_PATH'], flush=True); time.sleep(600)",
]


def start(command: list[str]) -> subprocess.Popen[str]:
    """The command line in its own session, as a terminal would start it."""
    return subprocess.Popen(
        [*CLI, "--", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def tree(process: psutil.Process) -> set[psutil.Process]:
    return {process, *process.children(recursive=True)}


def assert_nothing_left(processes: set[psutil.Process], folder: Path, within_s: float = 0) -> None:
    """No process still runs, none names the cluster's folder, and the folder is gone."""
    _, alive = psutil.wait_procs(processes, timeout=within_s)
    assert not [process.cmdline() for process in alive if process.is_running()]
    naming = [
        p.info
        for p in psutil.process_iter(["pid", "cmdline"])
        if str(folder) in " ".join(p.info["cmdline"] or [])
    ]
    assert not naming
    assert not folder.exists()


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    ours = tree(psutil.Process())  # and children that other tests left, such as Python's tracker
    with LocalCluster(num_cpus=1) as cluster:
        processes = tree(psutil.Process()) - ours
        assert len(processes) > 10
        yield cluster
        processes |= tree(psutil.Process()) - ours
    assert_nothing_left(processes, Path(cluster.env["RAY_AUTH_TOKEN_PATH"]).parent)


def listening(processes: set[psutil.Process]) -> dict[tuple[str, int], str]:
    found = {}
    for process in processes:
        for connection in process.net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN:
                found[connection.laddr.ip, connection.laddr.port] = process.name()
    return found


def is_loopback(address: str) -> bool:
    ip = ipaddress.ip_address(address)
    return (getattr(ip, "ipv4_mapped", None) or ip).is_loopback


@pytest.mark.long
def test_a_submitted_job_runs_on_the_cluster(cluster: LocalCluster, tmp_path: Path):
    (tmp_path / "job.py").write_text(
        "import ray, sys\n"
        "ray.init()\n"
        "print('answer', ray.get(ray.remote(lambda: 6 * 7).remote()), ray.cluster_resources()['CPU'])\n"
    )
    submit = ["ray", "job", "submit", "--working-dir", str(tmp_path), "--", "python", "job.py"]
    done = subprocess.run(submit, env=cluster.env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "answer 42 1.0" in done.stdout


@pytest.mark.long
@pytest.mark.faults(36)
def test_everything_listens_on_loopback_only(cluster: LocalCluster):
    ports = listening(tree(psutil.Process()) - {psutil.Process()})
    assert {"gcs_server", "raylet"} <= set(ports.values())
    assert not [where for where in ports if not is_loopback(where[0])]


@pytest.mark.long
@pytest.mark.faults(36)
@pytest.mark.parametrize("token", [None, "0" * 64], ids=["no token", "another token"])
def test_strangers_cannot_submit_jobs(cluster: LocalCluster, token: str | None):
    request = urllib.request.Request(
        cluster.env["RAY_API_SERVER_ADDRESS"] + "/api/jobs/",
        data=json.dumps({"entrypoint": "id"}).encode(),
        headers={"Content-Type": "application/json"}
        | ({"Authorization": f"Bearer {token}"} if token else {}),
        method="POST",
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=300)
    refused.value.close()
    assert refused.value.code in (401, 403)


@pytest.mark.long
@pytest.mark.faults(36)
def test_only_the_user_can_read_the_token(cluster: LocalCluster):
    token_file = Path(cluster.env["RAY_AUTH_TOKEN_PATH"])
    assert token_file.stat().st_mode & 0o777 == 0o600
    assert token_file.parent.stat().st_mode & 0o777 == 0o700


def test_output_and_status_pass_through_and_a_failure_leaves_nothing():
    script = (
        "import os, psutil, sys; print(os.environ['RAY_AUTH_TOKEN_PATH']); print(sys.stdin.read(), end='');"
        "print(*(each.pid for each in psutil.Process(os.getppid()).children(recursive=True)));"
        "print('trouble', file=sys.stderr); sys.exit(7)"
    )
    foreign = os.environ | {
        "RAY_ADDRESS": "192.0.2.1:6379",
        "RAY_AUTH_TOKEN": "theirs",
        "RAY_TMPDIR": "/nowhere",
    }
    done = subprocess.run(
        [*CLI, "--", sys.executable, "-c", script],
        input="typed\n",
        env=foreign,
        capture_output=True,
        text=True,
    )
    token_file, typed, pids = done.stdout.splitlines()
    assert typed == "typed"
    assert done.stderr == "trouble\n"
    assert done.returncode == 7
    assert len(pids.split()) > 10
    assert not [pid for pid in pids.split() if psutil.pid_exists(int(pid))]
    assert_nothing_left(set(), Path(token_file).parent)


@pytest.mark.long
def test_ctrl_c_ends_the_job_too(tmp_path: Path):
    (tmp_path / "job.py").write_text(
        "import os, ray, time\n"
        "ray.init()\n"
        "token = os.environ['RAY_AUTH_TOKEN_PATH']\n"
        "print(f'\\njob {os.getpid()} {token}')\n"
        "time.sleep(600)\n"
    )
    process = start(["ray", "job", "submit", "--working-dir", str(tmp_path), "--", "python", "job.py"])
    with process:
        assert process.stdout is not None
        line = next(line for line in process.stdout if line.startswith("job "))
        _, pid, token_file = line.split()
        processes = tree(psutil.Process(process.pid))
        assert psutil.Process(int(pid)) in processes
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to the whole foreground group
        process.communicate()
    assert process.returncode == 130
    assert_nothing_left(processes, Path(token_file).parent)


@pytest.mark.long
def test_sigterm_takes_everything_down():
    with start(WAIT) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip()).parent
        processes = tree(psutil.Process(process.pid))
        process.terminate()
        process.communicate()
    assert process.returncode == 143
    assert len(processes) > 10
    assert_nothing_left(processes, folder)


@pytest.mark.long
def test_a_start_that_takes_too_long_says_so(monkeypatch: pytest.MonkeyPatch):
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # not tmp_path, too long for Ray's sockets
        monkeypatch.setenv("TMPDIR", folder)
        with pytest.raises(ClusterError, match="not ready within 1 s"), LocalCluster(start_timeout_s=1):
            pass
        assert not list(Path(folder).iterdir())
    assert_nothing_left(set(), Path(folder))


def test_a_command_that_does_not_exist_starts_nothing():
    done = subprocess.run([*CLI, "--", "no-such-command"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "no command 'no-such-command'" in done.stderr


@pytest.mark.faults(20, 45)
@pytest.mark.slow
def test_sigterm_while_starting():
    process = start(WAIT)
    with process:
        while len(processes := tree(psutil.Process(process.pid))) < 5:
            time.sleep(0.05)
        folder = next(
            Path(argument.removeprefix("--temp-dir=")).parent
            for each in processes
            for argument in each.cmdline()
            if argument.startswith("--temp-dir=")
        )
        process.terminate()
        process.communicate()
    assert process.returncode == 143
    assert_nothing_left(processes, folder)


@pytest.mark.faults(23)
@pytest.mark.slow
def test_killing_the_owner_leaves_nothing():
    script = (
        "import time; from local_cluster import LocalCluster\n"
        "with LocalCluster(num_cpus=1) as cluster:\n"
        "    print(cluster.env['RAY_AUTH_TOKEN_PATH'], flush=True); time.sleep(600)"
    )
    # In the folder of all tests, where the script finds `local_cluster`.
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
    ) as owner:
        assert owner.stdout is not None
        folder = Path(owner.stdout.readline().strip()).parent
        processes = tree(psutil.Process(owner.pid))
        owner.kill()
    assert_nothing_left(processes, folder, within_s=300)


@pytest.mark.slow
def test_killing_the_command_line_leaves_no_process():
    with start(WAIT) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip()).parent
        processes = tree(psutil.Process(process.pid))
        process.kill()
    _, alive = psutil.wait_procs(processes, timeout=300)
    assert not alive
    subprocess.run(["rm", "-r", str(folder)], check=True)  # SIGKILL leaves nothing else behind


@pytest.mark.slow
def test_a_head_that_dies_ends_the_command():
    script = (
        "import os, psutil, time\n"
        "siblings = psutil.Process(os.getppid()).children()\n"
        "next(each for each in siblings if '--head' in each.cmdline()).terminate()\n"
        "time.sleep(600)"
    )
    done = subprocess.run([*CLI, "--", sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: the Ray head ended before the command: ")
