"""A Slurm of several virtual nodes, all of them processes of this machine and all on its loopback interface.

Debian's slurmd can run once per node name. Nothing of the system's Slurm is used: the configuration, the
key, the sockets, the ports and the states are in a folder of ours, and every process is ended by its id.
"""

import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from mhimdist.cluster.children import free_ports

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")
_SBIN = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
_START_TIMEOUT_S = 120


def missing() -> list[str]:
    """The programs of Slurm that are not installed here."""
    return [name for name in NEEDED if shutil.which(name, path=_SBIN) is None]


class VirtualSlurm:
    """A controller and `num_nodes` nodes n1, n2, ... with one core each, as a context.

    Attributes:
        env: the environment in which Slurm's commands find it.
        folder: everything that it writes.
    """

    def __init__(self, num_nodes: int = 2) -> None:
        """Describe it; entering the context starts it."""
        self.nodes = {f"n{i}": f"127.0.0.{10 + i}" for i in range(1, num_nodes + 1)}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        """Start it, and wait until all nodes are idle."""
        with ExitStack() as cleanup:
            # Not pytest's folder, whose path is too long for the socket.
            self.folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
            cleanup.callback(shutil.rmtree, self.folder, ignore_errors=True)
            cleanup.callback(self._end)
            for name in ("munge", "state", "logs"):
                (self.folder / name).mkdir()
            self.folder.chmod(0o755)
            self._config = self.folder / "slurm.conf"
            self._config.write_text(self._configuration())
            foreign = ("SLURM", "SBATCH", "SRUN", "RAY_ADDRESS", "RAY_AUTH")
            kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
            self.env = kept | {"SLURM_CONF": str(self._config), "PATH": _SBIN}
            self._start_munge()
            self._start("slurmctld", ["slurmctld", "-D", "-f", str(self._config)])
            for name in self.nodes:
                self.start_node(name)
            self._wait_until_idle()
            cleanup.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Cancel all jobs, end all processes, and remove the folder."""
        self._end()
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, *command: str) -> str:
        """What one of Slurm's commands prints."""
        done = subprocess.run(command, env=self.env, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}\n{self.logs()}"
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """What Slurm says of a job; its state is `JobState`."""
        words = self.run("scontrol", "show", "job", number, "--oneliner").split()
        return dict(word.partition("=")[::2] for word in words)

    def start_node(self, name: str) -> None:
        """Start a node's daemon, for the first time or after it was lost."""
        self._start(name, ["slurmd", "-D", "-N", name, "-f", str(self._config)])

    def kill_node(self, name: str) -> list[psutil.Process]:
        """Kill -9 a node's daemon, and everything that it has started; returns what was killed."""
        daemon = self._daemons.pop(name)
        killed = [psutil.Process(daemon.pid), *self._steps(name)]
        for process in killed:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        daemon.wait()
        psutil.wait_procs(killed, timeout=60)
        return killed

    def logs(self) -> str:
        """The ends of all logs."""
        files = sorted((self.folder / "logs").iterdir())
        return "\n".join(f"== {f.name}\n{f.read_text(errors='replace')[-3000:]}" for f in files)

    def left(self) -> list[psutil.Process]:
        """The processes of jobs, which know the configuration by their environment."""
        found = []
        others = {os.getpid(), *(daemon.pid for daemon in self._daemons.values())}
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                is_ours = process.environ().get("SLURM_CONF") == str(self._config)
                if is_ours and process.pid not in others and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def _steps(self, node: str) -> list[psutil.Process]:
        """The processes of a node's steps: their managers, their tasks, and what these have started."""
        found: dict[int, psutil.Process] = {}
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if self._is_of(process, node):
                    manager = process.parent()
                    while manager is not None and not manager.name().startswith("slurmstepd"):
                        manager = manager.parent()
                    found[process.pid] = process
                    if manager is not None:
                        found[manager.pid] = manager
        return list(found.values())

    def _is_of(self, process: psutil.Process, node: str) -> bool:
        env = process.environ()
        return env.get("SLURM_CONF") == str(self._config) and env.get("SLURMD_NODENAME") == node

    def _configuration(self) -> str:
        host, here, user = socket.gethostname().partition(".")[0], self.folder, getpass.getuser()
        settings = {
            "ClusterName": "virtual",
            "SlurmctldHost": f"{host}(127.0.0.1)",
            "SlurmctldPort": free_ports(1)[0],
            "AuthType": "auth/munge",
            # A job that is queued again waits until its old credentials have expired, by default 2 minutes.
            "AuthInfo": f"socket={here}/munge/socket,cred_expire=10",
            "CredType": "cred/munge",
            "SlurmUser": user,
            "SlurmdUser": user,
            "StateSaveLocation": here / "state",
            "SlurmdSpoolDir": here / "%n",
            "SlurmctldPidFile": here / "slurmctld.pid",
            "SlurmdPidFile": here / "%n.pid",
            "SlurmctldLogFile": here / "logs/slurmctld",
            "SlurmdLogFile": here / "logs/%n",
            # A container may not make control groups.
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "JobAcctGatherType": "jobacct_gather/none",
            "AccountingStorageType": "accounting_storage/none",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_Core",
            "SlurmdParameters": "config_overrides",  # the nodes together may have more than this machine
            "ReturnToService": 2,
            "SlurmdTimeout": 20,
            "KillWait": 30,
            "MpiDefault": "none",
            "MailProg": "/bin/true",
        }
        lines = [f"{name}={value}" for name, value in settings.items()]
        for name, address in self.nodes.items():
            port = free_ports(1, address)[0]
            lines.append(f"NodeName={name} NodeHostname={host} NodeAddr={address} Port={port} CPUs=1")
        lines.append("PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP")
        return "\n".join(lines) + "\n"

    def _start_munge(self) -> None:
        munge = self.folder / "munge"
        (munge / "key").touch(mode=0o600)
        (munge / "key").write_bytes(secrets.token_bytes(128))
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "seed-file": "seed"}
        options = [f"--{option}={munge / name}" for option, name in files.items()]
        self._start("munged", ["munged", "--foreground", *options])
        self._wait_for("munge's socket", (munge / "socket").exists)

    def _start(self, name: str, command: list[str]) -> None:
        with (self.folder / "logs" / f"{name}.out").open("ab") as log:
            self._daemons[name] = subprocess.Popen(
                command, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def _wait_until_idle(self) -> None:
        idle = ["sinfo", "--noheader", "--Node", "--states=idle", "--responding", "--format=%N"]

        def are_idle() -> bool:
            done = subprocess.run(idle, env=self.env, capture_output=True, text=True)
            return set(done.stdout.split()) == set(self.nodes)

        self._wait_for("idle nodes", are_idle)

    def _wait_for(self, what: str, is_there) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not is_there():
            assert time.monotonic() < deadline, f"no {what}\n{self.logs()}"
            for name, daemon in self._daemons.items():
                assert daemon.poll() is None, f"{name} ended\n{self.logs()}"
            time.sleep(0.2)

    def _end(self) -> None:
        """End all processes: the jobs, then the daemons."""
        if "slurmctld" in self._daemons:
            subprocess.run(["scancel", f"--user={getpass.getuser()}"], env=self.env, capture_output=True)
            deadline = time.monotonic() + 30
            while self.left() and time.monotonic() < deadline:
                time.sleep(0.2)
        left = self.left()
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for daemon in reversed(self._daemons.values()):
            with suppress(ProcessLookupError):
                daemon.send_signal(signal.SIGTERM)
        for daemon in self._daemons.values():
            try:
                daemon.wait(timeout=60)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self._daemons.clear()
