"""Tables of labels: the class and the case of each slide."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from data_prep.tables.label_cells import ClassCells, Gap, Gaps, LabelCells, Said, case_of, class_of
from data_prep.tables.target_cells import TargetCells
from data_prep.tables.target_columns import TargetColumns
from mhimdist.data.targets import CLASSIFICATION, TaskInfo
from mhimdist.errors import LabelError
from mhimdist.tables.cells import is_missing
from mhimdist.tables.columns import CASE, LABEL, SLIDE, Kind, find, has, headed, known_names, plain, require
from mhimdist.tables.names import KnownNames, alike, examples, rounded, rule_that_joins
from mhimdist.tables.reading import Table, read_table

_MOST_TITLE_LINES = 20
"""So many lines may be above a header for a message to find it."""


@dataclass(frozen=True)
class SlideLabel:
    """A row of the label table.

    Attributes:
        slide, case, label: what it says, without spaces around it; of targets the label is for messages.
        where: the file and the line, for messages; empty if it is of no table.
        targets: the targets in the order of the task's columns, None for one that is missing.
    """

    slide: str
    case: str
    label: str
    where: str = field(default="", compare=False)
    targets: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class Columns:
    """The columns of a label table, by name or by number from 1; None finds a column by its usual names.

    Attributes:
        slide, label, case: the columns of this.
        targets: the columns of a task with targets, which take the place of the label.
    """

    slide: str | None = None
    label: str | None = None
    case: str | None = None
    targets: TargetColumns | None = None

    def given(self, kind: Kind) -> str | None:
        """What the user said of a kind of column."""
        return {SLIDE: self.slide, LABEL: self.label, CASE: self.case}[kind]


@dataclass(frozen=True)
class LabelTable:
    """What a table of labels says.

    Attributes:
        rows: the slides, each with its case and label.
        left_out: why slides have no ground truth, by slide; by line, if the table does not say the slide.
        others: names of its columns that are neither slide nor label nor case.
        task: the task that `Columns.targets` asked for, with its columns as the table names them.
    """

    rows: list[SlideLabel]
    left_out: dict[str, str] = field(default_factory=dict)
    others: Sequence[str] = ()
    task: TaskInfo = CLASSIFICATION


def read_labels(
    path: Path,
    *,
    columns: Columns | None = None,
    slides: Path | None = None,
    class_map: Mapping[str, str] | None = None,
    known: Collection[str] | None = None,
    skip_missing: bool = False,
    cases_alone: bool = False,
) -> LabelTable:
    """Read a table of labels, in any format that `tables.reading.read_table` reads, with or without a header.

    Columns are found by their usual names (`SLIDE`, `LABEL` and `CASE` of `tables.columns`), whatever their
    case, spaces and underscores; other columns are ignored. A table whose first line holds none of these
    names has no header: two columns are then slide and label, and other ones can be given by number. The
    first line is then a header if its slide is not known, its label is that of no other line, and a slide
    below is known. Without a case column, each slide is its own case. A whole number with decimals is the
    number: "1.0" is "1", and so is "1,0" if no comma divides the cells.
    Lines that repeat a slide or a case are one if they agree.

    Args:
        path: the table.
        columns: columns with unusual names; that of the case may be in one of the two tables only.
        slides: a second table, of slides and cases, if the first one labels cases; a case may have any
            number of slides.
        class_map: new names of classes by their names in the table; other classes keep their names. Of events
            and labels, "0" or "1" by what cells say.
        known: the slides that there are; only these may be called "NA" or alike. None means that all may.
        skip_missing: leave out slides without a case or label, rather than refusing the table.
        cases_alone: whether a table of cases and labels, without slides, will do even if the cases are not
            all among the slides; a case is then its own slide.

    Raises:
        LabelError: the table or a column is missing, a cell is empty, two lines of a slide or a case
            differ, slides are of a case without a label, or no slide has a class that is to be renamed.
    """
    columns = columns or Columns()
    table = _read(path, columns, SLIDE if slides is None else CASE, LABEL)
    gaps, renamed = Gaps(skip_missing), {}
    if columns.targets is None:
        renamed = {class_of(table, old): new for old, new in (class_map or {}).items()}
    if slides is not None:
        of_slides = _read(slides, replace(columns, targets=None), SLIDE, CASE)
        in_table = _fitting(columns, table, of_slides)
        cells = _cells(table, in_table, renamed, class_map)
        label_of = _labels_of_cases(table, in_table, cells, gaps)
        rows = _slides_of_cases(of_slides, _fitting(columns, of_slides, table), path, label_of, known, gaps)
    elif _names_cases_alone(table, columns):
        cells = _cells(table, columns, renamed, class_map)
        label_of = _labels_of_cases(table, columns, cells, gaps)
        if not cases_alone and not (known and label_of.keys() <= set(known)):
            raise LabelError(
                f"{path} names cases and no slides (columns: {table.columns}): give --slides, a table of "
                "slide and case; or --case-from tcga, if slides have TCGA barcodes; or --slide-column"
            )
        rows = [SlideLabel(case, case, said.text, "", said.targets) for case, said in label_of.items()]
    else:
        cells = _cells(table, columns, renamed, class_map)
        rows = _labelled_slides(table, columns, cells, known, gaps, cases_alone)
    gaps.refuse()
    task = cells.info if isinstance(cells, TargetCells) else CLASSIFICATION
    unused = cells.unseen if isinstance(cells, TargetCells) else set(renamed) - {row.label for row in rows}
    if unused:
        raise LabelError(f"{path}: no slide has the label {min(unused)!r}, which --class-map renames")
    rows = [replace(row, label=renamed.get(row.label, row.label)) for row in rows]
    others = _others(table, columns, cells) if slides is None else ()
    return LabelTable(rows, gaps.left_out, others, task)


def _cells(
    table: Table, columns: Columns, renamed: Mapping[str, str], words: Mapping[str, str] | None
) -> LabelCells:
    """What reads the labels of a table: its classes, or the targets that the user asks for."""
    if columns.targets is not None:
        return TargetCells(table, columns.targets, words or {})
    return ClassCells(table, _column(table, LABEL, columns, 1), renamed)


def _others(table: Table, columns: Columns, cells: LabelCells) -> list[str]:
    """The columns with a name that are neither slide nor label nor case."""
    if not table.columns:
        return []
    used = {find(table, kind, columns.given(kind), error=LabelError) for kind in (SLIDE, CASE)}
    used |= set(cells.columns)
    return [name for index, name in enumerate(table.columns) if name and index not in used]


def without_suffixes(rows: Sequence[SlideLabel], known: Collection[str]) -> list[SlideLabel]:
    """The rows, with slides named as the features are.

    Folders and suffixes make no difference on either side if the bare name is that of one slide:
    "batch/a.svs", "a.svs" and "a" become "a", or "a.svs" if the features are in "a.svs.h5". See
    `tables.names`.

    Raises:
        LabelError: two rows become the same slide, or a row could be more than one slide.
    """
    names = KnownNames(known)
    renamed: dict[str, SlideLabel] = {}
    first_of: dict[str, SlideLabel] = {}
    for row in rows:
        slides = names.meant_by(row.slide) or [row.slide]
        if len(slides) > 1:
            raise LabelError(
                f"slide {row.slide!r} of the table could be any of {sorted(slides)}; give its full name"
            )
        (slide,) = slides
        if slide in renamed:
            lines = " and ".join(
                f"{each.where} ({each.slide!r}, label {each.label!r})" for each in (first_of[slide], row)
            )
            raise LabelError(
                f"slide {slide!r} is in the table twice, once as {row.slide!r}: {lines}; remove one of them, "
                "or give both the full names of files of features"
            )
        first_of[slide] = row
        renamed[slide] = replace(row, slide=slide, case=slide if row.case == row.slide else row.case)
    return list(renamed.values())


def refuse_spellings_of_cases(where_of: Mapping[str, str]) -> None:
    """Refuse cases whose names are nearly the same, as one patient could be on two sides of a split.

    Args:
        where_of: where each case is named; may be empty.

    Raises:
        LabelError: two differ only in upper and lower case, spaces, and the way that accents are stored.
    """
    if spellings := alike(where_of):
        places = " and ".join(
            f"{name!r} ({where_of[name]})" if where_of[name] else repr(name) for name in spellings
        )
        raise LabelError(
            f"cases {places} differ only in case or spaces: write them alike in the table, if they are one "
            "patient; otherwise give one of them another name"
        )


def _names_cases_alone(table: Table, columns: Columns) -> bool:
    return bool(
        table.columns
        and find(table, SLIDE, columns.slide, error=LabelError) is None
        and find(table, CASE, columns.case, error=LabelError) is not None
        and (columns.targets or find(table, LABEL, columns.label, error=LabelError) is not None)
    )


def _fitting(columns: Columns, table: Table, other: Table) -> Columns:
    """The columns to look for in one of two tables: the case by its usual names, if only the other has it."""
    if columns.case is None or has(table, columns.case) or not has(other, columns.case):
        return columns
    return replace(columns, case=None)


def _column(table: Table, kind: Kind, columns: Columns, position: int) -> int:
    """The number of a column that must be there; in a table without a header, its usual place."""
    if columns.given(kind) is None and not table.columns:
        return position
    return require(table, kind, columns.given(kind), error=LabelError)


def _labels_of_cases(table: Table, columns: Columns, label_cells: LabelCells, gaps: Gaps) -> dict[str, Said]:
    """The label of each case of a table of cases; rows that repeat a case must agree."""
    case_column = _column(table, CASE, columns, 0)
    label_of: dict[str, Said] = {}
    line_of: dict[str, int] = {}
    for line, cells in table.rows:
        case, said = case_of(table, cells[case_column]), label_cells.read(line, cells)
        if is_missing(case):
            gaps.add(table, line, case_column, cells, CASE, "")
        elif isinstance(said, Gap):
            gaps.add_label(table, line, said, cells, case)
        elif label_of.setdefault(case, said) != said:
            differ = f"with another label: {label_of[case].text!r} and {said.text!r}"
            raise _repeated(table, CASE, case, line_of[case], line, differ)
        elif case in line_of and rounded([case]):
            raise _repeated(table, CASE, case, line_of[case], line)
        line_of.setdefault(case, line)
    refuse_spellings_of_cases({case: f"{table.path}, line {line_of[case]}" for case in label_of})
    return label_of


def _slides_of_cases(
    table: Table,
    columns: Columns,
    labels: Path,
    label_of: Mapping[str, Said],
    known: Collection[str] | None,
    gaps: Gaps,
) -> list[SlideLabel]:
    """The slides of a table of slides and cases, with the labels of their cases."""
    slide_column, case_column = _column(table, SLIDE, columns, 1), _column(table, CASE, columns, 0)
    of_cases, gaps.left_out = gaps.left_out, {}  # listed by their slides
    table = _below_header(table, slide_column, case_column, known, columns)
    rows: list[tuple[int, SlideLabel]] = []
    unlabelled: dict[str, str] = {}
    for line, cells, slide in _slides(table, slide_column, known, gaps):
        case = case_of(table, cells[case_column])
        if is_missing(case):
            gaps.add(table, line, case_column, cells, CASE, slide)
        elif case in label_of:
            said, where = label_of[case], f"{table.path}, line {line}"
            rows.append((line, SlideLabel(slide, case, said.text, where, said.targets)))
        else:
            unlabelled[slide] = case
            gaps.left_out[slide] = of_cases.get(case, f"{labels.name}: no label for case {case!r}")
    gaps.refuse()
    if unlabelled and not gaps.skip:
        cases = sorted(set(unlabelled.values()))
        raise LabelError(
            f"{table.path}: no label in {labels} for cases of this table ({len(cases)}): {cases[:5]} "
            f"(--skip-unmatched leaves out and lists their slides; cases with a label: {examples(label_of)})"
            f"{rule_that_joins(cases, label_of, 'cases with a label')}"
        )
    return _once(table, SLIDE, rows, gaps)


def _labelled_slides(
    table: Table,
    columns: Columns,
    label_cells: LabelCells,
    known: Collection[str] | None,
    gaps: Gaps,
    cases_alone: bool,
) -> list[SlideLabel]:
    """The slides of a table of slides, labels and, if it has such a column, cases."""
    slide_column = _column(table, SLIDE, columns, 0)
    names_cases = bool(table.columns) and plain(table.columns[slide_column]) in known_names(CASE)
    case_column = None
    # The GDC has two columns of cases: barcodes in one of them say the case, and the other has other names.
    by_barcode = names_cases and cases_alone and columns.case is None
    if not by_barcode and (table.columns or columns.case is not None):
        case_column = find(table, CASE, columns.case, error=LabelError)
    table = _below_header(table, slide_column, label_cells.columns[0], known, columns)
    rows: list[tuple[int, SlideLabel]] = []
    for line, cells, slide in _slides(table, slide_column, known, gaps):
        said = label_cells.read(line, cells)
        case = slide if case_column is None else case_of(table, cells[case_column])
        if case_column is not None and case != slide and is_missing(case):
            gaps.add(table, line, case_column, cells, CASE, slide)
        elif isinstance(said, Gap):
            gaps.add_label(table, line, said, cells, slide)
        else:
            where = f"{table.path}, line {line}"
            rows.append((line, SlideLabel(slide, case, said.text, where, said.targets)))
    return _once(table, CASE if names_cases else SLIDE, rows, gaps)


def _once(table: Table, kind: Kind, rows: Sequence[tuple[int, SlideLabel]], gaps: Gaps) -> list[SlideLabel]:
    """The rows of a table with their lines, each slide once; lines that repeat a slide must agree.

    Raises:
        LabelError: they do not, or a spreadsheet has rounded the name, which may then be that of two slides.
    """
    found: dict[str, tuple[int, SlideLabel]] = {}
    for line, row in rows:
        first_line, first = found.setdefault(row.slide, (line, row))
        pairs = {"case": (first.case, row.case), "label": (first.label, row.label)}
        differ = " and ".join(
            f"with another {what}: {one!r} and {two!r}" for what, (one, two) in pairs.items() if one != two
        )
        if differ or (line != first_line and rounded([row.slide])):
            raise _repeated(table, kind, row.slide, first_line, line, differ)
        gaps.left_out.pop(row.slide, None)  # another line says what one does not
    return [row for _, row in found.values()]


def _repeated(table: Table, kind: Kind, name: str, first: int, line: int, differ: str = "") -> LabelError:
    """The error for a slide or a case that two lines name, and in what they differ."""
    return LabelError(
        f"{table.path}: {kind.what} {name!r} is in line {first} and again in line {line}"
        f"{differ and f', {differ}'}{rounded([name]) or '; remove one of them'}"
    )


def _below_header(
    table: Table, slide_column: int, other_column: int, known: Collection[str] | None, columns: Columns
) -> Table:
    """The table without a first line that is like a header of unusual names, and unlike the lines below it.

    Args:
        table: the table, with or without a header of usual names.
        slide_column: the column of slides.
        other_column: the column of labels, or of cases.
        known: the slides that there are; None if nobody knows.
        columns: the columns that the user gave.

    Raises:
        LabelError: there is such a line, but the user did not give the columns by number.
    """
    if table.columns or known is None or not table.rows:
        return table
    names = KnownNames(known)
    (line, first), *others = table.rows
    if (
        names.meant_by(first[slide_column].strip())
        or any(cells[other_column].strip() == first[other_column].strip() for _, cells in others)
        or not any(names.meant_by(cells[slide_column].strip()) for _, cells in others)
    ):
        return table
    if columns.slide is not None:
        return replace(table, rows=others)
    raise LabelError(
        f"{table.path}, line {line}: {first} is no slide and no class of another line; if it is a header, "
        "name its columns with --slide-column and --label-column"
    )


def _slides(
    table: Table, column: int, known: Collection[str] | None, gaps: Gaps
) -> list[tuple[int, list[str], str]]:
    """The line, the cells and the slide of each row that names one."""
    found = []
    for line, cells in table.rows:
        slide = cells[column].strip()
        # A slide may be named "nan" if there are features of that name.
        if not slide or (is_missing(slide) and known is not None and slide not in known):
            gaps.add(table, line, column, cells, SLIDE, "")
            continue
        found.append((line, cells, slide))
    return found


def _read(path: Path, columns: Columns, *kinds: Kind) -> Table:
    """A table in which there must be columns of some kinds; without a header if it has none."""
    if not path.is_file():
        raise LabelError(f"no label table at {path}")
    table = read_table(path, error=LabelError, row="slide", header_alone=True)
    label = (LABEL,) if columns.targets is None else columns.targets.kinds
    asked = (columns.slide, columns.label, columns.case, *(columns.targets.given if columns.targets else ()))
    names = known_names(SLIDE, CASE, *label) | {plain(name) for name in asked if name} - {""}
    names -= {name for name in names if name.isdecimal()}  # the number of a column is no sign of a header
    table = headed(table, names)
    if names & set(map(plain, table.columns)):
        if not table.rows:
            raise LabelError(f"{path}: expected a header and at least one slide, got 1 lines")
        return table
    for line, cells in table.rows[:_MOST_TITLE_LINES]:
        if len(names & {plain(word) for cell in cells for word in re.split(r"[,;|\t]", cell)}) > 1:
            raise LabelError(
                f"{path}, line {line}: {cells} is like a header, but a header must be the first line; remove "
                f"the lines above it, which begin with {table.columns}"
            )
    targets = columns.targets if LABEL in kinds else None
    wanted = [columns.given(kind) for kind in kinds if targets is None or kind != LABEL]
    if targets is not None:
        wanted += targets.given or [None]
    if any(name is not None and not name.isdecimal() for name in wanted):
        return table  # in whose header the names are not, as a message will say
    if None in wanted and (table.width != 2 or targets is not None):
        or_two = "" if targets is not None else ", or two columns, slide and label"
        options = "--label-column" if targets is None else " and ".join(targets.options)
        raise LabelError(
            f"{path}: expected a header with known names{or_two}; got {table.width} "
            f"columns and the first line {table.columns}; give --slide-column and {options}"
        )
    return table.without_header()
