"""A Ray head without cores and an autoscaler that adds worker nodes, all of them processes of this machine.

Ray's own `AutoscalingCluster` begins and ends with `ray stop`, which also stops other clusters, and its nodes
offer no memory.
"""

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psutil
from ray._private.services import get_node_ip_address
from ray.autoscaler._private.fake_multi_node.node_provider import (
    FAKE_HEAD_NODE_ID,
    FAKE_HEAD_NODE_TYPE,
    FakeMultiNodeProvider,
)
from ray.autoscaler.tags import TAG_RAY_NODE_KIND, TAG_RAY_NODE_NAME, TAG_RAY_NODE_STATUS

RAY = [sys.executable, "-m", "ray.scripts.scripts"]
PORTS = {
    "min-worker-port": 0,
    "max-worker-port": 0,
    "object-store-memory": 10**8,
}
UNUSED = [
    *("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands", "setup_commands"),
    *("head_setup_commands", "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands"),
]
"""Fields that the launcher fills in if a file lacks them, and that the autoscaler expects."""


class NodesHere(FakeMultiNodeProvider):
    """The node provider through which the autoscaler adds and ends nodes."""

    def _create_node_with_resources_and_labels(self, node_config, tags, count, resources, labels) -> None:
        name = self._next_hex_node_id()
        resources = {**resources, "object_store_memory": 10**8}
        env = {
            **os.environ,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": name,
            "RAY_CLOUD_INSTANCE_ID": name,
            "RAY_NODE_TYPE_NAME": tags["ray-user-node-type"],
            "RAY_OVERRIDE_RESOURCES": json.dumps(resources),
        }
        options = [f"--{key}={value}" for key, value in PORTS.items()]
        with (Path(self.provider_config["logs"]) / f"{name[-5:]}.log").open("w") as log:
            process = subprocess.Popen(
                [*RAY, "start", "--block", f"--address={self._gcs_address}", *options],
                env=env,
                stdout=log,
                stderr=log,
            )
        known = {TAG_RAY_NODE_KIND: "worker", TAG_RAY_NODE_NAME: name, TAG_RAY_NODE_STATUS: "up-to-date"}
        self._nodes[name] = {"tags": {**known, **tags}, "node": process}

    def _terminate_node(self, node: dict[str, Any]) -> None:
        node["node"].terminate()


@contextmanager
def autoscaled(folder: Path, worker: dict[str, float], *, most: int) -> Iterator[dict[str, str]]:
    """Start such a cluster; yields the environment in which a job finds it.

    Args:
        folder: folder for Ray's files; its path must be short, because Ray's sockets are deep below it.
        worker: resources of each worker node.
        most: most worker nodes that the autoscaler may add.
    """
    with closing(socket.socket()) as free:
        free.bind(("", 0))
        address = f"{get_node_ip_address()}:{free.getsockname()[1]}"
    config = {
        "cluster_name": "test",
        "max_workers": most,
        "idle_timeout_minutes": 5,
        "provider": {
            "type": "external",
            "module": f"{__name__}.NodesHere",
            "gcs_address": address,
            "logs": str(folder),
            "launch_multiple": True,
            "head_node_id": FAKE_HEAD_NODE_ID,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": {
            FAKE_HEAD_NODE_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {"resources": worker, "node_config": {}, "max_workers": most},
        },
        "head_node_type": FAKE_HEAD_NODE_TYPE,
        **{field: {} for field in ("auth", "docker", "file_mounts")},
        **{field: [] for field in UNUSED},
    }
    file = folder / "cluster.json"
    file.write_text(json.dumps(config))
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    found_by = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    env = {
        **os.environ,
        **found_by,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        "RAY_NODE_TYPE_NAME": FAKE_HEAD_NODE_TYPE,
    }
    options = {
        **PORTS,
        "port": address.partition(":")[2],
        "num-cpus": 0,
        "include-dashboard": "false",
        "autoscaling-config": file,
        "temp-dir": folder / "ray",
    }
    with (folder / "log").open("w") as log:
        head = subprocess.Popen(
            [*RAY, "start", "--head", "--block", *(f"--{key}={value}" for key, value in options.items())],
            env=env,
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + 600
        while not (folder / "ray" / "ray_current_cluster").exists():
            assert head.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.2)
        yield {**os.environ, **found_by, "RAY_ADDRESS": address}
    finally:
        processes = [psutil.Process(head.pid), *psutil.Process(head.pid).children(recursive=True)]
        for process in processes:
            if process.is_running():
                process.terminate()
        _, left = psutil.wait_procs(processes, timeout=120)
        for process in left:
            process.kill()
        psutil.wait_procs(left, timeout=120)
        head.wait()  # psutil has waited for it already; this releases the Popen object
