"""Plans of shards, made before the first byte is written, and the writing of a shard from its plan.

Sizes come from the headers of the sources. A plan is a pure function of labels, sources and settings, and a
shard is a function of its plan alone. Shards can therefore be written in any order, on any machine, and
rewritten to the same bytes.

Dimensions: N instances of a bag, D features.
"""

import hashlib
import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import torch

from data_prep.readers.folders import THREADS
from data_prep.readers.sources import Source, read_features
from data_prep.tables.labels import SlideLabel
from data_prep.writing.parallel import StoppedError
from data_prep.writing.skipped import BadBag, named
from data_prep.writing.tasks import stated_label
from data_prep.writing.writer import CHUNK_BYTES, Bag, Payload, ShardWriter
from mhimdist.data.format import (
    COORDS_DTYPE,
    FEATURE_DTYPES,
    INSTANCE_LABELS_DTYPE,
    NPY_HEADER_BYTES,
    escape_key,
    extension,
    npy_header,
    padded,
    shard_name,
    stored_order,
    tar_header,
)
from mhimdist.data.manifest import ShardFile
from mhimdist.data.standardization import Standardization
from mhimdist.data.targets import CLASSIFICATION, TaskInfo
from mhimdist.errors import DataError

PLAN_VERSION = 1


class SourceChangedError(DataError):
    """Features changed after they were planned."""


@dataclass(frozen=True)
class PlannedBag:
    """A bag as it will be stored.

    Attributes:
        source: where its features are.
        columns: its row of the manifest, as far as it is known before the bag is written.
        json: its JSON member.
        num_bytes: length of each member by kind.
        scale: what its features are standardised by; None stores them as they are.
    """

    source: Source
    columns: dict[str, Any]
    json: bytes
    num_bytes: dict[str, int]
    scale: Standardization | None = None

    @property
    def tar_bytes(self) -> int:
        """Bytes that it takes in a shard, headers and padding included."""
        key, feature_set = self.columns["key"], self.columns.get("feature_set", "")
        return sum(
            len(tar_header(f"{key}.{extension(kind, feature_set)}", count)) + padded(count)
            for kind, count in self.num_bytes.items()
        )


@dataclass(frozen=True)
class ShardPlan:
    """A shard to write: its file name, its bags in order, and the bytes that they take."""

    name: str
    bags: tuple[PlannedBag, ...]
    num_bytes: int

    def digest(self) -> str:
        """Hash of all that decides the shard's bytes; of source files, the lengths and times count."""
        files = [
            [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in bag.source.files()]
            for bag in self.bags
        ]
        bags = [
            (bag.columns, bag.json.decode(), bag.num_bytes, bag.source.place, bag.source.stated.feature_key)
            for bag in self.bags  # the JSON member names the scale
        ]
        document = json.dumps([PLAN_VERSION, self.name, bags, files], sort_keys=True)
        return hashlib.sha256(document.encode()).hexdigest()


@dataclass(frozen=True)
class WrittenShard:
    """A shard that was written from its plan.

    Attributes:
        name: file name of the shard.
        shard: its entry in the manifest; None if none of its bags could be used, so that there is no file.
        rows: its rows of the manifest.
        plan: digest of the plan.
        bad: bags of the plan that were left out.
    """

    name: str
    shard: ShardFile | None
    rows: list[dict[str, Any]]
    plan: str
    bad: tuple[BadBag, ...] = ()


def _unread(slide: str, path: Path, error: OSError) -> BadBag:
    return BadBag(slide, f"{error.filename or path}: {error.strerror or error}")


def plan_bags(
    labels: Sequence[SlideLabel],
    sources: dict[str, Source],
    classes: Sequence[str],
    dtype: str,
    *,
    task: TaskInfo = CLASSIFICATION,
    seed: int,
    width: int | None = None,
    skip_bad: bool = False,
    on_bag: Callable[[], None] = lambda: None,
) -> tuple[list[PlannedBag], list[BadBag]]:
    """Plan the bags in the order in which they fill the shards, and find those that cannot be used.

    Args:
        labels: the slides, with their cases and labels.
        sources: the features by slide.
        classes: class names in the order of their indices.
        dtype: stored type of the features, a key of `FEATURE_DTYPES`.
        task: what the labels mean; the strata of targets are decided later, from all bags.
        seed: seed of the order.
        width: width that the features must have; None means the most frequent width.
        skip_bad: leave out bags that cannot be used. A file that cannot be read is still an error, because
            the next run may read it.
        on_bag: called after each slide, by any of several threads.

    Returns:
        The planned bags, and the bags that are left out.

    Raises:
        DataError: sources cannot be used (the first are named), or features are of more than one encoder.
    """
    # By a hash, not a shuffle: no generator's version changes it, and a new slide moves no other.
    order = sorted(labels, key=lambda row: stored_order(row.slide, seed))
    unread: list[BadBag] = []

    def plan(row: SlideLabel) -> PlannedBag | BadBag:
        label = 0 if row.targets else classes.index(row.label)
        try:
            return plan_bag(row, label, sources[row.slide], dtype, task)
        except DataError as error:
            return BadBag(row.slide, str(error))
        except OSError as error:
            unread.append(_unread(row.slide, sources[row.slide].path, error))
            return unread[-1]
        finally:
            on_bag()

    with ThreadPoolExecutor(THREADS) as threads:
        planned = list(threads.map(plan, order))
    bags = [bag for bag in planned if isinstance(bag, PlannedBag)]
    bad = [bag for bag in planned if isinstance(bag, BadBag)]
    _refuse_transposed(bags)
    if bags and width is None:
        ((width, _),) = Counter(bag.columns["num_features"] for bag in bags).most_common(1)
        whose = "most others"
    else:
        whose = "those of the data set"
    for bag in bags:
        if (got := bag.columns["num_features"]) != width:
            slide = bag.columns["slide"]
            hint = "; they may be transposed" if bag.columns["num_instances"] == width else ""
            bad.append(BadBag(slide, f"slide {slide!r}: its features are {got} wide, {whose} {width}{hint}"))
    if unread:
        raise DataError(f"{len(unread):,} of {len(order):,} slides cannot be read: {named(sorted(unread))}")
    if bad and not skip_bad:
        raise DataError(_refusal(sorted(bad), len(order)))
    bags = [bag for bag in bags if bag.columns["num_features"] == width]
    _refuse_encoders(bags)
    return bags, sorted(bad)


def _refuse_transposed(bags: Sequence[PlannedBag]) -> None:
    """Refuse features that are all D x N: then all slides have the same number of "patches".

    Raises:
        DataError: they seem to be transposed.
    """
    sizes = {bag.columns["num_instances"] for bag in bags}
    widths = {bag.columns["num_features"] for bag in bags}
    if len(sizes) == 1 and len(widths) > 2 and 2 * len(widths) > len(bags):
        first = bags[0].columns
        raise DataError(
            f"all {len(bags):,} slides have {sizes.pop():,} rows and differ in their width "
            f"({first['slide']!r}: {first['num_features']:,}): the features are transposed; save them "
            "as patches x features"
        )


def _refusal(bad: Sequence[BadBag], num_slides: int) -> str:
    if len(bad) == 1:
        return f"{named(bad)} (1 of {num_slides:,} slides; --skip-bad leaves it out)"
    return f"{len(bad):,} of {num_slides:,} slides cannot be used (--skip-bad leaves them out): {named(bad)}"


def plan_bag(
    row: SlideLabel, label: int, source: Source, dtype: str, task: TaskInfo = CLASSIFICATION
) -> PlannedBag:
    """Plan one bag from the headers of its source.

    Args:
        row: the slide, its case and its class.
        label: index of the class.
        source: where the features are.
        dtype: stored type of the features, a key of `FEATURE_DTYPES`.
        task: what the label means.

    Raises:
        DataError: the headers show that the features cannot be used.
    """
    features = read_features(source)
    num_instances, num_features = features.num_instances, features.num_features
    description: dict[str, Any] = {
        "slide": row.slide,
        "case": row.case,
        **stated_label(row, task),
        "source": source.path.name,
        "dtype": dtype,
        "encoder": features.encoder,
        "patch_size": features.patch_size,
        "level": features.details.get("level"),
    }
    description |= {name: value for name, value in features.details.items() if name not in description}
    text = json.dumps(description).encode()
    sizes = {"features": NPY_HEADER_BYTES + FEATURE_DTYPES[dtype].itemsize * num_instances * num_features}
    if features.has_coords:
        sizes["coords"] = NPY_HEADER_BYTES + 2 * COORDS_DTYPE.itemsize * num_instances
    if features.has_instance_labels:
        sizes["instance_labels"] = NPY_HEADER_BYTES + INSTANCE_LABELS_DTYPE.itemsize * num_instances
    sizes["json"] = len(text)
    columns = {
        "key": escape_key(row.slide),
        "slide": row.slide,
        "case": row.case,
        "label": label,
        "num_instances": num_instances,
        "num_features": num_features,
        "dtype": dtype,
    }
    if not task.of_classes:
        columns["targets"] = list(row.targets)
    return PlannedBag(source, columns, text, sizes)


def as_standardized(bag: PlannedBag, scale: Standardization) -> PlannedBag:
    """The plan of the same bag with standardised features; its JSON member says so."""
    text = json.dumps(json.loads(bag.json) | {"standardized": scale.digest}).encode()
    return replace(bag, json=text, num_bytes=bag.num_bytes | {"json": len(text)}, scale=scale)


def plan_shards(bags: Iterable[PlannedBag], shard_bytes: int, *, first: int = 0) -> list[ShardPlan]:
    """Fill shards with bags in order; a shard ends before the bag that would make it exceed `shard_bytes`.

    Args:
        bags: the bags in the order in which they are stored.
        shard_bytes: most bytes of a shard with more than one bag.
        first: number of the first shard.
    """
    plans: list[ShardPlan] = []
    held: list[PlannedBag] = []
    num_bytes = 0
    for bag in bags:
        taken = bag.tar_bytes
        if held and num_bytes + taken > shard_bytes:
            plans.append(ShardPlan(shard_name(first + len(plans)), tuple(held), num_bytes))
            held, num_bytes = [], 0
        held.append(bag)
        num_bytes += taken
    if held:
        plans.append(ShardPlan(shard_name(first + len(plans)), tuple(held), num_bytes))
    return plans


def write_shard(
    plan: ShardPlan, folder: Path, skip_bad: bool = False, stop: Event | None = None
) -> WrittenShard:
    """Write a shard and its index into a folder; they appear once they are whole and on disk.

    Args:
        plan: the plan of the shard.
        folder: the folder to write into.
        skip_bad: leave out bags whose values cannot be used. The other bags stay in the shard that they were
            planned for, so that shards do not depend on each other.
        stop: once it is set, the shard is abandoned.

    Raises:
        DataError: a value is not finite or does not fit the dtype.
        SourceChangedError: a source changed after it was planned.
        StoppedError: `stop` was set.
    """
    digest, bags = plan.digest(), plan.bags
    shard: ShardFile | None
    bad: tuple[BadBag, ...] = ()
    try:
        shard, rows = _write(plan.name, bags, folder, stop)
    except SourceChangedError:
        raise
    except DataError:
        if not skip_bad:
            raise
        # All at once, because each of them would cost another start.
        reasons = {bag.columns["slide"]: _why_bad(bag, stop) for bag in bags}
        bad = tuple(BadBag(slide, reason) for slide, reason in reasons.items() if reason is not None)
        if not bad:
            raise
        bags = tuple(bag for bag in bags if reasons[bag.columns["slide"]] is None)
        shard, rows = _write(plan.name, bags, folder, stop) if bags else (None, [])
    if digest != plan.digest():
        (folder / plan.name).unlink(missing_ok=True)
        raise SourceChangedError(
            f"the features of {plan.name} changed while they were read; run the command again"
        )
    return WrittenShard(plan.name, shard, rows, digest, bad)


def _write(
    name: str, bags: Sequence[PlannedBag], folder: Path, stop: Event | None
) -> tuple[ShardFile, list[dict[str, Any]]]:
    with ShardWriter(folder / name) as writer:
        rows = [writer.add(_read(bag, stop)) for bag in bags]
    return writer.summary, rows


def _why_bad(bag: PlannedBag, stop: Event | None) -> str | None:
    """Read all of a bag to find out why it cannot be written; None if it can."""
    try:
        for payload in _read(bag, stop).payloads.values():
            if isinstance(payload, Payload):
                deque(payload.buffers, maxlen=0)
    except SourceChangedError:
        raise
    except DataError as error:
        return str(error)
    return None


def _read(bag: PlannedBag, stop: Event | None) -> Bag:
    """The bag with its payloads, which are read while they are written."""
    features = read_features(bag.source)
    expected = bag.columns["num_instances"], bag.columns["num_features"]
    if (got := (features.num_instances, features.num_features)) != expected:
        raise SourceChangedError(
            f"{bag.source.path}: changed: expected {expected[0]} x {expected[1]}, got {got[0]} x {got[1]}"
        )
    for name, array in (("coords", features.coords_N2), ("instance_labels", features.instance_labels_N)):
        if name in bag.num_bytes and array is None:
            raise SourceChangedError(f"{bag.source.path}: changed: expected {name}, found none")
    dtype = bag.columns["dtype"]

    def blocks(max_bytes: int) -> Iterator[torch.Tensor]:
        found = features.blocks(max_bytes)
        return found if bag.scale is None else map(bag.scale.apply, found)

    def feature_buffers() -> Iterator[Any]:
        yield npy_header(FEATURE_DTYPES[dtype], expected)
        target = getattr(torch, dtype)
        block_bytes = CHUNK_BYTES * features.dtype.itemsize // target.itemsize
        buffer = torch.empty(0, dtype=target)
        for block in blocks(block_bytes):
            if stop is not None and stop.is_set():
                raise StoppedError(f"{bag.source.path}: not read to its end")
            # The extremes are NaN if any value is, and rounding keeps their order. One fast pass thus tells
            # whether a whole block fits; isfinite() would build a mask.
            if not torch.stack(torch.aminmax(block)).to(target).isfinite().all():
                raise _unfit(bag.source.path, blocks(block_bytes), dtype)
            if block.dtype != target or not block.is_contiguous():
                if len(buffer) < len(block):
                    buffer = torch.empty(block.shape, dtype=target)
                block = buffer[: len(block)].copy_(block)
            yield block.view(torch.uint8).numpy()

    payloads: dict[str, Payload | bytes] = {
        "features": Payload(bag.num_bytes["features"], feature_buffers()),
        "json": bag.json,
    }
    if "coords" in bag.num_bytes:
        payloads["coords"] = _npy(features.coords_N2)
    if "instance_labels" in bag.num_bytes:
        payloads["instance_labels"] = _npy(features.instance_labels_N)
    return Bag(bag.columns, payloads)


def _npy(array: np.ndarray | None) -> bytes:
    assert array is not None, "`_read` has refused a bag that lost this array"
    array = np.ascontiguousarray(array)
    return b"".join((npy_header(array.dtype, array.shape), array.data))


def _unfit(path: Path, blocks: Iterable[torch.Tensor], dtype: str) -> DataError:
    """Why features cannot be stored: how many are not finite, or the largest one if it does not fit."""
    bad, largest = 0, 0.0
    for block in blocks:
        finite = block.isfinite()
        bad += int((~finite).sum())
        largest = max(largest, float(block[finite].abs().max()) if finite.any() else 0.0)
    if bad:
        return DataError(f"{path}: {bad} of its features are NaN or infinite")
    return DataError(
        f"{path}: a value of {largest:.6g} does not fit {dtype}, which ends at "
        f"{torch.finfo(getattr(torch, dtype)).max:.6g}; give a wider --dtype, or scale the features"
    )


def _refuse_encoders(bags: Sequence[PlannedBag]) -> None:
    encoders: dict[str, str] = {}
    for bag in bags:
        if encoder := json.loads(bag.json)["encoder"]:
            encoders.setdefault(encoder, bag.columns["slide"])
    if len(encoders) > 1:
        (one, slide), (other, another) = list(encoders.items())[:2]
        raise DataError(
            f"expected features of one encoder, got two: {slide!r} is of {one!r}, {another!r} of {other!r}"
        )
