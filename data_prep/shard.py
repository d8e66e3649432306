"""Turn features of slides and a table of labels into shards: `python -m data_prep.shard --help`."""

import contextlib
import hashlib
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
from rich.filesize import decimal

from data_prep.cases import cases_of_barcodes, missing_cases
from data_prep.folders import find_features
from data_prep.labels import Columns, read_labels, without_suffixes
from data_prep.parallel import in_cluster, one_torch_thread, results
from data_prep.plan import ShardPlan, SourceChangedError, plan_bags, plan_shards, write_shard
from data_prep.progress import Count, bar, doing
from data_prep.selection import (
    class_names,
    classes_of,
    labels_of,
    matched,
    next_number,
    not_in,
    refuse_another_encoder,
)
from data_prep.shard_options import parser
from data_prep.skipped import SKIPPED_NAME, BadBag, named, read_skipped, write_skipped
from data_prep.sources import some
from data_prep.stated import NOTHING_STATED, Stated, stated_by
from data_prep.workplace import Workplace
from data_prep.writer import naming
from mhimdist.command import run
from mhimdist.data.format import FEATURE_DTYPES
from mhimdist.data.manifest import ROWS_SCHEMA, DatasetInfo, Manifest
from mhimdist.errors import ConfigError, DataError


@dataclass(frozen=True)
class Outcome:
    """What `shard` did.

    Attributes:
        num_new: bags that were written into shards, now or by an earlier run that was interrupted.
        num_reused: shards of these that an earlier run had finished.
        passed_over: slides without features, or features without a label, where that is allowed.
        bad: bags that were left out because they cannot be used, where that is allowed.
    """

    num_new: int
    num_reused: int
    passed_over: tuple[str, ...]
    bad: tuple[BadBag, ...] = ()


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
    case_from: str | None = None,
    skip_unmatched: bool = False,
    skip_bad: bool = False,
    append: bool = False,
    stated: Stated = NOTHING_STATED,
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
        classes: class names in the order of their indices, by default that of the shards of ours that say the
            labels, else see `labels.class_order`.
        dtype: how features are stored, a key of `FEATURE_DTYPES`; None is float16, or the data set's own.
        shard_bytes: a shard is closed when the next bag would make it larger than this.
        seed: of the order in which bags are spread over the shards.
        description: free text for the manifest.
        synthetic: whether the features were made up rather than computed from slides.
        columns: see `labels.read_labels`, as `slides` and `class_map`.
        slides: table of slide and case.
        class_map: new names of classes.
        case_from: "tcga" takes the case of a slide from its name, see `cases.cases_of_barcodes`.
        skip_unmatched: pass over slides without features and features without a label.
        skip_bad: leave out slides whose features cannot be used, and list them in `skipped.csv`.
        append: add the slides that `out` does not have yet, as further shards.
        stated: what the features' files do not say of them.
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
    if case_from not in (None, "tcga"):
        raise ConfigError(f"case_from: expected 'tcga', got {case_from!r}")
    # Absolute, because the workers of a cluster are elsewhere.
    out, features = Path(os.path.abspath(out)), Path(os.path.abspath(features))
    workplace = Workplace(out)
    before = Manifest.open(out) if append else None
    if before is None and not workplace.may_have_made():
        _refuse_existing(out)
    with doing(f"looking for features in {features}"):
        sources = find_features(features, stated)
    in_shards = None
    if labels is None:
        table = labels_of(sources, features, class_map or {})
        in_shards = classes_of(sources, class_map or {}) if classes is None else None
    else:
        table = read_labels(labels, columns=columns, slides=slides, class_map=class_map)
    table = without_suffixes(table, sources)
    if case_from is not None:
        table = cases_of_barcodes(table)
    if (warning := missing_cases(table)) is not None:
        print(f"warning: {warning}", file=sys.stderr)  # now, not after hours
    classes = class_names(table, classes, before, in_shards)
    if before is not None:
        table, sources = not_in(table, sources, before, classes)
        dtype = dtype or before.rows["dtype"][0].as_py()
    table, passed_over = matched(table, sources, features, labels or features, skip=skip_unmatched)
    if not table and before is None:
        raise DataError(f"no slide has both a label in {labels or features} and features in {features}")

    looked = Count()
    with bar(len(table), lambda: looked.total, "looking at the features of", unit="slides"):
        bags, bad = plan_bags(
            table,
            sources,
            classes,
            dtype or "float16",
            seed=seed,
            width=before.rows["num_features"][0].as_py() if before else None,
            skip_bad=skip_bad,
            on_bag=looked.add,
        )
    if before is not None:
        refuse_another_encoder(bags, before, out)
    plans = plan_shards(bags, shard_bytes, first=next_number(before))
    info = DatasetInfo(
        name=name or (before.info.name if before else out.name),
        classes=classes,
        synthetic=synthetic or (before is not None and before.info.synthetic),
        description=description or (before.info.description if before else ""),
        shards=(),
    )
    try:
        with workplace:
            num_new, num_reused, worse = _write(
                workplace,
                plans,
                info,
                before,
                bad,
                skip_bad=skip_bad,
                workers=workers,
                distributed=distributed,
            )
    except OSError as error:
        raise naming(out, error) from error
    return Outcome(num_new, num_reused, passed_over, tuple(sorted([*bad, *worse])))


def _refuse_existing(out: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        out.lstat()  # raises now, not after hours, if the name is too long or the parent out of bounds
        raise DataError(f"{out} exists already; give another --out, append to it, or remove it")


def _write(
    workplace: Workplace,
    plans: Sequence[ShardPlan],
    info: DatasetInfo,
    before: Manifest | None,
    bad: Sequence[BadBag],
    *,
    skip_bad: bool,
    workers: int | None,
    distributed: bool,
) -> tuple[int, int, list[BadBag]]:
    """Write the shards of the plans and then the manifest.

    Returns:
        Bags that are new, shards that were finished already, and bags that could not be written.
    """
    if before is None and workplace.has_made(lambda: _digest(info, [plan.digest() for plan in plans], bad)):
        manifest = Manifest.read(workplace.out)
        worse = [bag for bag in read_skipped(workplace.out) if bag not in bad]
        return len(manifest.rows), len(manifest.info.shards), worse
    if before is None:
        _refuse_existing(workplace.out)
    written = workplace.resume(plans, skip_bad=skip_bad)
    num_reused = len(written)
    missing = [plan for plan in plans if plan.name not in written]
    workplace.refuse_if_full(sum(plan.num_bytes for plan in missing))
    total = sum(plan.num_bytes for plan in plans)
    try:
        with one_torch_thread(), bar(total, workplace.bytes_written, "sharding"):
            tasks = [(plan, workplace.shards, skip_bad) for plan in missing]
            for shard in results(write_shard, tasks, workers=workers, distributed=distributed):
                workplace.record(shard)
                written[shard.name] = shard
    except BaseException as error:
        if isinstance(error, DataError) and not isinstance(error, SourceChangedError) and not skip_bad:
            print("slides that cannot be used can be left out: --skip-bad", file=sys.stderr)
        if written:
            say = f"{len(written)} of {len(plans)} shards are finished: the same command goes on with them"
            print(say, file=sys.stderr)
        raise
    shards = [written[plan.name] for plan in plans]
    worse = [bag for shard in shards for bag in shard.bad]
    rows = pa.Table.from_pylist([row for shard in shards for row in shard.rows], ROWS_SCHEMA)
    listed = tuple(shard.shard for shard in shards if shard.shard is not None)
    if before is None and not listed:
        raise DataError(f"none of the slides can be used: {named([*bad, *worse])}")
    num_new = len(rows)
    if before is not None:
        rows, listed = pa.concat_tables([before.rows, rows]), (*before.info.shards, *listed)
    else:
        write_skipped(workplace.shards, [*bad, *worse], rows["slide"].to_pylist())
    if num_new:
        made_of = _digest(info, [shard.plan for shard in shards], bad)
        workplace.publish(Manifest(info.model_copy(update={"shards": listed}), rows), made_of)
    if before is not None:
        write_skipped(workplace.out, [*bad, *worse], rows["slide"].to_pylist())
    return num_new, num_reused, worse


def _digest(info: DatasetInfo, plans: Sequence[str], bad: Sequence[BadBag]) -> str:
    """Hash of all that decides what a new data set holds, given the digests of its plans."""
    document = [info.model_dump(), plans, [asdict(bag) for bag in bad]]
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    options = parser().parse_args(arguments)
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
        case_from=options.case_from,
        skip_unmatched=options.skip_unmatched,
        skip_bad=options.skip_bad,
        append=options.append,
        stated=stated_by(options),
        workers=options.workers,
        distributed=in_cluster(),
    )
    if outcome.passed_over:
        slides = some(outcome.passed_over)
        print(f"passed over, without features or label: {len(outcome.passed_over)} ({slides})")
    if outcome.bad:
        table = options.out / SKIPPED_NAME
        print(f"left out, listed in {table}: {len(outcome.bad)} ({named(outcome.bad, 3)})")
    if outcome.num_reused:
        print(f"taken over from an interrupted run: {outcome.num_reused} shards")
    manifest = Manifest.read(options.out)
    info, num_bytes = manifest.info, sum(item.bytes for item in manifest.info.shards)
    new = f", {outcome.num_new} of them new," if options.append else ""
    num_cases = len(manifest.rows["case"].unique())
    print(
        f"{options.out}: {len(manifest.rows)} bags{new} of {num_cases} cases, {decimal(num_bytes)} "
        f"(shards: {len(info.shards)}; classes: {', '.join(info.classes)})"
    )


if __name__ == "__main__":
    # `ray job stop` and batch systems end a job so: clean up as after Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    run(main)
