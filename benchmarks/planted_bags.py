"""Bags of CAMELYON16's sizes with a signal that a bag model can learn from few of them.

`c16-shaped` has no such signal: it is noise for scale and I/O. Here the instances belong to kinds of tissue,
each with a centre of its own, and half of the bags also hold a kind that the others lack, in the shares of
CAMELYON16's tumours. The kind differs from others by little, so that a network needs some epochs.

Dimensions: N instances of a bag, D features, K kinds of tissue.
"""

import csv
from pathlib import Path

import numpy as np

from data_prep.embedded.slides import c16_facts
from data_prep.shard import shard

NUM_KINDS = 8
CENTRE = 0.35
"""Standard deviation of a centre's features; those of an instance scatter around it by 1."""
FEWEST = 10
"""Planted instances that a bag holds at least."""


def build(
    folder: Path,
    *,
    bags: int,
    features: int,
    strength: float = 1.0,
    scale: float = 1.0,
    seed: int = 0,
) -> Path:
    """Write the bags as shards of float16; returns the folder, which holds nothing else.

    The sizes are evenly spaced quantiles of CAMELYON16's and include the largest, 44,402. Labels take turns
    from size to size, and the shares of planted instances are quantiles of the tumours', in random order.

    Args:
        folder: to make; must not exist.
        bags: number of bags, half of each class.
        features: D.
        strength: length of the planted centre relative to the others'.
        scale: of the sizes.
        seed: of every draw.
    """
    facts, rng = c16_facts(), np.random.default_rng(seed)
    sizes = _quantiles(facts["bag_sizes"], bags) * scale
    sizes_N = np.maximum(2 * FEWEST, np.rint(sizes)).astype(np.int64)
    shares = iter(rng.permutation(_quantiles(facts["tumour_fractions"], bags - bags // 2)))
    centres_KD = rng.normal(0, CENTRE, (NUM_KINDS, features)).astype(np.float32)
    planted_D = strength * rng.normal(0, CENTRE, features).astype(np.float32)
    source = folder.with_name(f"{folder.name}-source")
    source.mkdir(parents=True)
    with (source / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["slide", "label", "case"])
        for number, size in enumerate(sizes_N.tolist()):
            is_planted = number % 2 == 0
            kinds_N = rng.choice(NUM_KINDS, size, p=rng.dirichlet(np.ones(NUM_KINDS)))
            features_ND = centres_KD[kinds_N] + rng.standard_normal((size, features), np.float32)
            if is_planted:
                count = max(FEWEST, round(float(next(shares)) * size))
                features_ND[rng.choice(size, min(count, size), replace=False)] += planted_D
            name = f"bag_{number:03d}"
            np.save(source / f"{name}.npy", features_ND.astype(np.float16))
            table.writerow([name, ("normal", "tumor")[is_planted], name])
    shard(
        source,
        source / "labels.csv",
        folder,
        classes=("normal", "tumor"),
        description=f"SYNTHETIC bags of the sizes of CAMELYON16 with a planted kind of strength {strength:g}",
        synthetic=True,
    )
    for path in source.iterdir():
        path.unlink()
    source.rmdir()
    return folder


def _quantiles(values: list[float], count: int) -> np.ndarray:
    """So many of the values, evenly spaced by rank from the largest to the smallest."""
    ranked = np.sort(np.asarray(values, np.float64))[::-1]
    return ranked[np.linspace(0, len(ranked) - 1, count).round().astype(int)]
