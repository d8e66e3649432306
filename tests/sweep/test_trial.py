import os
import platform
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from forked import fork, status_of
from memory_bags import MemoryBags

from mhimdist import __version__, files
from mhimdist.config.execution import Saving
from mhimdist.config.train import load_config
from mhimdist.data.splits import Split
from mhimdist.errors import PreemptedError, RunLockedError
from mhimdist.sweep.trial import Launcher, TrialRun
from mhimdist.training import checkpoint, environment
from mhimdist.training import fold as fold_module
from mhimdist.training.fold import Epoch, FoldRun
from mhimdist.training.folds import RESULT_FILE, folds_of_trial
from mhimdist.training.history import EpochRecord
from mhimdist.training.trainer import Trainer

CONFIG = load_config(
    {
        "model": {"name": "abmil", "hidden_dim": 8, "attention_dim": 4},
        "masking": {"high": {"start": 0.1}},
        "teacher": {"kind": "momentum", "momentum": {"start": 0.9}},
        "epochs": 4,
        "device": "cpu",
    }
)


@pytest.fixture
def splits(bags: MemoryBags) -> list[Split]:
    parts = [bags.keys[:16], bags.keys[16:28], bags.keys[28:]]  # of whole cases
    return [Split(parts[0], parts[1], parts[2]), Split(parts[1], parts[0], parts[2])]


def _steps(run: TrialRun) -> list:
    found = [run.next_epoch()]
    while not found[-1].is_finished:
        found.append(run.next_epoch())
    return [replace(progress, train_s=0.0) for progress in found]


def _launcher(bags, tmp_path) -> Launcher:
    return Launcher(bags, tmp_path / "cache", 1, Saving())


def test_a_trial_runs_its_folds_and_its_value_is_their_mean(bags, splits, tmp_path):
    folds = folds_of_trial(CONFIG, splits, (1, 2), tmp_path / "trial")
    steps = _steps(TrialRun(folds, 1, _launcher(bags, tmp_path)))
    assert [progress.step for progress in steps] == list(range(1, 17))
    best = [fold.records()[-1].best_validation_score for fold in folds]
    assert steps[-1].value == pytest.approx(sum(best) / 4)
    assert list(steps[-1].folds.values()) == best
    assert steps[7].folds == dict(zip([fold.name for fold in folds[:2]], best[:2], strict=True))
    assert steps[3].value == best[0]
    assert [(fold.config.seed, fold.fold) for fold in folds] == [(1, 1), (1, 2), (2, 1), (2, 2)]


def test_folds_at_once_give_the_same_values_in_fewer_steps(bags, splits, tmp_path):
    one = _steps(
        TrialRun(folds_of_trial(CONFIG, splits, (1,), tmp_path / "one"), 1, _launcher(bags, tmp_path))
    )
    both = _steps(
        TrialRun(folds_of_trial(CONFIG, splits, (1,), tmp_path / "both"), 2, _launcher(bags, tmp_path))
    )
    assert [progress.step for progress in both] == [1, 2, 3, 4]
    assert both[-1].folds == one[-1].folds
    assert both[-1].num_epochs == one[-1].num_epochs == 8


@pytest.mark.parametrize("num_done", [1, 3, 4, 6, 8])
def test_a_trial_that_was_cut_off_reports_the_same_again_and_trains_the_rest(
    bags, splits, tmp_path, num_done
):
    expected = _steps(
        TrialRun(folds_of_trial(CONFIG, splits, (1,), tmp_path / "whole"), 1, _launcher(bags, tmp_path))
    )
    folds = folds_of_trial(CONFIG, splits, (1,), tmp_path / "cut")
    run = TrialRun(folds, 1, _launcher(bags, tmp_path))
    for _ in range(num_done):
        run.next_epoch()
    for each in run._runs:  # as after a kill: nothing is closed, and the lock is gone
        if each._trainer is not None:
            each._trainer.folder.unlock()
    found = _steps(TrialRun(folds, 1, _launcher(bags, tmp_path)))
    assert [replace(p, train_s=0) for p in found] == expected


def test_a_stopped_fold_keeps_its_weights_and_nothing_to_resume(bags, splits, tmp_path):
    fold = folds_of_trial(CONFIG, splits, (1,), tmp_path)[0]
    run = FoldRun(fold, bags, tmp_path / "cache", 1, saving=Saving())
    epoch = run.next_epoch()
    assert not epoch.is_last
    run.close()
    assert [record.epoch for record in fold.records()] == [0]
    assert (fold.folder / "best_student").exists()
    assert not (fold.folder / "checkpoints").exists()
    assert not fold.is_finished


def _kill_at(stage: str) -> None:
    """Have this process kill itself at a stage of a fold's end."""
    discard, write_text = checkpoint.discard, files.write_text

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def killing_discard(folder: Path) -> None:
        if folder.name == "checkpoints":
            if stage == "while checkpoints go":
                newest = max(folder.iterdir())
                (newest / "state.json").unlink()
            kill()
        discard(folder)

    def killing_write(path: Path, text: str) -> None:
        if path.name == RESULT_FILE and stage == "before it is done":
            kill()
        write_text(path, text)

    checkpoint.discard, files.write_text = killing_discard, killing_write


@pytest.mark.parametrize("stage", ["before it is done", "before checkpoints go", "while checkpoints go"])
def test_a_fold_that_is_killed_at_its_end_is_not_trained_again(bags, splits, tmp_path, monkeypatch, stage):
    fold = folds_of_trial(CONFIG, splits, (1,), tmp_path)[0]

    def run() -> FoldRun:
        return FoldRun(fold, bags, tmp_path / "cache", 1, saving=Saving())

    def all_epochs() -> None:
        _kill_at(stage)
        mine = run()
        while not mine.next_epoch().is_last:
            pass

    assert status_of(fork(all_epochs)) == -signal.SIGKILL
    monkeypatch.setattr(Trainer, "_run_epoch", lambda self: pytest.fail("trained again"))
    again = run()
    assert [again.next_epoch().is_last for _ in range(4)] == [False, False, False, True]
    assert fold.is_finished
    assert not (fold.folder / "checkpoints").exists()
    assert checkpoint.load(fold.folder / "best_student")


def test_a_run_waits_for_the_lock_of_a_lost_node_and_can_be_stopped_meanwhile(
    bags, splits, tmp_path, monkeypatch
):
    assert fold_module.LOST_LOCK_S >= 180
    monkeypatch.setattr(fold_module, "LOST_LOCK_S", 0.0)
    fold = folds_of_trial(CONFIG, splits, (1,), tmp_path)[0]
    holder = FoldRun(fold, bags, tmp_path / "cache", 1, saving=Saving())
    holder.next_epoch()
    with pytest.raises(RunLockedError, match=f"is being trained by process {os.getpid()}"):
        FoldRun(fold, bags, tmp_path / "cache", 1, saving=Saving()).next_epoch()
    monkeypatch.setattr(fold_module, "LOST_LOCK_S", 600.0)
    asked = iter([False, False, True])
    with pytest.raises(PreemptedError):
        FoldRun(fold, bags, tmp_path / "cache", 1, saving=Saving(), stop=lambda: next(asked)).next_epoch()


class Scripted:
    """A run with the given values."""

    def __init__(self, aucs: list[float], record: EpochRecord) -> None:
        self._epochs = iter(
            [
                Epoch(replace(record, epoch=i, best_validation_score=auc), i + 1 == len(aucs))
                for i, auc in enumerate(aucs)
            ]
        )

    def next_epoch(self) -> Epoch:
        return next(self._epochs)

    def close(self) -> None:
        pass


def test_a_fold_that_stops_early_waits_for_its_wave(bags, splits, tmp_path):
    launcher = _launcher(bags, tmp_path)
    folds = folds_of_trial(CONFIG, splits, (1, 2), tmp_path / "trial")
    record = FoldRun(folds[0], bags, tmp_path / "cache", 1, saving=Saving()).next_epoch().record
    waves = iter(
        [
            [Scripted([0.5], record), Scripted([0.6, 0.8], record)],
            [Scripted([1.0], record), Scripted([0.9], record)],
        ]
    )
    launcher.launch = lambda folds: next(waves)
    steps = _steps(TrialRun(folds, 2, launcher))
    assert [progress.step for progress in steps] == [1, 4, 8]
    assert [progress.value for progress in steps] == pytest.approx([0.55, 0.65, 0.8])
    assert [len(progress.folds) for progress in steps] == [1, 2, 4]


def test_the_environment_says_where_and_what_was_run():
    found = environment.environment(3)
    assert found["host"] == platform.node()
    assert found["threads"] == "3"
    assert found["mhimdist"] == __version__
    assert found["CUDA of torch"] == (torch.version.cuda or "none")


def test_a_package_outside_a_checkout_has_no_revision(monkeypatch, tmp_path):
    (tmp_path / "__init__.py").touch()
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "environment.py"))
    environment.revision.cache_clear()
    assert environment.revision() == "unknown"
    git = ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "of a project around it"], check=True)
    environment.revision.cache_clear()
    assert environment.revision() == "unknown"
    subprocess.run([*git, "add", "__init__.py"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "ours"], check=True)
    environment.revision.cache_clear()
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
    assert head.startswith(environment.revision())
    assert len(environment.revision()) == 12
    environment.revision.cache_clear()
