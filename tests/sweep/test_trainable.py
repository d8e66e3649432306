"""A trial as Ray Tune runs it, without Ray Tune: its reports, and the files that it keeps at its end."""

import os
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray
import torch
from forked import fork, status_of
from memory_bags import MemoryBags

from mhimdist import files
from mhimdist.config.train import load_config
from mhimdist.data.splits import Split
from mhimdist.errors import DiskFullError, RunLockedError
from mhimdist.search.options import Sweep
from mhimdist.sweep import trainable
from mhimdist.sweep.task import Task
from mhimdist.sweep.trainable import ENDED_FILE, SweepTrial
from mhimdist.training import fold
from mhimdist.training.fold import FoldRun
from mhimdist.training.trainer import Trainer

pytestmark = pytest.mark.long

CONFIG = load_config(
    {
        "model": {"name": "abmil", "hidden_dim": 8, "attention_dim": 4},
        "masking": {"high": {"start": 0.1}},
        "teacher": {"kind": "momentum", "momentum": {"start": 0.9}},
        "epochs": 4,
        "device": "cpu",
    }
)


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """A trial asks Ray for its node; Ray would start a cluster if none ran."""
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def begin(bags: MemoryBags, tmp_path, monkeypatch):
    """Begins a trial, as a process of Ray would."""
    monkeypatch.setattr(Task, "bags", lambda self: bags)
    parts = [bags.keys[:16], bags.keys[16:28], bags.keys[28:]]  # of whole cases
    split = Split(parts[0], parts[1], parts[2])
    task = Task(
        Sweep(home=tmp_path, train=CONFIG), [split], tmp_path / "data", tmp_path / "trials", tmp_path / "stop"
    )

    def begun(number: int = 0) -> SweepTrial:
        folder = task.trials / f"{number:04d}"
        folder.mkdir(parents=True, exist_ok=True)
        files.write_text(folder / "config.json", CONFIG.model_dump_json())
        made = SweepTrial.__new__(SweepTrial)  # Ray's own part needs a cluster
        made.setup({"number": number}, task)
        return made

    return begun


def _checkpoints(begun: SweepTrial) -> Path:
    return begun.folder / f"fold-1-seed-{CONFIG.seed}" / "checkpoints"


def test_a_trial_that_ends_by_a_failure_elsewhere_can_be_resumed(begin, monkeypatch):
    first = begin()
    assert [first.step()["epoch"] for _ in range(2)] == [1, 2]
    first.cleanup()  # as Ray Tune does after a failure of its loop: no end is recorded
    trained = []
    run_epoch = Trainer._run_epoch
    monkeypatch.setattr(
        Trainer, "_run_epoch", lambda self: trained.append(len(self.history)) or run_epoch(self)
    )
    again = begin()
    results = [again.step() for _ in range(4)]
    assert [result["epoch"] for result in results] == [1, 2, 3, 4]
    assert results[-1]["is_finished"]
    assert trained == [2, 3]


def test_a_trial_trains_within_its_share_of_a_gpu(begin, monkeypatch):
    said = []

    @contextmanager
    def within_share(config):
        said.append(config)
        try:
            yield
        except torch.OutOfMemoryError as error:
            error.args = (f"{error}, of its share",)
            raise

    def outgrow(self):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trainable, "within_share", within_share)
    begun = begin()
    begun.step()
    monkeypatch.setattr(FoldRun, "next_epoch", outgrow)
    assert begun.step()["failed"] == "OutOfMemoryError: CUDA out of memory, of its share"
    assert said == [CONFIG, CONFIG]


def test_a_trial_whose_end_is_recorded_leaves_nothing_to_resume(begin):
    begun = begin()
    begun.step()
    (begun.folder / ENDED_FILE).write_text("pruned")
    assert begun.reset_config({"number": 1})
    pruned = begin(0)
    assert not _checkpoints(pruned).exists()
    assert (_checkpoints(pruned).parent / "best_student").exists()


def test_a_full_disk_is_reported_as_the_reason_and_the_checkpoints_stay(begin, tmp_path):
    def on_a_full_disk() -> None:
        begun = begin()
        begun.step()
        begun._run._runs[0]._trainer.folder.flush()

        def full(path: Path, text: str) -> None:
            raise DiskFullError(f"disk full: {path}")

        files.write_text = full
        while "failed" not in (result := begun.step()):  # checkpoints are written while training continues
            pass
        assert result["failed"].startswith("DiskFullError: disk full: "), result
        (begun.folder / ENDED_FILE).write_text("failed")
        begun.reset_config({"number": 1})  # the next trial is not affected

    assert status_of(fork(on_a_full_disk)) == 0
    assert list(_checkpoints(begin()).glob("epoch-00001-*"))


def test_a_fold_that_a_lost_process_still_holds_is_no_failure_of_the_trial(begin, monkeypatch):
    monkeypatch.setattr(fold, "LOST_LOCK_S", 0.0)
    holder, other = begin(), begin()
    holder.step()
    with pytest.raises(RunLockedError, match=f"process {os.getpid()}"):
        other.step()


def test_a_lost_process_of_a_fold_is_no_failure_of_the_trial(begin, monkeypatch):
    begun = begin()
    begun.step()

    def lost(self):
        raise ray.exceptions.ActorDiedError()

    monkeypatch.setattr(FoldRun, "next_epoch", lost)
    with pytest.raises(ray.exceptions.RayActorError):
        begun.step()


def test_a_trial_that_is_asked_to_stop_says_that_it_is_saved(begin):
    begun = begin()
    begun.step()
    begun.task.stop_file.touch()
    assert begun.step() == {"number": 0, "is_saved": True, "is_finished": False, "done": True}
    begun.task.stop_file.unlink()
    assert [begin().step()["epoch"]] == [1]
    assert list(_checkpoints(begun).glob("epoch-00001-*"))
