"""Runs of two workers under Ray Train, killed and stopped, on a private Ray."""

import dataclasses
import json
import threading
import time
import warnings

import psutil
import pytest
import ray
from feature_folders import shards_of
from memory_bags import gaussian_bags
from trained_run import load_run

from mhimdist.config.execution import Saving
from mhimdist.config.train import load_config
from mhimdist.data.shards import BagShards
from mhimdist.data.splits import holdout
from mhimdist.distributed.worker_group import Group, train
from mhimdist.errors import NonFiniteError, PreemptedError
from mhimdist.training import checkpoint
from mhimdist.training.first_stage import open_trainer
from mhimdist.training.folds import Fold

pytestmark = [pytest.mark.long, pytest.mark.ray, pytest.mark.numeric]
CONFIG = load_config(
    {
        "model": {"name": "abmil", "hidden_dim": 16, "attention_dim": 8},
        "masking": {"high": {"start": 0.1, "kind": "cosine"}, "high_pool_share": 0.5, "random": 0.3},
        "teacher": {"kind": "init_momentum", "momentum": {"start": 0.99}},
        "optimizer": {"learning_rate": 1e-3},
        "epochs": 8,
        "bags_per_step": 4,
        "device": "cpu",
    }
)
TWO = Group(num_workers=(2, 2), timeout_s=60, saving=Saving(every_s=0.05))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    # No instance is repeated: masks of scores that tie up to their last bit depend on how a CPU rounds.
    return shards_of(gaussian_bags(num_bags=400), tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def split(data):
    bags = BagShards(data)
    return holdout(bags.keys, bags.cases, bags.labels_N, test_share=0.35, validation_share=0.2, seed=0)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    # These tests do not check Ray's own threads and sockets.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def undisturbed(data, split, cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(_fold(split, folder), data, cache, TWO)
    return folder


def _fold(split, folder, config=CONFIG):
    return Fold("it", config, split, 1, folder, is_tested=True)


def _left(folder):
    """The selected student and its test scores; every loss depends on teacher and optimiser, too."""
    result = json.loads((folder / "result.json").read_text())
    weights = checkpoint.load(folder / "best_student")[0]["student"]
    return result | {"epoch_s": 0, "weights": {name: value.tolist() for name, value in weights.items()}}


def _records(folder):
    return [dataclasses.replace(record, train_s=0, epoch_s=0) for record in load_run(folder)[2]]


def test_two_workers_learn_what_one_process_learns(undisturbed, data, split, cache, tmp_path):
    alone = open_trainer(CONFIG, BagShards(data), split, None, cache)
    records = list(alone.epochs())
    for mine, theirs in zip(records, _records(undisturbed), strict=True):
        # Gradients are summed in another order; noise of 1e-5 in each moves these losses by less than 1e-7.
        assert mine.loss == pytest.approx(theirs.loss, abs=1e-4)
        assert mine.kept_ratio == theirs.kept_ratio


@pytest.mark.slow
def test_a_finished_run_is_left_as_it_is(undisturbed, data, split, cache):
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")}
    assert {path.name for path in before} >= {"result.json", "student.safetensors", "history.jsonl"}
    train(_fold(split, undisturbed), data, cache, TWO)
    assert {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")} == before


def _once_it_trains(folder, act) -> threading.Thread:
    """Do something as soon as the run has a checkpoint of its third epoch."""

    def wait() -> None:
        while not list(folder.glob("checkpoints/epoch-00002-*")):
            time.sleep(0.01)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def _kill_a_worker() -> None:
    workers = [
        process
        for process in psutil.Process().children(recursive=True)
        if "RayTrainWorker" in " ".join(process.cmdline())
    ]
    assert len(workers) == 2
    workers[1].kill()


@pytest.mark.faults(18)
@pytest.mark.slow
def test_a_killed_worker_changes_nothing(undisturbed, data, split, cache, tmp_path):
    folder = tmp_path / "run"
    killing = _once_it_trains(folder, _kill_a_worker)
    train(_fold(split, folder), data, cache, TWO)
    killing.join()
    assert _left(folder) == _left(undisturbed)
    assert _records(folder) == _records(undisturbed)


@pytest.mark.slow
def test_a_stop_saves_and_the_same_call_resumes(undisturbed, data, split, cache, tmp_path):
    folder, asked = tmp_path / "run", threading.Event()
    stopping = _once_it_trains(folder, asked.set)
    with pytest.raises(PreemptedError, match="is saved; run the same command again"):
        train(_fold(split, folder), data, cache, TWO, stop=asked.is_set)
    stopping.join()
    assert len(_records(folder)) < 8
    train(_fold(split, folder), data, cache, TWO)
    assert _left(folder) == _left(undisturbed)


@pytest.mark.slow
def test_what_a_worker_cannot_do_is_said_in_our_words(data, split, cache, tmp_path):
    config = CONFIG.override({"optimizer.learning_rate": 1e30, "teacher": {"kind": "momentum"}})
    group = dataclasses.replace(TWO, max_failures=1, timeout_s=10)
    with pytest.raises(NonFiniteError, match=r"the loss became .* at bag\(s\) slide-\d+"):
        train(_fold(split, tmp_path / "run", config), data, cache, group)
    assert json.loads((tmp_path / "run" / "error.json").read_text())["type"] == "NonFiniteError"
