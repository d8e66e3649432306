"""Turn features of slides and a table of labels into shards: `python -m data_prep.shard --help`."""

import argparse
import contextlib
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from rich.filesize import decimal

from data_prep.folders import find_features
from data_prep.labels import Columns, SlideLabel, class_order, read_labels, without_suffixes
from data_prep.members import encoder_of
from data_prep.parallel import in_cluster, one_torch_thread, results
from data_prep.plan import PlannedBag, ShardPlan, plan_bags, plan_shards, write_shard
from data_prep.progress import bar, doing
from data_prep.sources import Source, some
from data_prep.workplace import Workplace
from data_prep.writer import naming
from mhimdist.command import run
from mhimdist.data.format import FEATURE_DTYPES, shard_number
from mhimdist.data.manifest import ROWS_SCHEMA, DatasetInfo, Manifest
from mhimdist.errors import ConfigError, DataError, LabelError


@dataclass(frozen=True)
class Outcome:
    """What `shard` did.

    Attributes:
        num_new: bags that were written into shards, now or by an earlier run that was interrupted.
        num_reused: shards of these that an earlier run had finished.
        passed_over: slides without features, or features without a label, where that is allowed.
    """

    num_new: int
    num_reused: int
    passed_over: tuple[str, ...]


def shard(
    features: Path,
    labels: Path | None,
    out: Path,
    *,
    name: str | None = None,
    classes: Sequence[str] | None = None,
    dtype: str | None = None,
    shard_bytes: int = 2**30,
    seed: int = 0,
    description: str = "",
    synthetic: bool = False,
    columns: Columns | None = None,
    slides: Path | None = None,
    class_map: Mapping[str, str] | None = None,
    skip_unmatched: bool = False,
    append: bool = False,
    workers: int | None = None,
    distributed: bool = False,
) -> Outcome:
    """Write a data set of shards; the same input gives the same bytes, whatever the number of workers.

    The folder appears whole or not at all: it is made under another name beside `out` and renamed at the
    end. What an interrupted run had finished of it is taken over by the next one over the same sources.

    Args:
        features: folder of features, see `folders.find_features`.
        labels: table of slide, label and optionally case, see `labels.read_labels`; None takes them from
            bundles of bags that say theirs.
        out: folder to make; must not exist, unless it is appended to.
        name: name of the data set, by default that of `out`.
        classes: class names in the order of their indices, by default see `labels.class_order`.
        dtype: how features are stored, a key of `FEATURE_DTYPES`; None is float16, or the data set's own.
        shard_bytes: a shard is closed when the next bag would make it larger than this.
        seed: of the order in which bags are spread over the shards.
        description: free text for the manifest.
        synthetic: whether the features were made up rather than computed from slides.
        columns: see `labels.read_labels`, as `slides` and `class_map`.
        slides: table of slide and case.
        class_map: new names of classes.
        skip_unmatched: pass over slides without features and features without a label.
        append: add the slides that `out` does not have yet, as further shards.
        workers: shards that are written at a time, see `parallel.results`; None is as many as cores.
        distributed: whether they are written by the workers of a Ray cluster.

    Raises:
        ConfigError: `dtype` or `shard_bytes` is out of range.
        DataError: features that cannot be used, or `out` exists; `LabelError`: labels that cannot.
    """
    if dtype is not None and dtype not in FEATURE_DTYPES:
        raise ConfigError(f"dtype: expected {' or '.join(FEATURE_DTYPES)}, got {dtype!r}")
    if shard_bytes < 1:
        raise ConfigError(f"shard_bytes: expected at least 1, got {shard_bytes}")
    out = Path(os.path.abspath(out))
    before = Manifest.read(out) if append else None
    if before is None:
        with contextlib.suppress(FileNotFoundError):
            out.lstat()  # raises now, not after hours, if the name is too long or the parent out of bounds
            raise DataError(f"{out} exists already; give another --out, append to it, or remove it")
    with doing(f"looking for features in {features}"):
        sources = find_features(features)
    if labels is None:
        table = _labels_of(sources, features, class_map or {})
    else:
        table = read_labels(labels, columns=columns, slides=slides, class_map=class_map)
    table = without_suffixes(table, sources)
    class_names = _classes(table, classes, before)
    if before is not None:
        table, sources = _new(table, sources, before, class_names)
        dtype = dtype or before.rows["dtype"][0].as_py()
    table, passed_over = _matched(table, sources, features, labels or features, skip=skip_unmatched)
    if not table:
        if before is None:
            raise DataError(f"no slide has both a label in {labels or features} and features in {features}")
        return Outcome(0, 0, passed_over)

    with doing(f"looking at the features of {len(table):,} slides"):
        bags = plan_bags(table, sources, class_names, dtype or "float16", seed=seed)
    if before is not None:
        _refuse_another_kind(bags, before, out)
    plans = plan_shards(bags, shard_bytes, first=_next_number(before))
    info = DatasetInfo(
        name=name or (before.info.name if before else out.name),
        classes=class_names,
        synthetic=synthetic or (before is not None and before.info.synthetic),
        description=description or (before.info.description if before else ""),
        shards=(),
    )
    try:
        num_reused = _write(out, plans, info, before, workers, distributed)
    except OSError as error:
        raise naming(out, error) from error
    return Outcome(len(bags), num_reused, passed_over)


def _write(
    out: Path,
    plans: Sequence[ShardPlan],
    info: DatasetInfo,
    before: Manifest | None,
    workers: int | None,
    distributed: bool,
) -> int:
    """Write the shards of the plans and then the manifest; how many were finished already."""
    with Workplace(out) as workplace:
        written = workplace.resume(plans)
        num_reused = len(written)
        missing = [plan for plan in plans if plan.name not in written]
        workplace.refuse_if_full(sum(plan.num_bytes for plan in missing))
        total = sum(plan.num_bytes for plan in plans)
        try:
            with one_torch_thread(), bar(total, workplace.bytes_written, "sharding"):
                tasks = [(plan, workplace.shards) for plan in missing]
                for shard in results(write_shard, tasks, workers=workers, distributed=distributed):
                    workplace.record(shard)
                    written[shard.shard.name] = shard
        except BaseException:
            if written:
                say = (
                    f"{len(written)} of {len(plans)} shards are finished: the same command goes on with them"
                )
                print(say, file=sys.stderr)
            raise
        shards = [written[plan.name] for plan in plans]
        rows = pa.Table.from_pylist([row for shard in shards for row in shard.rows], ROWS_SCHEMA)
        listed = tuple(shard.shard for shard in shards)
        if before is not None:
            rows, listed = pa.concat_tables([before.rows, rows]), (*before.info.shards, *listed)
        workplace.publish(Manifest(info.model_copy(update={"shards": listed}), rows))
    return num_reused


def _labels_of(
    sources: Mapping[str, Source], features: Path, class_map: Mapping[str, str]
) -> list[SlideLabel]:
    """The labels that bundles of bags say of their bags."""
    table = []
    for slide, source in sources.items():
        label, case = source.details.get("label"), source.details.get("case")
        if label is None or label == "":
            raise LabelError(f"{source.path} says no label of {slide!r}; give a table of labels")
        table.append(SlideLabel(slide, str(case or slide), class_map.get(str(label), str(label))))
    return table


def _classes(
    table: Sequence[SlideLabel], given: Sequence[str] | None, before: Manifest | None
) -> tuple[str, ...]:
    if before is None:
        return class_order(table, given)
    old = before.info.classes
    if given is not None and tuple(given[: len(old)]) != old:
        raise LabelError(
            f"expected classes that begin with those of the data set, {list(old)}, got {list(given)}"
        )
    return class_order(table, given or old)


def _new(
    table: Sequence[SlideLabel], sources: Mapping[str, Source], before: Manifest, classes: Sequence[str]
) -> tuple[list[SlideLabel], dict[str, Source]]:
    """What a data set does not have yet; refuse what it has with another label or case."""
    rows = before.rows.select(["slide", "case", "label"]).to_pylist()
    had = {row["slide"]: SlideLabel(row["slide"], row["case"], classes[row["label"]]) for row in rows}
    for row in table:
        if row.slide in had and row != had[row.slide]:
            there = had[row.slide]
            raise LabelError(
                f"slide {row.slide!r} is in the data set as {there.label!r} of case {there.case!r}, and in "
                f"the table as {row.label!r} of case {row.case!r}"
            )
    return [row for row in table if row.slide not in had], {
        slide: source for slide, source in sources.items() if slide not in had
    }


def _refuse_another_kind(bags: Sequence[PlannedBag], before: Manifest, out: Path) -> None:
    """Refuse bags, alike among themselves, that are not like those of a data set."""
    slide, width = bags[0].columns["slide"], bags[0].columns["num_features"]
    if width != (there := before.rows["num_features"][0].as_py()):
        raise DataError(f"slide {slide!r}: its features are {width} wide, those of {out} {there}")
    named = ((bag.columns["slide"], json.loads(bag.json)["encoder"]) for bag in bags)
    slide, new = next(((slide, encoder) for slide, encoder in named if encoder), (slide, None))
    if new and (old := encoder_of(out, before)) and old != new:
        raise DataError(f"slide {slide!r}: its features are of {new!r}, those of {out} of {old!r}")


def _next_number(before: Manifest | None) -> int:
    return 1 + max(shard_number(shard.name) for shard in before.info.shards) if before else 0


def _matched(
    table: list[SlideLabel], sources: Mapping[str, Source], features: Path, labels: Path, *, skip: bool
) -> tuple[list[SlideLabel], tuple[str, ...]]:
    """Slides with both features and label; refuse, or name, those with one of them."""
    slides = {row.slide for row in table}
    missing = [row.slide for row in table if row.slide not in sources]
    unlabelled = sorted(sources.keys() - slides)
    if skip:
        return [row for row in table if row.slide in sources], (*missing, *unlabelled)
    if missing:
        raise DataError(
            f"{len(missing)} of {len(table)} slides in {labels} have no features in {features}: "
            f"{some(missing)}"
        )
    if unlabelled:
        raise LabelError(
            f"{len(unlabelled)} of {len(sources)} slides in {features} have no label in {labels}: "
            f"{some(unlabelled)}"
        )
    return table, ()


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    options = _parser().parse_args(arguments)
    outcome = shard(
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
        columns=Columns(options.slide_column, options.label_column, options.case_column),
        slides=options.slides,
        class_map=options.class_map,
        skip_unmatched=options.skip_unmatched,
        append=options.append,
        workers=options.workers,
        distributed=in_cluster(),
    )
    if outcome.passed_over:
        named = some(outcome.passed_over)
        print(f"passed over, without features or label: {len(outcome.passed_over)} ({named})")
    if outcome.num_reused:
        print(f"taken over from an interrupted run: {outcome.num_reused} shards")
    info = Manifest.read(options.out).info
    num_bags, num_bytes = sum(item.num_bags for item in info.shards), sum(item.bytes for item in info.shards)
    new = f", {outcome.num_new} of them new" if options.append else ""
    print(
        f"{options.out}: {num_bags} bags{new}, {decimal(num_bytes)} "
        f"(shards: {len(info.shards)}; classes: {', '.join(info.classes)})"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.shard",
        description="Turn features of slides and a table of labels into checked shards. Interrupted, the "
        "same command goes on with the shards that are finished.",
        epilog="On a Ray cluster: ray job submit --working-dir . -- python -m data_prep.shard ...; its nodes "
        "must see the paths.",
    )
    parser.add_argument(
        "--features",
        type=Path,
        required=True,
        metavar="PATH",
        help="folder of CLAM, TRIDENT or STAMP, or one with a .pt, .h5, .npy, .npz or .zarr a slide, or with "
        "WebDataset shards or Parquet files of bags; what a file is, its content says",
    )
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="TABLE",
        help="CSV, TSV or Parquet with slide, label and, if slides share patients, case (or the like: "
        "slide_id, case_id, patient, ...); without a header, two columns are slide and label (default: what "
        "WebDataset shards or Parquet files say)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder to make; must not exist, but for --append",
    )
    parser.add_argument(
        "--append", action="store_true", help="add the slides that --out does not have, as further shards"
    )
    parser.add_argument("--name", help="name of the data set, for reports (default: that of --out)")
    parser.add_argument(
        "--classes",
        metavar="NAME,NAME,...",
        help="class names in the order of their indices (default: by number if all labels are whole "
        "numbers, else by name)",
    )
    parser.add_argument(
        "--class-map",
        type=_mapping,
        metavar="OLD=NEW,...",
        help="rename classes of the table; several may become one",
    )
    for what in ("slide", "label", "case"):
        parser.add_argument(
            f"--{what}-column",
            metavar="NAME",
            help=f"column of the {what}, or its number from 1, if it is not found",
        )
    parser.add_argument(
        "--slides",
        type=Path,
        metavar="TABLE",
        help="second table, of slide and case, where --labels is a table of case and label",
    )
    parser.add_argument(
        "--skip-unmatched",
        action="store_true",
        help="pass over slides without features and features without a label, and name them",
    )
    parser.add_argument(
        "--dtype",
        choices=FEATURE_DTYPES,
        help="how features are stored (default: float16, or as the data set appended to)",
    )
    parser.add_argument(
        "--shard-bytes",
        type=_positive,
        default=2**30,
        metavar="N",
        help="size at which a new shard is begun (default: %(default)s, 1 GiB)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="of the order of bags over shards (default: %(default)s)",
    )
    parser.add_argument(
        "--workers",
        type=_positive,
        metavar="N",
        help="shards written at a time; the bytes are the same (default: as many as this machine has cores, "
        "or the Ray cluster that the command is submitted to)",
    )
    parser.add_argument(
        "--description", default="", metavar="TEXT", help="where the features come from, for the manifest"
    )
    parser.add_argument("--synthetic", action="store_true", help="record that the features are made up")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def _mapping(text: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(old and new for old, _, new in pairs) or len({old for old, _, _ in pairs}) < len(pairs):
        raise argparse.ArgumentTypeError(f"expected OLD=NEW,OLD=NEW,..., got {text!r}")
    return {old: new for old, _, new in pairs}


if __name__ == "__main__":
    # `ray job stop` and batch systems end a job so: clean up as after Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    run(main)
