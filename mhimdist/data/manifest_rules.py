"""What the rows of a manifest must keep, so that no reader leaves a shard or misses a bag.

Dimensions: N bags.
"""

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mhimdist.data import feature_sets, targets
from mhimdist.data.format import (
    COORDS_DTYPE,
    EXTENSIONS,
    FEATURE_DTYPES,
    INSTANCE_LABELS_DTYPE,
    NPY_HEADER_BYTES,
)
from mhimdist.errors import ManifestError

if TYPE_CHECKING:
    from mhimdist.data.manifest import DatasetInfo


def check(rows: pa.Table, info: "DatasetInfo") -> None:
    """Refuse rows that contradict each other or the description, or that point outside their shard.

    Args:
        rows: the rows, with the columns that the description asks for.
        info: the description.

    Raises:
        ManifestError: a rule is broken; the message names the bag.
    """
    if not len(rows):
        raise ManifestError("it lists no bags")
    if feature_sets.COLUMN in rows.column_names:
        feature_sets.check(info, rows, check)
        return
    if pc.count_distinct(rows["key"]).as_py() != len(rows):
        raise ManifestError("it lists a key twice")
    names = pa.array([shard.name for shard in info.shards], pa.string())
    if len(names.unique()) != len(names):
        raise ManifestError("it lists a shard twice")
    shard_N = pc.index_in(rows["shard"], names).fill_null(-1).to_numpy()
    _require(shard_N >= 0, rows, "is in a shard that is not listed")
    if (np.diff(shard_N) < 0).any():
        raise ManifestError("its rows are not in the order of the shards")
    counts = np.bincount(shard_N, minlength=len(info.shards))
    for shard, count in zip(info.shards, counts, strict=True):
        if shard.num_bags != count:
            raise ManifestError(f"{shard.name} is listed with {shard.num_bags} bags, but has {count} rows")
    label_N, num_features_N = rows["label"].to_numpy(), rows["num_features"].to_numpy()
    _require((label_N >= 0) & (label_N < len(info.classes)), rows, f"has no label in {info.classes}")
    _require(
        (num_features_N == num_features_N[0]) & (num_features_N >= 1),
        rows,
        "has another number of features than the first bag, or none",
    )
    _require(rows["num_instances"].to_numpy() >= 1, rows, "has no instances")
    if info.task is not None and not info.task.of_classes:
        for good_N, what in targets.wrong(rows, info.task):
            _require(good_N, rows, what)
    _check_members(rows, np.array([shard.bytes for shard in info.shards])[shard_N])


def _check_members(rows: pa.Table, shard_bytes_N: np.ndarray) -> None:
    """Refuse members that reach outside their shard, or whose length does not fit their instances."""
    dtype_N = pc.index_in(rows["dtype"], pa.array(list(FEATURE_DTYPES))).fill_null(-1).to_numpy()
    _require(dtype_N >= 0, rows, f"has a dtype other than {', '.join(FEATURE_DTYPES)}")
    itemsizes = np.array([dtype.itemsize for dtype in FEATURE_DTYPES.values()])
    instance_bytes: dict[str, int | np.ndarray] = {
        "coords": 2 * COORDS_DTYPE.itemsize,
        "features": rows["num_features"].to_numpy() * itemsizes[dtype_N],
        "instance_labels": INSTANCE_LABELS_DTYPE.itemsize,
    }
    for kind in EXTENSIONS:
        offset, num_bytes, crc32 = (rows[f"{kind}_{part}"] for part in ("offset", "bytes", "crc32"))
        present_N = offset.is_valid().to_numpy()
        for other in (num_bytes, crc32):
            _require(present_N == other.is_valid().to_numpy(), rows, f"has a half-described {kind} member")
        offset_N, num_bytes_N = offset.fill_null(0).to_numpy(), num_bytes.fill_null(0).to_numpy()
        inside_N = (offset_N >= 0) & (num_bytes_N >= 0) & (offset_N <= shard_bytes_N - num_bytes_N)
        _require(inside_N, rows, f"has a {kind} member that reaches outside its shard")
        if kind in instance_bytes:
            # Divided, not multiplied: a forged count cannot overflow.
            count_N, rest_N = np.divmod(num_bytes_N - NPY_HEADER_BYTES, instance_bytes[kind])
            fits_N = (count_N == rows["num_instances"].to_numpy()) & (rest_N == 0)
            _require(fits_N | ~present_N, rows, f"has a {kind} member of another length than its instances")
    data_N = rows["features_offset"].to_numpy() + NPY_HEADER_BYTES
    behind_N = rows["features_data_offset"].to_numpy() == data_N
    _require(behind_N, rows, "has features that do not start right after their header")


def _require(good_N: np.ndarray, rows: pa.Table, what: str) -> None:
    if not good_N.all():
        raise ManifestError(f"bag {rows['key'][int(good_N.argmin())].as_py()!r} {what}")
