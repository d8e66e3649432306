"""How a process joins Ray, never without its token, and the nodes that it finds there."""

import logging
import os
import resource
import tempfile
from pathlib import Path
from typing import Any

import grpc
import psutil
import ray
import yaml

from mhimdist.cluster.local import MAX_TEMP_ROOT_BYTES
from mhimdist.cluster.nodes import Node, Share, addable_nodes
from mhimdist.errors import ClusterError

_NODE_TYPE_LABEL = "ray.io/node-group"
_HEAD_RESOURCE = "node:__internal_head__"

_ANSWER_TIMEOUT_S = 10.0  # ray.init itself waits for two minutes

# A worker maps the object store, which takes this share of the memory, and torch beside it.
_OBJECT_STORE_SHARE, _WORKER_BYTES = 0.3, 8 * 2**30


def refuse_open_cluster(*, insecure: bool = False) -> None:
    """Refuse Ray without its token: whoever reached a port could run commands on every node.

    Args:
        insecure: the user accepts an open cluster, in a network that nobody else reaches.

    Raises:
        ClusterError: the environment turns Ray's authentication off.
    """
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled" and not insecure:
        raise ClusterError(
            "RAY_AUTH_MODE is 'disabled', expected 'token': without a token, anyone who reaches a port of "
            "the cluster can run commands on it. Make a token by `ray get-auth-token --generate`, or give "
            "--insecure in a network that nobody else reaches"
        )


def connect(*, dashboard: bool = False) -> None:
    """Join the cluster that runs this job; outside a job, start a local one and never join a stranger's.

    Args:
        dashboard: whether a local cluster has Ray's dashboard. Ray Train asks the dashboard whether a trial
            that started more than one worker is still alive; without an answer, their resources are never
            released.

    Raises:
        ClusterError: no cluster answers at RAY_ADDRESS, or Ray cannot run within the limit on the processes'
            address space.
    """
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # our own output is a line per run
    if ray.is_initialized():
        return
    cluster: dict[str, Any] = {}
    if _is_asked_to_join():
        _require_answer(os.environ.get("RAY_ADDRESS", ""))
    else:
        _require_address_space()
        cluster = {"address": "local", "include_dashboard": dashboard, "_temp_dir": _temp_dir()}
    # The output of Ray's processes stays in its logs: ours report by results, files and exceptions.
    ray.init(logging_level=logging.WARNING, log_to_driver=False, **cluster)


def _require_answer(address: str, timeout_s: float = _ANSWER_TIMEOUT_S) -> None:
    """Refuse an address at which no cluster answers, within seconds.

    Args:
        address: value of RAY_ADDRESS; Ray finds a cluster of this machine by an empty one or "auto".
        timeout_s: seconds to wait for the head.

    Raises:
        ClusterError: nothing answers there, or the address is not that of a cluster's head.
    """
    if address in ("", "auto"):
        return  # Ray answers at once
    if "://" in address:
        raise ClusterError(
            f"RAY_ADDRESS is {address!r}, expected the host and port of a cluster's head, such as "
            "10.0.0.1:6379. Unset RAY_ADDRESS to use this machine alone, or submit the command to the "
            "cluster by `python -m mhimdist.cluster.submit`"
        )
    if os.environ.get("RAY_USE_TLS", "0") == "1":
        return  # only Ray has the certificates
    with grpc.insecure_channel(address) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=timeout_s)
        except grpc.FutureTimeoutError:
            raise ClusterError(
                f"no cluster answers at {address} (RAY_ADDRESS) within {timeout_s:g} s. Start the cluster, "
                "correct the address, or unset RAY_ADDRESS to use this machine alone"
            ) from None


def _require_address_space() -> None:
    """Refuse a limit on the address space below which Ray's workers crash.

    Raises:
        ClusterError: the limit is too small.
    """
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    needed = int(_OBJECT_STORE_SHARE * psutil.virtual_memory().total) + _WORKER_BYTES
    if limit != resource.RLIM_INFINITY and limit < needed:
        raise ClusterError(
            f"each process may have {limit / 2**30:.1f} GiB of address space (ulimit -v), and Ray's workers "
            f"need about {needed / 2**30:.1f} GiB of it here, most of which they never use. Lift the limit "
            "by `ulimit -v unlimited`; a batch system can limit the memory itself (--mem)"
        )


def _temp_dir() -> str | None:
    """The folder for Ray's files; None leaves Ray its own choice.

    Batch systems set a TMPDIR that is longer than the path of a Unix socket may be.
    """
    chosen = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    return None if len(os.fsencode(chosen)) <= MAX_TEMP_ROOT_BYTES else "/tmp/ray"


class Nodes:
    """The nodes that runs can use: those that are up, and those that the autoscaler adds on demand.

    Attributes:
        without_memory: the autoscaler's node types that it cannot add for runs that reserve memory.
    """

    def __init__(self) -> None:
        """Find out whether the joined cluster has an autoscaler."""
        self._file = _autoscaler_file()
        self.without_memory: list[str] = []

    def look(self) -> list[Node]:
        """The nodes now."""
        alive = [node for node in ray.nodes() if node["Alive"]]
        found = [
            Node(
                cpus=node["Resources"].get("CPU", 0.0),
                gpus=node["Resources"].get("GPU", 0.0),
                memory_bytes=int(node["Resources"].get("memory", 0)),
            )
            for node in alive
        ]
        if self._file is None:
            return found
        workers = [node for node in alive if _HEAD_RESOURCE not in node["Resources"]]
        config: dict[str, Any] = yaml.safe_load(self._file.read_text(encoding="utf-8"))
        addable, self.without_memory = addable_nodes(
            config, [(node["Labels"] or {}).get(_NODE_TYPE_LABEL, "") for node in workers]
        )
        return found + addable


def _autoscaler_file() -> Path | None:
    """The file of the joined cluster's autoscaler; None if the cluster has none, or not on this node.

    Ray does not say how many nodes its autoscaler may add. But a job's driver runs on the head, as the
    autoscaler does, and the autoscaler's command line names its file.
    """
    node: Any = ray._private.worker._global_node
    logs = f"--logs-dir={node.get_logs_dir_path()}"
    option = "--autoscaling-config="
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        files = [part.removeprefix(option) for part in line if part.startswith(option)]
        if files and logs in line:
            return Path(files[0]).expanduser()
    return None


def share_of(cpus: float, gpus: float | None) -> Share:
    """The share that an unmeasured run takes.

    Args:
        cpus: CPU cores.
        gpus: share of a GPU; None means a quarter if the cluster has GPUs or can get them, otherwise 0.
    """
    if gpus is None:
        gpus = 0.25 if has_gpus() else 0.0
    return Share(cpus, gpus)


def has_gpus() -> bool:
    """Whether runs find GPUs: on the cluster, or on nodes that its autoscaler can add.

    If no cluster has been started yet, this machine's GPUs count.
    """
    if not ray.is_initialized() and not _is_asked_to_join():
        import torch  # takes seconds, and a command that only submits a job needs none of it

        return torch.cuda.is_available()
    connect()
    return any(node.gpus for node in Nodes().look())


def _is_asked_to_join() -> bool:
    return (
        os.environ.get("RAY_ADDRESS", "") not in ("", "local") or "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    )
