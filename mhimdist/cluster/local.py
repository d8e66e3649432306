"""A private Ray cluster of one node, for as long as a command runs.

    python -m mhimdist.cluster.local -- ray job submit --working-dir . -- python jobs/tune_c16.py

The cluster listens on the loopback interface only and asks every client for a token that it makes for
itself. The command finds both in its environment. When the command ends, or on Ctrl-C, SIGTERM or SIGHUP,
every process that was started goes with it, jobs included, by process id: `ray stop` would also end the
clusters of others.
"""

import argparse
import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import psutil

from mhimdist.errors import ClusterError
from mhimdist.process import run

START_TIMEOUT_S = 120.0

# Ray's Unix sockets lie some 65 bytes below its temporary folder, and a socket's path may have 107.
_MAX_TEMP_ROOT_BYTES = 30
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_INTERRUPT_GRACE_S = 2.0  # for the command, which a terminal's Ctrl-C has reached as well
_TERMINATE_GRACE_S = 8.0  # from SIGTERM to SIGKILL; without a hitch all is gone in 3 s
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # <linux/prctl.h>


def run_with_cluster(
    command: Sequence[str], *, num_cpus: int | None = None, start_timeout_s: float = START_TIMEOUT_S
) -> int:
    """Start a cluster, run a command with it, and take down all that either started.

    It takes over this process's signals and makes it the parent of orphaned grandchildren: for a process
    that does nothing else.

    Args:
        command: program and arguments; it inherits standard input, output and error.
        num_cpus: CPUs that Ray may hand out, by default as many as it finds.
        start_timeout_s: seconds that the cluster may take to get ready.

    Returns:
        The command's exit status, 128 + n if signal n ended it.

    Raises:
        ClusterError: the cluster did not start, or ended before the command.
        SystemExit: a stop signal came; the status is 128 + its number.
    """
    for number in _STOP_SIGNALS:
        signal.signal(number, _stop)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    with ExitStack() as cleanup:
        folder = _private_folder()
        cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
        cleanup.callback(_end_all_children)
        cleanup.callback(_ignore_stop_signals)
        head, env = _start_head(folder, num_cpus, start_timeout_s)
        process = subprocess.Popen(command, env=env, preexec_fn=_end_with_parent)
        try:
            return _wait(process, head, folder)
        except SystemExit as stop:
            if stop.code == 128 + signal.SIGINT:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_INTERRUPT_GRACE_S)
            raise


def _stop(number: int, _frame: object) -> None:
    _ignore_stop_signals()
    sys.exit(128 + number)


def _ignore_stop_signals() -> None:
    """Let nothing cut the taking down short, not even a second Ctrl-C."""
    for number in _STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _wait(process: subprocess.Popen, head: subprocess.Popen, folder: Path) -> int:
    while True:
        try:
            status = process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            if head.poll() is not None:
                raise ClusterError(f"the Ray head ended before the command: {_log_tail(folder)}") from None
        else:
            return status if status >= 0 else 128 - status


def _private_folder() -> Path:
    """A folder that only this user may enter, for the token and for all that Ray writes."""
    root = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="mhim-", dir=root if len(root) <= _MAX_TEMP_ROOT_BYTES else "/tmp"))


def _start_head(
    folder: Path, num_cpus: int | None, timeout_s: float
) -> tuple[subprocess.Popen, dict[str, str]]:
    """Start a Ray head and wait until it takes jobs; its process, and the environment that leads to it."""
    token = secrets.token_hex(32)
    token_file = folder / "token"
    token_file.touch(mode=0o600)
    token_file.write_text(token)
    gcs_port, dashboard_port, client_port = _free_ports(3)
    env = _environment(token_file)
    # The ports that need not be known are the system's choice: clusters on one machine do not meet.
    arguments = {
        "node-ip-address": "127.0.0.1",
        "port": gcs_port,
        "dashboard-host": "127.0.0.1",
        "dashboard-port": dashboard_port,
        "ray-client-server-port": client_port,
        "node-manager-port": 0,
        "object-manager-port": 0,
        "min-worker-port": 0,
        "max-worker-port": 0,
        "dashboard-agent-listen-port": 0,
        "dashboard-agent-grpc-port": 0,
        "runtime-env-agent-port": 0,
        "metrics-export-port": 0,
        "temp-dir": folder / "ray",
        "log-color": "false",
    }
    if num_cpus is not None:
        arguments["num-cpus"] = num_cpus
    with (folder / "log").open("w") as log:
        head = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
            + [f"--{name}={value}" for name, value in arguments.items()],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # a terminal's Ctrl-C is for the command, not for the cluster under it
            preexec_fn=_end_with_parent,
        )
    url = f"http://127.0.0.1:{dashboard_port}"
    deadline = time.monotonic() + timeout_s
    while not _takes_jobs(folder, url, token):
        if head.poll() is not None:
            raise ClusterError(f"the Ray head ended with status {head.returncode}: {_log_tail(folder)}")
        if time.monotonic() > deadline:
            raise ClusterError(f"the Ray head was not ready within {timeout_s:g} s: {_log_tail(folder)}")
        time.sleep(0.1)
    return head, env | {"RAY_ADDRESS": f"127.0.0.1:{gcs_port}", "RAY_API_SERVER_ADDRESS": url}


def _environment(token_file: Path) -> dict[str, str]:
    """The environment of this process, led away from any other cluster and towards this Python."""
    # Where another cluster is, and with what it is entered; RAY_AUTH_TOKEN would come before our file.
    foreign = {
        "RAY_ADDRESS",
        "RAY_API_SERVER_ADDRESS",
        "RAY_AUTH_TOKEN",
        "RAY_JOB_CONFIG_JSON_ENV_VAR",
        "RAY_REDIS_ADDRESS",
        "RAY_TMPDIR",
    }
    env = {name: value for name, value in os.environ.items() if name not in foreign}
    env |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray replaces a loopback node address by the machine's own and listens on all interfaces, except
        # where it keeps to one node; this is its switch for that, named after where it is the default.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{env.get('PATH', os.defpath)}",
    }
    for name in ("no_proxy", "NO_PROXY"):
        env[name] = ",".join(filter(None, [env.get(name), "127.0.0.1"]))
    return env


def _free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(closing(socket.socket())) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _takes_jobs(folder: Path, url: str, token: str) -> bool:
    if not (folder / "ray/ray_current_cluster").exists():  # the last thing that `ray start` does
        return False
    request = urllib.request.Request(f"{url}/api/jobs/", headers={"Authorization": f"Bearer {token}"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def _log_tail(folder: Path) -> str:
    lines = (folder / "log").read_text(errors="replace").strip().splitlines()
    return " | ".join(line.strip() for line in lines[-8:]) or "it said nothing"


def _end_all_children() -> None:
    """End every descendant of this process; orphans among them have become its children.

    Children get SIGTERM, and end what they started themselves: the head stops its daemons in an order in
    which none waits for another. Workers and jobs, deeper down, get it too, as the daemons wait for them.
    """
    myself = psutil.Process()
    start = time.monotonic()
    terminated: set[psutil.Process] = set()
    while descendants := set(myself.children(recursive=True)):
        waited_s = time.monotonic() - start
        if waited_s > 2 * _TERMINATE_GRACE_S:
            raise ClusterError(f"could not end {', '.join(map(str, descendants))}")
        if waited_s > _TERMINATE_GRACE_S:
            _send(signal.SIGKILL, descendants)
        else:
            left_to_parents = {each for child in myself.children() for each in _children(child)}
            _send(signal.SIGTERM, descendants - left_to_parents - terminated)
            terminated |= descendants - left_to_parents
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:  # a zombie counts as a child until it is waited for
                pass
        time.sleep(0.05)


def _children(process: psutil.Process) -> list[psutil.Process]:
    with suppress(psutil.Error):
        return process.children()
    return []


def _send(number: signal.Signals, processes: set[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.Error):
            process.send_signal(number)


def _end_with_parent() -> None:
    """In a new child: have the kernel send it SIGTERM if this process dies without a chance to."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl failed")


def main() -> None:
    """Command line: run one command with a cluster of its own."""
    parser = argparse.ArgumentParser(
        prog="python -m mhimdist.cluster.local",
        description="Run a command with a private Ray cluster on this machine, and end the cluster with it. "
        "The command finds it by RAY_ADDRESS (ray.init) and RAY_API_SERVER_ADDRESS (ray job submit); its "
        "exit status is passed on.",
        usage="%(prog)s [-h] [--num-cpus N] [--start-timeout SECONDS] -- COMMAND [ARGUMENT ...]",
    )
    parser.add_argument(
        "--num-cpus", type=int, metavar="N", help="CPUs that Ray may hand out (default: all it finds)"
    )
    parser.add_argument(
        "--start-timeout",
        type=float,
        default=START_TIMEOUT_S,
        metavar="SECONDS",
        help="how long the cluster may take to get ready (default: %(default)g)",
    )
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="what to run, behind a --")
    options = parser.parse_args()
    if options.num_cpus is not None and options.num_cpus < 1:
        parser.error(f"--num-cpus must be at least 1, got {options.num_cpus}")
    if shutil.which(options.command[0], path=_environment(Path())["PATH"]) is None:
        parser.error(f"no command {options.command[0]!r}")
    sys.exit(
        run_with_cluster(options.command, num_cpus=options.num_cpus, start_timeout_s=options.start_timeout)
    )


if __name__ == "__main__":
    run(main)
