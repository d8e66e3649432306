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
