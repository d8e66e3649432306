"""Joining Ray, and never without its token; the nodes that it has, and what a run takes of them."""

import logging
import os
from pathlib import Path
from typing import Any

import psutil
import ray
import yaml

from mhimdist.cluster.nodes import Node, Share, addable_nodes
from mhimdist.errors import ClusterError

_NODE_TYPE_LABEL = "ray.io/node-group"
_HEAD_RESOURCE = "node:__internal_head__"


def refuse_open_cluster(*, insecure: bool = False) -> None:
    """Refuse to use Ray without its token, by which whoever reaches a port runs commands on every node.

    Args:
        insecure: the user has said that this is meant, in a network that nobody else reaches.

    Raises:
        ClusterError: the environment turns Ray's authentication off.
    """
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled" and not insecure:
        raise ClusterError(
            "RAY_AUTH_MODE is 'disabled', expected 'token': without a token whoever reaches a port of the "
            "cluster runs commands on it. Make one by `ray get-auth-token --generate`, or give --insecure in "
            "a network that nobody else reaches"
        )


def connect(*, dashboard: bool = False) -> None:
    """Join the cluster that runs this job; alone, start a local one and never join a stranger's.

    Args:
        dashboard: whether a local one has Ray's dashboard. Ray Train asks it whether a trial that started
            several workers still lives; without an answer, what these took is never given back.
    """
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # ours is a line a run
    # What processes of Ray print stays in its logs: ours say what matters by results, files and exceptions.
    if ray.is_initialized():
        return
    if _is_asked_to_join():
        ray.init(logging_level=logging.WARNING, log_to_driver=False)
    else:
        ray.init(
            address="local", include_dashboard=dashboard, logging_level=logging.WARNING, log_to_driver=False
        )


class Nodes:
    """The nodes that runs can use: those that are there, and those that the autoscaler adds when asked to.

    Attributes:
        without_memory: node types of the autoscaler that it cannot add for runs that ask for memory.
    """

    def __init__(self) -> None:
        """Find out whether the cluster that was joined has an autoscaler."""
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
    """What the joined cluster's autoscaler was started with; None where it has none, or not on this node.

    Ray tells nobody how far its autoscaler may go. But a job's driver runs on the head, as the autoscaler
    does, whose command line names its file.
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
    """What a run takes that nobody has measured.

    Args:
        cpus: CPU cores.
        gpus: share of a GPU; None is a quarter where the cluster has GPUs, or may get them.
    """
    if gpus is None:
        gpus = 0.25 if has_gpus() else 0.0
    return Share(cpus, gpus)


def has_gpus() -> bool:
    """Whether runs find GPUs: those of the cluster, or that its autoscaler may add.

    Where no cluster has been started yet, those of this machine.
    """
    if not ray.is_initialized() and not _is_asked_to_join():
        import torch  # it takes seconds, which a command that only submits a job does not

        return torch.cuda.is_available()
    connect()
    return any(node.gpus for node in Nodes().look())


def _is_asked_to_join() -> bool:
    return "RAY_ADDRESS" in os.environ or "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
