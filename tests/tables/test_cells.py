from pathlib import Path

import pytest

from mhimdist.tables.cells import MISSING, is_missing, said


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        *(('="0012"', "0012"), (' ="a b" ', "a b"), ('=""', "")),
        *(("=0012", "=0012"), ('="a"&"b"', '="a"&"b"'), ('"a"', '"a"'), ("a=b", "a=b")),
    ],
)
def test_a_formula_of_a_text_is_the_text(cell: str, text: str) -> None:
    assert said(cell) == text


@pytest.mark.parametrize("mark", ["\u00ad", "\u200b", "\u200c", "\u200d", "\u2060", "\ufeff"])
def test_characters_of_no_width_say_nothing(mark: str) -> None:
    assert is_missing(mark)
    assert is_missing(f"N{mark}A{mark}")
    assert not is_missing(f"{mark}a")


@pytest.mark.parametrize(
    "cell", ["", " ", "NA", "n/a", "N/A", "#N/A", "NaN", "None", "NULL", "-", "<NA>", "'--"]
)
def test_marks_of_what_is_missing(cell: str) -> None:
    assert is_missing(cell)
    assert is_missing(f" {cell.lower()} ")


@pytest.mark.parametrize(
    "cell",
    [
        *(
            "#NV",
            "#WERT!",
            "#BEZUG!",
            "#DIV/0!",
            "#ZAHL!",
            "#NOM?",
            "#VALEUR!",
            "#N/D",
            "#NOMBRE!",
            "#¡VALOR!",
        ),
        *("#¿NOMBRE?", "¡REF!", "#Н/Д", "#ЗНАЧ!", "#ÜBERLAUF!", "#SPILL!", "#YOK", "####", "Err:502"),
    ],
)
def test_errors_of_spreadsheets_in_any_language(cell: str) -> None:
    assert is_missing(cell)
    assert is_missing(f"{cell.lower()} ")


@pytest.mark.parametrize(
    "cell", [".", "..", "k.A.", "k. A.", "n. d.", "N. A.", "n / a", "?", "Not  Reported"]
)
def test_marks_of_other_programs_and_languages(cell: str) -> None:
    assert is_missing(cell)


@pytest.mark.parametrize("cell", ["#1", "#12", "#tumour", "C#", "wow!", "1/2", "Unknown", "missing", "other"])
def test_signs_that_are_no_marks(cell: str) -> None:
    assert not is_missing(cell)


@pytest.mark.parametrize("cell", ["0", "x", "no", "negative", "nano", "-1", "unknown", "na1"])
def test_what_is_said(cell: str) -> None:
    assert not is_missing(cell)


def test_the_documentation_lists_every_mark() -> None:
    text = (Path(__file__).parents[2] / "docs/data.md").read_text(encoding="utf-8").lower()
    assert [mark for mark in MISSING if mark and f"`{mark}`" not in " ".join(text.split())] == []
