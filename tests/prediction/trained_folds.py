"""A cross-validation of small networks on small shards, trained without Ray, for tests that predict."""

from pathlib import Path
from typing import Any

from feature_folders import shards_of
from memory_bags import gaussian_bags

from mhimdist.config.train import TrainConfig, load_config
from mhimdist.data.shards import BagShards
from mhimdist.data.splits import k_folds
from mhimdist.training.fold import run_fold
from mhimdist.training.folds import Fold, fold_folder

NUM_BAGS = 20
PLAIN: dict[str, Any] = {
    "model": {"name": "abmil", "hidden_dim": 16, "attention_dim": 8},
    "teacher": {"kind": "none"},
    "loss": {"alpha": 0},
    "optimizer": {"learning_rate": 5e-3},
    "epochs": 12,
    "device": "cpu",
}


def config_of(**changes: Any) -> TrainConfig:
    return load_config(PLAIN | changes)


def make_shards(folder: Path, **options: Any) -> BagShards:
    return BagShards(shards_of(gaussian_bags(NUM_BAGS, **options), folder))


def train_folds(
    folder: Path, bags: BagShards, config: TrainConfig, *, digest: str = "0a", paper: bool = False
) -> list[Path]:
    """Train both folds of a 2-fold cross-validation into `<folder>/folds`."""
    splits = k_folds(
        bags.keys,
        bags.cases,
        bags.labels_N,
        num_folds=2,
        validation_share=0.3,
        selects_on_test=paper,
        seed=0,
    )
    folders = []
    for number, split in enumerate(splits, 1):
        place = fold_folder(folder / "folds", number, config.seed, digest)
        run_fold(Fold("it", config, split, number, place, is_tested=True), bags, folder / "cache", 1)
        folders.append(place)
    return folders
