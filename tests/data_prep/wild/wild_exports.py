"""Tables as other programs export them: a line per treatment, rounded numbers, columns of other names."""

from collections.abc import Iterator
from typing import Any

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
    refused,
)

BARCODES = ("TCGA-A1-0001", "TCGA-A1-0002", "TCGA-B2-0003", "TCGA-B2-0004")
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'ab' * 32}\nsize 123456\n"
STAGES = ("Stage I", "Stage II", "Stage I", "Stage II")


def _slide(row: Row) -> str:
    return row.slide


def _case(row: Row) -> str:
    return row.case


def _label(row: Row) -> str:
    return row.label


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
    ids = [f"{BARCODES.index(line[0]):08}-0c1d-4f" for line in lines]
    with_ids = as_text({"case_id": ids} | columns, "\t")
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
        ("joined by barcode, beside ids", with_ids, joined, true),
        ("with a table of slides", whole, second, true),
        ("with a table of slides, beside ids", with_ids, f"{second} --case-column case_submitter_id", true),
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


def patients(draw: np.random.Generator) -> Iterator[Case]:
    """Columns of patients under the names of clinics."""
    rows = draw_rows(draw)
    features = {row.slide: draw_features(draw) for row in rows}
    names = (
        "Patient No.",
        "patient number",
        "PatientNr",
        "MRN",
        "PID",
        "Subject ID",
        "Patienten-Nr.",
        "Case No",
    )
    for name in names:
        table = as_text(columns_of(rows, **{"Slide": _slide, name: _case, "Label": _label}))
        yield Case("patients", name, {"labels.csv": table}, Holds(rows), "", features)
    both = as_text(columns_of(rows, **{"slide": _slide, "MRN": _case, "Patient No": _case, "label": _label}))
    ambiguous = refused("got ['MRN', 'Patient No']", "--case-column")
    yield Case("patients", "two of them", {"labels.csv": both}, ambiguous, "", features)


def hidden(draw: np.random.Generator) -> Iterator[Case]:
    """What a table holds that no one sees: formulas of text, characters of no width."""
    rows = draw_rows(draw, ["0012", "0031", "0107", "0233"])
    features = {row.slide: draw_features(draw) for row in rows}
    formulas = columns_of(rows, slide=lambda row: f'="{row.slide}"', case=_case, label=_label)
    quoted = columns_of(rows, slide=lambda row: f'"=""{row.slide}"""', case=_case, label=_label)
    yield Case("hidden", "formulas of text", {"labels.csv": as_text(formulas)}, Holds(rows), "", features)
    yield Case("hidden", "formulas in quotes", {"labels.csv": as_text(quoted)}, Holds(rows), "", features)
    yield Case(
        "hidden",
        "formulas between semicolons",
        {"labels.csv": as_text(formulas, ";")},
        Holds(rows),
        "",
        features,
    )
    for name, mark in (
        ("space", "\u200b"),
        ("mark", "\ufeff"),
        ("non-joiner", "\u200c"),
        ("hyphen", "\u00ad"),
    ):
        rows = draw_rows(draw)
        features = {row.slide: draw_features(draw) for row in rows}

        def marked(text: str, mark: str = mark) -> str:
            return f"{text[:3]}{mark}{text[3:]}{mark}"

        last = rows[-1]
        some = (*rows[:-1], Row(marked(last.slide), marked(last.case), marked(last.label)))
        files = {"labels.csv": as_text(columns_of(some))}
        yield Case("hidden", f"a {name} of no width", files, Holds(rows), "", features)
        empty = (*rows[:-1], Row(last.slide, last.case, mark))
        files = {"labels.csv": as_text(columns_of(empty))}
        refusal = refused("labels.csv, line 7", "(the label)")
        yield Case("hidden", f"nothing but a {name} of no width", files, refusal, "", features)
    stored = {f"features/{row.slide}\u200b.npy": features[row.slide] for row in rows}
    true = tuple(Row(f"{row.slide}\u200b", row.case, row.label) for row in rows)
    named = {f"{slide}\u200b": array for slide, array in features.items()}
    files = {"labels.csv": as_text(columns_of(rows)), **stored}
    yield Case("hidden", "a space of no width in files", files, Holds(true), "", named)


def not_the_file(draw: np.random.Generator) -> Iterator[Case]:
    """Files with a password, of an old format, or that Git has not fetched."""
    rows = draw_rows(draw)
    features = {row.slide: draw_features(draw) for row in rows}
    ole = bytes.fromhex("d0cf11e0a1b11ae1") + bytes(504)
    for name, path, content, words in (
        (
            "a password",
            "labels.xlsx",
            ole + "EncryptedPackage".encode("utf-16-le") + bytes(512),
            ("labels.xlsx is protected by a password; save it as .xlsx without a password",),
        ),
        (
            "an old or damaged workbook",
            "labels.xls",
            ole + bytes(512),
            ("labels.xls cannot be read", "may be protected by a password or in an old format", ".xlsx"),
        ),
        ("a pointer as table", "labels.csv", POINTER, ("labels.csv is a pointer of Git LFS", "git lfs pull")),
        ("a pointer as workbook", "labels.xlsx", POINTER, ("pointer of Git LFS", "git lfs pull")),
    ):
        yield Case("not the file", name, {path: content}, refused(*words), "", features, labels=path)
    table = as_text(columns_of(rows))
    lost = rows[0].slide
    for suffix in ("pt", "npy", "h5", "npz", "tar", "parquet"):
        stored = {f"features/{row.slide}.npy": features[row.slide] for row in rows[1:]}
        files = {"labels.csv": table, f"features/{lost}.{suffix}": POINTER, **stored}
        refusal = no_features(f"{lost}.{suffix} is a pointer of Git LFS", "git lfs pull")
        yield Case("not the file", f"a pointer as .{suffix}", files, refusal, "", features)
    kept = Holds(rows[1:], left_out={lost: "git lfs pull"})
    files = {"labels.csv": table, f"features/{lost}.pt": POINTER, **stored}
    yield Case("not the file", "a pointer, left out", files, kept, "--skip-bad", features)


def groups(draw: np.random.Generator) -> Iterator[Case]:
    """HDF5 files whose arrays are in groups."""
    rows = draw_rows(draw)
    features = {row.slide: draw_features(draw) for row in rows}
    table = as_text(columns_of(rows))

    def stored(at: str, beside: str) -> dict[str, Any]:
        return {"labels.csv": table} | {
            f"features/{slide}.h5": {at: array, beside: np.zeros((len(array), 2), np.int32)}
            for slide, array in features.items()
        }

    advice = "give --feature-key, such as --feature-key {}"
    for name, files, options, answer in (
        (
            "nobody said it",
            stored("patches/uni", "patches/coords"),
            "",
            no_features("got 'patches/coords', 'patches/uni'", advice.format("patches/uni")),
        ),
        (
            "the group was said",
            stored("patches/uni", "patches/coords"),
            "--feature-key patches",
            no_features("of the keys ('patches',)", advice.format("patches/uni")),
        ),
        (
            "the path was said",
            stored("patches/uni", "patches/coords"),
            "--feature-key patches/uni",
            Holds(rows),
        ),
        ("from the root", stored("a/b/uni", "a/coords"), "--feature-key /a/b/uni", Holds(rows)),
        (
            "the group has a usual name",
            stored("features/uni", "features/coords"),
            "",
            no_features(advice.format("features/uni")),
        ),
        (
            "coordinates alone",
            stored("patches/instance_labels", "patches/coords"),
            "",
            no_features("it holds coordinates and no features"),
        ),
        (
            "an array on the way",
            stored("uni", "patches/coords"),
            "--feature-key uni/x",
            no_features("of the keys ('uni/x',)", advice.format("uni")),
        ),
    ):
        yield Case("groups", name, files, answer, options, features)


KINDS = (treatments, repeats, case_columns, patients, hidden, not_the_file, groups)
