from collections.abc import Sequence
from pathlib import Path

import pytest

from data_prep.tables.classes import class_order, refuse_measurements, spelled_as
from data_prep.tables.labels import SlideLabel
from mhimdist.errors import LabelError


def rows_of(*labels: str) -> list[SlideLabel]:
    return [SlideLabel(str(i), str(i), label) for i, label in enumerate(labels)]


@pytest.mark.parametrize(
    ("labels", "classes", "expected"),
    [
        (["tumour", "normal", "tumour"], None, ("normal", "tumour")),
        (["10", "2", "-1"], None, ("-1", "2", "10")),
        (["10", "2", "b"], None, ("10", "2", "b")),
        (["0.0", "1.0"], None, ("0.0", "1.0")),
        (["a", "b"], ["b", "c", "a"], ("b", "c", "a")),
    ],
)
def test_order_of_classes(labels: list[str], classes: list[str] | None, expected: tuple[str, ...]) -> None:
    rows = [SlideLabel(str(i), str(i), label) for i, label in enumerate(labels)]
    assert class_order(rows, classes) == expected


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        (["a", "b"], ["a", "c"], "slide '1' has label 'b', expected a or c"),
        (["a"], ["a", "a"], r"expected class names that differ and are not empty, got \['a', 'a'\]"),
        (["a"], [""], r"expected class names that differ and are not empty, got \[''\]"),
        (["1", "01"], None, "labels that are the same number are written in different ways"),
    ],
)
def test_classes_that_do_not_fit_are_refused(
    labels: list[str], classes: list[str] | None, message: str
) -> None:
    rows = [SlideLabel(str(i), str(i), label) for i, label in enumerate(labels)]
    with pytest.raises(LabelError, match=message):
        class_order(rows, classes)


def test_numbers_are_ordered_as_numbers() -> None:
    assert class_order(rows_of("10", "9", "0.5", "-1")) == ("-1", "0.5", "9", "10")


@pytest.mark.parametrize("labels", [("Yes", "yes", "no"), ("high grade", "high_grade"), ("A-B", "a b")])
def test_spellings_of_one_class_are_refused_by_name(labels: tuple[str, ...]) -> None:
    one, two, *_ = labels
    message = f"labels '{one}' and '{two}' differ only in case or spaces: --class-map '{two}={one}' makes"
    with pytest.raises(LabelError, match=message):
        class_order(rows_of(*labels))
    assert class_order(rows_of(*labels), labels) == labels


def test_signs_behind_a_name_are_no_spelling() -> None:
    assert class_order(rows_of("HER2+", "HER2-", "HER2")) == ("HER2", "HER2+", "HER2-")


def test_numbers_are_written_as_the_classes_are() -> None:
    assert spelled_as(rows_of("0", "1", "x"), ("0.0", "1.0")) == rows_of("0.0", "1.0", "x")
    assert spelled_as(rows_of("0", "1.0"), ("1", "0")) == rows_of("0", "1")
    assert spelled_as(rows_of("0", "1"), ()) == rows_of("0", "1")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            tuple(map(str, range(100, 124))),
            r"24 classes of 24 slides, 24 of them with one slide each \(100, 101",
        ),
        (("12.5", "33.1", "8.25"), "3 classes of 3 slides, .* is this survival or regression"),
        (tuple(f"s{i}" for i in range(10)), "is this a column of names"),
    ],
)
def test_measurements_and_names_are_no_classes(labels: tuple[str, ...], message: str) -> None:
    with pytest.raises(LabelError, match=rf"^l\.csv: .*{message}"):
        refuse_measurements(rows_of(*labels), Path("l.csv"))


@pytest.mark.parametrize(
    "labels", [("0", "1", "2"), ("0.5", "1"), ("0.5", "1") * 2, tuple("0123456789ab") * 2]
)
def test_few_or_repeated_labels_are_classes(labels: tuple[str, ...]) -> None:
    refuse_measurements(rows_of(*labels), Path("l.csv"))


def of_cases(labels: Sequence[str], slides_each: int = 2) -> list[SlideLabel]:
    return [SlideLabel(f"{i}-{n}", f"P{i}", x) for i, x in enumerate(labels) for n in range(slides_each)]


MEASURED = {
    "seven ages of twelve": ["51", "52", "53", "54", "55", "56", "57", "51", "52", "53", "54", "55"],
    "five days of nine": ["100", "100", "200", "200", "300", "300", "400", "400", "500"],
    "fifty ages of 300": [str(30 + i % 50) for i in range(300)],
    "months, mostly censored": [*map(str, range(3, 25, 2)), *["60"] * 30],
    "percentages": [f"{5 + 7 * i} %" for i in range(8)],
    "dates": [f"2021-03-{i + 1:02}" for i in range(8)],
    "German dates": [f"{i + 1:02}.03.2021" for i in range(8)],
    "limits": ["<0.1", "0.5", "1e-3", "2"],
    "twelve decimals of 100": [f"{i % 12}.5" for i in range(100)],
}
CLASSES = {
    "ISUP": [*"00123455"],
    "grades": [*"1234"],
    "Gleason sums": ["6", "7", "8", "9", "10"],
    "nine grades": [*"123456789"],
    "four large codes": ["8140", "8500", "8070", "8010"],
    "grades and a code for unknown": [*"012345", "99"],
    "ages, as many as half": ["51", "52", "53", "54", "55", "56"] * 2,
    "32 codes of two each": [str(i) for i in range(32)] * 2,
    "32 codes from one": [str(i + 1) for i in range(32)] * 3,
    "twelve large codes of ten": [str(8000 + 10 * i) for i in range(12)] * 10,
    "two dates": ["2021-03-01", "2021-03-02"],
    "steps": ["0%", "10%", "50%"] * 2,
    "names": [f"type {i}" for i in range(12)] * 2,
}


@pytest.mark.parametrize("labels", MEASURED.values(), ids=list(MEASURED))
def test_many_different_numbers_and_dates_are_no_classes(labels: list[str]) -> None:
    with pytest.raises(LabelError, match=f"^l.csv: {len(set(labels))} classes of {len(labels)} slides"):
        refuse_measurements(rows_of(*labels), Path("l.csv"))
    with pytest.raises(
        LabelError, match=f"{len(set(labels))} classes of {len(labels)} cases, .* one case each"
    ):
        refuse_measurements(of_cases(labels, 3), Path("l.csv"))


@pytest.mark.parametrize("labels", CLASSES.values(), ids=list(CLASSES))
def test_grades_codes_and_few_numbers_are_classes(labels: list[str]) -> None:
    refuse_measurements(rows_of(*labels), Path("l.csv"))
    refuse_measurements(of_cases(labels), Path("l.csv"))


def test_all_spellings_are_named_at_once() -> None:
    message = "'False' and 'false', and labels 'True' and 'true' differ .* 'false=False,true=True' makes"
    with pytest.raises(LabelError, match=message):
        class_order(rows_of("True", "true", "False", "false"))


def test_labels_are_written_as_the_class_with_accents_stored_apart() -> None:
    assert spelled_as(rows_of("\u00e4"), ("a\u0308",)) == rows_of("a\u0308")
