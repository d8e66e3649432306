"""Turn features of slides and a table of labels into shards: `python -m data_prep.shard --help`."""

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.filesize import decimal

from data_prep.command_line import stoppable
from data_prep.readers.folders import find_features
from data_prep.readers.sources import Source, some
from data_prep.shard_options import ShardOptions
from data_prep.tables.cases import cases_of_barcodes, missing_cases, refuse_spellings, slides_of_barcodes
from data_prep.tables.classes import refuse_measurements, spelled_as
from data_prep.tables.labels import Columns, LabelTable, SlideLabel, read_labels, without_suffixes
from data_prep.writing.parallel import in_cluster, results
from data_prep.writing.plan import (
    ShardPlan,
    SourceChangedError,
    WrittenShard,
    plan_bags,
    plan_shards,
    write_shard,
)
from data_prep.writing.progress import Count, bar, doing
from data_prep.writing.selection import (
    class_names,
    classes_of,
    labels_of,
    matched,
    next_number,
    not_in,
    nothing_in_both,
    refuse_another_encoder,
)
from data_prep.writing.skipped import SKIPPED_NAME, BadBag, named, read_skipped, write_skipped
from data_prep.writing.workplace import Workplace
from data_prep.writing.writer import naming
from mhimdist.data.manifest import ROWS_SCHEMA, DatasetInfo, Manifest
from mhimdist.data.torch_threads import one_torch_thread
from mhimdist.errors import DataError
from mhimdist.foreign_text import say
from mhimdist.process import run
from mhimdist.tables.names import KnownNames


@dataclass(frozen=True)
class Outcome:
    """What `shard` did.

    Attributes:
        num_new: number of bags written into shards, by this run or by an interrupted run before it.
        num_reused: number of these shards that an interrupted run had finished.
        passed_over: slides without features, and features without a label, if the options allow them.
        bad: bags left out because they cannot be used, if the options allow that.
    """

    num_new: int
    num_reused: int
    passed_over: tuple[str, ...]
    bad: tuple[BadBag, ...] = ()


def shard(
    features: Path, labels: Path | None, out: Path, *, distributed: bool = False, **options: Any
) -> Outcome:
    """Write a data set of shards; the same input gives the same bytes for any number of workers.

    The folder appears whole or not at all: it is made under another name next to `out` and renamed at the
    end. If a run is interrupted, the next run over the same sources reuses the shards that it finished.

    Args:
        features: folder of features, see `folders.find_features`.
        labels: table of slide, label and optionally case, see `labels.read_labels`; None takes the labels
            from bundles of bags, which must state them.
        out: folder to make; must not exist, unless you append to it.
        distributed: whether the workers of a Ray cluster write the shards.
        options: the other fields of `ShardOptions`, such as `classes=("normal", "tumor")` or `seed=1`.

    Raises:
        ConfigError: an option is unknown or out of range.
        DataError: the features cannot be used, or `out` exists.
        LabelError: the labels cannot be used.
        OSError: a file cannot be read or written.
    """
    given = ShardOptions.of(features=features, labels=labels, out=out, **options)
    return make_shards(given, distributed=distributed)


def make_shards(options: ShardOptions, *, distributed: bool = False) -> Outcome:
    """Do what `shard` does, with options that are already checked.

    Args:
        options: what to shard, and how.
        distributed: whether the workers of a Ray cluster write the shards.

    Raises:
        DataError: the features cannot be used, or `out` exists.
        LabelError: the labels cannot be used.
        OSError: a file cannot be read or written.
    """
    # Absolute, because the workers of a cluster run in other folders.
    paths = {name: Path(os.path.abspath(getattr(options, name))) for name in ("features", "out")}
    options = options.model_copy(update=paths)
    workplace = Workplace(options.out)
    before = Manifest.open(options.out) if options.append else None
    if before is None and not workplace.may_have_made():
        _refuse_existing(options.out)
    plan = _plan(options, before)
    try:
        with workplace:
            if (outcome := _made_before(workplace, plan)) is not None:
                return outcome
            shards, num_reused = _write(workplace, plan, options, distributed=distributed)
            return _finish(workplace, plan, shards, num_reused)
    except OSError as error:
        raise naming(options.out, error) from error


@dataclass(frozen=True)
class _Plan:
    """Everything that is decided before the first byte is written.

    Attributes:
        shards: the plan of each new shard.
        info: the description of the data set, still without its shards.
        before: the data set to append to, if there is one.
        passed_over: slides without features, or features without a label.
        bad: bags that cannot be used.
    """

    shards: Sequence[ShardPlan]
    info: DatasetInfo
    before: Manifest | None
    passed_over: tuple[str, ...]
    bad: Sequence[BadBag]

    def digest(self, shards: Sequence[str]) -> str:
        """Hash of all that decides the content of a new data set, given the digests of its shards' plans."""
        document = [self.info.model_dump(), shards, [asdict(bag) for bag in self.bad]]
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()

    def outcome(self, num_new: int, num_reused: int, worse: Sequence[BadBag]) -> Outcome:
        """What was done; `worse` are the bags that turned out bad while they were written."""
        return Outcome(num_new, num_reused, self.passed_over, tuple(sorted([*self.bad, *worse])))


def _plan(options: ShardOptions, before: Manifest | None) -> _Plan:
    """Decide which bag goes into which shard."""
    table, sources, classes, left_out = _labelled(options, before)
    dtype = options.dtype
    if before is not None:
        table, sources = not_in(table, sources, before, classes)
        dtype = dtype or before.rows["dtype"][0].as_py()
    labels = options.labels or options.features
    sources = {slide: source for slide, source in sources.items() if slide not in left_out}
    labelled = table
    table, passed_over = matched(table, sources, options.features, labels, skip=options.skip_unmatched)
    if not table and before is None:
        raise nothing_in_both(labelled, sources, options.features, labels)
    looked = Count()
    with bar(len(table), lambda: looked.total, "reading headers:", unit="slides"):
        bags, bad = plan_bags(
            table,
            sources,
            classes,
            dtype or "float16",
            seed=options.seed,
            width=before.rows["num_features"][0].as_py() if before else None,
            skip_bad=options.skip_bad,
            on_bag=looked.add,
        )
    if before is not None:
        refuse_another_encoder(bags, before, options.out)
    info = DatasetInfo(
        name=options.name or (before.info.name if before else options.out.name),
        classes=classes,
        synthetic=options.synthetic or (before is not None and before.info.synthetic),
        description=options.description or (before.info.description if before else ""),
        shards=(),
    )
    shards = plan_shards(bags, options.shard_bytes, first=next_number(before))
    bad = sorted([*bad, *(BadBag(slide, reason) for slide, reason in left_out.items())])
    return _Plan(shards, info, before, passed_over, bad)


def _labelled(
    options: ShardOptions, before: Manifest | None
) -> tuple[list[SlideLabel], dict[str, Source], tuple[str, ...], dict[str, str]]:
    """The labels, the features by slide, the classes in the order of their indices, and what is left out.

    Slides without ground truth are left out, if the options allow it; the dictionary says why, by slide.
    """
    with doing(f"looking for features in {options.features}"):
        sources = find_features(options.features, options.stated)
    in_shards = None
    left_out: dict[str, str] = {}
    others: Sequence[str] = ()
    if options.labels is None:
        renamed = options.class_map or {}
        table, left_out = labels_of(sources, renamed, skip_missing=options.skip_unmatched)
        in_shards = classes_of(sources, renamed) if options.classes is None else None
    else:
        read = _read_labels(options, options.labels, sources)
        table, left_out, others = read.rows, read.left_out, read.others
        table = spelled_as(table, options.classes or (before.info.classes if before else ()))
    table = without_suffixes(table, sources)
    if options.case_from is not None:
        table = cases_of_barcodes(table)
    if options.labels is not None and options.classes is None and before is None:
        refuse_measurements(table, options.labels)
    refuse_spellings(table, before)
    used = [row for row in table if row.slide in sources] if options.skip_unmatched else table
    classes = class_names(used if options.classes else table, options.classes, before, in_shards)
    unused = sorted({row.label for row in table} - {row.label for row in used})
    if used and unused and options.classes is None and before is None:
        say(
            f"warning: no slide with features is of class {some(unused)}, and training needs cases of every "
            "class; --classes with the other classes leaves it out",
            stderr=True,
        )
    if (warning := missing_cases(table, others)) is not None:
        say(f"warning: {warning}", stderr=True)  # now, not after hours
    return table, sources, classes, left_out


def _read_labels(options: ShardOptions, labels: Path, sources: dict[str, Source]) -> LabelTable:
    """What the label table says; slides without ground truth have the name of their features."""
    read = read_labels(
        labels,
        columns=Columns(options.slide_column, options.label_column, options.case_column),
        slides=options.slides,
        class_map=options.class_map,
        known=sources,
        skip_missing=options.skip_unmatched,
        cases_alone=options.case_from is not None,
    )
    rows, left_out, names = read.rows, read.left_out, KnownNames(sources)
    if options.case_from is not None:
        slides_of = slides_of_barcodes([*(row.slide for row in rows), *left_out], sources)
        rows = [
            replace(row, slide=slide, case=slide if row.case == row.slide else row.case)
            for row in rows
            for slide in slides_of[row.slide]
        ]
        left_out = {slide: reason for name, reason in left_out.items() for slide in slides_of[name]}
    left_out = {(*names.meant_by(slide), slide)[0]: reason for slide, reason in left_out.items()}
    return replace(read, rows=rows, left_out=left_out)


def _refuse_existing(out: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        out.lstat()  # raises now, not after hours, if the name is too long or the parent not accessible
        raise DataError(f"{out} already exists; give another --out, add to it with --append, or remove it")


def _made_before(workplace: Workplace, plan: _Plan) -> Outcome | None:
    """The outcome of an earlier run, if one was killed right after it made exactly this; otherwise None."""
    if plan.before is not None:
        return None
    if not workplace.has_made(lambda: plan.digest([shard.digest() for shard in plan.shards])):
        _refuse_existing(workplace.out)
        return None
    manifest = Manifest.read(workplace.out)
    worse = [bag for bag in read_skipped(workplace.out) if bag not in plan.bad]
    return plan.outcome(len(manifest.rows), len(manifest.info.shards), worse)


def _write(
    workplace: Workplace, plan: _Plan, options: ShardOptions, *, distributed: bool
) -> tuple[list[WrittenShard], int]:
    """Write the shards that no earlier run finished.

    Returns:
        All shards in the order of the plan, and the number of them that an earlier run had finished.
    """
    written = workplace.resume(plan.shards, skip_bad=options.skip_bad)
    num_reused = len(written)
    missing = [shard for shard in plan.shards if shard.name not in written]
    workplace.refuse_if_full(sum(shard.num_bytes for shard in missing))
    total = sum(shard.num_bytes for shard in plan.shards)
    try:
        with one_torch_thread(), bar(total, workplace.bytes_written, "sharding"):
            tasks = [(shard, workplace.shards, options.skip_bad) for shard in missing]
            for made in results(write_shard, tasks, workers=options.workers, distributed=distributed):
                workplace.record(made)
                written[made.name] = made
    except BaseException as error:
        if (
            isinstance(error, DataError)
            and not isinstance(error, SourceChangedError)
            and not options.skip_bad
        ):
            say("hint: --skip-bad leaves out slides that cannot be used", stderr=True)
        if written:
            finished = f"{len(written)} of {len(plan.shards)} shards are finished"
            say(f"{finished}; the same command resumes and keeps them", stderr=True)
        raise
    return [written[shard.name] for shard in plan.shards], num_reused


def _finish(workplace: Workplace, plan: _Plan, shards: Sequence[WrittenShard], num_reused: int) -> Outcome:
    """Make the data set appear, or grow, with its manifest and its table of bags that were left out."""
    worse = [bag for shard in shards for bag in shard.bad]
    bad = [*plan.bad, *worse]
    rows = pa.Table.from_pylist([row for shard in shards for row in shard.rows], ROWS_SCHEMA)
    listed = tuple(shard.shard for shard in shards if shard.shard is not None)
    if plan.before is None and not listed:
        raise DataError(f"none of the slides can be used: {named(bad)}")
    num_new = len(rows)
    if plan.before is not None:
        rows = pa.concat_tables([plan.before.rows, rows])
        listed = (*plan.before.info.shards, *listed)
    else:
        write_skipped(workplace.shards, bad, rows["slide"].to_pylist())
    if num_new:
        made_of = plan.digest([shard.plan for shard in shards])
        workplace.publish(Manifest(plan.info.model_copy(update={"shards": listed}), rows), made_of)
    if plan.before is not None:
        write_skipped(workplace.out, bad, rows["slide"].to_pylist())
    return plan.outcome(num_new, num_reused, worse)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command.

    Raises:
        PreemptedError: SIGTERM, which `ray job stop` and batch systems send, ended it; finished shards stay.
    """
    options = ShardOptions.from_command_line(arguments)
    with stoppable(options.out):
        outcome = make_shards(options, distributed=in_cluster())
    if outcome.passed_over:
        slides = some(outcome.passed_over)
        say(f"passed over, for lack of features or of a label: {len(outcome.passed_over)} ({slides})")
    if outcome.bad:
        table = options.out / SKIPPED_NAME
        say(f"left out, listed in {table}: {len(outcome.bad)} ({named(outcome.bad, 3)})")
    if outcome.num_reused:
        say(f"reused from an interrupted run: {outcome.num_reused} shards")
    manifest = Manifest.read(options.out)
    info, num_bytes = manifest.info, sum(item.bytes for item in manifest.info.shards)
    new = f", {outcome.num_new} of them new," if options.append else ""
    num_cases = len(manifest.rows["case"].unique())
    say(
        f"{options.out}: {len(manifest.rows)} bags{new} of {num_cases} cases, {decimal(num_bytes)} "
        f"(shards: {len(info.shards)}; classes: {', '.join(info.classes)})"
    )


if __name__ == "__main__":
    run(main)
