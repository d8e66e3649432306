"""Features of the same small slides by several encoders, and shards made of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.shard import Outcome, shard

ENCODED = tuple(f"slide-{i}" for i in range(6))
WIDTHS = {"uni": 8, "virchow2": 12, "gigapath": 8}


def size_of(slide: str, name: str) -> int:
    """Instances of a slide; gigapath cuts other patches than the others."""
    return 3 + 2 * ENCODED.index(slide) + (name == "gigapath")


def write_encoder(folder: Path, name: str, slides: Sequence[str] = ENCODED) -> dict[str, np.ndarray]:
    """Write `<name>/*.npy` with coordinates, and `labels.csv`; returns the float32 features."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    features = {}
    for slide in slides:
        size = size_of(slide, name)
        generator = np.random.default_rng([ENCODED.index(slide), WIDTHS[name]])
        # Multiples of 1/16, so that float16 holds them exactly.
        features[slide] = (generator.integers(-99, 99, (size, WIDTHS[name])) / 16).astype(np.float32)
        np.save(folder / name / f"{slide}.npy", features[slide])
        np.save(folder / name / f"{slide}.coords.npy", np.arange(2 * size).reshape(size, 2) * 256)
    lines = [f"{slide},{('normal', 'tumour')[i % 2]},case {i}" for i, slide in enumerate(ENCODED)]
    (folder / "labels.csv").write_text("\n".join(["slide,label,case", *lines]))
    return features


def write_encoders(folder: Path, *names: str) -> dict[str, dict[str, np.ndarray]]:
    """`write_encoder` for each of these names."""
    return {name: write_encoder(folder, name) for name in names}


def folders_of(folder: Path, *names: str) -> Mapping[str, Path]:
    """What `data_prep.shard` takes as features."""
    return {name: folder / name for name in names}


def shard_encoders(folder: Path, *names: str, **options: Any) -> Outcome:
    """Shard these encoders' features into `<folder>/shards`."""
    settings = {"shard_bytes": 10_000, **options}
    return shard(folders_of(folder, *names), folder / "labels.csv", folder / "shards", **settings)
