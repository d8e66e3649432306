"""Selecting slides: those with a label and features, and for an append, only those that are new."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from data_prep.readers.members import encoder_of
from data_prep.readers.sources import Source, some
from data_prep.tables.cases import of_the_same_cases
from data_prep.tables.classes import class_order
from data_prep.tables.labels import SlideLabel
from data_prep.tables.target_cells import text_of
from data_prep.writing.plan import PlannedBag
from data_prep.writing.tasks import label_of
from mhimdist.data.format import shard_number
from mhimdist.data.manifest import Manifest
from mhimdist.data.targets import CLASSIFICATION, TARGETS, TaskInfo
from mhimdist.errors import DataError, LabelError
from mhimdist.tables.cells import is_missing
from mhimdist.tables.names import (
    affix_that_joins,
    begins_names,
    composed,
    examples,
    rounded,
    rule_that_joins,
)


def labels_of(
    sources: Mapping[str, Source],
    class_map: Mapping[str, str],
    task: TaskInfo = CLASSIFICATION,
    *,
    skip_missing: bool = False,
) -> tuple[list[SlideLabel], dict[str, str]]:
    """The labels that bundles state for their bags.

    Args:
        sources: the bags by slide.
        class_map: new names of classes by their old names.
        task: what the labels mean, see `tasks.task_of`.
        skip_missing: leave out bags without a label, rather than refusing them all.

    Returns:
        The labels, and why bags are left out, by slide.

    Raises:
        LabelError: a bag has no label, or its case is a mark for a missing value.
    """
    table, left_out = [], {}
    for slide, source in sources.items():
        label, case = source.details.get("label"), source.details.get("case")
        # Without a case, a slide is its own; "NA" would be a patient with the slides of many.
        no_case = case is not None and case != "" and is_missing(str(case)) and str(case) != slide
        if not task.of_classes:  # our shards, which state both
            targets = source.details["targets"]
            table.append(SlideLabel(slide, str(case), text_of(task, targets), "", targets))
            continue
        if not no_case and label is not None and (not is_missing(str(label)) or str(label) in class_map):
            said = composed(str(label))
            table.append(SlideLabel(slide, composed(str(case or slide)), class_map.get(said, said)))
            continue
        what = "case" if no_case else "label"
        if not skip_missing:
            raise LabelError(
                f"{source.path} states no {what} for {slide!r}; give a table of labels with --labels, or "
                "leave out such slides with --skip-unmatched"
            )
        left_out[slide] = f"{source.path.name} states no {what}"
    return table, left_out


def classes_of(sources: Mapping[str, Source], class_map: Mapping[str, str]) -> tuple[str, ...] | None:
    """The classes in the order that our shards have them in; None if there are no such shards.

    Raises:
        LabelError: the shards are of data sets whose classes are in different orders.
    """
    said = {source.details.get("classes") for source in sources.values()}
    orders = sorted(
        {
            tuple(dict.fromkeys(class_map.get(name, name) for name in map(composed, names)))
            for names in said
            if isinstance(names, tuple)
        }
    )
    if not orders:
        return None
    longest = max(orders, key=len)
    if other := next((order for order in orders if order != longest[: len(order)]), None):
        raise LabelError(
            f"the shards have their classes in different orders, {longest} and {other}; give --classes"
        )
    return longest


def class_names(
    table: Sequence[SlideLabel],
    given: Sequence[str] | None,
    before: Manifest | None,
    in_shards: Sequence[str] | None = None,
) -> tuple[str, ...]:
    """The classes in the order of their indices; new ones follow those of the data set.

    Args:
        table: the labels.
        given: the classes that the user gave.
        before: the data set to append to, if there is one.
        in_shards: their order in the shards that the labels come from, used if the user gave none.

    Raises:
        LabelError: the given classes do not begin with the data set's, or a label is not among them.
    """
    if before is None:
        return class_order(table, given or in_shards)
    old = before.info.classes
    if given is not None and tuple(given[: len(old)]) != old:
        raise LabelError(
            f"expected classes that begin with those of the data set, {list(old)}, got {list(given)}"
        )
    return class_order(table, given or old)


def not_in(
    table: Sequence[SlideLabel], sources: Mapping[str, Source], before: Manifest
) -> tuple[list[SlideLabel], dict[str, Source]]:
    """The slides that a data set does not have yet; refuse those that it has with another label or case.

    Args:
        table: the labels.
        sources: the features by slide.
        before: the data set.

    Returns:
        Labels and features of the slides that are new.

    Raises:
        LabelError: the data set has a slide of the table with another label or case.
    """
    names = [name for name in ("slide", "case", "label", TARGETS) if name in before.rows.column_names]
    had = {row["slide"]: label_of(row, before.info) for row in before.rows.select(names).to_pylist()}
    for row in table:
        if row.slide in had and row != had[row.slide]:
            there = had[row.slide]
            raise LabelError(
                f"slide {row.slide!r} is in the data set as {there.label!r} of case {there.case!r}, but in "
                f"the table as {row.label!r} of case {row.case!r}"
            )
    return [row for row in table if row.slide not in had], {
        slide: source for slide, source in sources.items() if slide not in had
    }


def refuse_another_encoder(bags: Sequence[PlannedBag], before: Manifest, out: Path) -> None:
    """Refuse bags whose features are of another encoder than those of a data set.

    Args:
        bags: the new bags, all of one encoder.
        before: the data set.
        out: its folder.

    Raises:
        DataError: the encoders differ.
    """
    named = ((bag.columns["slide"], json.loads(bag.json)["encoder"]) for bag in bags)
    slide, new = next(((slide, encoder) for slide, encoder in named if encoder), ("", None))
    if new and (old := encoder_of(out, before)) and old != new:
        raise DataError(f"slide {slide!r}: expected features of {old!r} as in {out}, got {new!r}")


def next_number(before: Manifest | None) -> int:
    """Number of the first new shard."""
    return 1 + max(shard_number(shard.name) for shard in before.info.shards) if before else 0


def matched(
    table: list[SlideLabel], sources: Mapping[str, Source], features: Path, labels: Path, *, skip: bool
) -> tuple[list[SlideLabel], tuple[str, ...]]:
    """Select slides with both features and a label; refuse, or return, those that have only one of them.

    Args:
        table: the labels.
        sources: the features by slide.
        features: where the features are, for messages.
        labels: where the labels are, for messages.
        skip: whether to pass over slides that have only one of them.

    Returns:
        The labels of slides that have both, and the slides that are passed over.

    Raises:
        DataError: a slide with a label has no features.
        LabelError: a slide with features has no label.
    """
    slides = {row.slide for row in table}
    missing = [row.slide for row in table if row.slide not in sources]
    unlabelled = sorted(sources.keys() - slides)
    if skip:
        return [row for row in table if row.slide in sources], (*missing, *unlabelled)
    if missing:
        others = f"; features without a label: {examples(unlabelled)}" if unlabelled else ""
        raise DataError(
            f"no features in {features} for {len(missing)} of {len(table)} slides in {labels} "
            f"(--skip-unmatched passes over them{others}): {some(missing)}{_why(missing, unlabelled)}"
        )
    if unlabelled:
        raise LabelError(
            f"no label in {labels} for {len(unlabelled)} of {len(sources)} slides in {features} "
            f"(--skip-unmatched passes over them): {some(unlabelled)}"
        )
    return table, ()


def nothing_in_both(
    table: Sequence[SlideLabel], sources: Mapping[str, Source], features: Path, labels: Path
) -> DataError:
    """The error for labels of which none is of a slide with features; with examples, and why if it shows.

    Args:
        table, sources, features, labels: as in `matched`.
    """
    slides = [row.slide for row in table]
    if not slides:
        return DataError(f"no row of {labels} says all of slide, label and case; nothing is left to shard")
    sides = f"labels: {examples(slides)}; features: {examples(sources) or 'none'}"
    return DataError(
        f"no slide has both a label in {labels} and features in {features} ({sides}); name the slides alike "
        f"in both{_why(slides, sorted(sources))}"
    )


def _why(missing: Sequence[str], unlabelled: Sequence[str]) -> str:
    """What could join the names of a table to features, as the end of a message."""
    if rule := rule_that_joins(missing, unlabelled):
        tcga = all(name.upper().startswith("TCGA-") for name in missing)
        return f"{rule}, or join TCGA barcodes with --case-from tcga" if tcga else rule
    if said := rounded(missing):
        return said
    affix = affix_that_joins(missing, unlabelled)
    if begins_names(missing, unlabelled):
        return (
            "; these look like cases, as they begin the names of features: give --slides, a table of slide "
            "and case, or --case-from tcga for TCGA barcodes"
            f"{f'; or, if they are slides, write them alike: {affix}' if affix else ''}"
        )
    if affix:
        return f"; write them alike: {affix}"
    if missing and of_the_same_cases(missing, unlabelled):
        return (
            "; they are other samples or slides of the same TCGA cases: label the cases (TCGA-XX-XXXX) and "
            "give --case-from tcga, or --slides, a table of slide and case"
        )
    return ""
