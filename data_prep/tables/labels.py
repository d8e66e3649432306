"""Tables of labels: the class and the case of each slide."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mhimdist.errors import LabelError
from mhimdist.tables.cells import is_missing
from mhimdist.tables.columns import CASE, LABEL, SLIDE, Kind, find, has, headed, known_names, plain, require
from mhimdist.tables.names import KnownNames, alike, composed, examples, rounded, rule_that_joins
from mhimdist.tables.reading import Table, read_table

_MOST_TITLE_LINES = 20
"""So many lines may be above a header for a message to find it."""


@dataclass(frozen=True)
class SlideLabel:
    """A row of the label table.

    Attributes:
        slide, case, label: what it says, without spaces around it.
        where: the file and the line, for messages; empty if it is of no table.
    """

    slide: str
    case: str
    label: str
    where: str = field(default="", compare=False)


@dataclass(frozen=True)
class Columns:
    """The columns of a label table, by name or by number from 1; None finds a column by its usual names."""

    slide: str | None = None
    label: str | None = None
    case: str | None = None

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
    """

    rows: list[SlideLabel]
    left_out: dict[str, str] = field(default_factory=dict)
    others: Sequence[str] = ()


@dataclass
class _Gaps:
    """Rows in which a cell is missing: refused all at once, or left out.

    Attributes:
        skip: whether they are left out.
        left_out: why, by slide or case.
        refused: the message for each, in order.
    """

    skip: bool
    left_out: dict[str, str] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)

    def add(self, table: Table, line: int, column: int, cells: list[str], what: Kind, name: str) -> None:
        self.left_out[name or f"line {line} of {table.path.name}"] = (
            f"{table.path.name}, line {line}: the {what.what} is missing"
        )
        mark = cells[column].strip()
        problem = f"{mark!r} says that a value is missing" if mark else "a cell is empty"
        self.refused.append(f"{table.path}, line {line}: {problem}: {cells} (the {what.what})")

    def refuse(self) -> None:
        """Refuse the rows, unless they are left out."""
        if self.refused and not self.skip:
            more = f", and so in {len(self.refused) - 1} more lines" if len(self.refused) > 1 else ""
            raise LabelError(f"{self.refused[0]}{more}; --skip-unmatched leaves out and lists such slides")


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
        class_map: new names of classes by their names in the table; other classes keep their names.
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
    renamed = {_label(table, old): new for old, new in (class_map or {}).items()}
    gaps = _Gaps(skip_missing)
    if slides is not None:
        of_slides = _read(slides, columns, SLIDE, CASE)
        label_of = _labels_of_cases(table, _fitting(columns, table, of_slides), renamed, gaps)
        rows = _slides_of_cases(of_slides, _fitting(columns, of_slides, table), path, label_of, known, gaps)
    elif _names_cases_alone(table, columns):
        label_of = _labels_of_cases(table, columns, renamed, gaps)
        if not cases_alone and not (known and label_of.keys() <= set(known)):
            raise LabelError(
                f"{path} names cases and no slides (columns: {table.columns}): give --slides, a table of "
                "slide and case; or --case-from tcga, if slides have TCGA barcodes; or --slide-column"
            )
        rows = [SlideLabel(case, case, label) for case, label in label_of.items()]
    else:
        rows = _labelled_slides(table, columns, renamed, known, gaps, cases_alone)
    gaps.refuse()
    if unused := sorted(set(renamed) - {row.label for row in rows}):
        raise LabelError(f"{path}: no slide has the label {unused[0]!r}, which --class-map renames")
    rows = [replace(row, label=renamed.get(row.label, row.label)) for row in rows]
    return LabelTable(rows, gaps.left_out, _others(table, columns) if slides is None else ())


def _others(table: Table, columns: Columns) -> list[str]:
    """The columns with a name that are neither slide nor label nor case."""
    if not table.columns:
        return []
    used = {find(table, kind, columns.given(kind), error=LabelError) for kind in (SLIDE, LABEL, CASE)}
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


def _label(table: Table, cell: str) -> str:
    """A label; a number without the decimals that say nothing, which spreadsheets and pandas add."""
    name = composed(cell.strip())
    if table.delimiter != "," and re.fullmatch(r"[+-]?[0-9]*,[0-9]+", name):
        name = name.replace(",", ".")
    return re.sub(r"^([+-]?[0-9]+)\.0*$|^([+-]?[0-9]*\.[0-9]*[1-9])0+$", r"\1\2", name)


def _case(table: Table, cell: str) -> str:
    """A case; a whole number without its decimals, but "21.10" is another patient than "21.1"."""
    point = "[.]" if table.delimiter == "," else "[.,]"
    return re.sub(rf"^([+-]?[0-9]+){point}0*$", r"\1", composed(cell.strip()))


def _names_cases_alone(table: Table, columns: Columns) -> bool:
    return bool(
        table.columns
        and find(table, SLIDE, columns.slide, error=LabelError) is None
        and find(table, CASE, columns.case, error=LabelError) is not None
        and find(table, LABEL, columns.label, error=LabelError) is not None
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


def _labels_of_cases(
    table: Table, columns: Columns, renamed: Mapping[str, str], gaps: _Gaps
) -> dict[str, str]:
    """The label of each case of a table of cases; rows that repeat a case must agree."""
    case_column, label_column = _column(table, CASE, columns, 0), _column(table, LABEL, columns, 1)
    label_of: dict[str, str] = {}
    line_of: dict[str, int] = {}
    for line, cells in table.rows:
        case, label = _case(table, cells[case_column]), _label(table, cells[label_column])
        if is_missing(case):
            gaps.add(table, line, case_column, cells, CASE, "")
        elif is_missing(label) and label not in renamed:
            gaps.add(table, line, label_column, cells, LABEL, case)
        elif label_of.setdefault(case, label) != label:
            differ = f"with another label: {label_of[case]!r} and {label!r}"
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
    label_of: Mapping[str, str],
    known: Collection[str] | None,
    gaps: _Gaps,
) -> list[SlideLabel]:
    """The slides of a table of slides and cases, with the labels of their cases."""
    slide_column, case_column = _column(table, SLIDE, columns, 1), _column(table, CASE, columns, 0)
    of_cases, gaps.left_out = gaps.left_out, {}  # listed by their slides
    table = _below_header(table, slide_column, case_column, known, columns)
    rows: list[tuple[int, SlideLabel]] = []
    unlabelled: dict[str, str] = {}
    for line, cells, slide in _slides(table, slide_column, known, gaps):
        case = _case(table, cells[case_column])
        if is_missing(case):
            gaps.add(table, line, case_column, cells, CASE, slide)
        elif case in label_of:
            rows.append((line, SlideLabel(slide, case, label_of[case], f"{table.path}, line {line}")))
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
    renamed: Mapping[str, str],
    known: Collection[str] | None,
    gaps: _Gaps,
    cases_alone: bool,
) -> list[SlideLabel]:
    """The slides of a table of slides, labels and, if it has such a column, cases."""
    slide_column, label_column = _column(table, SLIDE, columns, 0), _column(table, LABEL, columns, 1)
    names_cases = bool(table.columns) and plain(table.columns[slide_column]) in known_names(CASE)
    case_column = None
    # The GDC has two columns of cases: barcodes in one of them say the case, and the other has other names.
    by_barcode = names_cases and cases_alone and columns.case is None
    if not by_barcode and (table.columns or columns.case is not None):
        case_column = find(table, CASE, columns.case, error=LabelError)
    table = _below_header(table, slide_column, label_column, known, columns)
    rows: list[tuple[int, SlideLabel]] = []
    for line, cells, slide in _slides(table, slide_column, known, gaps):
        label = _label(table, cells[label_column])
        case = slide if case_column is None else _case(table, cells[case_column])
        if case_column is not None and case != slide and is_missing(case):
            gaps.add(table, line, case_column, cells, CASE, slide)
        elif is_missing(label) and label not in renamed:
            gaps.add(table, line, label_column, cells, LABEL, slide)
        else:
            rows.append((line, SlideLabel(slide, case, label, f"{table.path}, line {line}")))
    return _once(table, CASE if names_cases else SLIDE, rows, gaps)


def _once(table: Table, kind: Kind, rows: Sequence[tuple[int, SlideLabel]], gaps: _Gaps) -> list[SlideLabel]:
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
    table: Table, column: int, known: Collection[str] | None, gaps: _Gaps
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
    given = {plain(name) for name in (columns.slide, columns.label, columns.case) if name}
    names = known_names(SLIDE, LABEL, CASE) | given - {""}
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
    wanted = [columns.given(kind) for kind in kinds]
    if any(name is not None and not name.isdecimal() for name in wanted):
        return table  # in whose header the names are not, as a message will say
    if table.width != 2 and None in wanted:
        raise LabelError(
            f"{path}: expected a header with known names, or two columns, slide and label; got {table.width} "
            f"columns and the first line {table.columns}; give --slide-column and --label-column"
        )
    return table.without_header()
