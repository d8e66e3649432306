"""What is in a data set, and which of its bags are odd.

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
"""A bag is odd whose standard deviation is so many times the median bag's, or so many times less."""


@dataclass(frozen=True)
class BagValues:
    """What a bag's features are like: mean and standard deviation over all of them, and their extremes."""

    mean: float
    deviation: float
    lowest: float
    highest: float
    num_bad: int
    constant: bool


@dataclass(frozen=True, eq=False)
class Inspection:
    """What is in a data set.

    Attributes:
        manifest: its table of contents.
        described: what the JSON member of each bag says, in the order of the rows.
        values: of each bag, in the same order; empty if features were not read.
        odd: bags that look wrong: key, and why.
    """

    manifest: Manifest
    described: list[dict[str, Any]]
    values: list[BagValues] = field(default_factory=list)
    odd: list[tuple[str, str]] = field(default_factory=list)


def inspect(
    folder: Path, *, values: bool = True, workers: int = 1, on_bytes: Callable[[int], None] = lambda _: None
) -> Inspection:
    """Look at every bag of a data set.

    Args:
        folder: what `data_prep.shard` wrote.
        values: whether to read the features, for NaN and constant bags; without, only the manifest and the
            JSON members are read.
        workers: threads that read.
        on_bytes: called with the bytes of features read since the last call.

    Raises:
        ManifestError: the manifest is unusable, or shards are missing.
    """
    manifest = Manifest.open(folder)
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
            what = f"standard deviation {found.deviation:.3g}, the median bag's is {usual:.3g}"
            odd.append((row["slide"], what))
    return Inspection(manifest, described, seen, odd + _duplicates(folder, rows))


def bag_values(folder: Path, row: dict[str, Any]) -> BagValues:
    """Read a bag's features once, some rows at a time."""
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
    """Bags whose features are, byte for byte, those of an earlier one."""
    alike: dict[tuple[int, int, int], list[dict[str, Any]]] = defaultdict(list)
    odd = []
    for row in rows:
        same = alike[row["features_bytes"], row["features_crc32"], row["num_features"]]
        for other in same:
            if np.array_equal(_payload(folder, row), _payload(folder, other)):
                odd.append((row["slide"], f"has the features of {other['slide']!r}"))
                break
        else:
            same.append(row)
    return odd


def _payload(folder: Path, row: dict[str, Any]) -> np.ndarray:
    place = row["features_offset"], (row["features_bytes"],)
    return np.memmap(folder / row["shard"], np.uint8, "r", *place)
