"""The resources of nodes, the shares of runs, and the nodes that an autoscaler may still add."""

from pathlib import Path

import pytest
import yaml

from mhimdist.cluster.nodes import Node, Share, addable_nodes, largest_equal_part

GIB = 2**30
CONFIG = {
    "max_workers": 5,
    "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 0}, "max_workers": 0},
        "gpu": {"resources": {"CPU": 16, "GPU": 1, "memory": 40 * GIB}, "max_workers": 4},
        "cpu": {"resources": {"CPU": 8, "memory": 20 * GIB}},
        "unknown": {"resources": {}},
    },
}
GPU = Node(16, 1, 40 * GIB, is_up=False)
CPU = Node(8, 0, 20 * GIB, is_up=False)


def test_addable_nodes_are_limited_per_type_and_in_total():
    assert addable_nodes(CONFIG, []) == ([GPU] * 4 + [CPU], [])
    assert addable_nodes(CONFIG, ["gpu", "gpu"]) == ([GPU] * 2 + [CPU], [])
    assert addable_nodes(CONFIG, ["cpu"] * 4) == ([GPU], [])
    assert addable_nodes(CONFIG, [""] * 5) == ([], [])


def test_a_node_type_without_memory_is_not_added_for_runs_that_reserve_some():
    kind = {"resources": {"CPU": 4}}
    config = {**CONFIG, "available_node_types": {**CONFIG["available_node_types"], "small": kind}}
    assert addable_nodes({**config, "max_workers": 6}, ["gpu"] * 4) == ([CPU] * 2, [])
    del config["available_node_types"]["cpu"]
    assert addable_nodes(config, ["gpu"] * 4) == ([], ["small"])


@pytest.mark.parametrize(("file", "num"), [("cluster.yaml", 8), ("cluster/gcp.yaml", 8)])
def test_the_workers_of_our_clusters_can_be_added(file, num):
    config = yaml.safe_load((Path(__file__).parents[2] / file).read_text())
    nodes, without_memory = addable_nodes(config, [])
    assert (len(nodes), without_memory) == (num, [])
    share = Share(1, 0.25, 2 * GIB)
    assert {min(share.fits(node).values()) for node in nodes} == {4}


def test_a_share_names_only_what_ray_reserves():
    assert Share(0.5, 0).bundle == {"CPU": 0.5}
    assert Share(0, 0.25, 7).bundle == {"CPU": 0, "GPU": 0.25, "memory": 7.0}
    assert Share(1, 0.25).options == {"num_cpus": 1, "num_gpus": 0.25}
    assert Share(1, 0, 7).options == {"num_cpus": 1, "num_gpus": 0, "memory": 7}
    assert Share(1, 0.1, 2).fits(Node(4, 1, 9)) == {"CPU cores": 4, "memory": 4, "GPUs": 10}


def test_the_largest_share_fits_as_often_as_it_must():
    assert largest_equal_part([8, 3], 1) == 8
    assert largest_equal_part([8, 3], 2) == 4
    assert largest_equal_part([8, 3], 3) == 3
    assert largest_equal_part([8, 3], 4) == 8 / 3
    assert largest_equal_part([0, 0], 1) == 0
