"""Trains and resumes a model of another package, prints JSON: python extension_run.py PART FOLDER."""

import json
import os
import sys
from pathlib import Path

import torch
from memory_bags import gaussian_bags

from mhimdist.config.train import load_config
from mhimdist.cross_validation.options import CrossValidation
from mhimdist.data.splits import k_folds
from mhimdist.errors import ConfigError
from mhimdist.export.run import export_model
from mhimdist.process import run
from mhimdist.training import checkpoint
from mhimdist.training.first_stage import open_trainer
from mhimdist.training.fold import run_fold
from mhimdist.training.folds import Fold
from mhimdist.training.student import BEST_STUDENT, load_student

CONFIG = {
    "model": {"name": "squared", "hidden_dim": 16},
    "masking": {"high": 0.1, "random": 0.2},
    "teacher": {"kind": "init_momentum", "momentum": {"start": 0.9}},
    "optimizer": {"learning_rate": 1e-2},
    "epochs": 5,
    "device": "cpu",
}


def fold_in(folder: Path) -> tuple:
    bags = gaussian_bags()
    (split, *_) = k_folds(bags.keys, bags.cases, bags.labels_N, num_folds=2, validation_share=0.25, seed=0)
    return bags, Fold("fold 1", load_config(CONFIG), split, 2021, folder, is_tested=True)


def train(folder: Path) -> dict:
    """Have a process train and be cut off, then train the same fold of a cross-validation without a break."""
    if not (child := os.fork()):
        cut(folder)
    _, ended = os.waitpid(child, 0)
    bags, fold = fold_in(folder / "whole")
    run_fold(fold, bags, folder / "cache", 1)
    student = load_student(fold.folder)
    options = ["--train.model.name", "squared", "--train.model.hidden-dim", "24"]
    given = CrossValidation.from_command_line(options)
    other = load_config({**CONFIG, "model": {"name": "squared", "hidden_dim": 17}})
    try:
        export_model(fold.folder, folder / "export")
        refused = ""
    except ConfigError as error:
        refused = str(error)
    return {
        "killed with": os.waitstatus_to_exitcode(ended),
        "losses": [record.loss for record in fold.records()],
        "network": type(student).__name__,
        "width": given.train.model.hidden_dim,
        "digests": len({other.digest(), fold.config.digest()}),
        "export": refused,
        "versions": checkpoint.load(fold.folder / BEST_STUDENT)[1]["versions"],
        "config": json.loads((fold.folder / "config.json").read_text())["model"],
    }


def cut(folder: Path) -> None:
    """Train two epochs, then end as if killed."""
    bags, fold = fold_in(folder / "cut")
    trainer = open_trainer(fold.config, bags, fold.split, fold.folder, folder / "cache")
    for record in trainer.epochs():
        if record.epoch == 1:
            os._exit(9)


def resume(folder: Path) -> dict:
    """Go on where `cut` ended."""
    bags, fold = fold_in(folder / "cut")
    before = len(fold.records())
    run_fold(fold, bags, folder / "cache", 1)
    return {"before": before, "losses": [record.loss for record in fold.records()]}


def main() -> None:
    torch.set_num_threads(1)
    part, folder = sys.argv[1], Path(sys.argv[2])
    print(json.dumps({"train": train, "resume": resume}[part](folder)))


if __name__ == "__main__":
    run(main)
