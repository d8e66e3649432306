#!/usr/bin/env python3
"""The effect of bfloat16 on the result: test AUC of MHIM (AB-MIL) on digits-c16, paired by seed.

    python benchmarks/precision.py --seeds 5

Every seed is trained twice, in float32 and in bfloat16, with the same folds, weights, order of bags, masks
and dropout. The selected student of each fold is tested. The command prints the mean AUC over the folds, and
the difference with its 95 % interval (Student's t over seeds).
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from data_prep import digits
from mhimdist.config.presets import preset
from mhimdist.data.shards import BagShards
from mhimdist.data.splits import k_folds
from mhimdist.files import home
from mhimdist.training.evaluation import evaluate
from mhimdist.training.first_stage import open_trainer

# Two-sided 95 % quantiles of Student's t by degrees of freedom.
T_95 = (math.nan, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def test_auc(bags: BagShards, precision: str, seed: int, epochs: int, cache: Path) -> float:
    """Mean test AUC over three folds.

    Args:
        bags: the data set.
        precision: as in `TrainConfig`.
        seed: of folds and runs.
        epochs: of each run.
        cache: of first-stage networks.
    """
    config = preset("c16", "abmil").override(
        {
            "model.hidden_dim": 128,
            "optimizer.learning_rate": 5e-4,
            "epochs": epochs,
            "seed": seed,
            "device": "cpu",
            "precision": precision,
        }
    )
    aucs = []
    for split in k_folds(
        bags.keys,
        bags.cases,
        bags.labels_N,
        num_folds=3,
        validation_share=0.15,
        selects_on_test=False,
        seed=seed,
    ):
        trainer = open_trainer(config, bags, split, None, cache)
        for _ in trainer.epochs():
            pass
        auc = evaluate(trainer.best_student(), bags, split)["test"]["auc"]
        assert auc is not None, "both classes are in every test fold"
        aucs.append(auc)
    return statistics.mean(aucs)


def measure(seeds: int, epochs: int) -> dict[str, Any]:
    """Train all pairs; returns the keys that `--json` prints."""
    torch.set_num_threads(1)
    bags = BagShards(digits.ensure("digits-c16", home()))
    pairs = []
    with tempfile.TemporaryDirectory() as cache:
        for seed in range(2021, 2021 + seeds):
            pairs.append([test_auc(bags, name, seed, epochs, Path(cache)) for name in ("float32", "bf16")])
            print(f"seed {seed}: float32 {pairs[-1][0]:.4f}, bf16 {pairs[-1][1]:.4f}", file=sys.stderr)
    differences = [narrow - wide for wide, narrow in pairs]
    half = T_95[seeds - 1] * statistics.stdev(differences) / math.sqrt(seeds)
    mean = statistics.mean(differences)
    return {
        "seeds": seeds,
        "epochs": epochs,
        "auc_float32": round(statistics.mean(wide for wide, _ in pairs), 4),
        "auc_bf16": round(statistics.mean(narrow for _, narrow in pairs), 4),
        "difference": round(mean, 4),
        "interval_95": [round(mean - half, 4), round(mean + half, 4)],
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--seeds", type=int, choices=range(2, 11), default=5, help="pairs (default: 5)")
    parser.add_argument("--epochs", type=int, default=25, help="of each run (default: 25)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args()
    result = measure(options.seeds, options.epochs)
    if options.json:
        print(json.dumps(result))
        return
    low, high = result["interval_95"]
    print(f"MHIM (AB-MIL) on digits-c16, {result['seeds']} seeds x 3 folds x {result['epochs']} epochs")
    print(f"  float32 AUC {result['auc_float32']:.4f}")
    print(f"  bf16    AUC {result['auc_bf16']:.4f}")
    print(f"  bf16 - float32 {result['difference']:+.4f}, 95 % interval [{low:+.4f}, {high:+.4f}]")


if __name__ == "__main__":
    main()
