"""Tables as other programs export them: a line per treatment, rounded numbers, columns of other names."""

from collections.abc import Iterator

import numpy as np
from wild_inputs import Case, Holds, Refused, Row, as_text, columns_of, draw_features, draw_rows, refused

BARCODES = ("TCGA-A1-0001", "TCGA-A1-0002", "TCGA-B2-0003", "TCGA-B2-0004")
STAGES = ("Stage I", "Stage II", "Stage I", "Stage II")


def treatments(draw: np.random.Generator) -> Iterator[Case]:
    """The GDC's clinical.tsv: a line per treatment, so cases and their labels come again."""
    slides = [f"{code}-01Z-00-DX{i}.{draw.integers(10**6):06}-AB" for code in BARCODES for i in (1, 2)]
    labels = dict(zip(BARCODES, STAGES, strict=True))
    features = {slide: draw_features(draw) for slide in slides}
    true = Holds(tuple(Row(slide, slide[:12], labels[slide[:12]]) for slide in slides))
    lines = [(code, labels[code], kind) for code in BARCODES for kind in ("Drug", "Radiation")]
    columns = {
        "case_submitter_id": [line[0] for line in lines],
        "ajcc_pathologic_stage": [line[1] for line in lines],
        "treatment_type": [line[2] for line in lines],
    }
    whole = as_text(columns, "\t")
    stages = columns["ajcc_pathologic_stage"]
    another = as_text(columns | {"ajcc_pathologic_stage": [*stages[:7], "Stage IV"]}, "\t")
    gap = as_text(columns | {"ajcc_pathologic_stage": [*stages[:7], "'--"]}, "\t")
    differ = refused(
        "clinical.tsv: case 'TCGA-B2-0004' is in line 8 and again in line 9, with another label: 'Stage II' "
        "and 'Stage IV'"
    )
    of_cases = as_text({"case": [slide[:12] for slide in slides], "slide": slides})
    joined = "--case-from tcga --label-column ajcc_pathologic_stage --slide-column case_submitter_id"
    second = "--label-column ajcc_pathologic_stage --slides slides.csv"
    for name, table, options, answer in (
        ("joined by barcode", whole, joined, true),
        ("joined by barcode, found", whole, "--case-from tcga --label-column ajcc_pathologic_stage", true),
        ("with a table of slides", whole, second, true),
        ("joined by barcode, another label", another, joined, differ),
        ("with a table of slides, another label", another, second, differ),
        ("joined by barcode, a line without a label", gap, joined, refused("line 9", "(the label)")),
        ("joined by barcode, a line left out", gap, f"{joined} --skip-unmatched", true),
        ("with a table of slides, a line left out", gap, f"{second} --skip-unmatched", true),
    ):
        files = {"clinical.tsv": table, "slides.csv": of_cases}
        yield Case("treatments", name, files, answer, options, features, labels="clinical.tsv")


def repeats(draw: np.random.Generator) -> Iterator[Case]:
    """Slides that two lines name."""
    rows = draw_rows(draw)
    features = {row.slide: draw_features(draw) for row in rows}
    first = rows[0]
    of_another = (*rows, Row(first.slide, "P99", first.label))
    by_case = as_text({"case": ["P10", "P11", "P12"], "label": ["normal", "tumour", "normal"]})
    label_of = {"P10": "normal", "P11": "tumour", "P12": "normal"}
    true = Holds(tuple(Row(row.slide, row.case, label_of[row.case]) for row in rows))
    pair = {"case": lambda row: row.case, "slide": lambda row: row.slide}
    again = f"slide {first.slide!r} is in line 2 and again in line 8, with another case: 'P10' and "
    moved = (*rows, Row(first.slide, "P11", first.label))
    rounded = "'1.23457E+11' is in line 2 and again in line 3; a spreadsheet has rounded '1.23457E+11'"
    comma = "'1,23457E+11' is in line 2 and again in line 3, with another label: 'a' and 'b'; a spreadsheet"
    of_slides = as_text(columns_of((*rows, first), **pair))
    cases: tuple[tuple[str, dict[str, str], str, Holds | Refused], ...] = (
        ("of another case", {"labels.csv": as_text(columns_of(of_another))}, "", refused(again + "'P99'")),
        ("rounded", {"labels.csv": "slide,label\n1.23457E+11,a\n1.23457E+11,a\n"}, "", refused(rounded)),
        (
            "rounded, with a comma",
            {"labels.csv": "slide;label\n1,23457E+11;a\n1,23457E+11;b\n"},
            "",
            refused(comma),
        ),
        (
            "cases rounded",
            {"labels.csv": "case,label\n1.23457E+11,a\n1.23457E+11,a\n", "slides.csv": of_slides},
            "--slides slides.csv",
            refused(f"case {rounded}"),
        ),
        (
            "in a table of slides",
            {"labels.csv": by_case, "slides.csv": of_slides},
            "--slides slides.csv",
            true,
        ),
        (
            "in a table of slides, of another case",
            {"labels.csv": by_case, "slides.csv": as_text(columns_of(moved, **pair))},
            "--slides slides.csv",
            refused("slides.csv: " + again + "'P11'"),
        ),
    )
    for name, files, options, answer in cases:
        yield Case("repeats", name, files, answer, options, features)


def case_columns(draw: np.random.Generator) -> Iterator[Case]:
    """A column of cases that one of two tables has."""
    rows = draw_rows(draw)
    features = {row.slide: draw_features(draw) for row in rows}
    label_of = {"P10": "normal", "P11": "tumour", "P12": "normal"}
    true = Holds(tuple(Row(row.slide, row.case, label_of[row.case]) for row in rows))
    uuids = [f"{draw.integers(10**8):08}-ab" for _ in label_of]
    labels = as_text(
        {"case_id": uuids, "case_submitter_id": list(label_of), "label": list(label_of.values())}
    )
    pair = {"case": lambda row: row.case, "slide": lambda row: row.slide}
    odd = {"Dossier": lambda row: row.case, "slide": lambda row: row.slide}
    plain = as_text({"patient": list(label_of), "label": list(label_of.values())})
    for name, table, slides, options, answer in (
        ("of the labels", labels, as_text(columns_of(rows, **pair)), "case_submitter_id", true),
        ("of the slides", plain, as_text(columns_of(rows, **odd)), "dossier", true),
        (
            "of both",
            labels.replace("case_submitter_id", "Dossier"),
            as_text(columns_of(rows, **odd)),
            "Dossier",
            true,
        ),
        (
            "of neither",
            labels,
            as_text(columns_of(rows, **pair)),
            "Akte",
            refused("labels.csv: no column 'Akte'", "--case-column"),
        ),
    ):
        files = {"labels.csv": table, "slides.csv": slides}
        given = f"--slides slides.csv --case-column {options}"
        yield Case("case column", name, files, answer, given, features)


KINDS = (treatments, repeats, case_columns)
