"""A run over two simulated nodes that loses one of them."""

import json
import threading
import time
import warnings
from contextlib import suppress

import pytest
import ray
from feature_folders import shards_of
from memory_bags import gaussian_bags
from ray.cluster_utils import Cluster
from test_worker_group import CONFIG
from trained_run import load_run

from mhimdist.config.execution import Saving
from mhimdist.data.shards import BagShards
from mhimdist.data.splits import holdout
from mhimdist.distributed.worker_group import Group, train
from mhimdist.training.first_stage import open_trainer
from mhimdist.training.folds import Fold

pytestmark = pytest.mark.ray


@pytest.fixture
def cluster():
    warnings.simplefilter("ignore")  # this test does not check Ray's own sockets
    running = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [running.add_node(num_cpus=1) for _ in range(2)]
    ray.init(address=running.address, log_to_driver=False)
    try:
        yield running, nodes
    finally:
        ray.shutdown()
        running.shutdown()


@pytest.mark.faults(21, 24)
@pytest.mark.slow
def test_an_elastic_run_survives_a_node_and_sees_the_same_bags(cluster, tmp_path, monkeypatch):
    running, nodes = cluster
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "10")
    data = shards_of(gaussian_bags(num_bags=400), tmp_path)
    bags = BagShards(data)
    split = holdout(bags.keys, bags.cases, bags.labels_N, test_share=0.35, validation_share=0.2, seed=0)
    folder, cache = tmp_path / "run", tmp_path / "cache"
    group = Group(num_workers=(1, 2), timeout_s=20, max_failures=3, saving=Saving(every_s=0.2))
    failed = []

    def go() -> None:
        try:
            train(Fold("it", CONFIG, split, 1, folder, is_tested=True), data, cache, group)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=go)
    thread.start()
    while thread.is_alive() and not list(folder.glob("checkpoints/epoch-00002-*")):
        time.sleep(0.05)
    running.remove_node(nodes[1], allow_graceful=False)
    num_workers = None
    while thread.is_alive():
        for state in sorted(folder.glob("checkpoints/*/state.json"))[-1:]:
            with suppress(FileNotFoundError):  # a newer one has taken its place
                num_workers = len(json.loads(state.read_text())["state"]["totals"])
        time.sleep(0.02)
    assert not failed, failed
    records = load_run(folder)[2]
    assert [record.epoch for record in records] == list(range(8))
    # Sums have another order: near the run of one process, but not equal to it (see test_worker_group.py).
    alone = list(open_trainer(CONFIG, bags, split, None, cache).epochs())
    for mine, theirs in zip(records, alone, strict=True):
        assert mine.loss == pytest.approx(theirs.loss, abs=1e-4)
        assert mine.kept_ratio == theirs.kept_ratio
    assert num_workers == 1, "the remaining worker trained the end"
    assert (folder / "result.json").exists()
