"""Turn features of slides and a table of labels into shards: `python -m data_prep.shard --help`."""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.filesize import decimal

from data_prep.command_line import stoppable
from data_prep.readers.sources import some
from data_prep.shard_labels import Labelled, labelled
from data_prep.shard_options import ShardOptions
from data_prep.tables.target_checks import summary
from data_prep.writing import feature_sets
from data_prep.writing.parallel import in_cluster, num_cores, results
from data_prep.writing.plan import (
    PlannedBag,
    ShardPlan,
    SourceChangedError,
    WrittenShard,
    plan_bags,
    write_shard,
)
from data_prep.writing.progress import Count, bar
from data_prep.writing.selection import (
    next_number,
    nothing_in_both,
    refuse_another_encoder,
)
from data_prep.writing.skipped import SKIPPED_NAME, BadBag, named, read_skipped, write_skipped
from data_prep.writing.standardize import scale_of, standardized
from data_prep.writing.workplace import Workplace
from data_prep.writing.writer import naming
from mhimdist.data.feature_sets import COLUMN
from mhimdist.data.manifest import DatasetInfo, Manifest, rows_schema
from mhimdist.data.strata import stratified
from mhimdist.data.targets import CLASSIFICATION
from mhimdist.data.torch_threads import one_torch_thread
from mhimdist.errors import DataError
from mhimdist.foreign_text import say
from mhimdist.process import run


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
    features: Path | Mapping[str, Path],
    labels: Path | None,
    out: Path,
    *,
    distributed: bool = False,
    **options: Any,
) -> Outcome:
    """Write a data set of shards; the same input gives the same bytes for any number of workers.

    The folder appears whole or not at all: it is made under another name next to `out` and renamed at the
    end. If a run is interrupted, the next run over the same sources reuses the shards that it finished.

    Args:
        features: folder of features, see `folders.find_features`; or, by name, the folders of the features
            that several encoders made of the same slides.
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
    paths = {name: Path(os.path.abspath(path)) for name, path in options.sets.items()}
    out = Path(os.path.abspath(options.out))
    options = options.model_copy(update={"features": paths.get("", paths), "out": out})
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
            made_of, worse = [shard.plan for shard in shards], [bag for shard in shards for bag in shard.bad]
            if worse and "" not in options.sets:
                rest = replace(plan, shards=feature_sets.without(plan.shards, worse))
                shards, _ = _write(workplace, rest, options, distributed=distributed)
            return _finish(workplace, plan, shards, num_reused, made_of, worse)
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
    found = labelled(options, before)
    feature_sets.refuse_other_names(list(options.sets), before, options.out)
    sources = {
        name: {slide: source for slide, source in each.items() if slide not in found.left_out}
        for name, each in found.sources.items()
    }
    selected, passed_over = feature_sets.select(
        found.rows,
        sources,
        before,
        features=options.sets,
        labels=options.labels,
        skip=options.skip_unmatched,
    )
    for name, each in selected.items():
        if not each.table and before is None:
            place = options.sets[name]
            raise nothing_in_both(found.rows, sources[name], place, options.labels or place)
    planned = {name: _planned(options, name, each, found) for name, each in selected.items()}
    usable = feature_sets.planned_in_all(planned)
    scales = dict(before.info.standardized) if before else {}
    for name, bags in usable.items():
        part = selected[name].before
        scale = scale_of(
            bags,
            asked=options.standardize,
            like=options.standardize_as,
            before=part,
            name=name,
            skip_bad=options.skip_bad,
            workers=options.workers or num_cores(),
        )
        if scale is not None:
            usable[name], scales[name] = standardized(bags, scale), scale
        if part is not None:
            refuse_another_encoder(bags, part, options.out)
    info = DatasetInfo(
        name=options.name or (before.info.name if before else options.out.name),
        classes=found.classes,
        synthetic=options.synthetic or (before is not None and before.info.synthetic),
        description=options.description or (before.info.description if before else ""),
        shards=(),
        standardized=scales,
        task=None if found.task == CLASSIFICATION else found.task,
    )
    shards = feature_sets.fill(usable, options.shard_bytes, next_number(before))
    unusable = {bag for _, bad in planned.values() for bag in bad}
    bad = sorted([*unusable, *(BadBag(slide, reason) for slide, reason in found.left_out.items())])
    return _Plan(shards, info, before, passed_over, bad)


def _planned(
    options: ShardOptions, name: str, selected: feature_sets.Selected, found: Labelled
) -> tuple[list[PlannedBag], list[BadBag]]:
    """The plans of a feature set's bags, and those that cannot be used."""
    rows = selected.before.rows if selected.before is not None else None
    dtype = options.dtype or (rows["dtype"][0].as_py() if rows is not None else "float16")
    looked = Count()
    what = f"reading headers{f' of {name}' if name else ''}:"
    with bar(len(selected.table), lambda: looked.total, what, unit="slides"):
        bags, bad = plan_bags(
            selected.table,
            selected.sources,
            found.classes,
            dtype,
            task=found.task,
            seed=options.seed,
            width=rows["num_features"][0].as_py() if rows is not None else None,
            skip_bad=options.skip_bad,
            on_bag=looked.add,
        )
    return feature_sets.named(bags, name), bad


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


def _finish(
    workplace: Workplace,
    plan: _Plan,
    shards: Sequence[WrittenShard],
    num_reused: int,
    made_of: Sequence[str],
    worse: Sequence[BadBag],
) -> Outcome:
    """Make the data set appear, or grow, with its manifest and its table of bags that were left out.

    Args:
        workplace, plan, num_reused: of this run.
        shards: the shards, as they were written.
        made_of: digests of the plans of all shards, as they were before a bag turned out bad.
        worse: bags that turned out bad while they were written.
    """
    bad = [*plan.bad, *worse]
    written = [row for shard in shards for row in shard.rows]
    schema = rows_schema(plan.info.task, named=any(COLUMN in row for row in written))
    rows = pa.Table.from_pylist(written, schema)
    listed = tuple(shard.shard for shard in shards if shard.shard is not None)
    if plan.before is None and not listed:
        raise DataError(f"none of the slides can be used: {named(bad)}")
    num_new = len(rows)
    if plan.before is not None:
        rows = pa.concat_tables([plan.before.rows, rows]) if written else plan.before.rows
        listed = (*plan.before.info.shards, *listed)
    else:
        write_skipped(workplace.shards, bad, rows["slide"].to_pylist())
    if num_new:
        manifest = Manifest(plan.info.model_copy(update={"shards": listed}), rows)
        workplace.publish(stratified(manifest), plan.digest(made_of))
    if plan.before is not None:
        write_skipped(workplace.out, bad, rows["slide"].to_pylist())
    return plan.outcome(num_new, num_reused, worse)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command.

    Raises:
        PreemptedError: SIGTERM, which `ray job stop` and batch systems send, ended it; finished shards stay.
    """
    shard_and_say(ShardOptions.from_command_line(arguments))


def shard_and_say(options: ShardOptions) -> None:
    """Make the shards, on the workers of a Ray cluster if it runs there, and say what came out.

    Raises:
        PreemptedError: SIGTERM, which `ray job stop` and batch systems send, ended it; finished shards stay.
        ConfigError, DataError, LabelError, OSError: see `make_shards`.
    """
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
    sets = manifest.each
    new = f", {outcome.num_new} of them new," if options.append else ""
    num_cases = len(manifest.rows["case"].unique())
    of_sets = f" in each of {len(sets)} feature sets, {', '.join(sets)}," if manifest.feature_sets else ""
    say(
        f"{options.out}: {len(manifest.rows) // len(sets)} bags{of_sets}{new} of {num_cases} cases, "
        f"{decimal(num_bytes)} (shards: {len(info.shards)}; {summary(manifest)})"
    )


if __name__ == "__main__":
    run(main)
