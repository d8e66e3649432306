"""Small folders of features and labels, and shards made of them, for tests that write or read them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from memory_bags import MemoryBags

from data_prep.merge import merge
from data_prep.shard import shard
from mhimdist.data.manifest import DatasetInfo, Manifest, rows_schema

# Names with a dot as TCGA's have, with characters that a tar or DALI's index must escape, and one that is too
# long for a single tar header.
SLIDES = ("TCGA-A1.B34C-2F", "a slide, é", "胃癌-001", "50%25.x~", "plain", "-" + 150 * "x")
CLASSES = ("normal", "tumour")
NUM_FEATURES = 8


def write_features(folder: Path, seed: int = 0) -> dict[str, np.ndarray]:
    """Write `features/*.npy` and `labels.csv`; returns the float32 features of every slide.

    Slide i has 3 + 2 i instances, label i % 2 and case i // 2; every second slide has coordinates and
    instance labels.
    """
    (folder / "features").mkdir(parents=True)
    generator = np.random.default_rng(seed)
    lines, features = ["slide,label,case"], {}
    for i, slide in enumerate(SLIDES):
        size = 3 + 2 * i
        # Multiples of 1/16, so that float16 holds them exactly.
        features[slide] = (generator.integers(-99, 99, (size, NUM_FEATURES)) / 16).astype(np.float32)
        np.save(folder / "features" / f"{slide}.npy", features[slide])
        if i % 2:
            np.save(folder / "features" / f"{slide}.coords.npy", coords_of(size))
            np.save(folder / "features" / f"{slide}.instance_labels.npy", np.arange(size) % 2)
        lines.append(f'"{slide}",{CLASSES[i % 2]},case {i // 2}')
    (folder / "labels.csv").write_text("\n".join(lines), encoding="utf-8")
    return features


def coords_of(size: int) -> np.ndarray:
    """Coordinates of a slide with this many instances."""
    return np.arange(2 * size).reshape(size, 2) * 256


def shard_folder(folder: Path, **options: Any) -> Path:
    """Shard what `write_features` wrote, into `<folder>/shards`."""
    out = folder / "shards"
    shard(folder / "features", folder / "labels.csv", out, **{"shard_bytes": 10_000, **options})
    return out


def shards_of(bags: MemoryBags, folder: Path) -> Path:
    """Shard bags that are in memory, in float32, into `<folder>/shards`."""
    (folder / "features").mkdir(parents=True)
    lines = ["slide,label,case"]
    for row, (key, case) in enumerate(zip(bags.keys, bags.cases, strict=True)):
        np.save(folder / "features" / f"{key}.npy", bags.features[row].numpy())
        lines.append(f"{key},{bags.classes[bags.labels_N[row]]},{case}")
    (folder / "labels.csv").write_text("\n".join(lines))
    return shard_folder(folder, dtype="float32", shard_bytes=10**6)


def normal_shards(folder: Path, *dtypes: str) -> Path:
    """Shard four bags of normal features per stored dtype, which lose bits in any narrower one.

    Several dtypes are merged into one data set; the rows of each are next to each other.
    """
    generator, folders = np.random.default_rng(len(dtypes)), []
    for dtype in dtypes:
        (folder / dtype / "features").mkdir(parents=True)
        lines = ["slide,label,case"]
        for i, size in enumerate((5, 40, 1, 18)):
            features_ND = generator.standard_normal((size, NUM_FEATURES)).astype(np.float32)
            np.save(folder / dtype / "features" / f"{dtype}-{i}.npy", features_ND)
            lines.append(f"{dtype}-{i},{CLASSES[i % 2]},{dtype} case {i}")
        (folder / dtype / "labels.csv").write_text("\n".join(lines))
        folders.append(shard_folder(folder / dtype, dtype=dtype))
    if len(folders) == 1:
        return folders[0]
    merge(folders, folder / "merged")
    return folder / "merged"


def forge_manifest(
    shards: Path,
    rows: Callable[[list[dict]], None] = lambda rows: None,
    info: Callable[[dict], None] = lambda info: None,
) -> None:
    """Change a manifest in place as an adversary can: consistent with its own hash."""
    manifest = Manifest.read(shards)
    changed_rows, changed_info = manifest.rows.to_pylist(), manifest.info.model_dump()
    rows(changed_rows)
    info(changed_info)
    forged = DatasetInfo.model_validate_json(json.dumps(changed_info))
    Manifest(forged, pa.Table.from_pylist(changed_rows, rows_schema(forged.task))).write(shards)
