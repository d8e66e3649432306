"""Runs of a few seconds: a small network on a few slides of digits."""

from pathlib import Path

from data_prep import digits
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
