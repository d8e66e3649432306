"""How a process joins Ray, never without its token, and the nodes that it finds there."""

import logging
import os
import resource
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import psutil
import ray
import yaml

from mhimdist.cluster.authentication import (
    keep_token_private,
    loopback_only,
    require_closed,
    require_token_mode,
)
from mhimdist.cluster.children import ONE_NODE_SETTINGS, short_enough
from mhimdist.cluster.nodes import Node, Share, addable_nodes
from mhimdist.cluster.ray_signals import started_with_our_signals
from mhimdist.errors import ClusterError

NODE_TYPES_VARIABLE = "MHIMDIST_NODE_TYPES"
"""Says what an autoscaler without a file may add, in the form of `cluster.yaml`."""

_NODE_TYPE_LABEL = "ray.io/node-group"
_HEAD_RESOURCE = "node:__internal_head__"

_STARTS, _END_S = 3, 10.0

_ANSWER_TIMEOUT_S = 10.0  # ray.init itself waits for two minutes

# A worker maps the object store, which takes this share of the memory, and torch beside it.
_OBJECT_STORE_SHARE, _WORKER_BYTES = 0.3, 8 * 2**30

_log = logging.getLogger(__name__)

_accepts_open = False  # whether the user of this process has said --insecure


def refuse_open_cluster(*, insecure: bool = False) -> None:
    """Refuse Ray without its token: whoever reached a port could run commands on every node.

    Args:
        insecure: the user accepts an open cluster, in a network that nobody else reaches.

    Raises:
        ClusterError: with this environment, Ray would ask nobody for a token.
    """
    global _accepts_open
    _accepts_open = insecure
    if not insecure:
        require_token_mode()


def connect(*, dashboard: bool = False) -> None:
    """Join the cluster that runs this job; outside a job, start a local one and never join a stranger's.

    A local one listens on the loopback interface only, and other users can neither read its token nor enter
    the folder of its sockets and logs. A signal that a `Stopping` handles ends the code only when Ray has
    started.

    Args:
        dashboard: whether a local cluster has Ray's dashboard. Ray Train asks the dashboard whether a trial
            that started more than one worker is still alive; without an answer, their resources are never
            released.

    Raises:
        ClusterError: no cluster answers at RAY_ADDRESS, the cluster there or Ray here asks for no token, Ray
            cannot run within the limit on the processes' address space, or the machine is too busy to start
            it.
    """
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # our own output is a line per run
    if ray.is_initialized():
        return
    if not _accepts_open:
        require_token_mode()
        keep_token_private(create=not _is_asked_to_join())
    # The output of Ray's processes stays in its logs: ours report by results, files and exceptions.
    quiet: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
    if _is_asked_to_join():
        _join(os.environ.get("RAY_ADDRESS", ""), quiet)
        return
    require_address_space()
    for number in range(1, _STARTS + 1):
        try:
            with loopback_only(), started_with_our_signals(), _explaining_a_slow_start():
                ray.init(
                    address="local",
                    include_dashboard=dashboard,
                    _node_ip_address="127.0.0.1",
                    _temp_dir=_temp_dir(),
                    _system_config=ONE_NODE_SETTINGS,
                    **quiet,
                )
            return
        except _SlowStartError:
            if number == _STARTS:
                raise
            _log.warning("Ray did not start within its 30 s: this machine is busy; trying again")


class _SlowStartError(ClusterError):
    """Ray's processes took longer than Ray waits for them."""


@contextmanager
def _explaining_a_slow_start() -> Iterator[None]:
    """Ray gives its processes 30 seconds to start, fixed in its code, and then raises a plain `Exception`.

    The processes that it has started are ended: Ray would leave them until this process ends.
    """
    before = set(psutil.Process().children(recursive=True))
    try:
        yield
    except Exception as error:
        if type(error) is not Exception:
            raise
        started = set(psutil.Process().children(recursive=True)) - before
        for process in started:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(started, timeout=_END_S)
        raise _SlowStartError(
            f"Ray did not start ({str(error).splitlines()[0]}): this machine may be too busy; run the same "
            "command again when it is calmer"
        ) from error


def _join(address: str, quiet: dict[str, Any]) -> None:
    _require_answer(address)
    is_known = address not in ("", "auto")
    if is_known and not _accepts_open:
        require_closed(address, _ANSWER_TIMEOUT_S)
    try:
        with started_with_our_signals():
            ray.init(**quiet)
    except ray.exceptions.AuthenticationError as error:
        raise ClusterError(
            f"the cluster does not take this process's token ({str(error).splitlines()[0]}): copy its file "
            "to ~/.ray/auth_token, or name it in RAY_AUTH_TOKEN_PATH"
        ) from None
    if is_known or _accepts_open:
        return
    try:
        require_closed(ray.get_runtime_context().gcs_address, _ANSWER_TIMEOUT_S)
    except ClusterError:
        ray.shutdown()
        raise


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


def require_address_space() -> None:
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


def _temp_dir() -> str:
    """The folder for Ray's files, in one that only this user can enter: Ray opens its own to everybody."""
    root = short_enough(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    private = root / f"mhim-{os.geteuid()}"
    with suppress(FileExistsError):
        private.mkdir(mode=0o700, parents=True)
    found = private.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():  # another user has taken the name
        private = Path(tempfile.mkdtemp(prefix="mhim-", dir=root))
    elif found.st_mode & 0o077:
        private.chmod(0o700)
    return str(private / "ray")


class Nodes:
    """The nodes that runs can use: those that are up, and those that the autoscaler adds on demand.

    Attributes:
        without_memory: the autoscaler's node types that it cannot add for runs that reserve memory.
    """

    def __init__(self) -> None:
        """Find out whether the joined cluster has an autoscaler."""
        self._config = _autoscaler_config()
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
        if self._config is None:
            return found
        workers = [node for node in alive if _HEAD_RESOURCE not in node["Resources"]]
        addable, self.without_memory = addable_nodes(
            self._config(), [(node["Labels"] or {}).get(_NODE_TYPE_LABEL, "") for node in workers]
        )
        return found + addable


def _autoscaler_config() -> Callable[[], dict[str, Any]] | None:
    """What reads the configuration of the joined cluster's autoscaler; None if it has none that is known.

    Ray does not say how many nodes its autoscaler may add. But a job's driver runs on the head, as the
    autoscaler does, and the autoscaler's command line names its file. KubeRay's autoscaler has no file:
    cluster/kuberay.yaml tells the head by a variable.

    Raises:
        ClusterError: the variable is no such configuration.
    """
    if text := os.environ.get(NODE_TYPES_VARIABLE):
        config = _node_types(text)
        return lambda: config
    file = _autoscaler_file()
    if file is None:
        return None
    return lambda: yaml.safe_load(file.read_text(encoding="utf-8"))


def _node_types(text: str) -> dict[str, Any]:
    try:
        config = yaml.safe_load(text)
        addable_nodes(config, [])
    except (yaml.YAMLError, AttributeError, TypeError, ValueError, RecursionError) as error:
        raise ClusterError(
            f"{NODE_TYPES_VARIABLE}: expected YAML with max_workers and available_node_types, as in "
            f"cluster.yaml, got {text!r} ({str(error).splitlines()[0]})"
        ) from None
    return config


def _autoscaler_file() -> Path | None:
    """The file of the autoscaler that runs on this node; None if there is none."""
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
