"""Show what is in a data set, as tables and a picture: `python -m data_prep.inspect --help`."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich import box
from rich.filesize import decimal
from rich.table import Table

from data_prep import options
from data_prep.checks.inspection import Inspection, inspect
from data_prep.command_line import read
from data_prep.readers.members import encoder_of
from data_prep.tables.target_checks import summary
from data_prep.writing.progress import bar
from mhimdist import terminal
from mhimdist.data import feature_sets
from mhimdist.data.manifest import Manifest
from mhimdist.errors import ConfigError
from mhimdist.process import run


def tables(found: Inspection) -> list[Table]:
    """A table of the data set, one of its classes, and one of its odd bags if there are any."""
    info, rows = found.manifest.info, found.manifest.rows
    size_N, label_N = rows["num_instances"].to_numpy(), rows["label"].to_numpy()
    title = f"{info.name}: {info.description or 'no description'}"
    about = Table(title=title, title_justify="left", box=box.SIMPLE, show_header=False)
    num_bytes = sum(shard.bytes for shard in info.shards)
    slides_a_case = Counter(rows["case"].to_pylist())
    several = sum(1 for count in slides_a_case.values() if count > 1)
    about.add_row(
        "bags", f"{len(rows):,} of {len(slides_a_case):,} cases, {several:,} of them with more than one"
    )
    if info.task is not None:
        about.add_row("task", info.task.name if info.task.of_classes else summary(found.manifest))
    about.add_row("instances", f"{size_N.sum():,} ({_spread(size_N)})")
    dtypes = Counter(rows["dtype"].to_pylist())
    about.add_row("features", f"{rows['num_features'][0].as_py():,} wide, {_counted(dtypes)}")
    for name in ("encoder", "patch_size", "level", "magnification"):
        about.add_row(name.replace("_", " "), _counted(Counter(bag.get(name) for bag in found.described)))
    if (scale := info.standardized.get("")) is not None:
        about.add_row("standardised", scale.text)
    for kind in ("coords", "instance_labels"):
        have = len(rows) - rows[f"{kind}_offset"].null_count
        about.add_row(kind.replace("_", " "), f"{have:,} of {len(rows):,} bags")
    sizes = np.array([shard.bytes for shard in info.shards])
    largest = f" of up to {decimal(int(sizes.max()))}" if len(sizes) > 1 else ""
    about.add_row("bytes", f"{decimal(num_bytes)} (shards: {len(sizes)}{largest})")
    if found.values:
        low, high = min(v.lowest for v in found.values), max(v.highest for v in found.values)
        about.add_row("values", f"{low:.4g} to {high:.4g}")
    about.add_row("odd bags", f"{len(found.odd)}" if found.values else f"{len(found.odd)} (values not read)")
    if info.synthetic:
        about.add_row("synthetic", "these features were not computed from slides")

    classes = Table(box=box.SIMPLE)
    kind = "class" if info.task is None else "grade" if info.task.of_classes else "stratum of targets"
    for name in (kind, "bags", "cases", "instances", "fewest", "median", "most"):
        classes.add_column(name, justify="left" if name == kind else "right")
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
    odd.add_column("why it is odd", overflow="fold")
    for slide, what in found.odd:
        odd.add_row(slide, what)
    return [about, classes, odd]


def _one_of(manifest: Manifest, asked: str | None, folder: Path) -> tuple[str]:
    """The name of the set to look at; "" if features have no name.

    Raises:
        ConfigError: there is no such set.
    """
    names = manifest.feature_sets
    if asked is None:
        return ((*names, "")[0],)
    found = feature_sets.chosen(names, asked, str(folder))
    if len(found) > 1:
        raise ConfigError(f"--features: expected one feature set, got {asked!r}")
    return (found[0],)


def _sets(manifest: Manifest, shown: str, folder: Path) -> Table:
    """A table of all feature sets: their sizes, and whose coordinates agree, so that they can be joined."""
    title = f"Feature sets; what follows is {shown}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    for column in ("features", "encoder", "width", "dtype", "instances", "bytes", "side by side with"):
        table.add_column(column, justify="right" if column in ("width", "instances", "bytes") else "left")
    places = {
        name: {row["slide"]: (row["num_instances"], row["coords_crc32"]) for row in part.rows.to_pylist()}
        for name, part in manifest.each.items()
    }
    for name, part in manifest.each.items():
        rows, own = part.rows, places[name]
        whole = all(crc32 is not None for _, crc32 in own.values())
        alike = [other for other in places if whole and other != name and places[other] == own]
        table.add_row(
            name,
            encoder_of(folder, part) or "unknown",
            f"{rows['num_features'][0].as_py():,}",
            _counted(Counter(rows["dtype"].to_pylist())),
            f"{rows['num_instances'].to_numpy().sum():,}",
            decimal(sum(shard.bytes for shard in part.info.shards)),
            ", ".join(alike) or "none",
        )
    return table


def _spread(size_N: np.ndarray) -> str:
    low, median, high = np.percentile(size_N, [0, 50, 100])
    return f"{low:,.0f} to {high:,.0f} per bag, median {median:,.0f}"


def _counted(counts: Counter) -> str:
    """Values in words; level 0 is one, and only None and an empty name say nothing."""
    names = [("unknown" if value in (None, "") else value, count) for value, count in counts.most_common(8)]
    if len(names) == 1:
        return str(names[0][0])
    return ", ".join(f"{name} ({count:,})" for name, count in names)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    inspect_shards(read(options.Inspection, arguments, "python -m data_prep.inspect"))


def inspect_shards(asked: options.Inspection) -> None:
    """Print what is in a data set, and draw it."""
    whole = Manifest.read(asked.folder)
    (name,) = _one_of(whole, asked.features, asked.folder)
    manifest = whole.of(name)
    read: list[int] = []
    total = int(manifest.rows["features_bytes"].to_numpy().sum())
    with bar(total, lambda: sum(read), "reading"):
        found = inspect(
            asked.folder,
            feature_set=name,
            values=not asked.quick,
            workers=asked.workers,
            on_bytes=read.append,
        )
    console = terminal.console()
    if name:
        console.print(_sets(whole, name, asked.folder))
    for table in tables(found):
        console.print(table)
    from data_prep.checks.pictures import draw  # matplotlib takes a second to import

    picture = asked.picture or Path(f"{asked.folder.absolute().name}.png")
    draw(found, picture)
    console.print(f"picture: {picture}")


if __name__ == "__main__":
    run(main)
