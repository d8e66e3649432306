"""Which column of a table is the slide, the label, the case: by its usual names, or by the name you give."""

import difflib
import re
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from mhimdist.errors import DataError
from mhimdist.tables.reading import Table


@dataclass(frozen=True)
class Kind:
    """What a column can hold, and how such columns are called.

    Attributes:
        what: the word for it.
        names: its usual names. A table in which two columns have such names is ambiguous.
        others: names that count if no column has a usual name.
        option: the option that says which column it is; empty if there is none.
    """

    what: str
    names: tuple[str, ...]
    others: tuple[str, ...] = ()
    option: str = ""


SLIDE = Kind(
    "slide",
    ("slide", "slide_id", "slide_name", "slide_file", "filename", "wsi", "wsi_id", "image", "image_id"),
    (
        *("slides", "slide_path", "slide_filename", "wsi_name", "wsi_path", "wsi_file", "wsi_filename"),
        *(
            "image_name",
            "image_path",
            "image_file",
            "image_filename",
            "file",
            "file_name",
            "file_path",
            "path",
        ),
    ),
    "--slide-column",
)
LABEL = Kind(
    "label",
    ("label", "class", "target", "slide_label", "diagnosis"),
    (
        *("labels", "classes", "class_name", "class_label", "label_name", "case_label", "patient_label"),
        *("category", "ground_truth", "subtype"),
    ),
    "--label-column",
)
CASE = Kind(
    "case",
    ("case", "case_id", "patient", "patient_id", "submitter_id"),
    (
        *("cases", "case_name", "patients", "patient_name", "submitter", "case_submitter_id", "subject"),
        *("subject_id", "participant", "participant_id", "bcr_patient_barcode", "patient_barcode"),
        *("patient_no", "patient_nr", "patient_number", "patient_num", "patient_identifier", "pat_id", "pid"),
        *("patienten_id", "patienten_nr", "patientennummer", "subject_no", "subject_nr", "subject_number"),
        *("mrn", "medical_record_number", "case_no", "case_nr", "case_number", "participant_no"),
    ),
    "--case-column",
)


def plain(name: str) -> str:
    """A column's name without regard to case, spaces, underscores and other marks."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFC", name.casefold()))


def known_names(*kinds: Kind) -> frozenset[str]:
    """All names of some kinds, as `plain` writes them."""
    return frozenset(plain(name) for kind in kinds for name in (*kind.names, *kind.others))


def headed(table: Table, names: frozenset[str]) -> Table:
    """The table, with a comment as its header if a name is in the comment and none in the first line.

    Args:
        table: the table; its comments are the lines above that begin with "#".
        names: names of columns, as `plain` writes them.
    """
    first = (table.header_line, table.columns)
    for index in reversed(range(len(table.comments))):
        line, cells = table.comments[index]
        if not names & set(map(plain, table.columns)) and names & set(map(plain, cells)):
            return replace(
                table,
                columns=[cells[0].strip().lstrip("#").strip(), *(cell.strip() for cell in cells[1:])],
                rows=[*table.comments[index + 1 :], first, *table.rows],
                header_line=line,
                comments=table.comments[:index],
            )
    return table


def find(table: Table, kind: Kind, given: str | None = None, *, error: type[DataError]) -> int | None:
    """Number of a column from 0; None if no column has a usual name.

    Args:
        table: the table.
        kind: what the column holds.
        given: its name, or its number from 1, if the user said it.
        error: type of the error to raise.

    Raises:
        DataError: as `error`; the given column does not exist, or more than one column could be meant.
    """
    if given is not None:
        return _given(table, kind, given, error)
    for names in (kind.names, kind.others):
        wanted = {plain(name) for name in names}
        found = [index for index, name in enumerate(table.columns) if plain(name) in wanted]
        if len(found) > 1:
            got = [table.columns[index] for index in found]
            by_number = ", by its number" if len(set(got)) == 1 and kind.option else ""
            raise error(
                f"{table.path}: expected one column named {' or '.join(kind.names)}, got {got}{_say(kind)}"
                f"{by_number}"
            )
        if found:
            return found[0]
    return None


def require(table: Table, kind: Kind, given: str | None = None, *, error: type[DataError]) -> int:
    """As `find`, but the column must be there.

    Raises:
        DataError: as `error`; the message names the columns that are there, the nearest of them, and the
            option that says which one it is.
    """
    if (found := find(table, kind, given, error=error)) is None:
        raise error(
            f"{table.path}: expected one column named {' or '.join(kind.names)}, got the header "
            f"{table.columns}{_nearest(table, (*kind.names, *kind.others), known_names(SLIDE, LABEL, CASE))}"
            f"{_say(kind)}"
        )
    return found


def has(table: Table, given: str) -> bool:
    """Whether a table has a column of this name, or number from 1."""
    return bool(_of_name(table, given)) or (given.isdecimal() and 1 <= int(given) <= table.width)


def _of_name(table: Table, given: str) -> list[int]:
    """The columns of a name, as nearly as possible."""
    for same in (str.strip, str.casefold, plain):
        if found := [i for i, name in enumerate(table.columns) if same(name) == same(given) != ""]:
            return found
    return []


def _given(table: Table, kind: Kind, given: str, error: type[DataError]) -> int:
    if found := _of_name(table, given):
        if len(found) > 1:
            lines = [table.columns[index] for index in found]
            raise error(
                f"{table.path}: {len(found)} columns are named {given!r}: {lines}; give one by number"
            )
        return found[0]
    if given.isdecimal() and 1 <= int(given) <= table.width:
        return int(given) - 1
    raise error(
        f"{table.path}: no column {given!r} (columns: {table.columns or table.width})"
        f"{_nearest(table, (given,))}{_say(kind)}"
    )


def _nearest(table: Table, wanted: Sequence[str], others: Collection[str] = ()) -> str:
    """The column whose name is most like one of those that are looked for, and is none of the others."""
    likeness = {
        name: max(difflib.SequenceMatcher(None, plain(name), plain(other)).ratio() for other in wanted)
        for name in table.columns
        if plain(name) and plain(name) not in others
    }
    best = max(likeness, key=lambda name: likeness[name], default="")
    return f"; the nearest is {best!r}" if best and likeness[best] >= 0.6 else ""


def _say(kind: Kind) -> str:
    return f"; {kind.option} says which one it is" if kind.option else ""
