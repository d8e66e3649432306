"""Two runs measured at the same time; on a CPU, in real processes."""

import pytest
import ray
from feature_folders import shards_of
from memory_bags import gaussian_bags

from mhimdist.config.train import load_config
from mhimdist.data.shards import BagShards
from mhimdist.data.splits import holdout
from mhimdist.errors import SweepError
from mhimdist.sweep import side_by_side

CONFIG = load_config(
    {
        "model": {"name": "abmil", "hidden_dim": 8, "attention_dim": 4},
        "teacher": {"kind": "none"},
        "loss": {"alpha": 0},
        "device": "cpu",
    }
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return shards_of(gaussian_bags(num_bags=80), tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def split(data):
    bags = BagShards(data)
    return holdout(bags.keys, bags.cases, bags.labels_N, test_share=0.3, validation_share=0.3, seed=0)


@pytest.mark.slow
@pytest.mark.ray
def test_two_processes_measure_an_epoch_together_as_children_of_a_ray_task(data, split):
    """If one did not come to the barrier, the other one would fail after `LONGEST_WAIT_S`."""
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        assert 0 < ray.get(ray.remote(side_by_side.epoch_s).remote(data, CONFIG, split, 1)) < 60
    finally:
        ray.shutdown()


@pytest.mark.slow
def test_why_they_failed_is_said_and_neither_waits_for_the_other(data, split, tmp_path):
    with pytest.raises(
        SweepError, match=r"failed beside each other on one GPU.*gpus_per_run 1 \(ManifestError: no"
    ):
        side_by_side.epoch_s(tmp_path / "gone", CONFIG, split, 1)
