from dataclasses import replace

import pytest
from memory_bags import MemoryBags

from mhimdist.config import load_config
from mhimdist.data.splits import Split
from mhimdist.engine import EpochRecord
from mhimdist.run_folder import Saving
from mhimdist.trial import Epoch, FoldRun, Starter, TrialRun, folds_of

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


def _starter(bags, tmp_path) -> Starter:
    return Starter(bags, tmp_path / "cache", 1, Saving())


def test_a_trial_runs_its_folds_and_its_value_is_their_mean(bags, splits, tmp_path):
    folds = folds_of(CONFIG, splits, (1, 2), tmp_path / "trial")
    steps = _steps(TrialRun(folds, 1, _starter(bags, tmp_path)))
    assert [progress.step for progress in steps] == list(range(1, 17))
    best = [fold.records()[-1].best_validation_auc for fold in folds]
    assert steps[-1].value == pytest.approx(sum(best) / 4)
    assert list(steps[-1].units.values()) == best
    assert steps[7].units == dict(zip([fold.name for fold in folds[:2]], best[:2], strict=True))
    assert steps[3].value == best[0]
    assert [(fold.config.seed, fold.fold) for fold in folds] == [(1, 1), (1, 2), (2, 1), (2, 2)]


def test_folds_at_once_give_the_same_values_in_fewer_steps(bags, splits, tmp_path):
    one = _steps(TrialRun(folds_of(CONFIG, splits, (1,), tmp_path / "one"), 1, _starter(bags, tmp_path)))
    both = _steps(TrialRun(folds_of(CONFIG, splits, (1,), tmp_path / "both"), 2, _starter(bags, tmp_path)))
    assert [progress.step for progress in both] == [1, 2, 3, 4]
    assert both[-1].units == one[-1].units
    assert both[-1].num_epochs == one[-1].num_epochs == 8


@pytest.mark.parametrize("num_done", [1, 3, 4, 6, 8])
def test_a_trial_that_was_cut_off_reports_the_same_again_and_trains_the_rest(
    bags, splits, tmp_path, num_done
):
    expected = _steps(
        TrialRun(folds_of(CONFIG, splits, (1,), tmp_path / "whole"), 1, _starter(bags, tmp_path))
    )
    folds = folds_of(CONFIG, splits, (1,), tmp_path / "cut")
    run = TrialRun(folds, 1, _starter(bags, tmp_path))
    for _ in range(num_done):
        run.next_epoch()
    for each in run._runs:  # as a killed process leaves it: nothing is closed, the lock is gone
        if each._trainer is not None:
            each._trainer.folder.unlock()
    found = _steps(TrialRun(folds, 1, _starter(bags, tmp_path)))
    assert [replace(p, train_s=0) for p in found] == expected


def test_a_fold_that_was_stopped_keeps_its_weights_and_nothing_to_go_on_with(bags, splits, tmp_path):
    fold = folds_of(CONFIG, splits, (1,), tmp_path)[0]
    run = FoldRun(fold, bags, tmp_path / "cache", 1, Saving())
    epoch = run.next_epoch()
    assert not epoch.is_last
    run.close()
    assert [record.epoch for record in fold.records()] == [0]
    assert (fold.folder / "best_student").exists()
    assert not (fold.folder / "checkpoints").exists()
    assert not fold.is_done


class Scripted:
    """A run that gives what it is told to."""

    def __init__(self, aucs: list[float], record: EpochRecord) -> None:
        self._epochs = iter(
            [
                Epoch(replace(record, epoch=i, best_validation_auc=auc), i + 1 == len(aucs))
                for i, auc in enumerate(aucs)
            ]
        )

    def next_epoch(self) -> Epoch:
        return next(self._epochs)

    def close(self) -> None:
        pass


def test_a_fold_that_stops_early_waits_for_its_wave(bags, splits, tmp_path):
    starter = _starter(bags, tmp_path)
    folds = folds_of(CONFIG, splits, (1, 2), tmp_path / "trial")
    record = FoldRun(folds[0], bags, tmp_path / "cache", 1, Saving()).next_epoch().record
    waves = iter(
        [
            [Scripted([0.5], record), Scripted([0.6, 0.8], record)],
            [Scripted([1.0], record), Scripted([0.9], record)],
        ]
    )
    starter.wave = lambda folds: next(waves)
    steps = _steps(TrialRun(folds, 2, starter))
    assert [progress.step for progress in steps] == [1, 4, 8]
    assert [progress.value for progress in steps] == pytest.approx([0.55, 0.65, 0.8])
    assert [len(progress.units) for progress in steps] == [1, 2, 4]
