"""Runs of a few seconds: a small network on a few slides of digits."""

from pathlib import Path

import numpy as np

from data_prep import digits
from data_prep.shard import shard
from mhimdist.config.presets import preset

BASE = preset("c16", "abmil").override(
    {
        "model.hidden_dim": 16,
        "model.attention_dim": 8,
        "epochs": 2,
        "device": "cpu",
        "optimizer.learning_rate": 1e-3,
    }
)


def small_digits(folder: Path) -> Path:
    """Sixty slides of `digits-c16` as shards below a folder."""
    return digits.build("digits-c16", folder / "digits-c16", scale=0.01, bags=60)


def digits_of_two_encoders(folder: Path) -> Path:
    """The same slides by two encoders, as shards: the digits, and half of their features in noise."""
    digits.write_features("digits-c16", folder / "source", scale=0.01, bags=60)
    draw = np.random.default_rng(0)
    (folder / "noisy").mkdir()
    for file in sorted((folder / "source" / "features").glob("slide_???.npy")):
        features_ND = np.load(file)[:, :8].astype(np.float32)
        np.save(folder / "noisy" / file.name, features_ND + draw.normal(size=features_ND.shape))
    sets = {"uni": folder / "source" / "features", "virchow2": folder / "noisy"}
    shard(sets, folder / "source" / "labels.csv", folder / "shards")
    return folder / "shards"
