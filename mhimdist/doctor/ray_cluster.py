"""Ray: its version and token, the cluster's head, and whether a run fits on a node."""

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mhimdist.cluster.nodes import Node, Share
from mhimdist.doctor import machine, packages
from mhimdist.doctor.child import asked
from mhimdist.doctor.findings import Area, Finding, size
from mhimdist.doctor.options import Doctor

AREA = Area("ray")

ANSWER_TIMEOUT_S = 5.0
"""Seconds in which the head must take a connection."""


def access(job: Doctor) -> Iterator[Finding]:
    """Whether Ray loads, and asks for its token with this environment."""
    version = packages.installed("ray") or "not installed"
    broken = AREA.mend(
        "version",
        f"Ray {version} cannot be imported",
        "install it again: `python -m pip install --force-reinstall 'ray[default,train,tune]'`",
    )
    answer = yield from asked(job, "ray_access", silent=broken)
    if answer is None:
        return
    yield AREA.fine("version", version)
    mode, refused = os.environ.get("RAY_AUTH_MODE"), answer.get("refused")
    if refused is None:
        how = "as if it were 'token'" if mode is None else f"is {mode!r}"
        yield AREA.fine("authentication", f"RAY_AUTH_MODE {'is not set, ' if mode is None else ''}{how}")
    elif "RAY_AUTH_MODE" not in refused:
        yield AREA.mend("address space", refused.partition(": ")[0], "lift the limit: `ulimit -v unlimited`")
    elif job.insecure:
        yield AREA.warning(
            "authentication",
            f"RAY_AUTH_MODE is {mode!r}: Ray asks nobody for a token, as --insecure accepts",
            "close it unless nobody else reaches this network: `export RAY_AUTH_MODE=token`",
        )
    else:
        yield AREA.mend(
            "authentication",
            f"RAY_AUTH_MODE is {mode!r}, which Ray takes for no authentication: whoever reaches a port can "
            "run commands",
            "have Ray ask for its token: `export RAY_AUTH_MODE=token`",
        )


def token(job: Doctor) -> Iterator[Finding]:
    """Whether the token is there, and only this user reads it."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        yield AREA.fine("token", "in RAY_AUTH_TOKEN")
        return
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    file = Path(named).expanduser() if named else Path.home() / ".ray" / "auth_token"
    try:
        found = file.stat()
    except FileNotFoundError:
        if named or job.address:
            yield AREA.mend(
                "token",
                f"{file} does not exist" + ("; RAY_AUTH_TOKEN_PATH names it" if named else ""),
                f"copy it from the head: `scp HEAD:.ray/auth_token {file} && chmod 600 {file}`",
            )
        else:
            yield AREA.fine("token", f"{file} will be made, readable by you alone")
        return
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid != os.geteuid():
        yield AREA.mend(
            "token",
            f"{file} belongs to user {found.st_uid}, and you are {os.geteuid()}: its owner can replace it",
            f"make your own: `rm -f {file} && ray get-auth-token --generate && chmod 600 {file}`",
        )
    elif mode & 0o077:
        yield AREA.mend(
            "token",
            f"{file} has mode {mode:04o}: other users of this machine can read it, and run commands as you",
            f"close it: `chmod 600 {file}`",
        )
    elif not found.st_size:
        yield AREA.mend(
            "token", f"{file} is empty", f"make one: `rm {file} && ray get-auth-token --generate`"
        )
    elif (folder := stat.S_IMODE(file.parent.stat().st_mode)) & 0o022:
        yield AREA.mend(
            "token",
            f"{file.parent} has mode {folder:04o}: other users can replace the token",
            f"close it: `chmod 700 {file.parent}`",
        )
    else:
        yield AREA.fine("token", f"{file}, mode {mode:04o}, yours")


def cluster(job: Doctor) -> Iterator[Finding]:
    """Whether the head answers, and a run fits on one of its nodes."""
    if not job.address or job.address == "local":
        yield AREA.fine("head", "RAY_ADDRESS is not set: each command starts its own Ray on this machine")
        here = Node(machine.cores(), float(_gpus_here()), machine.memory_bytes())
        yield from fit(job, [here], "this machine")
        return
    if job.address != "auto" and (fault := _unreachable(job.address)):
        yield AREA.mend(
            "head",
            fault,
            "start the head there by `ray start --head --port 6379`, correct RAY_ADDRESS, or use this "
            "machine alone: `unset RAY_ADDRESS`",
        )
        return
    how = f"see whether it has your token and version of Ray: `ray status --address {job.address}`"
    failed = AREA.mend("head", f"{job.address} takes connections, but joining it failed", how)
    insecure = "yes" if job.insecure else "no"
    answer = yield from asked(job, "nodes", insecure, silent=failed, env={"RAY_ADDRESS": job.address})
    if answer is None:
        return
    if (refused := answer.get("refused")) is not None:
        yield AREA.mend("head", refused, how)
        return
    nodes = [Node(**each) for each in answer["nodes"]]
    yield AREA.fine("head", f"{job.address} answers; {_told(nodes)}")
    yield from fit(job, nodes, "the cluster")


def _unreachable(address: str) -> str | None:
    """Why no connection can be made to an address; None if one can."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        return f"RAY_ADDRESS is {address!r}, expected the host and port of a head, such as 10.0.0.1:6379"
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_TIMEOUT_S).close()
    except TimeoutError:
        return f"nothing answers at {address} (RAY_ADDRESS) within {ANSWER_TIMEOUT_S:g} s"
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        return f"nothing answers at {address} (RAY_ADDRESS): {reason}"
    return None


def fit(job: Doctor, nodes: list[Node], where: str) -> Iterator[Finding]:
    """How many runs find room at a time.

    Args:
        job: what a run takes.
        nodes: the nodes.
        where: what they are, for messages.
    """
    gpus = job.gpus_per_run
    if gpus is None:
        gpus = 0.25 if any(node.gpus for node in nodes) else 0.0
    share = Share(job.cpus_per_run, gpus)
    takes = _cores(share.cpus) + (f" and {share.gpus:g} GPUs" if share.gpus else "")
    runs = sum(min(share.fits(node).values()) for node in nodes)
    if runs:
        each = "1 run" if runs == 1 else f"{runs} runs at a time, each"
        yield AREA.fine("resources", f"{where} holds {each} with {takes}")
        return
    cores = max((node.cpus for node in nodes), default=0)
    most = max((node.gpus for node in nodes), default=0)
    yield AREA.mend(
        "resources",
        f"a run takes {takes} on one node; {where} has at most {_cores(cores)} and {most:g} GPUs on one",
        f"ask for less: `--cpus-per-run {max(1, int(cores))} --gpus-per-run {min(share.gpus, most):g}`",
    )


def _told(nodes: list[Node]) -> str:
    up = [node for node in nodes if node.is_up]
    more = f", and {len(nodes) - len(up)} that the autoscaler can add" if len(up) < len(nodes) else ""
    totals: Any = (sum(node.cpus for node in up), sum(node.gpus for node in up))
    memory = size(sum(node.memory_bytes for node in up))
    return f"{len(up)} nodes with {_cores(totals[0])}, {totals[1]:g} GPUs and {memory}{more}"


def _cores(number: float) -> str:
    return f"{number:g} core{'' if number == 1 else 's'}"


def _gpus_here() -> int:
    return sum(device.name[6:].isdecimal() for device in Path("/dev").glob("nvidia*"))
