"""What is in a data set, as a table and a picture: `python -m data_prep.inspect --help`.

Dimensions: N instances of a bag, D features.
"""

import argparse
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from data_prep.members import describe_bag
from data_prep.parallel import num_cores
from data_prep.progress import bar
from mhimdist.command import run
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


def tables(found: Inspection) -> list[Table]:
    """The data set as a table, its classes as another, and odd bags, if there are any, as a third."""
    info, rows = found.manifest.info, found.manifest.rows
    size_N, label_N = rows["num_instances"].to_numpy(), rows["label"].to_numpy()
    title = f"{info.name}: {info.description or 'no description'}"
    about = Table(title=title, title_justify="left", box=box.SIMPLE, show_header=False)
    num_bytes = sum(shard.bytes for shard in info.shards)
    slides_a_case = Counter(rows["case"].to_pylist())
    several = sum(1 for count in slides_a_case.values() if count > 1)
    about.add_row("bags", f"{len(rows):,} of {len(slides_a_case):,} cases, {several:,} of them with several")
    about.add_row("instances", f"{size_N.sum():,} ({_spread(size_N)})")
    dtypes = Counter(rows["dtype"].to_pylist())
    about.add_row("features", f"{rows['num_features'][0].as_py():,} wide, {_counted(dtypes)}")
    for name in ("encoder", "patch_size", "level", "magnification"):
        about.add_row(name.replace("_", " "), _counted(Counter(bag.get(name) for bag in found.described)))
    for kind in ("coords", "instance_labels"):
        have = len(rows) - rows[f"{kind}_offset"].null_count
        about.add_row(kind.replace("_", " "), f"{have:,} of {len(rows):,} bags")
    sizes = np.array([shard.bytes for shard in info.shards])
    about.add_row(
        "bytes", f"{decimal(num_bytes)} in {len(sizes)} shards of up to {decimal(int(sizes.max()))}"
    )
    if found.values:
        low, high = min(v.lowest for v in found.values), max(v.highest for v in found.values)
        about.add_row("values", f"{low:.4g} to {high:.4g}")
    about.add_row("odd bags", f"{len(found.odd)}" if found.values else f"{len(found.odd)} (values not read)")
    if info.synthetic:
        about.add_row("made up", "these features were not computed from slides")

    classes = Table(box=box.SIMPLE)
    for name in ("class", "bags", "cases", "instances", "fewest", "median", "most"):
        classes.add_column(name, justify="left" if name == "class" else "right")
    case_N = np.array(rows["case"].to_pylist())
    for label, name in enumerate(info.classes):
        sizes = size_N[label_N == label]
        spread = (sizes.min(), int(np.median(sizes)), sizes.max()) if len(sizes) else (0, 0, 0)
        numbers = (len(sizes), len(set(case_N[label_N == label])), sizes.sum(), *spread)
        classes.add_row(name, *(f"{number:,}" for number in numbers))
    if not found.odd:
        return [about, classes]
    odd = Table(title="Odd bags", title_justify="left", box=box.SIMPLE)
    odd.add_column("slide", overflow="fold")
    odd.add_column("what", overflow="fold")
    for slide, what in found.odd:
        odd.add_row(slide, what)
    return [about, classes, odd]


def _spread(size_N: np.ndarray) -> str:
    low, median, high = np.percentile(size_N, [0, 50, 100])
    return f"{low:,.0f} to {high:,.0f} a bag, median {median:,.0f}"


def _counted(counts: Counter) -> str:
    if len(counts) == 1:
        return str(next(iter(counts)) or "unknown")
    return ", ".join(f"{name or 'unknown'} ({count:,})" for name, count in counts.most_common(8))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.inspect",
        description="Show what is in a folder of shards: bags, classes, sizes, encoders, bytes, odd bags.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder that data_prep.shard wrote")
    parser.add_argument(
        "--picture",
        type=Path,
        metavar="FILE",
        help="where to draw it, .png, .svg or .pdf (default: NAME.png)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="do not read the features: no NaN, constant bags or value ranges"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=num_cores(),
        metavar="N",
        help="bags read at a time (default: as many as cores, %(default)s)",
    )
    options = parser.parse_args(arguments)
    if options.workers < 1:
        parser.error(f"argument --workers: expected at least 1, got {options.workers}")
    manifest = Manifest.read(options.folder)
    read: list[int] = []
    total = int(manifest.rows["features_bytes"].to_numpy().sum())
    with bar(total, lambda: sum(read), "reading"):
        found = inspect(
            options.folder, values=not options.quick, workers=options.workers, on_bytes=read.append
        )
    console = Console(highlight=False, markup=False)
    for table in tables(found):
        console.print(table)
    from data_prep.pictures import draw  # matplotlib takes a second to import

    picture = options.picture or Path(f"{options.folder.absolute().name}.png")
    draw(found, picture)
    console.print(f"picture: {picture}")


if __name__ == "__main__":
    run(main)
