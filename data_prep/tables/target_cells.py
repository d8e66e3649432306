"""What the cells of targets say: numbers, labels, times and events, as people write them."""

import math
import re
from collections.abc import Mapping

from data_prep.tables.label_cells import Gap, Said
from data_prep.tables.target_columns import TargetColumns, find_columns
from mhimdist.data.targets import TaskInfo
from mhimdist.errors import LabelError
from mhimdist.tables.cells import is_missing
from mhimdist.tables.names import composed
from mhimdist.tables.reading import Table

_YES = frozenset({"1", "true", "t", "yes", "y", "ja", "oui", "si", "sí"})
_NO = frozenset({"0", "false", "f", "no", "n", "nein", "non"})
_EVENTS = frozenset(
    {
        *("dead", "deceased", "died", "death", "event", "relapse", "relapsed", "recurrence", "recurred"),
        *("progressed", "progression", "recurred/progressed", "dead of disease", "died of disease", "dod"),
    }
)
_NO_EVENTS = frozenset(
    {
        *("alive", "living", "censored", "no event", "disease free", "diseasefree", "disease-free"),
        *("not recurred", "no recurrence", "no relapse", "progression free", "progression-free", "ned"),
    }
)
_LABELS = frozenset({"positive", "pos", "present", "mutated", "mutant", "mut", "altered", "amplified"})
_NO_LABELS = frozenset(
    {"negative", "neg", "absent", "wild type", "wild-type", "wildtype", "wt", "not altered", "not amplified"}
)
_UNKNOWN = frozenset({"unknown", "unk"})
_CBIOPORTAL = re.compile(r"([01])\s*:.+")
"""An event of cBioPortal: 1:DECEASED, 0:DiseaseFree."""
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?", re.IGNORECASE)
_COMMA = re.compile(r"[+-]?(?:[0-9]+,[0-9]*|,[0-9]+)(?:e[+-]?[0-9]+)?", re.IGNORECASE)
_POINT = re.compile(r"[+-]?[0-9]*\.[0-9]+(?:e[+-]?[0-9]+)?", re.IGNORECASE)
_WITH_UNIT = re.compile(r"[+-]?[0-9.,]+\s*(%|[^\W\d_]{1,8}\.?)", re.IGNORECASE)
_DATE = re.compile(r"[0-9]{4}[-./][0-9]{1,2}[-./][0-9]{1,2}.*|[0-9]{1,2}[-./][0-9]{1,2}[-./][0-9]{2,4}")


class TargetCells:
    """Reads the targets of the rows of a table; see `LabelCells`.

    Attributes:
        info: the task, with the columns that were found.
        columns: the numbers of these columns in the table.
        unseen: words whose meaning the user gave, as long as no row has them.
    """

    def __init__(self, table: Table, wanted: TargetColumns, words: Mapping[str, str]) -> None:
        """Find the columns.

        Args:
            table: the table of labels.
            wanted: the columns as the user gives them.
            words: what further cells of events and labels mean, "0" or "1" each.

        Raises:
            LabelError: a column is missing, or a column of numbers has both decimal commas and points.
        """
        self._table, self._found = table, find_columns(table, wanted)
        self._words = _checked(words)
        self.unseen = set(self._words)
        self.columns = (*self._found.values, *([] if self._found.event is None else [self._found.event]))
        self.info = TaskInfo(name=wanted.task, columns=self._found.names, unit=self._found.unit)
        if wanted.task != "multilabel":
            for column in self._found.values:
                _refuse_two_decimals(table, column)

    def read(self, line: int, cells: list[str]) -> Said | Gap:
        """The targets of a row, or where it lacks them.

        Raises:
            LabelError: a cell is no number, time, event or label; the message names line and column.
        """
        if self.info.name == "survival":
            targets = self._survival(line, cells)
        elif self.info.name == "multilabel":
            targets = self._labels(line, cells)
        else:
            targets = self._numbers(line, cells)
        return targets if isinstance(targets, Gap) else Said(text_of(self.info, targets), targets)

    def _numbers(self, line: int, cells: list[str]) -> tuple[float | None, ...] | Gap:
        for column in self._found.values:
            if is_missing(cells[column]):
                return Gap(column)
        return tuple(self._number(line, column, cells[column]) for column in self._found.values)

    def _labels(self, line: int, cells: list[str]) -> tuple[float | None, ...] | Gap:
        said = [self._label(line, column, cells[column]) for column in self._found.values]
        return Gap(self._found.values[0], "all labels are missing") if set(said) == {None} else tuple(said)

    def _label(self, line: int, column: int, cell: str) -> float | None:
        word = _word(cell)
        if (meant := self._meant(word)) is not None:
            return meant
        if is_missing(cell) or word in _UNKNOWN:
            return None
        if word in _YES or word in _LABELS:
            return 1.0
        if word in _NO or word in _NO_LABELS:
            return 0.0
        hint = "one column per label" if re.search("[;|,]", word) else f"--class-map {cell.strip()!r}=1 or =0"
        raise self._refusal(line, column, f"expected a label of 0 or 1, got {cell.strip()!r}; give {hint}")

    def _survival(self, line: int, cells: list[str]) -> tuple[float | None, ...] | Gap:
        times, column = self._found.values, self._found.event
        assert column is not None, "survival has a column of events"
        word = _word(cells[column])
        if (is_missing(cells[column]) or word in _UNKNOWN) and word not in self._words:
            return Gap(column)
        event = self._event(line, column, cells[column])
        if len(times) == 1:
            time = times[0]
        else:
            time, other = times if event else times[::-1]
            if is_missing(cells[time]):
                what = "the event happened" if event else "the event did not happen"
                return Gap(time, f"{what}, and the time of it is missing")
            if not event and not is_missing(cells[other]):
                what = f"the row says no event, but a time of it in {self._table.columns[other]!r}"
                raise self._refusal(line, column, what)
        if is_missing(cells[time]):
            return Gap(time)
        number = self._number(line, time, cells[time])
        if number <= 0:
            return Gap(time, f"a time must be above 0, got {cells[time].strip()}")
        return number, event

    def _event(self, line: int, column: int, cell: str) -> float:
        word = _word(cell)
        if (meant := self._meant(word)) is not None:
            return meant
        if found := _CBIOPORTAL.fullmatch(word):
            return float(found[1])
        if word in _YES or word in _NO:
            return float((word in _YES) != self._found.is_censored)
        if word in _EVENTS or word in _NO_EVENTS:
            return float(word in _EVENTS)
        hint = "; R's survival package has 1 for censored and 2 for an event" if word == "2" else ""
        raise self._refusal(
            line,
            column,
            f"expected an event of 0 or 1, dead or alive, got {cell.strip()!r}{hint}; --class-map says what "
            f"words mean: --class-map {cell.strip()!r}=1,...",
        )

    def _meant(self, word: str) -> float | None:
        """What the user says that a word means."""
        if word in self._words:
            self.unseen.discard(word)
        return self._words.get(word)

    def _number(self, line: int, column: int, cell: str) -> float:
        text = composed(cell.strip()).replace("\u2212", "-")
        if self._table.delimiter != "," and _COMMA.fullmatch(text):
            text = text.replace(",", ".")
        if _NUMBER.fullmatch(text) and math.isfinite(number := float(text)):
            return number
        raise self._refusal(line, column, f"expected a number, got {cell.strip()!r}{_hint(text)}")

    def _refusal(self, line: int, column: int, what: str) -> LabelError:
        names = self._table.columns
        name = repr(names[column].strip()) if names else str(column + 1)
        return LabelError(f"{self._table.path}, line {line}, column {name}: {what}")


def text_of(info: TaskInfo, targets: tuple[float | None, ...]) -> str:
    """Targets for messages: "os_months 12.5, os_event 1"."""
    cells = ("missing" if target is None else f"{target:.12g}" for target in targets)
    return ", ".join(f"{name} {cell}" for name, cell in zip(info.columns, cells, strict=True))


def _checked(words: Mapping[str, str]) -> dict[str, float]:
    for old, new in words.items():
        if new not in ("0", "1"):
            raise LabelError(
                f"--class-map {old}={new}: for events and labels, a cell means 0 or 1, as in {old}=1"
            )
    return {_word(old): float(new) for old, new in words.items()}


def _word(cell: str) -> str:
    word = " ".join(composed(cell).casefold().replace("_", " ").split())
    return re.sub(r"^([0-9]+)[.,]0*$", r"\1", word)


def _hint(text: str) -> str:
    """What to do with a cell that is nearly a number, as the end of a message."""
    if re.fullmatch(r"[<>≤≥~].*", text):
        return "; a bound is no number: write the number, or leave the cell empty"
    if _DATE.fullmatch(text):
        return "; this is a date: give the days, months or years between two dates"
    if _COMMA.fullmatch(text):
        return "; write decimals with a point, or divide the cells by semicolons"
    if re.fullmatch(r"[+-]?[0-9]{1,3}(?:([., '])[0-9]{3})(?:\1[0-9]{3})*(?:[.,][0-9]+)?", text):
        return "; write it without marks for thousands"
    if _WITH_UNIT.fullmatch(text):
        return "; write the number alone, and its unit with --unit"
    return ""


def _refuse_two_decimals(table: Table, column: int) -> None:
    """Refuse a column in which "1,234" may be 1.234 or 1234, because other cells have decimal points."""
    texts = [(line, cells[column].strip()) for line, cells in table.rows]
    comma = next((each for each in texts if _COMMA.fullmatch(each[1])), None)
    point = next((each for each in texts if _POINT.fullmatch(each[1])), None)
    if table.delimiter != "," and comma and point:
        name = repr(table.columns[column].strip()) if table.columns else str(column + 1)
        raise LabelError(
            f"{table.path}, column {name}: decimals have a comma in line {comma[0]} ({comma[1]!r}) and a "
            f"point in line {point[0]} ({point[1]!r}); write them alike"
        )
