"""Make one data set out of several, without rewriting their shards: `python -m data_prep.merge --help`."""

import os
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.filesize import decimal

from data_prep.command_line import read
from data_prep.options import Merging
from data_prep.readers.members import encoder_of
from data_prep.readers.sources import some
from data_prep.tables.target_checks import summary
from data_prep.writing.tasks import in_words
from data_prep.writing.writer import appearing_whole
from mhimdist.data.format import index_name, shard_name
from mhimdist.data.manifest import DatasetInfo, Manifest, ShardFile, rows_schema
from mhimdist.data.strata import stratified
from mhimdist.data.targets import CLASSIFICATION
from mhimdist.errors import DataError, LabelError
from mhimdist.foreign_text import say
from mhimdist.process import run


def merge(folders: Sequence[Path], out: Path, *, name: str | None = None, copy: bool = False) -> Manifest:
    """Write a data set that holds the bags of several data sets, which stay as they are.

    Shards keep their bytes and get new numbers. They are hard links, which take no further space, or copies
    where the file system cannot link.

    Args:
        folders: data sets; the shards of the first come first.
        out: folder to make; must not exist.
        name: name of the new data set; by default the name of `out`.
        copy: copy the shards even where they could be linked.

    Raises:
        DataError: `out` exists, a slide is in two of the data sets, or they differ in width or encoder.
        LabelError: they differ in task, columns or unit of their labels, grades are in another order, or a
            data set shares no class with those before it.
    """
    out = Path(os.path.abspath(out))
    if out.exists():
        raise DataError(f"{out} already exists; give another --out, or remove it")
    manifests = [Manifest.open(folder) for folder in folders]
    _refuse_mixtures(folders, manifests)
    task = manifests[0].info.task
    classes = _classes(folders, manifests) if task is None or task.of_classes else ()
    shards: list[ShardFile] = []
    rows: list[dict[str, Any]] = []
    with appearing_whole(out) as made:
        for folder, manifest in zip(folders, manifests, strict=True):
            renamed = {}
            for shard in manifest.info.shards:
                renamed[shard.name] = shard_name(len(shards))
                shards.append(shard.model_copy(update={"name": renamed[shard.name]}))
                for old, new in (
                    (shard.name, renamed[shard.name]),
                    (index_name(shard.name), index_name(renamed[shard.name])),
                ):
                    _put(folder / old, made / new, copy=copy)
            for row in manifest.rows.to_pylist():
                label = classes.index(manifest.info.classes[row["label"]]) if classes else 0
                rows.append(row | {"shard": renamed[row["shard"]], "label": label})
        info = DatasetInfo(
            name=name or out.name,
            classes=classes,
            synthetic=any(manifest.info.synthetic for manifest in manifests),
            description="; ".join(dict.fromkeys(m.info.description for m in manifests if m.info.description)),
            shards=tuple(shards),
            standardized=manifests[0].info.standardized,
            task=task,
        )
        schema = rows_schema(task, named=bool(manifests[0].feature_sets))
        merged = stratified(Manifest(info, pa.Table.from_pylist(rows, schema)))
        merged.write(made)
    return merged


def _classes(folders: Sequence[Path], manifests: Sequence[Manifest]) -> tuple[str, ...]:
    """The classes of the first data set, then those that only later ones have."""
    if manifests[0].info.task is not None:
        return _grades(folders, manifests)
    classes = list(manifests[0].info.classes)
    for folder, manifest in zip(folders[1:], manifests[1:], strict=True):
        if not set(classes) & set(manifest.info.classes):
            raise LabelError(
                f"{folder}: expected at least one class of {folders[0]}, {classes}, got "
                f"{list(manifest.info.classes)}; shard it again with --class-map"
            )
        classes += [label for label in manifest.info.classes if label not in classes]
    return tuple(classes)


def _grades(folders: Sequence[Path], manifests: Sequence[Manifest]) -> tuple[str, ...]:
    """The grades of the data set that has the most, if the others have some of them in the same order."""
    orders = [manifest.info.classes for manifest in manifests]
    longest = max(orders, key=len)
    for folder, grades in zip(folders, orders, strict=True):
        if grades != tuple(grade for grade in longest if grade in grades):
            raise LabelError(
                f"{folder}: expected grades in the order {' < '.join(longest)}, got {' < '.join(grades)}; "
                "shard them again with the same --classes"
            )
    return longest


def _refuse_mixtures(folders: Sequence[Path], manifests: Sequence[Manifest]) -> None:
    counts = Counter(slide for manifest in manifests for slide in manifest.rows["slide"].unique().to_pylist())
    if twice := [slide for slide, count in counts.items() if count > 1]:
        raise DataError(f"{len(twice)} slides are in more than one of the data sets: {some(twice)}")
    for folder, manifest in zip(folders[1:], manifests[1:], strict=True):
        one, other = (each.info.task or CLASSIFICATION for each in (manifests[0], manifest))
        if one != other:
            raise LabelError(
                f"{folder}: expected labels of {in_words(one)} as in {folders[0]}, got {in_words(other)}"
            )
    names = sorted(manifests[0].feature_sets)
    first: dict[tuple[str, str], Any] = {}
    for folder, manifest in zip(folders, manifests, strict=True):
        if sorted(manifest.feature_sets) != names:
            expected, got = (", ".join(each) or "none" for each in (names, sorted(manifest.feature_sets)))
            raise DataError(
                f"{folder}: expected the named feature sets of the other data sets, {expected}, got {got}"
            )
        for name, part in manifest.each.items():
            scale = part.info.standardized.get("")
            found = {
                "width": part.rows["num_features"][0].as_py(),
                "encoder": encoder_of(folder, part),
                "scale": scale.text if scale else "unchanged",
            }
            of = f" in the feature set {name!r}" if name else ""
            for what, value in found.items():
                if value is not None and first.setdefault((name, what), value) != value:
                    raise DataError(
                        f"{folder}: expected features of {what} {first[name, what]!r}{of} as in the other "
                        f"data sets, got {value!r}"
                    )


def _put(source: Path, target: Path, *, copy: bool) -> None:
    if not copy:
        try:
            os.link(source, target)
            return
        except OSError:  # another file system, or one without links
            pass
    shutil.copyfile(source, target)
    with target.open("rb") as file:
        os.fsync(file.fileno())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    merge_shards(read(Merging, arguments, "python -m data_prep.merge"))


def merge_shards(options: Merging) -> None:
    """Merge data sets, and say what came out.

    Raises:
        DataError, LabelError: see `merge`.
    """
    merged = merge(options.folders, options.out, name=options.name, copy=options.copy_shards)
    num_bytes = sum(shard.bytes for shard in merged.info.shards)
    say(
        f"{options.out}: {len(merged.rows) // len(merged.each)} bags, {decimal(num_bytes)} "
        f"(shards: {len(merged.info.shards)}; {summary(merged)})"
    )


if __name__ == "__main__":
    run(main)
