"""Workers under Ray Train that are stopped, killed too often, or come back: on a private Ray."""

import json
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import ray
from feature_folders import shards_of
from memory_bags import gaussian_bags
from ray.cluster_utils import Cluster
from test_worker_group import CONFIG
from trained_run import load_run

from mhimdist.config.execution import Saving
from mhimdist.data.shards import BagShards
from mhimdist.data.splits import Split, holdout
from mhimdist.distributed.worker_group import Group, train
from mhimdist.errors import WorkerLostError
from mhimdist.training.first_stage import open_trainer
from mhimdist.training.folds import Fold

# Long enough for what happens to the workers, and without a first stage before it.
LONG = CONFIG.override({"epochs": 150, "teacher": {"kind": "momentum"}})
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return shards_of(gaussian_bags(num_bags=400), tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def split(data) -> Split:
    bags = BagShards(data)
    return holdout(bags.keys, bags.cases, bags.labels_N, test_share=0.35, validation_share=0.2, seed=0)


@pytest.fixture
def two_cores():
    warnings.simplefilter("ignore")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def _workers() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
    return found


def _whenever(folder: Path, checkpoint: str, act: Callable[[], None]) -> threading.Thread:
    """Act once the run has written a checkpoint of this name."""

    def wait() -> None:
        while not list(folder.glob(f"checkpoints/{checkpoint}")):
            time.sleep(0.01)
        act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


@pytest.mark.faults(22)
def test_a_worker_that_is_stopped_is_named_and_the_run_goes_on(two_cores, data, split, tmp_path):
    stopped: list[psutil.Process] = []

    def stop() -> None:
        stopped.append(_workers()[1])
        stopped[0].send_signal(signal.SIGSTOP)

    group = Group(num_workers=(2, 2), timeout_s=5, max_failures=0, saving=Saving(every_s=0.05))
    fold = Fold("it", CONFIG, split, 1, tmp_path / "run", is_tested=True)
    stopping = _whenever(fold.folder, "epoch-00002-*", stop)
    started = time.monotonic()
    with pytest.raises(
        WorkerLostError, match=r"gave up waiting: no answer from rank\(s\) \d \(timeout 5 s\)"
    ):
        train(fold, data, tmp_path / "cache", group)
    stopping.join()
    assert time.monotonic() - started < 300
    _, alive = psutil.wait_procs(stopped, timeout=60)
    assert not alive, "Ray ends it"
    train(fold, data, tmp_path / "cache", group)
    alone = list(open_trainer(CONFIG, BagShards(data), split, None, tmp_path / "cache").epochs())
    records = load_run(fold.folder)[2]
    assert [record.epoch for record in records] == list(range(8))
    for mine, theirs in zip(records, alone, strict=True):
        assert mine.loss == pytest.approx(theirs.loss, abs=1e-4)


@pytest.mark.faults(21, 33)
def test_workers_that_are_killed_more_often_than_allowed_end_the_run(two_cores, data, split, tmp_path):
    group = Group(num_workers=(2, 2), timeout_s=20, max_failures=1, saving=Saving(every_s=0.05))
    fold = Fold("it", LONG, split, 1, tmp_path / "run", is_tested=True)
    seen: set[int] = set()

    def kill() -> None:
        """Kill a worker of each of two starts, once the start has trained for a moment."""
        for _ in range(2):
            while not (fresh := [process for process in _workers() if process.pid not in seen]):
                time.sleep(0.05)
            before = {path.name for path in fold.folder.glob("checkpoints/epoch-*")}
            while before == {path.name for path in fold.folder.glob("checkpoints/epoch-*")}:
                time.sleep(0.05)
            seen.update(process.pid for process in _workers())
            with suppress(psutil.NoSuchProcess):
                fresh[-1].kill()

    killing = threading.Thread(target=kill, daemon=True)
    killing.start()
    with pytest.raises(WorkerLostError, match=str(fold.folder)):
        train(fold, data, tmp_path / "cache", group)
    assert not fold.is_finished
    assert list(fold.folder.glob("checkpoints/epoch-*")), "the same command can resume it"


@pytest.fixture
def cluster():
    warnings.simplefilter("ignore")
    running = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [running.add_node(num_cpus=1) for _ in range(2)]
    ray.init(address=running.address, log_to_driver=False)
    yield running, nodes
    ray.shutdown()
    running.shutdown()


def _num_workers(folder: Path) -> int:
    """Number of workers that wrote the newest checkpoint."""
    for state in sorted(folder.glob("checkpoints/*/state.json"))[-1:]:
        with suppress(FileNotFoundError):  # a newer one has taken its place
            return len(json.loads(state.read_text())["state"]["totals"])
    return 0


@pytest.mark.faults(24)
def test_a_run_that_lost_a_worker_grows_again_and_sees_the_same_bags(
    cluster, data, split, tmp_path, monkeypatch
):
    running, nodes = cluster
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "10")
    group = Group(
        num_workers=(1, 2), timeout_s=20, max_failures=5, grow_every_s=3, saving=Saving(every_s=0.2)
    )
    fold = Fold("it", LONG, split, 1, tmp_path / "run", is_tested=True)
    failed: list[BaseException] = []

    def go() -> None:
        try:
            train(fold, data, tmp_path / "cache", group)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=go)
    thread.start()
    numbers = [2]

    def until(number: int) -> None:
        while thread.is_alive() and _num_workers(fold.folder) != number:
            time.sleep(0.02)
        assert thread.is_alive(), (failed, "the run is over before its workers changed")
        numbers.append(number)

    until(2)
    running.remove_node(nodes[1], allow_graceful=False)
    until(1)
    running.add_node(num_cpus=1)
    until(2)
    thread.join()
    assert not failed, failed
    assert numbers == [2, 2, 1, 2]
    records = load_run(fold.folder)[2]
    assert [record.epoch for record in records] == list(range(150))
    alone = open_trainer(LONG, BagShards(data), split, None, tmp_path / "cache").epochs()
    for mine, theirs in zip(records, alone, strict=True):
        assert mine.kept_ratio == theirs.kept_ratio, "the same bags, and the same masks"
    assert os.path.exists(fold.folder / "result.json")
