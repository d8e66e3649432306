"""Which columns of a label table hold the targets of a task: by usual names, or by the names you give."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from mhimdist.data.targets import TaskName
from mhimdist.errors import LabelError
from mhimdist.tables.columns import Kind, find, plain, require
from mhimdist.tables.reading import Table

_ENDPOINTS = ("os", "dss", "dfs", "dfi", "pfs", "pfi", "rfs", "efs", "mfs", "css")
"""Survival overall, of the disease, free of it, of progression, of relapse, of events, of metastases, ..."""
_UNITS = {"days": "days", "day": "days", "months": "months", "month": "months", "years": "years"}
TIME = Kind(
    "time",
    ("time", "survival_time", "time_to_event", "event_time", *(f"survival_{unit}" for unit in _UNITS)),
    (
        *(f"{endpoint}_{what}" for endpoint, what in product(_ENDPOINTS, ("time", *_UNITS))),
        *(f"overall_survival_{unit}" for unit in _UNITS),
        *("overall_survival", "overall_survival_time", "follow_up_time", "followup_time", "duration"),
        *(f"{what}_{unit}" for what, unit in product(("follow_up", "time"), _UNITS)),
    ),
    "--time-column",
)
EVENT = Kind(
    "event",
    ("event", "event_observed", "event_status", "survival_status", "vital_status", "dead", "death"),
    (
        *(f"{endpoint}_{what}" for endpoint, what in product(_ENDPOINTS, ("event", "status"))),
        *("status", "overall_survival_status", "deceased", "demographic.vital_status", "event_occurred"),
    ),
    "--event-column",
)
CENSORED = Kind("event", ("censorship", "censored", "censor", "censoring"), (), "--event-column")
"""Columns in which 1 says that the event was not seen, as in the tables of MCAT and its successors."""
TARGET = Kind("target", ("target", "targets", "score", "value"), (), "--target-column")
_DEATH = Kind("time", ("days_to_death", "demographic.days_to_death"), (), "--time-column")
_LAST_SEEN = Kind(
    "time",
    (
        *("days_to_last_follow_up", "days_to_last_followup", "last_contact_days_to"),
        "diagnoses.days_to_last_follow_up",
    ),
    (),
    "--time-column",
)
_UNIT = re.compile(r"(?:^|[\W_])(days?|months?|years?)(?=$|[\W_])", re.IGNORECASE)


@dataclass(frozen=True)
class TargetColumns:
    """The columns of targets as the user gives them, by name or number from 1; nothing finds usual names.

    Attributes:
        task: a task with targets.
        targets: the columns of a regression, or one for each label.
        time: the column of the time; or two, of the time of the event and of the time last seen without it.
        event: the column that says whether the event was seen.
        unit: unit of time or targets; None for what the names of the columns say.
    """

    task: TaskName
    targets: tuple[str, ...] = ()
    time: tuple[str, ...] = ()
    event: str | None = None
    unit: str | None = None

    @property
    def given(self) -> tuple[str, ...]:
        """The names that the user gave."""
        return (*self.targets, *self.time, *([self.event] if self.event else []))

    @property
    def options(self) -> tuple[str, ...]:
        """The options that name the columns of the task."""
        return ("--time-column", "--event-column") if self.task == "survival" else ("--target-column",)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of columns to look for in a header."""
        return (TIME, EVENT, CENSORED, _DEATH, _LAST_SEEN) if self.task == "survival" else (TARGET,)


@dataclass(frozen=True)
class FoundColumns:
    """The columns of targets in one table.

    Attributes:
        values: the numbers of the columns whose cells are read as numbers or labels; of survival one or two
            columns of time.
        event: the number of the column of events; None for other tasks.
        is_censored: whether 1 in the column of events says that the event was not seen.
        names: the names of the targets, as a manifest has them.
        unit: their unit; may be empty.
    """

    values: tuple[int, ...]
    event: int | None
    is_censored: bool
    names: tuple[str, ...]
    unit: str


def find_columns(table: Table, wanted: TargetColumns) -> FoundColumns:
    """Find the columns of a task's targets in a table.

    Raises:
        LabelError: a column is missing or could be more than one; the message names the option that says it.
    """
    if wanted.task == "survival":
        return _of_survival(table, wanted)
    if wanted.targets:
        values = [require(table, TARGET, name, error=LabelError) for name in wanted.targets]
    elif wanted.task == "multilabel":
        raise LabelError(
            f"{table.path}: multilabel needs the columns of the labels: --target-column NAME,NAME,... "
            f"(columns: {table.columns or table.width})"
        )
    else:
        values = [require(table, TARGET, None, error=LabelError)]
    names = tuple(_name(table, column) for column in values)
    if len(set(names)) < len(names):
        raise LabelError(f"{table.path}: --target-column names a column twice: {list(wanted.targets)}")
    return FoundColumns(tuple(values), None, False, names, wanted.unit or "")


def _of_survival(table: Table, wanted: TargetColumns) -> FoundColumns:
    if len(wanted.time) > 2:
        raise LabelError(
            f"--time-column takes one column, or two, of the time of the event and of the time last seen; "
            f"got {list(wanted.time)}"
        )
    times = [require(table, TIME, name, error=LabelError) for name in wanted.time] or _times(table)
    event, is_censored = _event(table, wanted.event, table.columns[times[0]] if table.columns else "")
    if event in times:
        raise LabelError(f"{table.path}: time and event are the same column, {_name(table, event)!r}")
    units = {_unit_of(_name(table, column)) for column in times} - {""}
    if wanted.unit is None and len(units) > 1:
        named = " and ".join(repr(_name(table, column)) for column in times)
        raise LabelError(f"{table.path}: columns {named} are in different units; make them one column")
    unit = wanted.unit if wanted.unit is not None else next(iter(units), "")
    return FoundColumns(tuple(times), event, is_censored, (_name(table, times[0]), _name(table, event)), unit)


def _times(table: Table) -> list[int]:
    """The column of time by its usual name, or the two of the GDC."""
    usual = find(table, TIME, error=LabelError)
    dead, seen = (find(table, kind, error=LabelError) for kind in (_DEATH, _LAST_SEEN))
    if usual is None and dead is not None and seen is not None:
        return [dead, seen]
    if usual is None and (dead is None) != (seen is None):
        there = dead if dead is not None else seen
        assert there is not None, "exactly one of the two is there"
        lacking = _LAST_SEEN if seen is None else _DEATH
        raise LabelError(
            f"{table.path}: has {table.columns[there]!r}, but not {lacking.names[0]!r}, and one of them is "
            "the time of some patients only; give --time-column NAME, or NAME,NAME of the time of the event "
            "and the time last seen"
        )
    return [require(table, TIME, error=LabelError)]


def _event(table: Table, given: str | None, time: str) -> tuple[int, bool]:
    """The column of events, and whether 1 in it says that the event was not seen."""
    if given is not None:
        column = require(table, EVENT, given, error=LabelError)
        return column, plain(_name(table, column)) in set(map(plain, CENSORED.names))
    if (endpoint := _endpoint_of(time)) is not None:
        names = tuple(f"{endpoint}_{what}" for what in ("status", "event"))
        own = Kind("event", (*names, endpoint), (), "--event-column")
        if (found := find(table, own, error=LabelError)) is not None:
            return found, False
        if endpoint != "os":
            return require(table, own, error=LabelError), False
    event, censored = (find(table, kind, error=LabelError) for kind in (EVENT, CENSORED))
    if event is not None and censored is not None:
        both = [table.columns[event], table.columns[censored]]
        raise LabelError(
            f"{table.path}: expected one column of events, got {both}; --event-column says which"
        )
    if censored is not None:
        return censored, True
    return require(table, EVENT, error=LabelError), False


def _endpoint_of(time: str) -> str | None:
    name = plain(time)
    return next((end for end in _ENDPOINTS if name in {end + each for each in ("time", *_UNITS)}), None)


def _unit_of(name: str) -> str:
    found: Sequence[str] = _UNIT.findall(name)
    return _UNITS.get(found[-1].lower(), "years") if found else ""


def _name(table: Table, column: int) -> str:
    """A column's name; in a table without a header, its number from 1."""
    return table.columns[column].strip() if table.columns else f"column {column + 1}"
