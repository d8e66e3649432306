"""The section on subgroups: the test figures of the slides that share a value of a column."""

from pathlib import Path

import numpy as np

from mhimdist.errors import DataError, ReportError
from mhimdist.pages.subject import Configuration, Subject
from mhimdist.report import blocks, formats
from mhimdist.report.blocks import Cell, Section
from mhimdist.report.comparison import interval_text
from mhimdist.statistics.bootstrap import estimates
from mhimdist.statistics.metrics import Scores, auc, auc_interval
from mhimdist.tables import columns
from mhimdist.tables.cells import is_missing
from mhimdist.tables.names import bare
from mhimdist.tables.reading import read_table

UNKNOWN = "(no value)"


def read_groups(wanted: str) -> tuple[str, dict[str, str]]:
    """The value of a column for each slide.

    Args:
        wanted: a table and the name of its column, as `labels.csv:scanner`.

    Returns:
        The column's name, and its values by the slide's bare name.

    Raises:
        ReportError: there is no such column, or a slide has two values.
        DataError: the table cannot be read, or has no column of slides.
    """
    file, _, column = wanted.rpartition(":")
    if not file or not column:
        raise ReportError(f"subgroups: expected a table and a column, as labels.csv:scanner, got {wanted!r}")
    table = read_table(Path(file).expanduser())
    if column not in table.columns:
        raise ReportError(f"{file}: expected a column {column!r}, found {', '.join(table.columns)}")
    slide = columns.require(table, columns.SLIDE, error=DataError)
    value = table.columns.index(column)
    groups: dict[str, str] = {}
    for line, cells in table.rows:
        name = bare(cells[slide])
        group = UNKNOWN if is_missing(cells[value]) else cells[value].strip()
        if groups.setdefault(name, group) != group:
            raise ReportError(
                f"{file}, line {line}: slide {name!r} is {groups[name]!r} above and {group!r} here"
            )
    return column, groups


def subgroups_section(subject: Subject, wanted: str) -> Section:
    """Test figures by the values of a column, for every configuration.

    Raises:
        ReportError, DataError: see `read_groups`; or the table has none of the test slides.
    """
    column, groups = read_groups(wanted)
    tested = {bare(key) for each in subject.tested for network in each.networks for key in network.keys}
    if not tested & groups.keys():
        some = ", ".join(sorted(tested)[:3])
        raise ReportError(f"{wanted}: expected rows of the test slides ({some}, ...), found none of them")
    names = sorted({groups.get(key, UNKNOWN) for key in tested}, key=lambda name: (name == UNKNOWN, name))
    make = _row if subject.task is None else _row_of_task
    rows = [
        make(each, name, groups, several=len(subject.protocols) > 1)
        for each in subject.tested
        for name in names
    ]
    caption = (
        f"Test figures of the slides that share a value of {column}: means over the networks, each at its "
        "threshold, where they are defined. Small groups have wide intervals, and of many groups some "
        "differ by chance."
    )
    figures = ["AUC", "95 % interval", "accuracy"]
    if (task := subject.task) is not None:
        figures = [task.title, "95 % interval", *list(task.headings.values())[1:]]
    header = ["configuration", column, "slides", "cases", *figures]
    return blocks.section(
        "subgroups",
        f"Subgroups by {column}",
        blocks.table("subgroups-table", header, rows, texts=2, caption=caption),
    )


def _row(
    configuration: Configuration, name: str, groups: dict[str, str], *, several: bool
) -> list[str | Cell]:
    parts, right, slides, cases = [], [], set(), set()
    for network, predicted_N in zip(configuration.networks, configuration.predicted, strict=True):
        scores = network.scores
        inside = [i for i, key in enumerate(network.keys) if groups.get(bare(key), UNKNOWN) == name]
        if not inside:
            continue
        slides |= {network.keys[i] for i in inside}
        part = Scores(
            scores.labels_N[inside], scores.probabilities_NC[inside], [scores.cases[i] for i in inside]
        )
        cases |= set(part.cases)
        right.append(float((predicted_N[inside] == part.labels_N).mean()))
        if auc(part.labels_N, part.probabilities_NC) is not None:
            parts.append(part)
    aucs = [value for part in parts if (value := auc(part.labels_N, part.probabilities_NC)) is not None]
    return [
        configuration.name + (f", {configuration.protocol}" if several else ""),
        name,
        f"{len(slides):,}",
        f"{len(cases):,}",
        formats.auc(float(np.mean(aucs)) if aucs else None),
        interval_text(auc_interval(parts)).replace("-", "–") if aucs else formats.NONE,
        formats.auc(float(np.mean(right)) if right else None),
    ]


def _row_of_task(
    configuration: Configuration, name: str, groups: dict[str, str], *, several: bool
) -> list[str | Cell]:
    """The same with the metrics of a task; an interval only where every network has the first of them."""
    task = configuration.task
    assert task is not None, "whoever calls has looked"
    parts, slides, cases = [], set(), set()
    for network in configuration.networks:
        inside = [i for i, key in enumerate(network.keys) if groups.get(bare(key), UNKNOWN) == name]
        if inside:
            slides |= {network.keys[i] for i in inside}
            part = network.judged.at(inside)
            cases |= set(part.cases)
            parts.append((network.task or task).weighed(part, network.fitted))
    once = [part.once() for part in parts]
    values = {
        metric: [value for each in once if (value := each.get(metric)) is not None]
        for metric in task.headings
    }
    first, *others = (formats.auc(float(np.mean(each)) if each else None) for each in values.values())
    found = estimates(parts)[task.selection]
    return [
        configuration.name + (f", {configuration.protocol}" if several else ""),
        name,
        f"{len(slides):,}",
        f"{len(cases):,}",
        first,
        formats.NONE if found is None else f"{found.low:.3f} to {found.high:.3f}",
        *others,
    ]
