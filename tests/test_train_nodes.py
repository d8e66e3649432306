"""A run over two simulated nodes, of which one is lost."""

import json
import os
import threading
import time
import warnings

import pytest
import ray
from ray.cluster_utils import Cluster
from test_train import CONFIG
from trained_run import load_run

from data_prep import digits
from mhimdist.data.loader import BagShards
from mhimdist.data.splits import holdout
from mhimdist.first_stage import open_trainer
from mhimdist.run_folder import Saving
from mhimdist.train import Group, train


@pytest.fixture
def cluster():
    warnings.simplefilter("ignore")  # Ray's own sockets are not what this test is about
    running = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [running.add_node(num_cpus=1) for _ in range(2)]
    ray.init(address=running.address, log_to_driver=False)
    try:
        yield running, nodes
    finally:
        ray.shutdown()
        running.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_elastic_run_survives_a_node_and_sees_the_same_bags(cluster, tmp_path, monkeypatch):
    running, nodes = cluster
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "10")
    data = digits.build("digits-c16", tmp_path / "digits-c16", scale=0.01)
    bags = BagShards(data)
    split = holdout(bags.keys, bags.cases, bags.labels_N, test_share=0.35, validation_share=0.2, seed=0)
    folder, cache = tmp_path / "run", tmp_path / "cache"
    group = Group(num_workers=(1, 2), timeout_s=20, max_failures=3, saving=Saving(every_s=0.2))
    failed = []

    def go() -> None:
        try:
            train(CONFIG, data, split, folder, cache, group)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=go)
    thread.start()
    while thread.is_alive() and not list(folder.glob("checkpoints/epoch-00002-*")):
        time.sleep(0.05)
    running.remove_node(nodes[1], allow_graceful=False)
    thread.join(300)
    assert not failed, failed
    records = load_run(folder)[2]
    assert [record.epoch for record in records] == list(range(8))
    # Sums of another order, and ties between repeated digits: near the run of one process, not equal to it.
    alone = list(open_trainer(CONFIG, bags, split, None, cache).epochs())
    for mine, theirs in zip(records, alone, strict=True):
        assert mine.loss == pytest.approx(theirs.loss, abs=5e-3)
        assert mine.kept_ratio == pytest.approx(theirs.kept_ratio, abs=2e-3)
    state = json.loads((sorted(folder.glob("checkpoints/*/state.json"))[-1]).read_text())["state"]
    assert len(state["totals"]) == 1, "the end was trained by the worker that was left"
    assert os.listdir(folder / "checkpoints")
