"""What a row of a label table says: its case, its class, or that something is missing."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from mhimdist.errors import LabelError
from mhimdist.tables.cells import is_missing
from mhimdist.tables.columns import LABEL, Kind
from mhimdist.tables.names import composed
from mhimdist.tables.reading import Table


@dataclass(frozen=True)
class Said:
    """The label of a slide or a case.

    Attributes:
        text: the name of its class; of targets, what they say, for messages.
        targets: the targets, None for one that is missing; empty for a class.
    """

    text: str
    targets: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class Gap:
    """A row that says no label: in which column of the table, and what is wrong there if it is not empty."""

    column: int
    what: str = ""


class LabelCells(Protocol):
    """Reads the labels of a table's rows.

    Attributes:
        columns: the numbers of the columns that hold the label.
    """

    @property
    def columns(self) -> tuple[int, ...]: ...

    def read(self, line: int, cells: list[str]) -> Said | Gap:
        """The label of a row, or where it lacks one."""


class ClassCells:
    """Reads the classes of a table's rows; see `LabelCells`."""

    def __init__(self, table: Table, column: int, renamed: Mapping[str, str]) -> None:
        """Read nothing yet.

        Args:
            table: the table of labels.
            column: the number of the column of classes.
            renamed: new names of classes; a mark for a missing value that has one is a class.
        """
        self._table, self.columns, self._renamed = table, (column,), renamed

    def read(self, line: int, cells: list[str]) -> Said | Gap:
        """The class of a row, still with its old name, or that it is missing."""
        label = class_of(self._table, cells[self.columns[0]])
        return Gap(self.columns[0]) if is_missing(label) and label not in self._renamed else Said(label)


@dataclass
class Gaps:
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
        """Note that a row lacks something.

        Args:
            table, line, column, cells: where the cell is, and its row.
            what: what is missing.
            name: the slide or case of the row; empty if that is missing.
        """
        mark = cells[column].strip()
        problem = f"{mark!r} says that a value is missing" if mark else "a cell is empty"
        self._note(table, line, name, f"the {what.what} is missing")
        self.refused.append(f"{table.path}, line {line}: {problem}: {cells} (the {what.what})")

    def add_label(self, table: Table, line: int, gap: Gap, cells: list[str], name: str) -> None:
        """As `add`, for a row that says no label."""
        if not gap.what:
            self.add(table, line, gap.column, cells, LABEL, name)
            return
        column = repr(table.columns[gap.column].strip()) if table.columns else str(gap.column + 1)
        self._note(table, line, name, f"column {column}: {gap.what}")
        self.refused.append(f"{table.path}, line {line}, column {column}: {gap.what}: {cells}")

    def refuse(self) -> None:
        """Refuse the rows, unless they are left out."""
        if self.refused and not self.skip:
            more = f", and so in {len(self.refused) - 1} more lines" if len(self.refused) > 1 else ""
            raise LabelError(f"{self.refused[0]}{more}; --skip-unmatched leaves out and lists such slides")

    def _note(self, table: Table, line: int, name: str, reason: str) -> None:
        where = f"{table.path.name}, line {line}"
        self.left_out[name or f"line {line} of {table.path.name}"] = f"{where}: {reason}"


def class_of(table: Table, cell: str) -> str:
    """A class; a number without the decimals that say nothing, which spreadsheets and pandas add."""
    name = composed(cell.strip())
    if table.delimiter != "," and re.fullmatch(r"[+-]?[0-9]*,[0-9]+", name):
        name = name.replace(",", ".")
    return re.sub(r"^([+-]?[0-9]+)\.0*$|^([+-]?[0-9]*\.[0-9]*[1-9])0+$", r"\1\2", name)


def case_of(table: Table, cell: str) -> str:
    """A case; a whole number without its decimals, but "21.10" is another patient than "21.1"."""
    point = "[.]" if table.delimiter == "," else "[.,]"
    return re.sub(rf"^([+-]?[0-9]+){point}0*$", r"\1", composed(cell.strip()))
