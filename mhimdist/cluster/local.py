"""A private Ray cluster of one node that runs as long as a command.

    python -m mhimdist.cluster.local -- ray job submit --working-dir . -- python jobs/tune_c16.py

The cluster listens on the loopback interface only and asks every client for a token that it generates. The
command finds address and token in its environment. When the command ends, or on Ctrl-C, SIGTERM or SIGHUP,
all processes that were started end with it, jobs included. They are ended by process id: `ray stop` would
also end the clusters of other users.
"""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from mhimdist.cluster.children import (
    ONE_NODE_SETTINGS,
    adopt_orphans,
    end_all_children,
    end_with_parent,
    free_ports,
    private_folder,
)
from mhimdist.cluster.options import START_TIMEOUT_S, LocalCluster
from mhimdist.errors import ClusterError
from mhimdist.foreign_text import say
from mhimdist.process import run

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_INTERRUPT_GRACE_S = 2.0  # for the command, which has received a terminal's Ctrl-C as well


def run_with_cluster(
    command: Sequence[str], *, num_cpus: int | None = None, start_timeout_s: float = START_TIMEOUT_S
) -> int:
    """Start a cluster, run a command with it, and end all processes that either started.

    It takes over this process's signals and makes it the parent of orphaned grandchildren, so the process
    should do nothing else.

    Args:
        command: program and arguments; it inherits standard input, output and error.
        num_cpus: CPUs that Ray may hand out; None: as many as it finds.
        start_timeout_s: seconds that the cluster may take to get ready.

    Returns:
        The command's exit status; 128 + n if signal n ended it.

    Raises:
        ClusterError: the cluster did not start, or ended before the command.
        SystemExit: a stop signal came; the status is 128 + its number.
    """
    for number in _STOP_SIGNALS:
        signal.signal(number, _stop)
    adopt_orphans()
    with ExitStack() as cleanup:
        folder = cleanup.enter_context(private_folder())
        cleanup.callback(end_all_children)
        cleanup.callback(_ignore_stop_signals)
        head, env = _start_head(folder, num_cpus, start_timeout_s)
        process = subprocess.Popen(command, env=env, preexec_fn=end_with_parent)
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
    """Let nothing interrupt the clean-up, not even a second Ctrl-C."""
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


def _start_head(
    folder: Path, num_cpus: int | None, timeout_s: float
) -> tuple[subprocess.Popen, dict[str, str]]:
    """Start a Ray head and wait until it takes jobs; returns its process, and the environment to reach it."""
    token = secrets.token_hex(32)
    token_file = folder / "token"
    token_file.touch(mode=0o600)
    token_file.write_text(token)
    gcs_port, dashboard_port, client_port = free_ports(3)
    env = _environment(token_file)
    # The system chooses the ports that nobody needs to know, so clusters on one machine do not collide.
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
            start_new_session=True,  # a terminal's Ctrl-C should reach the command, not the cluster under it
            preexec_fn=end_with_parent,
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
    """The environment of this process, pointed at this Python and at no other cluster."""
    # Addresses and tokens of other clusters; RAY_AUTH_TOKEN would take precedence over our file.
    foreign = {
        "RAY_ADDRESS",
        "RAY_API_SERVER_ADDRESS",
        "RAY_AUTH_TOKEN",
        "RAY_JOB_CONFIG_JSON_ENV_VAR",
        "RAY_REDIS_ADDRESS",
        "RAY_TMPDIR",
    }
    env = {name: value for name, value in os.environ.items() if name not in foreign}
    env |= {f"RAY_{name}": str(value) for name, value in ONE_NODE_SETTINGS.items()}
    env |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray replaces a loopback node address by the machine's own address and listens on all interfaces,
        # unless it keeps to one node. This is its switch for that, named after the systems where it is the
        # default.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{env.get('PATH', os.defpath)}",
    }
    for name in ("no_proxy", "NO_PROXY"):
        env[name] = ",".join(filter(None, [env.get(name), "127.0.0.1"]))
    return env


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
    return " | ".join(line.strip() for line in lines[-8:]) or "its log is empty"


def run_locally(options: LocalCluster) -> None:
    """Run one command with its own cluster, and end with its exit status.

    Raises:
        SystemExit: with the command's status; 2 if there is no such command.
        ClusterError: see `run_with_cluster`.
    """
    command = options.command_line
    if shutil.which(command[0], path=_environment(Path())["PATH"]) is None:
        say(f"error: no command {command[0]!r}: expected a program on PATH, or its path", stderr=True)
        sys.exit(2)
    sys.exit(run_with_cluster(command, num_cpus=options.num_cpus, start_timeout_s=options.start_timeout))


def main() -> None:
    """Command line: see `run_locally`."""
    run_locally(LocalCluster.from_command_line())


if __name__ == "__main__":
    run(main)
