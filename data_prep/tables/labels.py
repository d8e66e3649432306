"""Tables of labels: the class and the case of each slide."""

import csv
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mhimdist.errors import LabelError

SLIDE_COLUMNS = (
    "slide",
    "slide_id",
    "slide_name",
    "slide_file",
    "filename",
    "wsi",
    "wsi_id",
    "image",
    "image_id",
)
LABEL_COLUMNS = ("label", "class", "target", "slide_label", "diagnosis")
CASE_COLUMNS = ("case", "case_id", "patient", "patient_id", "submitter_id")
SLIDE_SUFFIXES = (
    *(
        ".svs",
        ".tif",
        ".tiff",
        ".ndpi",
        ".mrxs",
        ".czi",
        ".scn",
        ".vms",
        ".bif",
        ".dcm",
        ".qptiff",
        ".isyntax",
    ),
    *(".h5", ".hdf5", ".pt", ".pth", ".npy", ".npz", ".zarr"),
)


@dataclass(frozen=True)
class SlideLabel:
    """A row of the label table."""

    slide: str
    case: str
    label: str


@dataclass(frozen=True)
class Columns:
    """The columns of a label table, by name or by number from 1; None finds a column by its usual names."""

    slide: str | None = None
    label: str | None = None
    case: str | None = None


@dataclass(frozen=True)
class _Table:
    """A table's cells as text, and for each row its line in the file."""

    path: Path
    header: list[str] | None
    rows: list[tuple[int, list[str]]]

    def column(self, given: str | None, usual: Sequence[str], position: int | None) -> int | None:
        """Number of a column from 0; None if there is no such column.

        Args:
            given: name or number that the user gave.
            usual: names to look for otherwise.
            position: number of the column in a table without a header.

        Raises:
            LabelError: the given column does not exist, or more than one column has a usual name.
        """
        header = self.header or []
        if given is not None:
            if given.lower() in header:
                return header.index(given.lower())
            if given.isdecimal() and 1 <= int(given) <= len(self.rows[0][1]):
                return int(given) - 1
            raise LabelError(f"{self.path}: no column {given!r} (columns: {header or len(self.rows[0][1])})")
        if self.header is None:
            return position
        found = [index for index, name in enumerate(header) if name in usual]
        if len(found) > 1:
            names = [header[index] for index in found]
            raise LabelError(f"{self.path}: expected one column named {' or '.join(usual)}, got {names}")
        return found[0] if found else None


def read_labels(
    path: Path,
    *,
    columns: Columns | None = None,
    slides: Path | None = None,
    class_map: Mapping[str, str] | None = None,
) -> list[SlideLabel]:
    """Read a table of labels: CSV or TSV, with or without a header, or Parquet.

    Columns are found by the usual names (`SLIDE_COLUMNS`, `LABEL_COLUMNS`, `CASE_COLUMNS`), whatever their
    case; other columns are ignored. A table whose first line holds none of these names has no header: two
    columns are then slide and label. A byte-order mark, CRLF and blank lines do not matter. Without a case
    column, each slide is its own case.

    Args:
        path: the table.
        columns: columns with unusual names.
        slides: a second table, of slides and cases, if the first one labels cases; a case may have any
            number of slides.
        class_map: new names of classes by their names in the table; other classes keep their names.

    Raises:
        LabelError: the table or a column is missing, a cell is empty, a slide is in the table twice, slides
            are of a case without a label, or no slide has a class that is to be renamed.
    """
    columns = columns or Columns()
    table = _read(path, columns)
    label_column = _required(table, columns.label, LABEL_COLUMNS, 1)
    renamed = class_map or {}
    if slides is not None:
        case_column = _required(table, columns.case, CASE_COLUMNS, 0)
        label_of = dict(_pairs(table, case_column, label_column, "case"))
        slide_table = _read(slides, replace(columns, label=None))
        slide_column = _required(slide_table, columns.slide, SLIDE_COLUMNS, 1)
        case_column = _required(slide_table, columns.case, CASE_COLUMNS, 0)
        case_of = list(_pairs(slide_table, slide_column, case_column, "slide"))
        if unlabelled := sorted({case for _, case in case_of} - label_of.keys()):
            raise LabelError(
                f"{slides}: no label in {path} for cases of this table ({len(unlabelled)}): {unlabelled[:5]}"
            )
        rows = [SlideLabel(slide, case, label_of[case]) for slide, case in case_of]
    else:
        slide_column = _required(table, columns.slide, SLIDE_COLUMNS, 0)
        found = table.column(columns.case, CASE_COLUMNS, None)
        case_of = list(_pairs(table, slide_column, slide_column if found is None else found, "slide"))
        labels = [label for _, label in _pairs(table, slide_column, label_column, "slide")]
        rows = [SlideLabel(slide, case, label) for (slide, case), label in zip(case_of, labels, strict=True)]
    if unused := sorted(set(renamed) - {row.label for row in rows}):
        raise LabelError(f"{path}: no slide has the label {unused[0]!r}, which --class-map renames")
    return [replace(row, label=renamed.get(row.label, row.label)) for row in rows]


def without_suffixes(rows: Sequence[SlideLabel], known: Collection[str]) -> list[SlideLabel]:
    """The rows, with slides named as the features are.

    Folders and suffixes make no difference on either side if the bare name is that of one slide:
    "batch/a.svs", "a.svs" and "a" become "a", or "a.svs" if the features are in "a.svs.h5".

    Raises:
        LabelError: two rows become the same slide, or a row could be more than one slide.
    """
    by_bare_name: dict[str, list[str]] = {}
    for name in known:
        by_bare_name.setdefault(_bare(name), []).append(name)
    renamed: dict[str, SlideLabel] = {}
    for row in rows:
        slides = [row.slide] if row.slide in known else by_bare_name.get(_bare(row.slide), [row.slide])
        if len(slides) > 1:
            raise LabelError(
                f"slide {row.slide!r} of the table could be any of {sorted(slides)}; give its full name"
            )
        (slide,) = slides
        if slide in renamed:
            raise LabelError(f"slide {slide!r} is in the table twice, once as {row.slide!r}")
        renamed[slide] = replace(row, slide=slide, case=slide if row.case == row.slide else row.case)
    return list(renamed.values())


def is_missing(cell: str) -> bool:
    """Whether a cell is empty, or holds what pandas writes for an empty cell."""
    return cell.lower() in ("", "nan", "<na>")


def class_order(labels: Sequence[SlideLabel], classes: Sequence[str] | None = None) -> tuple[str, ...]:
    """The classes in the order of their indices: as given; otherwise by number if all are whole, or by name.

    Raises:
        LabelError: a slide's label is not among the given classes, or a class is named twice.
    """
    names = {row.label for row in labels}
    if classes is None:
        numeric = all(re.fullmatch(r"[+-]?[0-9]+", name) for name in names)
        if numeric and len(set(map(int, names))) < len(names):
            raise LabelError(
                f"labels that are the same number are written in different ways: {sorted(names)}"
            )
        return tuple(sorted(names, key=int) if numeric else sorted(names))
    if len(set(classes)) < len(classes) or not all(classes):
        raise LabelError(f"expected class names that differ and are not empty, got {list(classes)}")
    for row in labels:
        if row.label not in classes:
            raise LabelError(f"slide {row.slide!r} has label {row.label!r}, expected {' or '.join(classes)}")
    return tuple(classes)


def _bare(name: str) -> str:
    """The name of a slide without its folder and suffixes."""
    name = name.rpartition("/")[2]
    while end := next((end for end in SLIDE_SUFFIXES if name.lower().endswith(end)), None):
        name = name[: -len(end)]
    return name


def _required(table: _Table, given: str | None, usual: Sequence[str], position: int) -> int:
    column = table.column(given, usual, position)
    if column is None:
        raise LabelError(
            f"{table.path}: expected one column named {' or '.join(usual)}, got the header {table.header}"
        )
    return column


def _pairs(table: _Table, first: int, second: int, what: str) -> list[tuple[str, str]]:
    """Two cells of each row; neither is empty, and the first is unique."""
    line_of: dict[str, int] = {}
    pairs = []
    for line, cells in table.rows:
        key, value = cells[first].strip(), cells[second].strip()
        # A slide may be named "nan", and its case too, as there must be features of that name.
        is_name = what == "slide" and key != ""
        if (is_missing(key) and not is_name) or (is_missing(value) and not (is_name and value == key)):
            raise LabelError(f"{table.path}, line {line}: a slide, case or label is empty or NaN: {cells}")
        if key in line_of:
            raise LabelError(
                f"{table.path}: {what} {key!r} is in line {line_of[key]} and again in line {line}"
            )
        line_of[key] = line
        pairs.append((key, value))
    return pairs


def _read(path: Path, columns: Columns) -> _Table:
    if not path.is_file():
        raise LabelError(f"no label table at {path}")
    with path.open("rb") as file:
        is_parquet = file.read(4) == b"PAR1"
    table = _read_parquet(path) if is_parquet else _read_text(path, columns)
    if not table.rows:
        raise LabelError(
            f"{path}: expected a header and at least one slide, got {int(bool(table.header))} lines"
        )
    return table


def _read_parquet(path: Path) -> _Table:
    try:
        table = pq.read_table(pa.BufferReader(path.read_bytes()))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise LabelError(f"{path} cannot be read as Parquet: {error}") from error
    cells = zip(*(column.to_pylist() for column in table.columns), strict=True)
    rows = [
        (number, ["" if cell is None else str(cell) for cell in row]) for number, row in enumerate(cells, 1)
    ]
    return _Table(path, [name.lower() for name in table.column_names], rows)


def _read_text(path: Path, columns: Columns) -> _Table:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = next((line for line in file if line.strip()), "")
            file.seek(0)
            delimiter = "\t" if "\t" in first else ";" if ";" in first and "," not in first else ","
            reader = csv.reader(file, strict=True, delimiter=delimiter)
            lines = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise LabelError(f"{path} cannot be read as CSV or TSV in UTF-8: {error}") from None
    if not lines:
        raise LabelError(f"{path}: expected a header and at least one slide, got 0 lines")
    width = len(lines[0][1])
    for line, cells in lines:
        if len(cells) != width:
            raise LabelError(f"{path}, line {line}: expected {width} cells, got {len(cells)}")
    header = [cell.strip().lower() for cell in lines[0][1]]
    given = {name.lower() for name in (columns.slide, columns.label, columns.case) if name}
    if set(header) & ({*SLIDE_COLUMNS, *LABEL_COLUMNS, *CASE_COLUMNS} | given):
        return _Table(path, header, lines[1:])
    by_number = columns.slide is not None and columns.label is not None
    if width != 2 and not by_number:
        raise LabelError(
            f"{path}: expected a header with known names, or two columns, slide and label; got {width} "
            f"columns and the first line {header}; give --slide-column and --label-column"
        )
    return _Table(path, None, lines)
