"""How a label table is written: encodings, delimiters, headers, workbooks and Parquet."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from wild_inputs import (
    Case,
    Holds,
    Refused,
    Row,
    as_rows,
    as_text,
    columns_of,
    draw_features,
    draw_rows,
    own_cases,
    refused,
)

from mhimdist.errors import DataError

SLIDE, CASE, LABEL = (lambda row: row.slide), (lambda row: row.case), (lambda row: row.label)


def _case(
    draw: np.random.Generator,
    kind: str,
    name: str,
    content: Any,
    answer: Holds | Refused,
    rows: Sequence[Row],
    options: str = "",
    labels: str = "labels.csv",
) -> Case:
    features = {row.slide: draw_features(draw) for row in rows}
    return Case(kind, name, {labels: content}, answer, options, features, labels=labels)


def encodings(draw: np.random.Generator) -> Iterator[Case]:
    """UTF-8, UTF-16, Latin-1 and what is no text."""
    rows = draw_rows(draw)
    text, holds = as_text(columns_of(rows)), Holds(rows)
    wide = text.encode("utf-16-le")
    answers: dict[str, tuple[bytes, Holds | Refused]] = {
        "UTF-8": (text.encode(), holds),
        "UTF-8 with a mark": (text.encode("utf-8-sig"), holds),
        "UTF-16, little end first": (b"\xff\xfe" + wide, holds),
        "UTF-16, big end first": (b"\xfe\xff" + text.encode("utf-16-be"), holds),
        "UTF-32 with a mark": (text.encode("utf-32"), holds),
        "UTF-16 without a mark": (
            wide,
            refused("labels.csv, line 1", "UTF-16 without a byte-order mark", "save"),
        ),
        "UTF-16 cut in the middle": (b"\xff\xfe" + wide[:-1], refused("labels.csv", "UTF-16", "truncated")),
        "lines of Windows": (text.replace("\n", "\r\n").encode(), holds),
        "lines of an old Mac": (text.replace("\n", "\r").encode(), holds),
        "blank lines and no end": (("\n\n" + text.replace("\n", "\n\n")).strip("\n").encode(), holds),
        "compressed": (b"\x1f\x8b\x08\0" + text.encode(), refused("labels.csv is gzip", "save it as CSV")),
        "a web page": (b"<!DOCTYPE html><table></table>", refused("labels.csv is HTML", "save it as CSV")),
        "JSON": (b'[{"slide": "a", "label": "x"}]', refused("labels.csv is JSON", "save it as CSV")),
        "nothing": (b"", refused("labels.csv", "a header and at least one slide, got 0 lines")),
        "a header alone": (b"slide,label\n", refused("labels.csv", "at least one slide, got 1 lines")),
    }
    for name, (content, answer) in answers.items():
        yield _case(draw, "encoding", name, content, answer, rows)
    rows = draw_rows(draw, ["Präparat 1", "Präparat 2", "Übersicht", "S–4"], ("bösartig", "gutartig"))
    text = as_text(columns_of(rows))
    for name, encoding, warns in (
        ("accents in UTF-8", "utf-8", ""),
        ("accents in UTF-16", "utf-16", ""),
        ("accents of Windows", "cp1252", "labels.csv is not in UTF-8 and was read as Latin-1"),
    ):
        yield _case(draw, "encoding", name, text.encode(encoding), Holds(rows, warns=warns), rows)
    rows = draw_rows(draw, 4, ("é", "ü"))
    latin = as_text(columns_of(rows)).encode("latin-1")
    yield _case(draw, "encoding", "Latin-1", latin, Holds(rows, warns="read as Latin-1"), rows)


def delimiters(draw: np.random.Generator) -> Iterator[Case]:
    """Commas, semicolons, tabs, bars, spaces, Excel's line, quotes, and rows of other lengths."""
    rows = draw_rows(draw, classes=("a", "b"))
    columns, holds = columns_of(rows), Holds(rows)
    lines = as_text(columns).splitlines()
    spoken = draw_rows(draw, ["a, left", 'the "good" one', "plain", "x;y"], ("no, none", "yes; some"))
    quote = {
        name: ['"' + str(cell).replace('"', '""') + '"' for cell in cells]
        for name, cells in columns_of(spoken).items()
    }
    files: dict[str, tuple[str, str | bytes, Holds | Refused]] = {
        "semicolons": ("labels.csv", as_text(columns, ";"), holds),
        "tabs in .tsv": ("labels.tsv", as_text(columns, "\t"), holds),
        "tabs in .csv": ("labels.csv", as_text(columns, "\t"), holds),
        "commas in .TXT": ("LABELS.TXT", as_text(columns), holds),
        "bars": ("labels.txt", as_text(columns, "|"), holds),
        "spaces": ("labels.txt", as_text(columns, "  "), holds),
        "no suffix": ("labels", as_text(columns), holds),
        "Excel's line": ("labels.csv", "sep=;\r\n" + as_text(columns, ";", "\r\n"), holds),
        "Excel's line in quotes": ("labels.csv", '"sep=|"\n' + as_text(columns, "|"), holds),
        "Excel's line, upper case": ("labels.CSV", "SEP=\t\n" + as_text(columns, "\t"), holds),
        "Excel's line in UTF-16": (
            "labels.csv",
            ("sep=,\r\n" + as_text(columns)).encode("utf-16"),
            holds,
        ),
        "spaces around cells": ("labels.csv", as_text(columns, " , "), holds),
        "a delimiter at the end": ("labels.csv", as_text(columns, end=",\n"), holds),
        "empty rows of a spreadsheet": ("labels.csv", as_text(columns) + ",,\n" * 3, holds),
        "a row too short": (
            "labels.csv",
            "\n".join([*lines[:3], "S1", *lines[4:]]),
            refused("labels.csv, line 4: expected 3 cells, got 1"),
        ),
        "a row too long": (
            "labels.csv",
            "\n".join([*lines[:2], lines[2] + ",x"]),
            refused("labels.csv, line 3: expected 3 cells, got 4"),
        ),
        "a quote never closed": (
            "labels.csv",
            as_text(columns) + '"S1,P1,a\n',
            refused("labels.csv cannot be read as CSV", "the row that begins in line 8"),
        ),
        "a line number after Excel's line": (
            "labels.csv",
            "sep=;\n" + as_text(columns, ";") + "S1;P1;\n",
            refused("labels.csv, line 9", "the label"),
        ),
    }
    for name, (path, text, answer) in files.items():
        yield _case(draw, "delimiter", name, text, answer, rows, labels=path)
    yield _case(draw, "delimiter", "quotes around all", as_text(quote), Holds(spoken), spoken)
    yield _case(draw, "delimiter", "quotes after spaces", as_text(quote, ", "), Holds(spoken), spoken)
    yield _case(draw, "delimiter", "quotes and tabs", as_text(quote, "\t"), Holds(spoken), spoken)
    broken = as_text(
        {"slide": [row.slide for row in rows], "remark": ['"two\nlines"'] * 6, "label": [*"aabbb", "NA"]}
    )
    yield _case(
        draw, "delimiter", "a cell of two lines", broken, refused("labels.csv, line 13", "the label"), rows
    )


def headers(draw: np.random.Generator) -> Iterator[Case]:
    """Names of columns: synonyms, spellings, options, none at all, and what is said if one is not found."""
    rows = draw_rows(draw)
    for slide, case, label in (
        ("slide_id", "case_id", "label"),
        ("Slide ID", "Patient ID", "Class"),
        ("SLIDE-NAME", "PATIENT", "TARGET"),
        (" filename ", "submitter_id", " Diagnosis "),
        ("image_id", "Case", "slide_label"),
        ("File Name", "case_submitter_id", "Ground Truth"),
        ("wsi", "bcr_patient_barcode", "subtype"),
        ("image_path", "subject", "Category"),
    ):
        columns = columns_of(rows, **{label: LABEL, slide: SLIDE, case: CASE})
        yield _case(
            draw, "header", f"{slide.strip()}, {case}, {label.strip()}", as_text(columns), Holds(rows), rows
        )
    number = {row.slide: i for i, row in enumerate(rows)}
    pandas = columns_of(rows, **{"": lambda row: number[row.slide], "slide": SLIDE, "label": LABEL})
    own = Holds(own_cases(rows))
    two = columns_of(rows, slide=SLIDE, filename=lambda row: f"{row.slide}.svs", label=LABEL)
    odd = columns_of(rows, specimen=SLIDE, grade=LABEL, who=CASE)
    lable = columns_of(rows, slide=SLIDE, lable=LABEL)
    three = columns_of(rows, code=SLIDE, who=CASE, kind=LABEL)
    files: dict[str, tuple[Mapping[str, Sequence[Any]], str, Holds | Refused]] = {
        "an index of pandas": (pandas, "", own),
        "two columns of slides": (two, "", refused("labels.csv", "['slide', 'filename']", "--slide-column")),
        "two columns of slides, one named": (two, "--slide-column filename", own),
        "odd names, said": (
            odd,
            "--slide-column specimen --label-column Grade --case-column WHO",
            Holds(rows),
        ),
        "odd names, said by number": (odd, "--slide-column 1 --label-column 2", own),
        "a label misspelled": (
            lable,
            "",
            refused("got the header ['slide', 'lable']", "the nearest is 'lable'", "--label-column"),
        ),
        "an option misspelled": (
            odd,
            "--slide-column specimn --label-column grade",
            refused("no column 'specimn'", "nearest is 'specimen'", "--slide-column"),
        ),
        "no name that is known": (
            three,
            "",
            refused("labels.csv", "'code', 'who', 'kind'", "--slide-column and --label-column"),
        ),
        "a number too high": (
            odd,
            "--slide-column 1 --label-column 4",
            refused("no column '4' (columns: 3)", "--label-column"),
        ),
    }
    for name, (columns, options, answer) in files.items():
        yield _case(draw, "header", name, as_text(columns), answer, rows, options)
    broken = as_text(columns_of(rows, **{'"Slide\nID"': SLIDE, "Case\xa0ID": CASE, "# Label": LABEL}))
    yield _case(draw, "header", "a line break, a hard space and a mark", broken, Holds(rows), rows)
    below = refused("labels.csv, line 2", "is like a header", "remove the lines above it")
    yield _case(draw, "header", "a title above", "Table S1,,\n" + as_text(columns_of(rows)), below, rows)
    remark = "# exported in 2019\n" + as_text(columns_of(rows), ";")
    yield _case(draw, "header", "a remark above", remark, Holds(rows), rows)
    bare = as_text(columns_of(rows, slide=SLIDE, label=LABEL)).split("\n", 1)[1]
    yield _case(draw, "header", "none", bare, own, rows)
    unknown = "specimen,grade\n" + bare
    answer = refused("labels.csv, line 1", "if it is a header", "--slide-column and --label-column")
    yield _case(draw, "header", "two columns of unknown names", unknown, answer, rows)


def workbooks(draw: np.random.Generator) -> Iterator[Case]:
    """Spreadsheets: numbers, empty borders, sheets."""
    rows = draw_rows(draw, classes=("0", "1"))
    sheet, holds = as_rows(columns_of(rows)), Holds(rows)
    titled = [["Supplementary table 1", None, None], [None] * 3, *sheet]
    numbers = [sheet[0], *([slide, case, int(label)] for slide, case, label in sheet[1:])]
    decimals = [sheet[0], *([slide, case, float(label)] for slide, case, label in sheet[1:])]
    framed = [[None] * 4, *([None, *row] for row in sheet), [None] * 4]
    notes = [["made by", "me"]]
    gap = [*sheet[:2], [None] * 3, *sheet[2:]]
    hole = [*sheet[:2], [sheet[2][0], sheet[2][1], None], *sheet[3:]]
    files: dict[str, tuple[str, Any, Holds | Refused]] = {
        "text": ("labels.xlsx", sheet, holds),
        "upper-case suffix": ("LABELS.XLSX", sheet, holds),
        "named .csv": ("labels.csv", sheet, holds),
        "whole numbers": ("labels.xlsx", numbers, holds),
        "numbers with decimals": ("labels.xlsx", decimals, holds),
        "empty cells around": ("labels.xlsx", framed, holds),
        "a title above": ("labels.xlsx", titled, refused("labels.xlsx, line 3", "is like a header")),
        "an empty row within": ("labels.xlsx", gap, holds),
        "an empty second sheet": ("labels.xlsx", {"Sheet1": sheet, "Sheet2": []}, holds),
        "two sheets": (
            "labels.xlsx",
            {"Labels": sheet, "Notes": notes},
            refused("'Labels', 'Notes'", "save the one that counts"),
        ),
        "an empty cell": (
            "labels.xlsx",
            hole,
            refused("labels.xlsx, line 3", "the label", "--skip-unmatched"),
        ),
        "no sheet with cells": ("labels.xlsx", [], refused("labels.xlsx", "got 0 lines")),
    }
    for name, (path, content, answer) in files.items():
        yield _case(draw, "workbook", name, content, answer, rows, labels=path)
    ids = draw_rows(draw, ["0071", "0102", "0203", "0304"])
    shown = [["slide", "label"], *([int(row.slide), row.label] for row in ids)]
    answer = refused("'102', '203'", "'0071', '0102'", "zeros in front", error=DataError)
    yield _case(draw, "workbook", "zeros lost in front of slides", shown, answer, ids, labels="labels.xlsx")


def parquet(draw: np.random.Generator) -> Iterator[Case]:
    """Parquet: the types that columns have."""
    rows = draw_rows(draw, classes=("0", "1"))
    columns = columns_of(rows)
    slides, _, labels = columns.values()
    whole = [int(label) for label in labels]
    tables: dict[str, tuple[dict[str, Any], Holds | Refused]] = {
        "text": (columns, Holds(rows)),
        "whole numbers": (columns | {"label": pa.array(whole, pa.int8())}, Holds(rows)),
        "decimal numbers": (columns | {"label": pa.array(map(float, whole), pa.float64())}, Holds(rows)),
        "categories": (
            {name: pa.array(cells).dictionary_encode() for name, cells in columns.items()},
            Holds(rows),
        ),
        "large text": (
            {name: pa.array(cells, pa.large_string()) for name, cells in columns.items()},
            Holds(rows),
        ),
        "an index and a list beside": (
            columns | {"__index_level_0__": range(6), "boxes": [[1, 2]] * 6},
            Holds(rows),
        ),
        "a null label": (
            columns | {"label": [*labels[:5], None]},
            refused("labels.csv, line 6", "the label"),
        ),
        "a null column": (
            columns | {"label": pa.nulls(6)},
            refused("labels.csv, line 1", "the label", "5 more lines"),
        ),
        "NaN of a column of numbers": (
            columns | {"label": [*map(float, whole[:5]), float("nan")]},
            refused("line 6", "the label"),
        ),
        "a list of labels": (
            {"slide": slides, "label": [[label] for label in labels]},
            refused("got the header ['slide']; --label-column"),
        ),
    }
    for name, (content, answer) in tables.items():
        yield _case(
            draw, "Parquet", name, pa.table({k: pa.array(v) for k, v in content.items()}), answer, rows
        )
    truths = tuple(Row(row.slide, row.case, "True" if row.label == "1" else "False") for row in rows)
    booleans = pa.table(columns | {"label": [bool(label) for label in whole]})
    yield _case(draw, "Parquet", "booleans", booleans, Holds(truths), rows, labels="LABELS.PARQUET")
    ids = draw_rows(draw, ["101", "102", "103", "104"])
    numbered = pa.table(columns_of(ids, slide=lambda row: float(row.slide), patient=CASE, label=LABEL))
    yield _case(
        draw, "Parquet", "slides as decimal numbers", numbered, Holds(ids), ids, labels="labels.parquet"
    )
    skipped = pa.table(columns | {"label": [*labels[:5], None]})
    left = Holds(rows[:5], left_out={rows[5].slide: "line 6: the label is missing"})
    yield _case(draw, "Parquet", "a null label, left out", skipped, left, rows, "--skip-unmatched")


KINDS = (encodings, delimiters, headers, workbooks, parquet)
