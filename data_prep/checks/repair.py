"""Rewriting damaged shards from their sources: `python -m data_prep.verify DIR --repair FEATURES`."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Event
from typing import Any

from data_prep.checks.faults import Fault, verify_shard
from data_prep.readers.folders import find_features
from data_prep.readers.sources import Source, some
from data_prep.readers.stated import NOTHING_STATED, Stated
from data_prep.writing.feature_sets import named
from data_prep.writing.parallel import results
from data_prep.writing.plan import ShardPlan, plan_bag, write_shard
from data_prep.writing.standardize import standardized
from data_prep.writing.tasks import label_of
from mhimdist import files as files_module
from mhimdist.data.feature_sets import COLUMN
from mhimdist.data.format import dali_index, index_name, members_of
from mhimdist.data.manifest import DatasetInfo, Manifest, ShardFile
from mhimdist.data.targets import CLASSIFICATION
from mhimdist.data.torch_threads import one_torch_thread
from mhimdist.errors import DataError


def repair(
    folder: Path,
    faults: Sequence[Fault],
    features: Path | Mapping[str, Path],
    *,
    stated: Stated = NOTHING_STATED,
    workers: int = 1,
) -> tuple[list[str], list[Fault]]:
    """Replace the damaged shards and indexes of a data set.

    A shard is replaced by a rename, only by exactly the bytes that the manifest lists. The manifest is not
    touched. An index follows from the manifest and needs no features. A shard that cannot be repaired does
    not prevent the repair of others.

    Args:
        folder: the data set.
        faults: the faults that `verify` found in it.
        features: the features that it was made of, as `data_prep.shard` takes them: by the names of the
            sets, if they have names. Shards of a set that is not given are not repaired.
        stated: what was stated about them then.
        workers: number of shards that are written at a time.

    Returns:
        The files that were rewritten, and the faults that remain: files that are not in the manifest, and
        shards that cannot be repaired, with the reason.

    Raises:
        DataError: there are no features.
    """
    manifest = Manifest.read(folder)
    rows_of = manifest.rows_by_shard()
    files = {fault.file for fault in faults}
    damaged = [shard for shard in manifest.info.shards if shard.name in files]
    repaired, hopeless = [], {}
    if damaged:
        given = {"": features} if isinstance(features, Path) else features
        sources = {name: find_features(path, stated) for name, path in given.items()}
        tasks = [(folder, shard, rows_of[shard.name], manifest.info, sources, given) for shard in damaged]
        with one_torch_thread():
            reasons = dict(results(_replaced, tasks, workers=workers))
        repaired = [shard.name for shard in damaged if reasons[shard.name] is None]
        hopeless = {name: reason for name, reason in reasons.items() if reason is not None}
    for name, rows in rows_of.items():
        if (index := index_name(name)) in files:
            files_module.write_text(folder / index, dali_index([list(members_of(row)) for row in rows]))
            repaired.append(index)
    left = [fault for fault in faults if fault.file not in repaired and fault.file not in hopeless]
    return repaired, [*left, *(Fault(name, hopeless[name]) for name in sorted(hopeless))]


def _replaced(
    folder: Path,
    shard: ShardFile,
    rows: Sequence[dict[str, Any]],
    info: DatasetInfo,
    sources: Mapping[str, Mapping[str, Source]],
    features: Mapping[str, Path],
    stop: Event | None = None,
) -> tuple[str, str | None]:
    """Replace a shard; return its name, and why it could not be replaced (None if it was)."""
    try:
        _replace(folder, shard, rows, info, sources, features, stop)
    except DataError as error:
        return shard.name, f"cannot be repaired: {error}"
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        return shard.name, f"cannot be repaired: {error.strerror}{where}"
    return shard.name, None


def _replace(
    folder: Path,
    shard: ShardFile,
    rows: Sequence[dict[str, Any]],
    info: DatasetInfo,
    sources: Mapping[str, Mapping[str, Source]],
    features: Mapping[str, Path],
    stop: Event | None,
) -> None:
    name, task = rows[0].get(COLUMN, ""), info.task or CLASSIFICATION
    if name not in sources:
        what = f"it holds the feature set {name!r}" if name else "its features have no name"
        way = f"give --repair {name}=FEATURES" if name else "give --repair with their folder alone"
        raise DataError(f"{what}; {way}")
    found, place = sources[name], features[name]
    if missing := [row["slide"] for row in rows if row["slide"] not in found]:
        raise DataError(f"{place} has no features of {some(missing)}")
    bags = [
        plan_bag(label_of(row, info), row["label"], found[row["slide"]], row["dtype"], task) for row in rows
    ]
    bags = named(bags, name)
    if name in info.standardized:
        bags = standardized(bags, info.standardized[name])
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.repair-") as name:
        plan = ShardPlan(shard.name, tuple(bags), sum(bag.tar_bytes for bag in bags))
        written = write_shard(plan, Path(name), stop=stop)
        if written.shard != shard:
            faults = verify_shard(Path(name) / shard.name, shard, rows, info)
            raise DataError(f"{place} yields other bytes than the manifest lists: {faults[0]}")
        (Path(name) / shard.name).replace(folder / shard.name)
    files_module.sync(folder)
