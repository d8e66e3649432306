"""Turn a folder of per-slide features and a table of labels into shards: `python -m data_prep.shard --help`.

Dimensions: N instances of a bag, D features.
"""

import argparse
import contextlib
import hashlib
import json
import math
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from torch import Tensor

from data_prep.sources import SlideLabel, class_order, find_features, read_features, read_labels, some
from data_prep.writer import Bag, ShardWriter, appearing_whole
from mhimdist.command import run
from mhimdist.data.format import FEATURE_DTYPES, escape_key, npy_header, shard_name
from mhimdist.data.manifest import ROWS_SCHEMA, DatasetInfo, Manifest, ShardFile
from mhimdist.errors import ConfigError, DataError, LabelError


def shard(
    features: Path,
    labels: Path,
    out: Path,
    *,
    name: str | None = None,
    classes: Sequence[str] | None = None,
    dtype: str = "float16",
    shard_bytes: int = 2**30,
    seed: int = 0,
    description: str = "",
    synthetic: bool = False,
) -> None:
    """Write a data set of shards; the same input gives the same bytes.

    The folder appears whole or not at all: it is written under another name beside `out`, forced to disk,
    and renamed at the end.

    Args:
        features: folder with a feature file a slide, see `sources.find_features`.
        labels: CSV table of slide, label and optionally case.
        out: folder to make; must not exist.
        name: name of the data set, by default that of `out`.
        classes: class names in the order of their indices, by default see `sources.class_order`.
        dtype: how features are stored, "float16" or "float32".
        shard_bytes: a shard is closed when the next bag would make it larger than this.
        seed: of the order in which bags are spread over the shards.
        description: free text for the manifest.
        synthetic: whether the features were made up rather than computed from slides.

    Raises:
        ConfigError: `dtype` or `shard_bytes` is out of range.
        DataError: features that cannot be used, or `out` exists; `LabelError`: labels that cannot.
    """
    if dtype not in FEATURE_DTYPES:
        raise ConfigError(f"dtype: expected {' or '.join(FEATURE_DTYPES)}, got {dtype!r}")
    if shard_bytes < 1:
        raise ConfigError(f"shard_bytes: expected at least 1, got {shard_bytes}")
    out = Path(os.path.abspath(out))
    with contextlib.suppress(FileNotFoundError):
        out.lstat()  # raises now, not after hours, if the name is too long or the parent out of bounds
        raise DataError(f"{out} exists already; give another --out, or remove it")
    table = read_labels(labels)
    class_names = class_order(table, classes)
    paths = find_features(features)
    _match(table, paths, features, labels)

    # By a hash, not a shuffle: no generator's version changes it, and a slide more moves no other.
    table.sort(key=lambda row: hashlib.blake2b(f"{seed}/{row.slide}".encode()).digest())
    with _progress() as progress, appearing_whole(out) as folder:
        bags = (_bag(row, path, class_names, dtype) for row, path in _tracked(progress, table, paths))
        shards, rows = _write_shards(folder, _of_one_width(bags), shard_bytes)
        info = DatasetInfo(
            name=name if name is not None else out.name,
            classes=class_names,
            synthetic=synthetic,
            description=description,
            shards=tuple(shards),
        )
        Manifest(info, pa.Table.from_pylist(rows, ROWS_SCHEMA)).write(folder)


def _write_shards(
    folder: Path, bags: Iterator[Bag], shard_bytes: int
) -> tuple[list[ShardFile], list[dict[str, Any]]]:
    """Fill shards with the bags, in this order; the shards, and the rows of the manifest."""
    shards: list[ShardFile] = []
    rows: list[dict[str, Any]] = []
    bag = next(bags, None)
    while bag is not None:
        with ShardWriter(folder / shard_name(len(shards))) as writer:
            while bag is not None and writer.has_room(bag, shard_bytes):
                rows.append(writer.add(bag))
                bag = next(bags, None)
        shards.append(writer.summary)
    return shards, rows


def _bag(row: SlideLabel, path: Path, classes: Sequence[str], dtype: str) -> Bag:
    source = read_features(path)
    num_instances, num_features = source.features_ND.shape
    description = {
        "slide": row.slide,
        "case": row.case,
        "label": row.label,
        "source": path.name,
        "encoder": source.encoder,
        "patch_size": source.patch_size,
    }
    payloads = {
        "features": _npy(_stored(source.features_ND, dtype, path)),
        "json": json.dumps(description).encode(),
    }
    if source.coords_N2 is not None:
        payloads["coords"] = _npy(source.coords_N2)
    if source.instance_labels_N is not None:
        payloads["instance_labels"] = _npy(source.instance_labels_N)
    columns = {
        "key": escape_key(row.slide),
        "slide": row.slide,
        "case": row.case,
        "label": classes.index(row.label),
        "num_instances": num_instances,
        "num_features": num_features,
        "dtype": dtype,
    }
    return Bag(columns, payloads)


def _stored(features_ND: Tensor, dtype: str, path: Path) -> np.ndarray:
    """The features as they are stored, every one of them finite."""
    stored_ND = features_ND.to(getattr(torch, dtype)).contiguous()
    # The extremes are NaN if any value is: one fast pass, where isfinite() makes a mask as large as the bag.
    if not torch.stack(torch.aminmax(stored_ND)).isfinite().all():
        largest = features_ND.abs().max().item()
        if math.isfinite(largest):
            raise DataError(
                f"{path}: a value of {largest:.6g} does not fit {dtype}, which ends at "
                f"{torch.finfo(stored_ND.dtype).max:.6g}; store a wider --dtype, or scale the features"
            )
        bad = (~features_ND.isfinite()).sum().item()
        raise DataError(f"{path}: {bad} of its features are NaN or infinite")
    return stored_ND.numpy()


def _npy(array: np.ndarray) -> bytes:
    array = np.ascontiguousarray(array)
    return b"".join((npy_header(array.dtype, array.shape), array.data))


def _of_one_width(bags: Iterator[Bag]) -> Iterator[Bag]:
    expected = None
    for bag in bags:
        slide, got = bag.columns["slide"], bag.columns["num_features"]
        if expected is not None and got != expected:
            raise DataError(f"slide {slide!r}: its features are {got} wide, those before it {expected}")
        expected = got
        yield bag


def _match(table: Sequence[SlideLabel], paths: dict[str, Path], features: Path, labels: Path) -> None:
    """Refuse slides without features, and features without a label."""
    slides = [row.slide for row in table]
    if missing := [slide for slide in slides if slide not in paths]:
        raise DataError(
            f"{len(missing)} of {len(slides)} slides in {labels} have no features in {features}: "
            f"{some(missing)}"
        )
    if unlabelled := sorted(paths.keys() - set(slides)):
        raise LabelError(
            f"{len(unlabelled)} of {len(paths)} slides in {features} have no label in {labels}: "
            f"{some(unlabelled)}"
        )


def _progress() -> Progress:
    """A bar of the bytes read, their rate and the time left; it shows only at a terminal."""
    console = Console(stderr=True)
    return Progress(
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
        console=console,
        disable=not console.is_terminal,
    )


def _tracked(
    progress: Progress, table: Sequence[SlideLabel], paths: dict[str, Path]
) -> Iterator[tuple[SlideLabel, Path]]:
    """The slides with their files; the bar moves on when the next one is asked for."""
    sizes = {row.slide: paths[row.slide].stat().st_size for row in table}
    task = progress.add_task("", total=sum(sizes.values()))
    for number, row in enumerate(table, 1):
        progress.update(task, description=f"bag {number} of {len(table)}")
        yield row, paths[row.slide]
        progress.advance(task, sizes[row.slide])


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.shard",
        description="Turn a folder of per-slide features and a table of labels into checked shards.",
    )
    parser.add_argument(
        "--features",
        type=Path,
        required=True,
        metavar="DIR",
        help="one <slide>.pt (a tensor, or a dict with 'features' or 'feats') or <slide>.npy a slide",
    )
    parser.add_argument(
        "--labels",
        type=Path,
        required=True,
        metavar="CSV",
        help="table with a header: slide, label and, if slides share patients, case (or the like: slide_id, "
        "case_id, patient, ...)",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder to make; must not exist"
    )
    parser.add_argument("--name", help="name of the data set, for reports (default: that of --out)")
    parser.add_argument(
        "--classes",
        metavar="NAME,NAME,...",
        help="class names in the order of their indices (default: by number if all labels are whole "
        "numbers, else by name)",
    )
    parser.add_argument(
        "--dtype",
        choices=FEATURE_DTYPES,
        default="float16",
        help="how features are stored (default: %(default)s)",
    )
    parser.add_argument(
        "--shard-bytes",
        type=_positive,
        default=2**30,
        metavar="N",
        help="size at which a new shard is begun (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the order of bags over shards (default: %(default)s)"
    )
    parser.add_argument(
        "--description", default="", metavar="TEXT", help="where the features come from, for the manifest"
    )
    parser.add_argument("--synthetic", action="store_true", help="record that the features are made up")
    options = parser.parse_args(arguments)
    shard(
        options.features,
        options.labels,
        options.out,
        name=options.name,
        classes=options.classes.split(",") if options.classes is not None else None,
        dtype=options.dtype,
        shard_bytes=options.shard_bytes,
        seed=options.seed,
        description=options.description,
        synthetic=options.synthetic,
    )
    info = Manifest.read(options.out).info
    num_bags, num_bytes = sum(item.num_bags for item in info.shards), sum(item.bytes for item in info.shards)
    print(
        f"{options.out}: {num_bags} bags, {decimal(num_bytes)} "
        f"(shards: {len(info.shards)}; classes: {', '.join(info.classes)})"
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


if __name__ == "__main__":
    # `ray job stop` and batch systems end a job so: clean up as after Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    run(main)
