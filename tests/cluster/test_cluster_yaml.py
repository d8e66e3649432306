"""The files of the cluster launcher have the right content, in keys that the launcher knows."""

from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
FILES = ["cluster.yaml", "cluster/gcp.yaml", "cluster/on-premise.yaml"]
RENTED = FILES[:2]


@pytest.fixture(params=FILES)
def config(request):
    return yaml.safe_load((ROOT / request.param).read_text())


@pytest.fixture(params=RENTED)
def rented(request):
    return yaml.safe_load((ROOT / request.param).read_text())


def test_the_launcher_accepts_it(config):
    validate_config(prepare_config(config))


def test_every_variant_is_tested():
    found = {"cluster.yaml", *(f"cluster/{path.name}" for path in (ROOT / "cluster").iterdir())}
    # test_kuberay.py and test_slurm_script.py read the other two.
    assert found == {*FILES, "cluster/kuberay.yaml", "cluster/slurm.sbatch"}


def test_a_misspelt_field_would_be_noticed(config):
    config["setup_comands"] = config.pop("setup_commands")
    with pytest.raises(Exception, match="setup_comands"):
        validate_config(prepare_config(config))


def test_the_head_stays_and_spot_workers_come_from_none(rented):
    types = rented["available_node_types"]
    assert rented["head_node_type"] == "head"
    assert types["gpu_spot"]["min_workers"] == 0
    assert types["gpu_spot"]["max_workers"] >= 1
    assert types["gpu_spot"]["resources"] == {"CPU": 16, "GPU": 1, "memory": 42 * 2**30}
    assert types["head"]["resources"] == {"CPU": 0}
    assert sum("ray start --head --num-cpus=0 " in line for line in rented["head_start_ray_commands"]) == 1
    spot = {
        "aws": ("InstanceMarketOptions", {"MarketType": "spot"}),
        "gcp": ("scheduling", [{"provisioningModel": "SPOT", "onHostMaintenance": "TERMINATE"}]),
    }
    field, value = spot[rented["provider"]["type"]]
    assert types["gpu_spot"]["node_config"][field] == value
    assert field not in types["head"]["node_config"]


def test_own_machines_are_all_started():
    own = yaml.safe_load((ROOT / "cluster" / "on-premise.yaml").read_text())
    assert own["min_workers"] == own["max_workers"] == len(own["provider"]["worker_ips"])


def test_nobody_gets_in_without_the_token(config):
    assert config["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    assert "chmod 600 ~/.ray/auth_token" in config["setup_commands"]
    starts = [
        line
        for lines in (config["head_start_ray_commands"], config["worker_start_ray_commands"])
        for line in lines
        if "ray start" in line
    ]
    assert len(starts) == 2
    assert all(line.startswith("RAY_AUTH_MODE=token ") for line in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]


def test_home_is_on_storage_that_every_node_mounts(rented):
    assert any(
        "mount -t nfs4" in line and line.endswith("/shared") for line in rented["initialization_commands"]
    )


def test_home_is_on_shared_storage(config):
    assert any("MHIMDIST_HOME=/shared/" in line for line in config["setup_commands"])
