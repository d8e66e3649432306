"""Names of slides and cases: what joins a table and its features, and what is said if nothing does."""

import unicodedata
from collections.abc import Callable, Iterator, Sequence

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


def _case(
    draw: np.random.Generator,
    kind: str,
    name: str,
    table: str,
    answer: Holds | Refused,
    slides: Sequence[str],
    options: str = "",
    **files: str,
) -> Case:
    """A case whose features are of these slides."""
    features = {slide: draw_features(draw) for slide in slides}
    return Case(kind, name, {"labels.csv": table, **files}, answer, options, features)


def _written(rows: Sequence[Row], slide: Callable[[str], str]) -> str:
    return as_text(columns_of(rows, slide=lambda row: slide(row.slide), label=lambda row: row.label))


def joined(draw: np.random.Generator) -> Iterator[Case]:
    """Names that differ in what is said to make no difference."""
    writings: dict[str, Callable[[str], str]] = {
        ".svs": lambda s: f"{s}.svs",
        ".TIF": lambda s: f"{s}.TIF",
        ".ndpi": lambda s: f"{s}.ndpi",
        ".mrxs": lambda s: f"{s}.mrxs",
        ".ome.tiff": lambda s: f"{s}.ome.tiff",
        ".csv": lambda s: f"{s}.csv",
        ".pt": lambda s: f"{s}.pt",
        ".h5": lambda s: f"{s}.h5",
        "a folder": lambda s: f"/data/slides/{s}.svs",
        "a folder of Windows": lambda s: f"D:\\Scans\\2019\\{s}.svs",
        "a share of Windows": lambda s: f"\\\\server\\scans\\{s}.ndpi",
        "a relative folder": lambda s: f"./{s}",
        "spaces": lambda s: f"  {s} ",
        "a suffix after a space": lambda s: f"{s} .svs",
        "a folder of each slide": lambda s: f"D:\\Scans\\{s}\\",
        "a bucket": lambda s: f"s3://scans/2019/{s}.svs",
    }
    for name, writing in writings.items():
        rows = own_cases(draw_rows(draw))
        yield _case(draw, "name", name, _written(rows, writing), Holds(rows), [row.slide for row in rows])
    numbers = own_cases(draw_rows(draw, ["101", "102", "203", "304"]))
    yield _case(
        draw,
        "name",
        "101.0",
        _written(numbers, lambda s: f"{s}.0"),
        Holds(numbers),
        [row.slide for row in numbers],
    )
    for form, stored in (("NFD", "NFC"), ("NFC", "NFD")):
        names = [unicodedata.normalize(stored, f"Präparat {i}é") for i in range(4)]
        rows = own_cases(draw_rows(draw, names))
        table = _written(rows, lambda s, form=form: unicodedata.normalize(form, s))
        yield _case(draw, "name", f"accents as {form}, files as {stored}", table, Holds(rows), names)
    rows = own_cases(draw_rows(draw, ["S1.svs", "S2.svs", "S3.svs", "S4.svs"]))
    yield _case(
        draw,
        "name",
        "files with two suffixes",
        _written(rows, lambda s: s.removesuffix(".svs")),
        Holds(rows),
        [row.slide for row in rows],
    )
    dotted = own_cases(
        draw_rows(draw, ["TCGA-A1-A0SB-01Z.1F2E-33", "TCGA-A1-A0SC-01Z.77AA-01", "S.1.2", "S.1.3"])
    )
    yield _case(
        draw,
        "name",
        "dots within",
        _written(dotted, lambda s: f"{s}.svs"),
        Holds(dotted),
        [r.slide for r in dotted],
    )


def not_joined(draw: np.random.Generator) -> Iterator[Case]:
    """Names that would only be joined by guessing."""
    plain = [f"S17-{number}" for number in draw.choice(9000, 4, replace=False) + 1000]
    for name, slides, writing, words in (
        (
            "zeros lost in front",
            ["0071", "0102", "0203", "0304"],
            lambda s: s.lstrip("0"),
            ("'0071', '0102'", "zeros in front of numbers"),
        ),
        (
            "zeros lost, decimals won",
            ["0071", "0102", "0203", "0304"],
            lambda s: f"{int(s)}.0",
            ("'102.0'", "zeros in front of numbers"),
        ),
        (
            "upper case",
            ["slide-a", "slide-b", "slide-c"],
            str.upper,
            ("'SLIDE-A'", "'slide-a', 'slide-b'", "only in upper and lower case"),
        ),
        (
            "underscores for hyphens",
            plain,
            lambda s: s.replace("-", "_"),
            ("only in spaces, hyphens, underscores and case",),
        ),
        ("a stain behind the dot", [f"{s}.HE" for s in plain], str, ("no",)),
        (
            "no uuid",
            [f"TCGA-A1-A0S{x}-01Z-00-DX1.{i}F2E" for i, x in enumerate("BCD")],
            lambda s: s.split(".")[0],
            ("what follows the first dot", "--case-from tcga"),
        ),
        (
            "a scanner's prefix",
            plain,
            lambda s: f"scan1_{s}",
            ("the names of the table have 'scan1_' before them",),
        ),
        (
            "other slides altogether",
            plain,
            lambda s: s[::-1],
            ("features without a label", "--skip-unmatched"),
        ),
    ):
        rows = own_cases(draw_rows(draw, slides))
        if name == "a stain behind the dot":
            yield _case(draw, "name", name, _written(rows, writing), Holds(rows), slides)
            continue
        yield _case(draw, "name", name, _written(rows, writing), no_features(*words), slides)
    for name, file, writing, words in (
        (
            "files with _patches behind",
            lambda s: f"{s}_patches",
            str,
            "the names of features have '_patches' behind",
        ),
        (
            "files with a cohort before",
            lambda s: f"BRCA-{s}",
            str,
            "the names of features have 'BRCA-' before",
        ),
        (
            "a table with a stain behind",
            str,
            lambda s: f"{s}_HE.svs",
            "the names of the table have '_HE' behind",
        ),
        ("large numbers, rounded", str, lambda s: "2.01912E+12", "a spreadsheet has rounded '2.01912E+12'"),
    ):
        rows = own_cases(draw_rows(draw, 1 if "rounded" in name else 6))
        files = [file(row.slide) for row in rows]
        yield _case(draw, "name", name, _written(rows, writing), no_features(words), files)
    rows = own_cases(draw_rows(draw))
    slides = [row.slide for row in rows]
    table = _written(rows, lambda s: f"{s}.svs")
    yield _case(
        draw,
        "name",
        "a slide without features",
        table,
        no_features("1 of 6 slides in labels.csv", "--skip-unmatched", f"'{slides[0]}"),
        slides[1:],
    )
    yield _case(
        draw,
        "name",
        "a slide without features, passed over",
        table,
        Holds(rows[1:], passed_over=frozenset({f"{slides[0]}.svs"})),
        slides[1:],
        "--skip-unmatched",
    )
    yield _case(
        draw,
        "name",
        "features without a label",
        _written(rows[1:], str),
        refused("no label in labels.csv for 1 of 6 slides", "--skip-unmatched", f"'{slides[0]}'"),
        slides,
    )
    yield _case(
        draw,
        "name",
        "features without a label, passed over",
        _written(rows[1:], str),
        Holds(rows[1:], passed_over=frozenset({slides[0]})),
        slides,
        "--skip-unmatched",
    )
    yield _case(
        draw,
        "name",
        "nothing in both, passed over",
        _written(rows, lambda s: s[::-1]),
        no_features("no slide has both a label", f"features: {min(slides)!r}", "name the slides alike"),
        slides,
        "--skip-unmatched",
    )
    more = as_text(columns_of(rows, slide=lambda row: row.slide, label=lambda row: row.label)) + "Total,6\n"
    yield _case(
        draw,
        "name",
        "a row of totals, passed over",
        more,
        Holds(rows, ("6", "normal", "tumour"), passed_over=frozenset({"Total"})),
        slides,
        "--skip-unmatched",
    )
    yield _case(
        draw,
        "name",
        "a row of totals, passed over, and the classes said",
        more,
        Holds(rows, passed_over=frozenset({"Total"})),
        slides,
        "--skip-unmatched --classes normal,tumour",
    )
    several = ["S1.svs", "S1.tif", "S2.svs"]
    rows = own_cases(draw_rows(draw, ["S1", "S2.svs"]))
    yield _case(
        draw,
        "name",
        "a name of two files",
        _written(rows, str),
        refused("slide 'S1' of the table could be any of ['S1.svs', 'S1.tif']", "full name"),
        several,
    )


BARCODES = ("TCGA-A1-A0SB", "TCGA-A1-A0SD", "TCGA-B2-A0SB", "TCGA-B2-0001")


def cases(draw: np.random.Generator) -> Iterator[Case]:
    """Tables of cases alone, TCGA's barcodes, and a second table of slides."""
    slides = [f"{code}-01Z-00-DX{i}.{draw.integers(10**6):06}-AB" for code in BARCODES for i in (1, 2)]
    labels = dict(zip(BARCODES, ("LUAD", "LUSC", "LUAD", "LUSC"), strict=True))
    rows = tuple(Row(slide, slide[:12], labels[slide[:12]]) for slide in slides)
    holds, tcga = Holds(rows), "--case-from tcga"
    by_case = as_text({"case_id": list(labels), "label": list(labels.values())})
    bare = as_text({"slide": list(labels), "label": list(labels.values())})
    samples = as_text({"slide": [f"{code}-01A" for code in labels], "label": list(labels.values())})
    kinds = as_text({"Sample ID": [f"{code}-01" for code in labels], "Class": list(labels.values())})
    by_slide = as_text(columns_of(rows, filename=lambda row: f"{row.slide}.svs", label=lambda row: row.label))
    as_sample = as_text({"case_id": [f"{code}-01Z" for code in labels], "label": list(labels.values())})
    wrong = as_text(
        columns_of(
            rows, slide=lambda row: row.slide, case=lambda row: row.case[::-1], label=lambda row: row.label
        )
    )
    lower = (
        by_case.replace("TCGA-", "tcga-")
        .lower()
        .replace("lu", "LU")
        .replace("ad\n", "AD\n")
        .replace("sc\n", "SC\n")
    )
    some = as_text({"case_id": list(labels)[:3], "label": list(labels.values())[:3]})
    gap = by_case.replace("TCGA-A1-A0SD,LUSC", "TCGA-A1-A0SD,NA")
    lost = dict.fromkeys(slides[2:4], "labels.csv, line 3: the label is missing")
    for name, table, options, answer in (
        (
            "cases of TCGA alone",
            by_case,
            "",
            refused("labels.csv names cases and no slides", "--slides", "--case-from tcga"),
        ),
        ("cases of TCGA, joined", by_case, tcga, holds),
        (
            "cases of TCGA as slides",
            bare,
            "",
            no_features("these look like cases", "--slides", "--case-from tcga"),
        ),
        ("cases of TCGA as slides, joined", bare, tcga, holds),
        ("cases of TCGA in lower case", lower, tcga, holds),
        ("samples as cBioPortal names them", kinds, f"{tcga} --slide-column 'Sample ID'", holds),
        (
            "samples of another vial",
            samples,
            tcga,
            no_features("-01A'", "of the same TCGA cases", "TCGA-XX-XXXX"),
        ),
        ("samples of TCGA", as_sample, tcga, holds),
        ("slides of TCGA", by_slide, tcga, holds),
        ("slides of TCGA, their cases unsaid", by_slide, "", Holds(own_cases(rows))),
        (
            "a case that its barcode contradicts",
            wrong,
            tcga,
            refused("expected the case 'TCGA-A1-A0SB'", "the table says"),
        ),
        (
            "a case without a label",
            some,
            tcga,
            refused("no label in labels.csv for 2 of 8 slides", "--skip-unmatched"),
        ),
        (
            "a case without a label, passed over",
            some,
            f"{tcga} --skip-unmatched",
            Holds(rows[:6], passed_over=frozenset(slides[6:])),
        ),
        ("a case of NA", gap, tcga, refused("labels.csv, line 3", "the label")),
        (
            "a case of NA, left out",
            gap,
            f"{tcga} --skip-unmatched",
            Holds((*rows[:2], *rows[4:]), left_out=lost),
        ),
    ):
        yield _case(draw, "cases", name, table, answer, slides, options)
    yield from _two_tables(draw)


def _two_tables(draw: np.random.Generator) -> Iterator[Case]:
    rows = draw_rows(draw)
    labels = {"P10": "normal", "P11": "tumour", "P12": "normal"}
    rows = tuple(Row(row.slide, row.case, labels[row.case]) for row in rows)
    slides = [row.slide for row in rows]
    by_case = as_text({"Patient ID": list(labels), "Class": list(labels.values())})
    numbers = as_text({"patient": ["010", "011", "012"], "label": list(labels.values())})
    of_cases = as_text(
        columns_of(rows, **{"case": lambda row: row.case, "slide": lambda row: f"{row.slide}.svs"})
    )
    shorn = of_cases.replace("P", "")
    lower = of_cases.replace("P1", "p1")
    hole = of_cases.replace("P12", "NA")
    lost = dict.fromkeys(slides[4:], "slides.csv, line")
    for name, table, second, options, answer in (
        ("a table of slides", by_case, of_cases, "", Holds(rows)),
        (
            "cases in lower case",
            by_case,
            lower,
            "",
            refused("no label in labels.csv for cases", "'p10'", "upper and lower case"),
        ),
        ("cases whose zeros are lost", numbers, shorn, "", refused("'10'", "zeros in front of numbers")),
        ("a slide without a case", by_case, hole, "", refused("slides.csv, line 6", "(the case)")),
        (
            "a slide without a case, left out",
            by_case,
            hole,
            "--skip-unmatched",
            Holds(rows[:4], left_out=lost),
        ),
    ):
        yield _case(
            draw,
            "cases",
            name,
            table,
            answer,
            slides,
            f"--slides slides.csv {options}",
            **{"slides.csv": second},
        )
    yield _case(
        draw,
        "cases",
        "cases of no barcode alone",
        by_case,
        refused("names cases and no slides", "['Patient ID', 'Class']", "--slides", "--slide-column"),
        slides,
    )
    decimal = as_text(
        {"slide": slides, "case": ["7.0", "7", "8.0", "8", "9.0", "9"], "label": ["a", "b"] * 3}
    )
    true = tuple(
        Row(slide, case, label) for slide, case, label in zip(slides, "778899", "ababab", strict=True)
    )
    yield _case(draw, "cases", "7 and 7.0 are one patient", decimal, Holds(true), slides)


KINDS = (joined, not_joined, cases)
