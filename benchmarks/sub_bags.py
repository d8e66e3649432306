#!/usr/bin/env python3
"""Training on samples of each bag against training on whole bags: time and AUC after the same epochs.

    python benchmarks/sub_bags.py
    python benchmarks/sub_bags.py --shaped-bags 40 --epochs 25 --seeds 3 --json

AUC is measured on digits-c16 by MHIM (AB-MIL) with its first stage, each network on the test cases of its
fold and evaluated on whole bags. Time is measured there, and on bags of noise of CAMELYON16's sizes
(c16-shaped), where an AUC says nothing. The settings take turns, fold by fold and epoch by epoch (A B A B),
in one process on the CPU. A time is the training part of an epoch, without validation, in processor time of
all threads; a ratio is the median over the pairs of neighbours of the setting's time divided by that of
whole bags.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from data_prep.digits import build, ensure
from mhimdist.config.presets import preset
from mhimdist.config.train import TrainConfig
from mhimdist.data.shards import BagShards
from mhimdist.data.splits import Split, k_folds
from mhimdist.files import home
from mhimdist.training.fold import run_fold
from mhimdist.training.folds import Fold
from mhimdist.training.trainer import Trainer

DIGITS: dict[str, Any] = {"model.hidden_dim": 128, "optimizer.learning_rate": 5e-4, "device": "cpu"}
SETTINGS: dict[str, dict[str, Any]] = {
    "whole bags": {},
    "half of each bag": {"instances_share": 0.5},
    "a quarter": {"instances_share": 0.25},
    "an eighth": {"instances_share": 0.125},
    "a quarter, 4 bags a step": {
        "instances_share": 0.25,
        "bags_per_step": 4,
        "optimizer.rate_rule": "sqrt",
    },
}
WHOLE = "whole bags"


class TimedTrainer(Trainer):
    """A trainer that notes the processor time of each epoch's steps."""

    steps_s: list[float]

    def _take_steps(self, epoch: int) -> None:
        started = time.process_time()
        super()._take_steps(epoch)
        self.train_step.check(wait=True)
        self.steps_s = [*getattr(self, "steps_s", []), time.process_time() - started]


def timed(configs: Mapping[str, TrainConfig], bags: BagShards, split: Split, epochs: int) -> dict[str, Any]:
    """Milliseconds of processor time a bag, by setting: an epoch of each in turn, after one that warms up."""
    runs: dict[str, tuple[TimedTrainer, Iterator[Any]]] = {}
    for name, config in configs.items():
        config = config.model_copy(update={"epochs": epochs + 1})
        network = Trainer(config.first_stage(), bags, split).student
        trainer = TimedTrainer(config, bags, split, pretrained=network)
        runs[name] = trainer, trainer.epochs()
    for _ in range(epochs + 1):
        for _, each in runs.values():
            next(each)
    ms = {
        name: [1e3 * s / len(split.train) for s in trainer.steps_s[1:]] for name, (trainer, _) in runs.items()
    }
    return {
        name: {
            "ms_a_bag": round(statistics.median(values), 3),
            "ratio": round(statistics.median(np.divide(values, ms[WHOLE]).tolist()), 3),
        }
        for name, values in ms.items()
    }


def judged(
    configs: Mapping[str, TrainConfig], bags: BagShards, *, folds: int, seeds: int, folder: Path
) -> dict[str, list[float]]:
    """Test AUCs by setting, of every fold and seed."""
    aucs: dict[str, list[float]] = {name: [] for name in configs}
    for seed in range(seeds):
        splits = k_folds(
            bags.keys, bags.cases, bags.labels_N, num_folds=folds, validation_share=0.15, seed=seed
        )
        for number, split in enumerate(splits, 1):
            for place, (name, config) in enumerate(configs.items()):
                own = config.model_copy(update={"seed": seed})
                fold = Fold(name, own, split, number, folder / f"{place}-{seed}-{number}", is_tested=True)
                run_fold(fold, bags, folder / "cache", torch.get_num_threads())
                auc = fold.ended_result().test["auc"]
                aucs[name] += [] if auc is None else [auc]
            done = ", ".join(f"{name} {values[-1]:.3f}" for name, values in aucs.items() if values)
            print(f"seed {seed}, fold {number}: {done}", file=sys.stderr, flush=True)
    return aucs


def _split(bags: BagShards) -> Split:
    return k_folds(bags.keys, bags.cases, bags.labels_N, num_folds=2, validation_share=0.4, seed=0)[0]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--epochs", type=int, default=25, help="of the runs that are judged (default: 25)")
    parser.add_argument("--folds", type=int, default=3, help="of digits-c16 (default: 3)")
    parser.add_argument(
        "--seeds", type=int, default=3, help="each with folds of its own (default: 3; 0: no AUC)"
    )
    parser.add_argument(
        "--judged", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="settings with an AUC"
    )
    parser.add_argument("--rounds", type=int, default=5, help="epochs that are timed (default: 5)")
    parser.add_argument("--shaped-bags", type=int, default=20, help="of CAMELYON16's sizes (default: 20)")
    parser.add_argument("--scale", type=float, default=1.0, help="of these sizes (default: 1)")
    parser.add_argument("--threads", type=int, default=1, help="compute threads (default: 1)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    base = preset("c16", "abmil")
    digits = base.override(DIGITS | {"epochs": options.epochs})
    shaped = base.override({"device": "cpu", "epochs": options.epochs})
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sets = {
            "digits-c16": (digits, BagShards(ensure("digits-c16", home()))),
            "c16-shaped": (
                shaped,
                BagShards(
                    build("c16-shaped", folder / "shaped", bags=options.shaped_bags, scale=options.scale)
                ),
            ),
        }
        found: dict[str, Any] = {"threads": options.threads, "epochs": options.epochs, "times": {}}
        for data, (config, bags) in sets.items():
            configs = {name: config.override(changes) for name, changes in SETTINGS.items()}
            found["times"][data] = timed(configs, bags, _split(bags), options.rounds)
            print(f"{data}: {found['times'][data]}", file=sys.stderr, flush=True)
        configs = {name: digits.override(SETTINGS[name]) for name in options.judged}
        aucs = judged(
            configs, sets["digits-c16"][1], folds=options.folds, seeds=options.seeds, folder=folder / "runs"
        )
    found["aucs"] = {name: [round(auc, 4) for auc in values] for name, values in aucs.items()}
    if options.json:
        print(json.dumps(found))
        return
    print(f"Sub-bags, MHIM (AB-MIL), {options.threads} thread(s), {options.epochs} epochs")
    for data, times in found["times"].items():
        print(f"  {data}: processor time a bag, and against whole bags")
        for name, each in times.items():
            print(f"    {name:<26} {each['ms_a_bag']:>9.2f} ms   {each['ratio']:>6.1%}")
    if options.seeds:
        print("  digits-c16: test AUC on whole bags, mean and deviation over folds and seeds")
        for name, values in aucs.items():
            print(f"    {name:<26} {np.mean(values):>9.3f} +- {np.std(values):.3f}")


if __name__ == "__main__":
    main()
