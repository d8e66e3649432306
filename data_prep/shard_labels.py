"""What to shard: the slides with their labels, their features, and what the labels mean."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data_prep.readers.folders import find_features
from data_prep.readers.sources import Source, some
from data_prep.shard_options import ShardOptions
from data_prep.tables.cases import cases_of_barcodes, missing_cases, refuse_spellings, slides_of_barcodes
from data_prep.tables.classes import refuse_measurements, spelled_as
from data_prep.tables.grades import grades_in_order
from data_prep.tables.labels import Columns, LabelTable, SlideLabel, read_labels, without_suffixes
from data_prep.tables.target_checks import refuse_unlearnable, warning_of_cases
from data_prep.writing.progress import doing
from data_prep.writing.selection import class_names, classes_of, labels_of
from data_prep.writing.tasks import refuse_another_task, task_of
from mhimdist.data.manifest import Manifest
from mhimdist.data.targets import CLASSIFICATION, TaskInfo
from mhimdist.foreign_text import say
from mhimdist.tables.names import KnownNames


@dataclass(frozen=True)
class Labelled:
    """The slides to shard.

    Attributes:
        rows: the labels.
        sources: the features by set and slide; that of features without a name is "".
        task: what the labels mean.
        classes: the classes in the order of their indices; empty for targets, whose strata are decided last.
        left_out: why slides without ground truth are left out, by slide.
    """

    rows: list[SlideLabel]
    sources: dict[str, dict[str, Source]]
    task: TaskInfo
    classes: tuple[str, ...]
    left_out: dict[str, str]


def labelled(options: ShardOptions, before: Manifest | None) -> Labelled:
    """Find the labels and the features of all slides, used or not; the first set tells how slides are named.

    Raises:
        ConfigError: an option does not fit the task.
        DataError: the features cannot be used.
        LabelError: the labels cannot be used, or are of another task than the data set to append to.
    """
    sets = {}
    for name, path in options.sets.items():
        with doing(f"looking for features in {path}"):
            sets[name] = find_features(path, options.stated)
    sources, place = next(iter(sets.values())), options.labels or next(iter(options.sets.values()))
    others: Sequence[str] = ()
    if options.labels is None:
        options.refuse_columns()
        task = task_of(sources, options.task)
        renamed = options.class_map or {}
        rows, left_out = labels_of(sources, renamed, task, skip_missing=options.skip_unmatched)
    else:
        read = _read_labels(options, options.labels, sources, before)
        rows, left_out, others, task = read.rows, read.left_out, read.others, read.task
        if task.of_classes:
            rows = spelled_as(rows, options.classes or (before.info.classes if before else ()))
    rows = without_suffixes(rows, sources)
    if options.case_from is not None:
        rows = cases_of_barcodes(rows)
    if before is not None:
        task = refuse_another_task(task, before, options.out)
    classes: tuple[str, ...] = ()
    if task.of_classes and options.labels is not None and options.classes is None and before is None:
        refuse_measurements(rows, options.labels)
    refuse_spellings(rows, before)
    if task.of_classes:
        classes = _classes(options, before, sources, rows, task)
    elif used := [row for row in rows if row.slide in sources]:
        refuse_unlearnable(used, task, place)
    disagreeing = None if task == CLASSIFICATION else warning_of_cases(rows)
    for warning in (missing_cases(rows, others), disagreeing):
        if warning is not None:
            say(f"warning: {warning}", stderr=True)  # now, not after hours
    return Labelled(rows, sets, task, classes, left_out)


def _classes(
    options: ShardOptions,
    before: Manifest | None,
    sources: dict[str, Source],
    rows: list[SlideLabel],
    task: TaskInfo,
) -> tuple[str, ...]:
    """The classes in the order of their indices; of grades this is their order."""
    in_shards = None
    if options.labels is None and options.classes is None:
        in_shards = classes_of(sources, options.class_map or {})
    used = [row for row in rows if row.slide in sources] if options.skip_unmatched else rows
    classes = class_names(used if options.classes else rows, options.classes, before, in_shards)
    is_new = options.classes is None and before is None
    if task.name == "ordinal" and is_new and in_shards is None:
        classes = grades_in_order(classes, str(options.labels or next(iter(options.sets.values()))))
    unused = sorted({row.label for row in rows} - {row.label for row in used})
    if used and unused and is_new:
        say(
            f"warning: no slide with features is of class {some(unused)}, and training needs cases of every "
            "class; --classes with the other classes leaves it out",
            stderr=True,
        )
    return classes


def _read_labels(
    options: ShardOptions, labels: Path, sources: dict[str, Source], before: Manifest | None
) -> LabelTable:
    """What the label table says; slides without ground truth have the name of their features."""
    known = before.info.task.name if before is not None and before.info.task is not None else None
    read = read_labels(
        labels,
        columns=Columns(
            options.slide_column, options.label_column, options.case_column, options.target_columns(known)
        ),
        slides=options.slides,
        class_map=options.class_map,
        known=sources,
        skip_missing=options.skip_unmatched,
        cases_alone=options.case_from is not None,
    )
    if (options.task or known) == "ordinal":
        read = replace(read, task=TaskInfo(name="ordinal"))
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
