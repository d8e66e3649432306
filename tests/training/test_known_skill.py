"""What the embedded tasks are known to allow is learnt: the figures of docs/tasks.md."""

from pathlib import Path

import numpy as np
import pytest

from data_prep import digits
from mhimdist.config.presets import preset
from mhimdist.config.train import TrainConfig
from mhimdist.data.shards import BagShards
from mhimdist.data.splits import k_folds
from mhimdist.statistics import survival
from mhimdist.training.fold import run_fold
from mhimdist.training.folds import Fold
from mhimdist.training.result import Result

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
MHIM = preset("c16", "abmil").override(
    {"model.hidden_dim": 128, "optimizer.learning_rate": 5e-4, "epochs": 25, "device": "cpu"}
)


def results_of(bags: BagShards, config: TrainConfig, folder: Path) -> list[Result]:
    """The results of the three folds of seed 0 under strict."""
    how = {"num_folds": 3, "validation_share": 0.15, "seed": 0}
    splits = k_folds(bags.keys, bags.cases, bags.labels_N, strata=not bags.task.of_classes, **how)
    folds = [
        Fold("it", config, split, number, folder / f"{number}", is_tested=True)
        for number, split in enumerate(splits, 1)
    ]
    for fold in folds:
        run_fold(fold, bags, folder / "cache", 1)
    return [fold.ended_result() for fold in folds]


def test_grades_are_told(tmp_path: Path) -> None:
    bags = BagShards(digits.build("digits-grades", tmp_path / "digits-grades"))
    kappas = [result.test["kappa"] for result in results_of(bags, MHIM, tmp_path)]
    assert np.mean(kappas) >= 0.8, kappas


def test_risks_are_ranked_nearly_as_the_true_hazards_rank_them(tmp_path: Path) -> None:
    bags = BagShards(digits.build("digits-survival", tmp_path / "digits-survival"))
    cox = {"task.name": "survival", "task.survival_loss": "cox", "epochs": 100, "seed": 0}
    cox |= {"bags_per_step": 8, "optimizer.learning_rate": 2e-3, "optimizer.weight_decay": 0.02}
    results = results_of(bags, MHIM.override({**cox, "model.hidden_dim": 256}), tmp_path)
    found = [result.test["harrell_c"] for result in results]
    best = []
    for result in results:
        rows = bags.rows_of(result.keys)
        shares_N = np.array([bags.instance_labels(row).mean() for row in rows.tolist()])
        cases = [bags.cases[row] for row in rows]
        times_N, events_N = bags.targets_NK[rows].T
        free = survival.censoring(times_N, events_N)  # which Harrell's C does not ask for
        measures = survival.weighed(times_N, events_N, shares_N, cases, free=free, grid_T=np.array([1.0]))
        best.append(measures.once()["harrell_c"])
    assert np.mean(found) >= 0.95 * np.mean(best), (found, best)
