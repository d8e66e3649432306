"""What runs in a batch job of Slurm: a Ray per node, and the command that uses them.

    srun python -m mhimdist.cluster.slurm_node serve FOLDER
    python -m mhimdist.cluster.slurm_node drive FOLDER -- python jobs/tune_c16.py

`serve` runs once per node until SIGTERM; the first node is Ray's head. `drive` waits until all nodes have
joined, then becomes the command. They meet in a private folder that all nodes see: it has the token and the
head's address. Every port is one that is free, so that jobs on one node do not collide. Nothing here calls
Slurm, so that it runs in a container, too.
"""

import argparse
import ipaddress
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import psutil
from ray import _raylet

from mhimdist import files
from mhimdist.cluster.children import (
    adopt_orphans,
    end_all_children,
    end_with_parent,
    free_ports,
    private_folder,
)
from mhimdist.errors import ClusterError
from mhimdist.foreign_text import say
from mhimdist.process import run

_ray: Any = _raylet  # compiled, and without types

START_TIMEOUT_S = 600.0
"""Seconds that the head may take to start: hundreds of files are read from a shared file system first."""

JOIN_TIMEOUT_S = 300.0
"""Seconds that the command waits for the other nodes; then it starts without those that are late."""

MAX_STARTS = 5
"""Starts of a node's Ray: a port may be taken meanwhile, or memory may run out."""

_HEAD, _TOKEN, _FAILURE, _NODES = "head.json", "token", "failure.txt", "nodes"
# The share of the job's memory that Ray hands out; the rest is for Ray's own processes and the command.
_MEMORY_SHARE, _OBJECT_STORE_SHARE = 0.9, 0.3


@dataclass(frozen=True)
class Allotment:
    """What Slurm gives the job on this node.

    Attributes:
        cpus: CPU cores.
        gpus: GPUs.
        memory_bytes: bytes of memory; None if Slurm sets no limit.
    """

    cpus: int
    gpus: int
    memory_bytes: int | None

    @classmethod
    def of(cls, env: Mapping[str, str]) -> "Allotment":
        """Read the variables that Slurm sets for a step."""
        cpus = int(env.get("SLURM_CPUS_ON_NODE") or env.get("SLURM_CPUS_PER_TASK") or os.cpu_count() or 1)
        visible = [each for each in env.get("CUDA_VISIBLE_DEVICES", "").split(",") if each]
        gpus = int(env.get("SLURM_GPUS_ON_NODE") or len(visible))
        mib = int(env.get("SLURM_MEM_PER_NODE") or 0) or cpus * int(env.get("SLURM_MEM_PER_CPU") or 0)
        return cls(cpus, gpus, mib * 2**20 or None)

    @property
    def options(self) -> dict[str, int]:
        """The options of `ray start`, which would otherwise offer the whole machine."""
        found = {"num-cpus": self.cpus, "num-gpus": self.gpus}
        if self.memory_bytes is None:
            return found
        # Ray keeps its objects in /dev/shm, and on the disk if that is too small.
        store = int(min(_OBJECT_STORE_SHARE * self.memory_bytes, 0.9 * shutil.disk_usage("/dev/shm").free))
        return found | {
            "object-store-memory": max(store, 100 * 2**20),
            "memory": int(_MEMORY_SHARE * self.memory_bytes) - store,
        }


def address_of_node(nodes: str, name: str, interface: str = "") -> str:
    """The IPv4 address of this node on which Ray meets the other nodes.

    Args:
        nodes: what `scontrol show node --oneliner` prints of the job's nodes.
        name: Slurm's name of this node.
        interface: a network interface to use instead of the address that Slurm uses.

    Raises:
        ClusterError: there is no such interface, or the node's address cannot be found or is not this
            machine's.
    """
    if interface:
        found = psutil.net_if_addrs()
        own = [each.address for each in found.get(interface, []) if each.family == socket.AF_INET]
        if not own:
            raise ClusterError(
                f"node {name} has no interface {interface!r} with an IPv4 address; it has {', '.join(found)}"
            )
        return own[0]
    lines = [dict(word.partition("=")[::2] for word in line.split()) for line in nodes.splitlines()]
    addresses = {line.get("NodeName", ""): line.get("NodeAddr", "") for line in lines}
    if not addresses.get(name):
        raise ClusterError(f"Slurm names no address of node {name!r}, only of {', '.join(addresses)}")
    address = _resolved(addresses[name])
    if address is None or (_is_loopback(address) and not _is_literal(addresses[name])):
        # Many machines name their own host 127.0.1.1. What leads to another node is an address for all.
        others = [_resolved(addresses[other]) for other in addresses if other != name]
        reached = next((other for other in others if other and not _is_loopback(other)), None)
        if reached is None:
            if address is not None and len(addresses) == 1:
                return address
            raise ClusterError(
                f"node {name}: {addresses[name]} is {address or 'unknown'} here; name the network interface "
                "by the interface option of the script"
            )
        with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
            probe.connect((reached, 9))  # sends nothing: the system only chooses the interface
            address = probe.getsockname()[0]
    return address


def _resolved(name: str) -> str | None:
    with suppress(OSError):
        return str(socket.getaddrinfo(name, None, socket.AF_INET)[0][4][0])
    return None


def _is_literal(name: str) -> bool:
    with suppress(ValueError):
        ipaddress.ip_address(name)
        return True
    return False


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


def serve(folder: Path, interface: str = "") -> None:
    """Run this node's Ray until SIGTERM; then end all of its processes and remove its files.

    Args:
        folder: the job's private folder, which all nodes see.
        interface: see `address_of_node`.

    Raises:
        ClusterError: Ray did not start, or ended too often.
        SystemExit: SIGTERM, SIGINT or SIGHUP came; the status is 0.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    adopt_orphans()
    rank = int(os.environ["SLURM_PROCID"])
    with ExitStack() as cleanup:
        own = cleanup.enter_context(private_folder())
        cleanup.callback(end_all_children)
        cleanup.callback(_ignore_signals)
        try:
            name = os.environ["SLURMD_NODENAME"]
            address = address_of_node((folder / _NODES).read_text(encoding="utf-8"), name, interface)
            if rank == 0:
                _serve_head(folder, own, address)
            else:
                _serve_worker(folder, own, address, rank)
        except (ClusterError, OSError) as error:
            if rank == 0:
                files.write_text(folder / _FAILURE, str(error))
            raise


def _leave(number: int, frame: object) -> None:
    _ignore_signals()
    sys.exit(0)


def _ignore_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _serve_head(folder: Path, own: Path, address: str) -> None:
    token = folder / _TOKEN
    with open(os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
        opened.write(secrets.token_hex(32))
    ray, ports = _up(own, token, {"head": None, "dashboard-host": address, "node-ip-address": address})
    found = {
        "address": f"{address}:{ports['port']}",
        "dashboard": f"http://{address}:{ports['dashboard-port']}",
    }
    files.write_text(folder / _HEAD, json.dumps(found))
    _join(folder, 0)
    status = ray.wait()
    raise ClusterError(f"the Ray head ended with status {status}: {_log_tail(own)}")


def _serve_worker(folder: Path, own: Path, address: str, rank: int) -> None:
    head = _head(folder)
    for _ in range(MAX_STARTS):
        ray, _ports = _up(own, folder / _TOKEN, {"address": head["address"], "node-ip-address": address})
        _join(folder, rank)
        status = ray.wait()
        say(f"node {rank}: Ray ended with status {status} ({_log_tail(own)}); it starts again", stderr=True)
        end_all_children()
    raise ClusterError(f"node {rank}: Ray ended {MAX_STARTS} times")


def _join(folder: Path, rank: int) -> None:
    files.write_text(folder / f"joined-{rank}", "")


def _up(
    own: Path, token: Path, arguments: Mapping[str, str | None]
) -> tuple[subprocess.Popen, dict[str, int]]:
    """A node's Ray that runs, and its ports; a start that fails is repeated with other ports.

    Raises:
        ClusterError: it did not start.
    """
    for attempt in range(1, MAX_STARTS + 1):
        ray, ports = _start(own, token, arguments)
        try:
            _wait_until_up(ray, own, ports)
        except ClusterError as error:
            if attempt == MAX_STARTS:
                raise
            say(f"{error}; it starts again", stderr=True)
            end_all_children()
        else:
            break
    return ray, ports


def _start(
    own: Path, token: Path, arguments: Mapping[str, str | None]
) -> tuple[subprocess.Popen, dict[str, int]]:
    """Start a node's Ray with free ports and with what Slurm gives.

    Ray's own choice (0) suits the ports of its C++ processes. Those of the Python ones are chosen here, so
    that Ray need not wait for their answer (see `_tell`).
    """
    (own / "ray" / "ray_current_cluster").unlink(missing_ok=True)
    named = ["dashboard-agent-listen-port", "dashboard-agent-grpc-port"]
    named += ["runtime-env-agent-port", "metrics-export-port"]
    if "head" in arguments:
        named += ["port", "dashboard-port", "ray-client-server-port"]
    address = arguments["node-ip-address"]
    assert address is not None
    ports = dict(zip(named, free_ports(len(named), address), strict=True))
    own_choice = ("node-manager-port", "object-manager-port", "min-worker-port", "max-worker-port")
    given = {
        **arguments,
        **ports,
        **dict.fromkeys(own_choice, 0),
        **Allotment.of(os.environ).options,
        "temp-dir": str(own / "ray"),
        "log-color": "false",
    }
    with (own / "log").open("w") as log:
        ray = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
            + [f"--{name}" if value is None else f"--{name}={value}" for name, value in given.items()],
            env=_environment(token),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=end_with_parent,
        )
    return ray, ports


def _environment(token: Path) -> dict[str, str]:
    """The environment of this process, with the job's token and no other cluster's."""
    foreign = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "RAY_JOB_CONFIG_JSON_ENV_VAR")
    env = {name: value for name, value in os.environ.items() if name not in (*foreign, "RAY_TMPDIR")}
    # Ray gives its processes 30 s, which is short where Python is read from a file system of many nodes.
    patient = {"RAY_raylet_start_wait_time_s": "120", "RAY_agent_register_timeout_ms": "300000"}
    return {
        **patient,
        **env,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{env.get('PATH', os.defpath)}",
    }


def _wait_until_up(ray: subprocess.Popen, own: Path, ports: Mapping[str, int]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    is_told = False
    while not (own / "ray" / "ray_current_cluster").exists():  # the last thing that `ray start` does
        if ray.poll() is not None:
            raise ClusterError(f"Ray ended with status {ray.returncode}: {_log_tail(own)}")
        raylet = _raylet_of(ray)
        if is_told and raylet is None:  # `ray start` itself would wait for it for minutes
            raise ClusterError("Ray's raylet ended while it started")
        if not is_told and raylet is not None:
            is_told = _tell(raylet, ports["dashboard-agent-listen-port"])
        if time.monotonic() > deadline:
            raise ClusterError(f"Ray was not ready within {START_TIMEOUT_S:g} s: {_log_tail(own)}")
        time.sleep(0.2)


def _raylet_of(ray: subprocess.Popen) -> psutil.Process | None:
    with suppress(psutil.Error):
        for child in psutil.Process(ray.pid).children():
            if child.name() == "raylet" and child.status() != psutil.STATUS_ZOMBIE:
                return child
    return None


def _tell(raylet: psutil.Process, port: int) -> bool:
    """Tell a raylet on which port its agent will listen; returns whether that was possible.

    It waits 15 s, fixed in its code, to hear it from the agent, and then aborts. An agent that is read from
    the file system of many nodes takes longer to start, and the port is our choice.
    """
    with suppress(psutil.Error, KeyError):
        given = dict(word.removeprefix("--").partition("=")[::2] for word in raylet.cmdline()[1:])
        name = _ray.DASHBOARD_AGENT_LISTEN_PORT_NAME
        _ray.persist_port(given["session_dir"], given["node_id"], name, port)
        return True
    return False


def _log_tail(own: Path) -> str:
    lines = (own / "log").read_text(errors="replace").strip().splitlines()
    return " | ".join(line.strip() for line in lines[-8:]) or "its log is empty"


def _head(folder: Path, timeout_s: float = START_TIMEOUT_S) -> dict[str, str]:
    """Where the head is, once it has started."""
    deadline = time.monotonic() + timeout_s
    while not (folder / _HEAD).exists():
        if (folder / _FAILURE).exists():
            raise ClusterError(f"the first node: {(folder / _FAILURE).read_text(encoding='utf-8')}")
        if time.monotonic() > deadline:
            raise ClusterError(f"Ray's head did not start within {timeout_s:g} s; {folder} has no {_HEAD}")
        os.listdir(folder)  # has NFS look again
        time.sleep(0.5)
    return files.json_object(folder / _HEAD, ClusterError)


def drive(folder: Path, command: list[str], num_nodes: int) -> NoReturn:
    """Wait until the nodes have joined, then become the command, which finds them by RAY_ADDRESS.

    Args:
        folder: the job's private folder.
        command: program and arguments.
        num_nodes: nodes of the job. Those that have not joined after `JOIN_TIMEOUT_S` may join later.

    Raises:
        ClusterError: the head did not start, or there is no such program.
    """
    env = _environment(folder / _TOKEN)
    if shutil.which(command[0], path=env["PATH"]) is None:
        raise ClusterError(f"no command {command[0]!r}: expected a program on PATH, or its path")
    head = _head(folder)
    deadline = time.monotonic() + JOIN_TIMEOUT_S
    while missing := [n for n in range(num_nodes) if not (folder / f"joined-{n}").exists()]:
        if time.monotonic() > deadline:
            break
        os.listdir(folder)
        time.sleep(0.5)
    late = f", without number {', '.join(map(str, missing))} so far" if missing else ""
    say(f"Ray runs on {num_nodes - len(missing)} of {num_nodes} nodes{late}; dashboard {head['dashboard']}")
    env |= {"RAY_ADDRESS": head["address"], "RAY_API_SERVER_ADDRESS": head["dashboard"]}
    os.execvpe(command[0], command, env)


def main() -> None:
    """Command line: one process of a batch job."""
    parser = argparse.ArgumentParser(
        prog="python -m mhimdist.cluster.slurm_node",
        description="A process of a batch job, which the script of `mhimdist.cluster.slurm` starts.",
        usage="%(prog)s [-h] [--interface NAME] serve FOLDER | drive FOLDER -- COMMAND [ARGUMENT ...]",
    )
    parser.add_argument("--interface", default="", metavar="NAME", help="network interface of Ray, as ib0")
    parser.add_argument("role", choices=["serve", "drive"], help="serve: a node's Ray; drive: the command")
    parser.add_argument("folder", type=Path, help="private folder that all nodes see")
    parser.add_argument("command", nargs="*", metavar="COMMAND", help="command to run, after --")
    options = parser.parse_args()
    if options.role == "serve":
        serve(options.folder, options.interface)
    elif not options.command:
        parser.error("drive needs a command after --")
    else:
        drive(options.folder, options.command, int(os.environ.get("SLURM_JOB_NUM_NODES", "1")))


if __name__ == "__main__":
    run(main)
