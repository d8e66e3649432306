"""What label tables say: missing cells, equal labels, numbers, measurements, and rows that conflict."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from wild_inputs import (
    Case,
    Holds,
    Refused,
    Row,
    as_text,
    columns_of,
    draw_features,
    draw_rows,
    no_features,
    own_cases,
    refused,
)

MARKS = (
    "",
    "  ",
    "NA",
    "N/A",
    "#N/A",
    "NaN",
    "nan",
    "None",
    "NULL",
    "-",
    "<NA>",
    "[Not Available]",
    ".",
    "'--",
    "#REF!",
)


def _case(
    draw: np.random.Generator,
    kind: str,
    name: str,
    columns: Mapping[str, Sequence[str]],
    answer: Holds | Refused,
    rows: Sequence[Row],
    options: str = "",
) -> Case:
    features = {row.slide: draw_features(draw) for row in rows}
    return Case(kind, name, {"labels.csv": as_text(columns)}, answer, options, features)


def _with(columns: Mapping[str, list[str]], name: str, line: int, mark: str) -> dict[str, list[str]]:
    """The columns with a mark in one cell; the header is line 1."""
    cells = list(columns[name])
    cells[line - 2] = mark
    return {**columns, name: cells}


def missing(draw: np.random.Generator) -> Iterator[Case]:
    """Marks for a missing value in each column, refused and left out."""
    for number, mark in enumerate(MARKS):
        rows = draw_rows(draw)
        columns, line = columns_of(rows), int(draw.integers(2, 8))
        kept = tuple(row for i, row in enumerate(rows, 2) if i != line)
        lost = rows[line - 2].slide
        for name in ("label", ("case", "slide")[number % 2]):
            marked = _with(columns, name, line, mark)
            answer = refused(f"labels.csv, line {line}", f"(the {name})", "--skip-unmatched")
            yield _case(draw, "missing", f"{mark!r} as {name}", marked, answer, rows)
            reason = f"labels.csv, line {line}: the {name} is missing"
            left = Holds(kept, left_out={lost: reason})
            if name == "slide":  # nobody knows whose row it is, and the features have no label
                left = Holds(
                    kept, left_out={f"line {line} of labels.csv": reason}, passed_over=frozenset({lost})
                )
            yield _case(
                draw, "missing", f"{mark!r} as {name}, left out", marked, left, rows, "--skip-unmatched"
            )
    yield from _near_missing(draw)


def _near_missing(draw: np.random.Generator) -> Iterator[Case]:
    rows = draw_rows(draw, classes=("NA", "tumour"))
    renamed = tuple(Row(row.slide, row.case, "normal" if row.label == "NA" else row.label) for row in rows)
    yield _case(
        draw,
        "missing",
        "NA is said to be a class",
        columns_of(rows),
        Holds(renamed),
        rows,
        "--class-map NA=normal",
    )
    tumours = tuple(row for row in rows if row.label != "NA")
    left = Holds(tumours, left_out={row.slide: "the label is missing" for row in rows if row.label == "NA"})
    yield _case(draw, "missing", "a whole class", columns_of(rows), left, rows, "--skip-unmatched")
    words = draw_rows(draw, classes=("Nancy", "none seen", "nan1"))
    yield _case(draw, "missing", "words that only begin so", columns_of(words), Holds(words), words)
    named = draw_rows(draw, ["None", "nan", "S1", "S2"])
    yield _case(
        draw, "missing", "slides of these names", columns_of(own_cases(named)), Holds(own_cases(named)), named
    )
    nothing = columns_of(rows) | {"label": ["N/A"] * 6}
    yield _case(
        draw,
        "missing",
        "every label",
        nothing,
        refused("labels.csv, line 2", "5 more lines", "--skip-unmatched"),
        rows,
    )
    yield _case(
        draw,
        "missing",
        "every label, left out",
        nothing,
        no_features("no row of labels.csv says all of slide, label and case"),
        rows,
        "--skip-unmatched",
    )


def equals(draw: np.random.Generator) -> Iterator[Case]:
    """Labels that are the same class, or may be."""
    for name, written, options, answer in (
        ("0, 0.0 and 1.00", ("0", "0.0", "1", "1.00"), "", ("0", "1")),
        ("spaces around", (" tumour", "tumour ", "normal", "normal"), "", ("normal", "tumour")),
        ("numbers in order", ("10", "9", "2", "-1"), "", ("-1", "2", "9", "10")),
        ("classes that are given as decimals", ("0", "1", "0", "1"), "--classes 1.0,0.0", ("1.0", "0.0")),
        ("Yes and YES, renamed", ("Yes", "YES", "no", "no"), "--class-map YES=Yes", ("Yes", "no")),
        ("yes and Yes, kept apart", ("Yes", "yes", "no", "no"), "--classes no,yes,Yes", ("no", "yes", "Yes")),
        ("1.0 renamed as 1", ("0.0", "1.0", "0.0", "1.0"), "--class-map 1=high,0=low", ("high", "low")),
        ("0 renamed as 0.0", ("0", "1", "0", "1"), "--class-map 0.0=low,1.0=high", ("high", "low")),
        ("three joined to two", ("A", "B", "C", "C"), "--class-map B=A", ("A", "C")),
        (
            "an order that is given",
            ("low", "high", "mid", "low"),
            "--classes low,mid,high",
            ("low", "mid", "high"),
        ),
        ("halves", ("0.5", "1.5", "0.50", "1.5"), "", ("0.5", "1.5")),
    ):
        means = (
            {" tumour": "tumour", "tumour ": "tumour", "YES": "Yes"}
            if "renamed" in name or "spaces" in name
            else {}
        )
        means |= {
            "0, 0.0 and 1.00": {"0.0": "0", "1.00": "1"},
            "classes that are given as decimals": {"0": "0.0", "1": "1.0"},
            "1.0 renamed as 1": {"0.0": "low", "1.0": "high"},
            "0 renamed as 0.0": {"0": "low", "1": "high"},
            "three joined to two": {"B": "A"},
            "halves": {"0.50": "0.5"},
        }.get(name, {})
        rows = draw_rows(draw, 4 * 2, written)
        true = tuple(Row(row.slide, row.case, means.get(row.label, row.label)) for row in rows)
        yield _case(draw, "equal", name, columns_of(rows), Holds(true, answer), rows, options)
    for name, written, options, words in (
        (
            "Yes, yes and YES",
            ("Yes", "yes", "YES", "no"),
            "",
            ("'YES' and 'Yes' and 'yes' differ only in case", "--class-map 'Yes=YES,yes=YES'"),
        ),
        (
            "a space or an underscore",
            ("grade 1", "grade_1", "grade 2"),
            "",
            ("'grade 1' and 'grade_1'", "--class-map"),
        ),
        ("True and TRUE", ("True", "TRUE", "False"), "", ("'TRUE' and 'True'", "--class-map")),
        (
            "1 and 01",
            ("1", "01", "0"),
            "",
            ("the same number are written in different ways", "--class-map '1=01' makes"),
        ),
        (
            "a class that is not given",
            ("normal", "tumour", "unclear"),
            "--classes normal,tumour",
            ("has label 'unclear'", "normal or tumour"),
        ),
        (
            "a class renamed that is not there",
            ("a", "b"),
            "--class-map c=b",
            ("no slide has the label 'c'", "--class-map"),
        ),
    ):
        rows = draw_rows(draw, 6, written)
        yield _case(draw, "equal", name, columns_of(rows), refused(*words), rows, options)


def measurements(draw: np.random.Generator) -> Iterator[Case]:
    """Columns of labels that are survival, dates or names; and classes that only look so."""
    days = [str(day) for day in draw.choice(3000, 24, replace=False)]
    months = [f"{value:.2f}" for value in draw.choice(20000, 24, replace=False) / 100]
    dates = [f"2019-{day % 12 + 1:02}-{day % 27 + 1:02}" for day in range(24)]
    names = [f"finding {value}" for value in draw.choice(999, 24, replace=False)]
    grid = [str(value) for value in range(1, 13)] * 2
    for name, written, options, answer in (
        (
            "days of survival",
            days,
            "",
            refused("labels.csv: 24 classes of 24 slides", "survival or regression", "--label-column"),
        ),
        (
            "months with decimals",
            months,
            "",
            refused("24 classes of 24 slides", "survival or regression", "--classes"),
        ),
        (
            "some of them twice",
            [*days[:20], *days[:4]],
            "",
            refused("20 classes of 24 slides, 16 of them with one", "survival"),
        ),
        ("dates", dates, "", refused("labels.csv", "of 24 slides", "column of names")),
        ("remarks", names, "", refused("24 classes of 24 slides", "a column of names", "--label-column")),
        (
            "a score of three decimals",
            ["0.1", "0.25", "0.7", "0.1"],
            "",
            refused("3 classes of 3 cases", "survival or regression"),
        ),
        ("twelve classes of two slides", grid, "", Holds((), tuple(map(str, range(1, 13))))),
        (
            "months that are said to be classes",
            ["3.5", "7.25", "9.5"],
            "--classes 3.5,7.25,9.5",
            Holds((), ("3.5", "7.25", "9.5")),
        ),
        ("nine grades of one slide each", [*"123456789"], "", Holds((), tuple("123456789"))),
    ):
        rows = draw_rows(draw, len(written), written)
        answer = Holds(rows, answer.classes) if isinstance(answer, Holds) else answer
        yield _case(draw, "measurement", name, columns_of(rows), answer, rows, options)
    rows = draw_rows(draw, 24)
    of_cases = {row.case: day for row, day in zip(rows, days, strict=True)}
    by_case = columns_of(rows) | {"label": [of_cases[row.case] for row in rows]}
    yield _case(
        draw,
        "measurement",
        "survival of patients with two slides each",
        by_case,
        refused(
            "labels.csv: 12 classes of 12 cases, 12 of them with one case each", "survival or regression"
        ),
        rows,
    )
    censored = columns_of(own_cases(rows)) | {"label": [*days[:11], *["1825"] * 13]}
    yield _case(
        draw,
        "measurement",
        "survival, mostly censored at five years",
        censored,
        refused("12 classes of 24 slides, 11 of them with one slide each", "survival or regression"),
        rows,
    )
    both = columns_of(rows) | {"os_months": months, "event": ["0", "1"] * 12}
    yield _case(draw, "measurement", "survival in other columns", both, Holds(rows), rows)
    yield _case(
        draw,
        "measurement",
        "survival asked for",
        both,
        refused("24 classes of 24 slides", "survival"),
        rows,
        "--label-column OS_months",
    )


def conflicts(draw: np.random.Generator) -> Iterator[Case]:
    """Rows that repeat a slide or a case."""
    rows = draw_rows(draw)
    columns = columns_of(rows)
    first = {name: cells[0] for name, cells in columns.items()}
    other = "tumour" if first["label"] == "normal" else "normal"

    def more(**cells: str) -> dict[str, list[str]]:
        return {name: [*columns[name], (first | cells)[name]] for name in columns}

    twice = f"slide {first['slide']!r} is in line 2 and again in line 8"
    for name, table, options, answer in (
        ("a slide twice, with the same label", more(), "", Holds(rows)),
        ("a slide twice, with another label", more(label=other), "", refused("labels.csv", twice)),
        (
            "a slide twice, once with a suffix",
            more(slide=f"{first['slide']}.svs"),
            "",
            refused("in the table twice", f"{first['slide']}.svs"),
        ),
        (
            "a slide twice, once in a folder",
            more(slide=f"D:\\scans\\{first['slide']}"),
            "",
            refused("in the table twice", "scans"),
        ),
        ("a slide twice, left out is no way", more(label=other), "--skip-unmatched", refused(twice)),
    ):
        yield _case(draw, "conflict", name, table, answer, rows, options)
    labels = dict(zip(("P10", "P11", "P12"), ("normal", "tumour", "normal"), strict=True))
    mixed = tuple(Row(row.slide, "P1", row.label) for row in rows)
    yield _case(
        draw, "conflict", "one case with slides of both classes", columns_of(mixed), Holds(mixed), rows
    )
    true = tuple(Row(row.slide, row.case, labels[row.case]) for row in rows)
    slides = as_text(columns_of(rows, case_id=lambda row: row.case, slide_id=lambda row: row.slide))
    cases = {"patient": [*labels, "P10"], "label": [*labels.values(), "normal"]}
    features = {row.slide: draw_features(draw) for row in rows}
    for name, said, answer in (
        ("a case twice, with the same label", "normal", Holds(true)),
        (
            "a case twice, with another label",
            "tumour",
            refused("case 'P10' is in line 2 and again in line 5", "'normal' and 'tumour'"),
        ),
    ):
        files = {"labels.csv": as_text(cases | {"label": [*labels.values(), said]}), "slides.csv": slides}
        yield Case("conflict", name, files, answer, "--slides slides.csv", features)


KINDS = (missing, equals, measurements, conflicts)
