"""Turn features of slides and a table of labels into shards: `python -m data_prep.shard --help`."""

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.filesize import decimal

from data_prep.command_line import stoppable
from data_prep.readers.folders import find_features
from data_prep.readers.sources import Source, some
from data_prep.shard_options import ShardOptions
from data_prep.tables.cases import cases_of_barcodes, missing_cases
from data_prep.tables.labels import Columns, SlideLabel, read_labels, without_suffixes
from data_prep.writing.parallel import in_cluster, one_torch_thread, results
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
    refuse_another_encoder,
)
from data_prep.writing.skipped import SKIPPED_NAME, BadBag, named, read_skipped, write_skipped
from data_prep.writing.workplace import Workplace
from data_prep.writing.writer import naming
from mhimdist.data.manifest import ROWS_SCHEMA, DatasetInfo, Manifest
from mhimdist.errors import DataError
from mhimdist.process import run


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
    features: Path, labels: Path | None, out: Path, *, distributed: bool = False, **options: Any
) -> Outcome:
    """Write a data set of shards; the same input gives the same bytes, whatever the number of workers.

    The folder appears whole or not at all: it is made under another name beside `out` and renamed at the
    end. What an interrupted run had finished of it is taken over by the next one over the same sources.

    Args:
        features: folder of features, see `folders.find_features`.
        labels: table of slide, label and optionally case, see `labels.read_labels`; None takes them from
            bundles of bags that say theirs.
        out: folder to make; must not exist, unless it is appended to.
        distributed: whether the workers of a Ray cluster write the shards.
        options: the other fields of `ShardOptions`, such as `classes=("normal", "tumor")` or `seed=1`.

    Raises:
        ConfigError: an option is unknown or out of range.
        DataError: features that cannot be used, or `out` exists; `LabelError`: labels that cannot.
        OSError: a file cannot be read or written.
    """
    given = ShardOptions.of(features=features, labels=labels, out=out, **options)
    return make_shards(given, distributed=distributed)


def make_shards(options: ShardOptions, *, distributed: bool = False) -> Outcome:
    """Do what `shard` does, as the command asks for it.

    Raises:
        DataError: features that cannot be used, or `out` exists; `LabelError`: labels that cannot.
        OSError: a file cannot be read or written.
    """
    # Absolute, because the workers of a cluster are elsewhere.
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
    """All that is decided before a byte is written.

    Attributes:
        shards: what each new shard will hold.
        info: of the data set, but for its shards.
        before: the data set that is appended to.
        passed_over: slides without features, or features without a label.
        bad: bags that cannot be used.
    """

    shards: Sequence[ShardPlan]
    info: DatasetInfo
    before: Manifest | None
    passed_over: tuple[str, ...]
    bad: Sequence[BadBag]

    def digest(self, shards: Sequence[str]) -> str:
        """Hash of all that decides what a new data set holds, given the digests of its shards' plans."""
        document = [self.info.model_dump(), shards, [asdict(bag) for bag in self.bad]]
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()

    def outcome(self, num_new: int, num_reused: int, worse: Sequence[BadBag]) -> Outcome:
        """What was done, where `worse` are the bags that turned out bad while they were written."""
        return Outcome(num_new, num_reused, self.passed_over, tuple(sorted([*self.bad, *worse])))


def _plan(options: ShardOptions, before: Manifest | None) -> _Plan:
    """Decide which bag goes into which shard."""
    table, sources, classes = _labelled(options, before)
    dtype = options.dtype
    if before is not None:
        table, sources = not_in(table, sources, before, classes)
        dtype = dtype or before.rows["dtype"][0].as_py()
    labels = options.labels or options.features
    table, passed_over = matched(table, sources, options.features, labels, skip=options.skip_unmatched)
    if not table and before is None:
        raise DataError(f"no slide has both a label in {labels} and features in {options.features}")
    looked = Count()
    with bar(len(table), lambda: looked.total, "looking at the features of", unit="slides"):
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
    return _Plan(shards, info, before, passed_over, bad)


def _labelled(
    options: ShardOptions, before: Manifest | None
) -> tuple[list[SlideLabel], dict[str, Source], tuple[str, ...]]:
    """The labels, the features by slide, and the classes in the order of their indices."""
    with doing(f"looking for features in {options.features}"):
        sources = find_features(options.features, options.stated)
    in_shards = None
    if options.labels is None:
        renamed = options.class_map or {}
        table = labels_of(sources, options.features, renamed)
        in_shards = classes_of(sources, renamed) if options.classes is None else None
    else:
        columns = Columns(options.slide_column, options.label_column, options.case_column)
        table = read_labels(
            options.labels, columns=columns, slides=options.slides, class_map=options.class_map
        )
    table = without_suffixes(table, sources)
    if options.case_from is not None:
        table = cases_of_barcodes(table)
    if (warning := missing_cases(table)) is not None:
        print(f"warning: {warning}", file=sys.stderr)  # now, not after hours
    return table, sources, class_names(table, options.classes, before, in_shards)


def _refuse_existing(out: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        out.lstat()  # raises now, not after hours, if the name is too long or the parent out of bounds
        raise DataError(f"{out} exists already; give another --out, append to it, or remove it")


def _made_before(workplace: Workplace, plan: _Plan) -> Outcome | None:
    """What an earlier run did that was killed right after it had made just this; None if none was."""
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
        All shards in the order of the plan, and how many of them an earlier run had finished.
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
            print("slides that cannot be used can be left out: --skip-bad", file=sys.stderr)
        if written:
            finished = f"{len(written)} of {len(plan.shards)} shards are finished"
            print(f"{finished}: the same command goes on with them", file=sys.stderr)
        raise
    return [written[shard.name] for shard in plan.shards], num_reused


def _finish(workplace: Workplace, plan: _Plan, shards: Sequence[WrittenShard], num_reused: int) -> Outcome:
    """Make the data set appear, or grow, with its manifest and its table of what was left out."""
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
    """The command.

    Raises:
        PreemptedError: SIGTERM ended it, as of `ray job stop` and batch systems; what is finished stays.
    """
    options = ShardOptions.from_command_line(arguments)
    with stoppable(options.out):
        outcome = make_shards(options, distributed=in_cluster())
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
    run(main)
