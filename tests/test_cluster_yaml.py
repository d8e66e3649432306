"""The cluster launcher's file says what it should, in the words that the launcher knows."""

from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

FILE = Path(__file__).parent.parent / "cluster.yaml"


@pytest.fixture
def config():
    return yaml.safe_load(FILE.read_text())


def test_the_launcher_accepts_it(config):
    validate_config(prepare_config(config))


def test_a_misspelt_field_would_be_noticed(config):
    config["idle_timeout_minuts"] = config.pop("idle_timeout_minutes")
    with pytest.raises(Exception, match="idle_timeout_minuts"):
        validate_config(prepare_config(config))


def test_the_head_stays_and_spot_workers_come_from_none(config):
    types = config["available_node_types"]
    assert config["head_node_type"] == "head"
    assert "InstanceMarketOptions" not in types["head"]["node_config"]
    assert types["gpu_spot"]["min_workers"] == 0
    assert types["gpu_spot"]["max_workers"] >= 1
    assert types["gpu_spot"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}


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


def test_home_is_on_storage_that_every_node_mounts(config):
    assert any(
        "mount -t nfs4" in line and line.endswith("/shared") for line in config["initialization_commands"]
    )
    assert any("MHIMDIST_HOME=/shared/" in line for line in config["setup_commands"])
