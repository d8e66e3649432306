"""Inspection of a data set: its contents and its odd bags.

Dimensions: N instances of a bag, D features.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_prep.readers.members import describe_bag
from mhimdist.data.manifest import Manifest

BLOCK_BYTES = 2**22
ODD_FACTOR = 5.0
"""A bag is odd if its standard deviation is this many times above or below that of the median bag."""


@dataclass(frozen=True)
class BagValues:
    """Statistics of a bag's features.

    Attributes:
        mean, deviation: mean and standard deviation over all finite features.
        lowest, highest: the extremes; a feature that is NaN or infinite counts as 0 here.
        num_bad: number of features that are NaN or infinite.
        constant: whether all instances are the same, or the only one has equal features throughout.
    """

    mean: float
    deviation: float
    lowest: float
    highest: float
    num_bad: int
    constant: bool


@dataclass(frozen=True, eq=False)
class Inspection:
    """The contents of a data set.

    Attributes:
        manifest: its table of contents.
        described: the content of each bag's JSON member, in the order of the rows.
        values: statistics of each bag, in the same order; empty if features were not read.
        odd: bags that look wrong: slide, and why.
    """

    manifest: Manifest
    described: list[dict[str, Any]]
    values: list[BagValues] = field(default_factory=list)
    odd: list[tuple[str, str]] = field(default_factory=list)


def inspect(
    folder: Path,
    *,
    feature_set: str = "",
    values: bool = True,
    workers: int = 1,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> Inspection:
    """Look at every bag of a data set.

    Args:
        folder: a folder that `data_prep.shard` wrote.
        feature_set: the feature set to look at, if they have names.
        values: whether to read the features, which finds NaN and constant bags; otherwise only the manifest
            and the JSON members are read.
        workers: number of threads that read.
        on_bytes: called with the number of bytes of features read since the last call.

    Raises:
        ManifestError: the manifest is unusable, or shards are missing.
        CorruptShard: a JSON member differs from what was written.
    """
    manifest = Manifest.open(folder).of(feature_set)
    rows = manifest.rows.to_pylist()

    def look(row: dict[str, Any]) -> BagValues:
        found = bag_values(folder, row)
        on_bytes(row["features_bytes"])
        return found

    with ThreadPoolExecutor(workers) as threads:
        described = list(threads.map(lambda row: describe_bag(folder, row), rows))
        seen = list(threads.map(look, rows)) if values else []
    odd = []
    usual = float(np.median([found.deviation for found in seen])) if seen else 0.0
    for row, found in zip(rows, seen, strict=bool(values)):
        if found.num_bad:
            odd.append((row["slide"], f"{found.num_bad} of its features are NaN or infinite"))
        elif found.constant:
            odd.append((row["slide"], f"all of its {row['num_instances']} instances are the same"))
        elif not usual / ODD_FACTOR <= found.deviation <= usual * ODD_FACTOR:
            what = f"standard deviation {found.deviation:.3g}; that of the median bag is {usual:.3g}"
            odd.append((row["slide"], what))
    return Inspection(manifest, described, seen, odd + _duplicates(folder, rows))


def bag_values(folder: Path, row: dict[str, Any]) -> BagValues:
    """Read a bag's features once, a block of rows at a time, for their statistics."""
    num_instances, num_features = row["num_instances"], row["num_features"]
    dtype = getattr(torch, row["dtype"])
    raw = np.memmap(
        folder / row["shard"],
        np.uint8,
        "c",
        row["features_data_offset"],
        (num_instances * num_features * dtype.itemsize,),
    )
    features_ND = torch.from_numpy(raw).view(dtype).view(num_instances, num_features)
    total = squares = 0.0
    lowest, highest, num_bad, constant = math.inf, -math.inf, 0, num_instances > 1
    step = max(1, BLOCK_BYTES // (num_features * dtype.itemsize))
    for start in range(0, num_instances, step):
        block = features_ND[start : start + step].float()
        constant = constant and bool((block == block[0]).all() and (block[0] == features_ND[0].float()).all())
        if not math.isfinite(float(block.sum())):
            finite = block.isfinite()
            num_bad += int((~finite).sum())
            block = torch.where(finite, block, 0.0)
        total += float(block.sum(dtype=torch.float64))
        squares += float(block.square().sum(dtype=torch.float64))
        low, high = torch.aminmax(block)
        lowest, highest = min(lowest, float(low)), max(highest, float(high))
    count = num_instances * num_features - num_bad
    mean = total / max(count, 1)
    deviation = math.sqrt(max(squares / max(count, 1) - mean**2, 0.0))
    single = num_instances == 1 and lowest == highest and num_features > 1
    return BagValues(mean, deviation, lowest, highest, num_bad, constant or single)


def _duplicates(folder: Path, rows: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """Bags whose features equal those of an earlier bag byte for byte: slide, and why."""
    alike: dict[tuple[int, int, int], list[dict[str, Any]]] = defaultdict(list)
    odd = []
    for row in rows:
        same = alike[row["features_bytes"], row["features_crc32"], row["num_features"]]
        for other in same:
            if np.array_equal(_payload(folder, row), _payload(folder, other)):
                odd.append((row["slide"], f"has the same features as {other['slide']!r}"))
                break
        else:
            same.append(row)
    return odd


def _payload(folder: Path, row: dict[str, Any]) -> np.ndarray:
    place = row["features_offset"], (row["features_bytes"],)
    return np.memmap(folder / row["shard"], np.uint8, "r", *place)
