"""Tables of survival, grades, labels and numbers as people write them, and the right answer to each."""

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from wild_inputs import Refused, as_rows, as_text, refused, refuses, write

from data_prep.shard import make_shards
from data_prep.shard_options import ShardOptions
from data_prep.writing.skipped import read_skipped
from mhimdist.data.shards import BagShards
from mhimdist.errors import ConfigError

SEED = 29
SLIDES = tuple(f"S{number}" for number in range(101, 109))
CASES = tuple(f"P{number}" for number in range(1, 9))
EVENTS = (1, 0, 1, 1, 0, 0, 1, 0)
Targets = tuple[float | None, ...]


@dataclass(frozen=True)
class Means:
    """The right answer is a data set of exactly this.

    Attributes:
        task: name of the task.
        targets: by slide; of grades the grade alone.
        columns, unit: as the manifest has them.
        classes: the grades in their order; None: not looked at, because they are strata.
        left_out: words of the reason by slide.
    """

    task: str
    targets: Mapping[str, Targets | str]
    columns: tuple[str, ...] = ()
    unit: str = ""
    classes: tuple[str, ...] | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TargetCase:
    """A table of targets, the options of `data_prep.shard`, and the right answer."""

    kind: str
    name: str
    files: Mapping[str, Any]
    options: str
    answer: Means | Refused
    labels: str = "labels.csv"

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}"


def try_targets(case: TargetCase) -> None:
    """Shard the table in the current folder, and compare what comes out with the right answer."""
    for name, content in case.files.items():
        write(Path(name), content)
    for slide in SLIDES:
        write(Path(f"features/{slide}.npy"), np.ones((2, 3), np.float32))
    paths = ["--features", "features", "--labels", case.labels, "--out", "shards", "--workers", "1"]
    options = ShardOptions.from_command_line([*paths, *shlex.split(case.options)])
    if isinstance(case.answer, Refused):
        refuses(case.answer, lambda: make_shards(options))
        assert not Path("shards").exists()
        return
    make_shards(options)
    bags, answer = BagShards(Path("shards")), case.answer
    assert (bags.task.name, bags.task.columns, bags.task.unit) == (answer.task, answer.columns, answer.unit)
    if answer.classes is not None:
        assert bags.classes == answer.classes
        found: dict[str, Any] = {
            slide: bags.classes[label] for slide, label in zip(bags.slides, bags.labels_N, strict=True)
        }
    else:
        found = {
            slide: tuple(None if np.isnan(target) else target for target in targets.tolist())
            for slide, targets in zip(bags.slides, bags.targets_NK, strict=True)
        }
    assert found == answer.targets
    skipped = {bag.slide: bag.reason for bag in read_skipped(Path("shards"))}
    assert skipped.keys() == answer.left_out.keys()
    assert [slide for slide, words in answer.left_out.items() if words not in skipped[slide]] == []


def _months(draw: np.random.Generator) -> list[float]:
    return [float(month) for month in np.round(draw.exponential(30, len(SLIDES)) + 0.5, 2)]


def _table(**columns: Sequence[object]) -> dict[str, list[Any]]:
    return {
        "slide": list(SLIDES),
        "case": list(CASES),
        **{name: list(cells) for name, cells in columns.items()},
    }


def _pairs(times: Sequence[float], events: Sequence[int] = EVENTS) -> dict[str, Targets | str]:
    return {slide: (time, float(event)) for slide, time, event in zip(SLIDES, times, events, strict=True)}


def _survival(
    name: str,
    columns: Mapping[str, Sequence[object]],
    answer: Means | Refused,
    options: str = "",
    text: Callable[[Mapping[str, Sequence[Any]]], str] = as_text,
) -> TargetCase:
    return TargetCase("survival", name, {"labels.csv": text(columns)}, f"--task survival {options}", answer)


def events(draw: np.random.Generator) -> Iterator[TargetCase]:
    """The words for an event, under the names of columns that they are used with."""
    spellings = (
        ("0 and 1", "event", {1: "1", 0: "0"}),
        ("1.0 and 0.0, as pandas writes them", "event", {1: "1.0", 0: "0.0"}),
        ("TRUE and FALSE", "event", {1: "TRUE", 0: "FALSE"}),
        ("Dead and Alive", "vital_status", {1: "Dead", 0: "Alive"}),
        ("DECEASED and LIVING", "status", {1: "DECEASED", 0: "LIVING"}),
        ("cBioPortal's overall survival", "OS_STATUS", {1: "1:DECEASED", 0: "0:LIVING"}),
        ("cBioPortal's progression", "OS_STATUS", {1: "1:PROGRESSION", 0: "0:CENSORED"}),
        ("yes and no", "death", {1: "yes", 0: "No"}),
        ("event and censored", "event_status", {1: "event", 0: "censored"}),
        ("died, with spaces", "Event Status", {1: " Died ", 0: " alive"}),
    )
    for name, column, words in spellings:
        months = _months(draw)
        table = _table(OS_MONTHS=months, **{column: [words[event] for event in EVENTS]})
        answer = Means("survival", _pairs(months), ("OS_MONTHS", column), "months")
        yield _survival(name, table, answer)
    months = _months(draw)
    for name, cells in (
        ("1 for censored", [1 - event for event in EVENTS]),
        ("1.0 for censored", [float(1 - event) for event in EVENTS]),
        ("words in a column of censorship", ["dead" if event else "censored" for event in EVENTS]),
    ):
        table = _table(survival_months=months, censorship=cells)
        yield _survival(
            name, table, Means("survival", _pairs(months), ("survival_months", "event"), "months")
        )
    table = _table(time=months, event=["relapse?" if event else "stable" for event in EVENTS])
    answer = Means("survival", _pairs(months), ("time", "event"))
    yield _survival("words of one's own", table, answer, "--class-map 'relapse?=1,stable=0'")
    yield _survival(
        "words of one's own, not said", table, refused("line 2, column 'event'", "'relapse?'", "--class-map")
    )
    yield _survival(
        "a word that no cell has", table, refused("'died'"), "--class-map 'relapse?=1,stable=0,died=1'"
    )
    two = _table(time=months, status=[event + 1 for event in EVENTS])
    yield _survival("1 and 2, as R has them", two, refused("line 2", "'2'", "R's survival"))
    yield _survival(
        "1 and 2, said", two, Means("survival", _pairs(months), ("time", "status")), "--class-map 1=0,2=1"
    )
    yield _survival(
        "meanings other than 0 and 1", two, refused("--class-map 1=alive"), "--class-map 1=alive,2=dead"
    )
    unknown = _table(time=months, vital_status=["Unknown", *("Dead" if e else "Alive" for e in EVENTS[1:])])
    yield _survival("an unknown event", unknown, refused("line 2", "'Unknown'"))
    rest = {slide: pair for slide, pair in _pairs(months).items() if slide != SLIDES[0]}
    left = {SLIDES[0]: "labels.csv, line 2: the label is missing"}
    answer = Means("survival", rest, ("time", "vital_status"), left_out=left)
    yield _survival("an unknown event, left out", unknown, answer, "--skip-unmatched")


def columns_of_time(draw: np.random.Generator) -> Iterator[TargetCase]:
    """Which columns are time and event."""
    months = _months(draw)
    for time, event, unit in (
        ("OS.time", "OS", ""),
        ("PFS_DAYS", "PFS_STATUS", "days"),
        ("DFI.time", "DFI", ""),
        ("Survival Years", "Event", "years"),
        ("Overall Survival (Months)", "Overall Survival Status", "months"),
        ("follow_up_days", "dead", "days"),
    ):
        table = _table(**{time: months, event: EVENTS, "age": range(40, 48)})
        yield _survival(f"{time} and {event}", table, Means("survival", _pairs(months), (time, event), unit))
    both = _table(OS_MONTHS=months, OS_STATUS=EVENTS, PFS_MONTHS=months[::-1], PFS_STATUS=EVENTS[::-1])
    yield _survival("two endpoints", both, refused("OS_MONTHS", "PFS_MONTHS", "--time-column"))
    answer = Means("survival", _pairs(months[::-1], EVENTS[::-1]), ("PFS_MONTHS", "PFS_STATUS"), "months")
    yield _survival("one of two endpoints", both, answer, "--time-column PFS_MONTHS")
    wrong = _table(PFS_MONTHS=months, vital_status=EVENTS)
    yield _survival("an event of another endpoint", wrong, refused("pfs_status", "--event-column"))
    table = _table(lived=months, gone=EVENTS)
    answer = Means("survival", _pairs(months), ("lived", "gone"), "weeks")
    yield _survival("unusual names", table, answer, "--time-column lived --event-column gone --unit weeks")
    yield _survival(
        "unusual names, not said", table, refused("expected one column named time", "--time-column")
    )
    yield _survival("no such column", table, refused("no column 'lifed'", "'lived'"), "--time-column lifed")
    yield _survival(
        "both in one column", table, refused("same column"), "--time-column gone --event-column gone"
    )
    two = _table(time=months, event=EVENTS, censored=[1 - event for event in EVENTS])
    yield _survival("columns of both", two, refused("['event', 'censored']", "--event-column"))
    numbers = "\n".join(f"{s},{c},{m},{e}" for s, c, m, e in zip(SLIDES, CASES, months, EVENTS, strict=True))
    by_number = "--slide-column 1 --case-column 2 --time-column 3 --event-column 4"
    answer = Means("survival", _pairs(months), ("column 3", "column 4"))
    yield _survival("no header", {}, answer, by_number, text=lambda _: numbers)
    yield _survival("no header, not said", {}, refused("--time-column"), text=lambda _: numbers)


def gdc(draw: np.random.Generator) -> Iterator[TargetCase]:
    """The GDC's two columns of time."""
    days = [int(day) for day in draw.integers(30, 3000, len(SLIDES))]
    none = "'--"
    columns = {
        "days_to_death": [day if event else none for day, event in zip(days, EVENTS, strict=True)],
        "days_to_last_follow_up": [none if event else day for day, event in zip(days, EVENTS, strict=True)],
        "vital_status": ["Dead" if event else "Alive" for event in EVENTS],
    }
    answer = Means("survival", _pairs(days), ("days_to_death", "vital_status"), "days")
    yield _survival("dead and last seen", _table(**columns), answer)
    prefixed = {
        "demographic.days_to_death": columns["days_to_death"],
        "diagnoses.days_to_last_follow_up": columns["days_to_last_follow_up"],
        "demographic.vital_status": columns["vital_status"],
    }
    names = ("demographic.days_to_death", "demographic.vital_status")
    yield _survival(
        "names with their groups", _table(**prefixed), Means("survival", _pairs(days), names, "days")
    )
    seen_before = [day - 10 for day in days]
    yield _survival(
        "the dead were seen before",
        _table(**columns | {"days_to_last_follow_up": seen_before}),
        Means(
            "survival",
            _pairs([d if e else d - 10 for d, e in zip(days, EVENTS, strict=True)]),
            ("days_to_death", "vital_status"),
            "days",
        ),
    )
    alone = {name: cells for name, cells in columns.items() if name != "days_to_last_follow_up"}
    yield _survival(
        "days to death alone", _table(**alone), refused("days_to_last_follow_up", "--time-column")
    )
    lost = columns | {"days_to_death": [none] * len(SLIDES)}
    yield _survival("dead, but when", _table(**lost), refused("line 2, column 'days_to_death'", "is missing"))
    alive = columns | {"days_to_death": days}
    yield _survival(
        "alive after death", _table(**alive), refused("line 3, column 'vital_status'", "no event")
    )
    ours = {"died": columns["days_to_death"], "seen": columns["days_to_last_follow_up"], "event": EVENTS}
    answer = Means("survival", _pairs(days), ("died", "event"), "days")
    yield _survival("as an option", _table(**ours), answer, "--time-column died,seen --unit days")


def numbers(draw: np.random.Generator) -> Iterator[TargetCase]:
    """How numbers are written."""
    values = [float(value) for value in np.round(draw.normal(0, 50, len(SLIDES)), 3)]
    options = "--task regression --target-column til"

    def case(
        name: str, cells: Sequence[object], answer: Means | Refused, more: str = "", **how: str
    ) -> TargetCase:
        text = as_text(_table(til=cells), **how)
        return TargetCase("numbers", name, {"labels.csv": text}, f"{options} {more}", answer)

    right = Means("regression", {s: (v,) for s, v in zip(SLIDES, values, strict=True)}, ("til",))
    yield case("plain", values, right)
    yield case("with powers of ten", [f"{value:.6e}" for value in values], right)
    commas = [str(value).replace(".", ",") for value in values]
    yield case("decimal commas between semicolons", commas, right, delimiter=";")
    yield case("decimal commas between tabs", commas, right, delimiter="\t")
    yield case(
        "decimal commas in quotes", [f'"{cell}"' for cell in commas], refused("line 2", "with a point")
    )
    mixed = [*commas[:4], *map(str, values[4:])]
    yield case("commas and points", mixed, refused("column 'til'", "comma", "point", "alike"), delimiter=";")
    yield case("with a minus of print", [str(value).replace("-", "\u2212") for value in values], right)
    for name, cell, words in (
        ("a unit", "12 %", "--unit"),
        ("a bound", "<5", "bound"),
        ("a date", "2020-03-01", "date"),
        ("thousands", "1'234", "thousands"),
        ("a word", "many", "expected a number, got 'many'"),
        ("infinity", "inf", "expected a number"),
    ):
        cells = [*map(str, values[:2]), cell, *map(str, values[3:])]
        yield case(name, cells, refused("labels.csv, line 4, column 'til'", words))
    yield case("all alike", [3] * len(SLIDES), refused("'til'", "3", "nothing to learn"))
    gap = [*map(str, values[:-1]), "NA"]
    yield case("a missing number", gap, refused("line 9", "'NA'", "--skip-unmatched"))
    kept = {slide: (value,) for slide, value in zip(SLIDES[:-1], values, strict=False)}
    left = {SLIDES[-1]: "line 9: the label is missing"}
    yield case(
        "a missing number, left out",
        gap,
        Means("regression", kept, ("til",), left_out=left),
        "--skip-unmatched",
    )
    sheet = as_rows(_table(til=values, age=range(50, 58)))
    two = Means(
        "regression",
        {s: (v, 50.0 + i) for i, (s, v) in enumerate(zip(SLIDES, values, strict=True))},
        ("til", "age"),
    )
    yield TargetCase(
        "numbers", "two in a workbook", {"labels.xlsx": sheet}, f"{options},age", two, "labels.xlsx"
    )
    yield case("one twice", values, refused("names a column twice"), "--target-column til,til")
    yield case(
        "an option of another task",
        values,
        Refused(ConfigError, ("--time-column", "survival")),
        "--time-column til",
    )


def times(draw: np.random.Generator) -> Iterator[TargetCase]:
    """Times that cannot be, and patients of whom nothing can be learnt."""
    months = _months(draw)
    for name, cell in (("zero", "0"), ("below zero", "-3.5")):
        cells = [months[0], cell, *months[2:]]
        table = _table(time=cells, event=EVENTS)
        yield _survival(name, table, refused("labels.csv, line 3, column 'time'", f"above 0, got {cell}"))
        kept = {slide: pair for slide, pair in _pairs(months).items() if slide != SLIDES[1]}
        answer = Means("survival", kept, ("time", "event"), left_out={SLIDES[1]: f"above 0, got {cell}"})
        yield _survival(f"{name}, left out", table, answer, "--skip-unmatched")
    yield _survival("no events", _table(time=months, event=[0] * 8), refused("none has an event ('event')"))
    yield _survival("one time", _table(time=[5] * 8, event=EVENTS), refused("all have the time 5"))
    answer = Means("survival", _pairs(months, [1] * 8), ("time", "event"))
    yield _survival("nobody censored", _table(time=months, event=[1] * 8), answer)
    table = _table(time=months, event=EVENTS) | {"case": ["P1", "P1", *CASES[2:]]}
    yield _survival("two times of a patient", table, refused("case 'P1'", SLIDES[0], SLIDES[1], "one time"))
    cases = {"case": list(CASES), "time": months, "event": list(EVENTS)}
    files = {"labels.csv": as_text(cases), "slides.csv": as_text({"slide": SLIDES, "case": CASES})}
    answer = Means("survival", _pairs(months), ("time", "event"))
    yield TargetCase("survival", "a table of cases", files, "--task survival --slides slides.csv", answer)
    twice = as_text(cases) + f"P1,{months[0]},0\n"
    yield TargetCase(
        "survival",
        "a patient in two lines",
        files | {"labels.csv": twice},
        "--task survival --slides slides.csv",
        refused("'P1'", "line 2", "line 10", "event 1", "event 0"),
    )


def grades(draw: np.random.Generator) -> Iterator[TargetCase]:
    """Grades whose names say their order, and others."""
    for order in (
        ("0", "1", "2"),
        ("G1", "G2", "G3"),
        ("Grade 1", "Grade 2", "Grade 10"),
        ("low", "intermediate", "high"),
        ("mild", "Moderate", "severe"),
        ("Stage I", "Stage IIa", "Stage IIb", "Stage IV"),
        ("0", "1+", "2+", "3+"),
        ("well", "moderately", "poorly"),
    ):
        cells = [order[i] for i in draw.permutation(np.resize(np.arange(len(order)), len(SLIDES)))]
        right = Means("ordinal", dict(zip(SLIDES, cells, strict=True)), classes=order)
        files = {"labels.csv": as_text(_table(label=cells))}
        yield TargetCase("grades", " < ".join(order), files, "--task ordinal", right)
    for order in (
        ("3+3", "3+4", "4+3"),
        ("blue", "green", "red"),
        ("T1", "T1a", "T2"),
        ("low", "severe", "high"),
    ):
        cells = list(np.resize(order, len(SLIDES)))
        files = {"labels.csv": as_text(_table(label=cells))}
        yield TargetCase(
            "grades", f"{order}, unsure", files, "--task ordinal", refused("not certain", "--classes")
        )
        right = Means("ordinal", dict(zip(SLIDES, cells, strict=True)), classes=order)
        yield TargetCase(
            "grades", f"{order}, said", files, f"--task ordinal --classes {','.join(order)}", right
        )
    one = {"labels.csv": as_text(_table(label=["G1"] * len(SLIDES)))}
    yield TargetCase("grades", "one grade", one, "--task ordinal", refused("two or more grades"))


def several_labels(draw: np.random.Generator) -> Iterator[TargetCase]:
    """Columns of labels."""
    has = draw.permutation(np.resize([[0, 1], [1, 0], [1, 1]], (len(SLIDES), 2)))
    options = "--task multilabel --target-column tp53,kras"
    for name, words in (
        ("0 and 1", ("0", "1")),
        ("WT and MUT", ("WT", "MUT")),
        ("negative and positive", ("negative", "Positive")),
        ("False and True", ("False", "True")),
    ):
        cells = [[words[one] for one in column] for column in has.T]
        cells[1][3] = ("", "NA", "n/a", "unknown")[int(draw.integers(4))]
        targets: dict[str, Targets | str] = {
            slide: (float(first), None if i == 3 else float(second))
            for i, (slide, (first, second)) in enumerate(zip(SLIDES, has, strict=True))
        }
        files = {"labels.csv": as_text(_table(tp53=cells[0], kras=cells[1]))}
        yield TargetCase("labels", name, files, options, Means("multilabel", targets, ("tp53", "kras")))
    table = _table(tp53=has[:, 0], kras=has[:, 1])

    def case(
        name: str, change: Mapping[str, Sequence[object]], answer: Means | Refused, more: str
    ) -> TargetCase:
        return TargetCase("labels", name, {"labels.csv": as_text(table | dict(change))}, more, answer)

    yield case("no columns named", {}, refused("--target-column"), "--task multilabel")
    yield case("a number", {"kras": [*has[:-1, 1], 3]}, refused("line 9, column 'kras'", "'3'"), options)
    lists = {"kras": [*has[:-1, 1], "kras;egfr"]}
    yield case("a list in a cell", lists, refused("line 9", "one column per label"), options)
    yield case("a label that nobody has", {"kras": [0] * 8}, refused("'kras' holds 0"), options)
    empty = {"tp53": [*has[:-1, 0], ""], "kras": [*has[:-1, 1], ""]}
    yield case("a slide without any", empty, refused("line 9", "all labels are missing"), options)


def all_targets() -> list[TargetCase]:
    """Every case, always the same."""
    kinds = (events, columns_of_time, gdc, numbers, times, grades, several_labels)
    return [case for number, kind in enumerate(kinds) for case in kind(np.random.default_rng([SEED, number]))]


TARGETS = all_targets()
