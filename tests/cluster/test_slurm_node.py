"""What a node of a Slurm job finds out: its share of the machine, its address, its head."""

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from mhimdist.cluster import slurm_node
from mhimdist.cluster.slurm_node import Allotment, address_of_node
from mhimdist.errors import ClusterError

MIB = 2**20


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"SLURM_CPUS_ON_NODE": "8", "SLURM_GPUS_ON_NODE": "2"}, Allotment(8, 2, None)),
        # Without a grant of GPUs, those of the machine are other users'.
        ({"SLURM_CPUS_ON_NODE": "8"}, Allotment(8, 0, None)),
        ({"SLURM_CPUS_ON_NODE": "8", "CUDA_VISIBLE_DEVICES": "0,3"}, Allotment(8, 2, None)),
        ({"SLURM_CPUS_ON_NODE": "8", "CUDA_VISIBLE_DEVICES": ""}, Allotment(8, 0, None)),
        ({"SLURM_CPUS_PER_TASK": "4", "SLURM_MEM_PER_NODE": "2048"}, Allotment(4, 0, 2048 * MIB)),
        ({"SLURM_CPUS_ON_NODE": "4", "SLURM_MEM_PER_CPU": "512"}, Allotment(4, 0, 2048 * MIB)),
        ({"SLURM_CPUS_ON_NODE": "4", "SLURM_MEM_PER_NODE": "0"}, Allotment(4, 0, None)),
    ],
)
def test_ray_offers_what_slurm_gives(env, expected):
    assert Allotment.of(env) == expected


def test_memory_for_runs_and_objects_stays_below_the_jobs_limit():
    given = Allotment(8, 2, 100 * 2**30).options
    assert (given["num-cpus"], given["num-gpus"]) == (8, 2)
    assert given["object-store-memory"] <= 30 * 2**30
    assert given["memory"] + given["object-store-memory"] <= 0.91 * 100 * 2**30
    assert given["memory"] >= 60 * 2**30
    assert "memory" not in Allotment(8, 2, None).options


NODES = "NodeName=n1 Arch=x NodeAddr={} State=IDLE\nNodeName=n2 NodeAddr={} State=IDLE"


def test_a_node_is_met_where_slurm_finds_it(monkeypatch):
    assert address_of_node(NODES.format("10.1.2.3", "10.1.2.4"), "n2") == "10.1.2.4"
    assert address_of_node(NODES.format("127.0.0.11", "127.0.0.12"), "n1") == "127.0.0.11"
    names = {"gpu1": "10.1.2.3", "gpu2": "10.1.2.4"}
    monkeypatch.setattr(slurm_node, "_resolved", names.get)
    assert address_of_node(NODES.format("gpu1", "gpu2"), "n1") == "10.1.2.3"


def test_a_machine_that_names_itself_a_loopback_is_met_on_the_way_to_another(monkeypatch):
    own = next(
        each.address
        for addresses in psutil.net_if_addrs().values()
        for each in addresses
        if each.family.name == "AF_INET" and not each.address.startswith("127.")
    )
    monkeypatch.setattr(slurm_node, "_resolved", {"gpu1": "127.0.1.1", "gpu2": own}.get)
    assert address_of_node(NODES.format("gpu1", "gpu2"), "n1") == own


@pytest.mark.parametrize(
    ("nodes", "name", "interface", "said"),
    [
        (NODES.format("10.1.2.3", "10.1.2.4"), "n3", "", "names no address of node 'n3', only of n1, n2"),
        (
            NODES.format("10.1.2.3", "10.1.2.4"),
            "n1",
            "ib9",
            "no interface 'ib9' with an IPv4 address; it has",
        ),
        (NODES.format("unknown.invalid", "localhost"), "n1", "", "name the network interface"),
    ],
)
def test_an_address_that_cannot_be_found_is_explained(nodes, name, interface, said, monkeypatch):
    monkeypatch.setattr(slurm_node, "_resolved", {"localhost": "127.0.0.1"}.get)
    with pytest.raises(ClusterError, match=said):
        address_of_node(nodes, name, interface)


def test_an_interface_has_priority():
    assert address_of_node(NODES.format("10.1.2.3", "10.1.2.4"), "n1", "lo") == "127.0.0.1"


def test_the_command_hears_why_the_head_did_not_start(tmp_path):
    (tmp_path / "failure.txt").write_text("no memory")
    with pytest.raises(ClusterError, match="the first node: no memory"):
        slurm_node.drive(tmp_path, ["true"], 2)
    with pytest.raises(ClusterError, match="no command 'no-such-command'"):
        slurm_node.drive(tmp_path, ["no-such-command"], 2)


def test_the_command_finds_the_cluster_and_starts_without_late_nodes(tmp_path):
    head = {"address": "127.0.0.11:1234", "dashboard": "http://127.0.0.11:5678"}
    (tmp_path / "head.json").write_text(json.dumps(head))
    (tmp_path / "joined-0").touch()
    code = (
        "import sys; from pathlib import Path; from mhimdist.cluster import slurm_node as s\n"
        f"s.JOIN_TIMEOUT_S = 0.1; s.drive(Path({str(tmp_path)!r}), ['env'], 2)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said, *env = done.stdout.splitlines()
    assert said.startswith(
        "Ray runs on 1 of 2 nodes, without number 1 so far; dashboard http://127.0.0.11:5678"
    )
    wanted = {
        "RAY_ADDRESS=127.0.0.11:1234",
        "RAY_API_SERVER_ADDRESS=http://127.0.0.11:5678",
        "RAY_AUTH_MODE=token",
        f"RAY_AUTH_TOKEN_PATH={tmp_path}/token",
    }
    assert wanted <= set(env)


def test_a_raylet_is_told_the_port_of_its_agent(tmp_path):
    """Ray's own reader finds it, so that the real raylet does not wait either."""
    node = "ab" * 28
    line = [f"--session_dir={tmp_path}", f"--node_id={node}"]
    with subprocess.Popen([sys.executable, "-c", "input()", *line], stdin=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while not slurm_node._tell(psutil.Process(process.pid), 4711):  # its arguments appear a moment later
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.communicate(b"\n")
    (file,) = Path(tmp_path).iterdir()
    assert file.name == f"dashboard_agent_listen_port_{node}"
    assert file.read_text().strip() == "4711"
