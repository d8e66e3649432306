from pathlib import Path

import pytest

from mhimdist.errors import LabelError
from mhimdist.tables.columns import CASE, LABEL, SLIDE, Kind, find, require
from mhimdist.tables.reading import Table


def table(*columns: str) -> Table:
    return Table(Path("t.csv"), list(columns), [(2, ["x"] * len(columns))])


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(
            (SLIDE, name)
            for name in ("slide", "SLIDE", "Slide ID", "slide_name", "slide-name", "FileName", "WSI")
        ),
        *((SLIDE, name) for name in ("image id", "slide_path", "File Name")),
        *((LABEL, name) for name in ("label", "Class", "TARGET", "slide label", "Diagnosis", "labels")),
        *(
            (CASE, name)
            for name in ("case", "case_id", "Case ID", "patient", "PatientID", "submitter", "Submitter ID")
        ),
    ],
)
def test_usual_names_whatever_their_spelling(kind: Kind, name: str) -> None:
    assert find(table("other", name), kind, error=LabelError) == 1
    assert require(table("other", name), kind, error=LabelError) == 1


def test_a_usual_name_comes_before_a_less_usual_one() -> None:
    assert find(table("file_path", "slide"), SLIDE, error=LabelError) == 1
    assert find(table("subtype", "label"), LABEL, error=LabelError) == 1
    assert find(table("slides"), CASE, error=LabelError) is None


def test_two_columns_that_could_be_meant_are_refused_by_name() -> None:
    message = (
        r"^t\.csv: expected one column named slide or .*, got \['slide', 'filename'\]; --slide-column says"
    )
    with pytest.raises(LabelError, match=message):
        find(table("slide", "label", "filename"), SLIDE, error=LabelError)
    with pytest.raises(LabelError, match=r"got \['label', 'Label'\]"):
        find(table("label", "Label"), LABEL, error=LabelError)


def test_a_column_that_is_missing_is_named_with_the_nearest_and_the_option() -> None:
    message = (
        r"expected one column named case or .*, got the header \['slde', 'label', 'pateint'\]; the "
        "nearest is 'pateint'; --case-column says which one it is$"
    )
    with pytest.raises(LabelError, match=message):
        require(table("slde", "label", "pateint"), CASE, error=LabelError)
    with pytest.raises(LabelError, match=r"got the header \['zzz'\]; --label-column says"):
        require(table("zzz"), LABEL, error=LabelError)


@pytest.mark.parametrize(
    ("given", "expected"), [("My Grade", 1), ("my grade", 1), ("MY_GRADE", 1), ("2", 1), ("1", 0)]
)
def test_a_column_that_is_given(given: str, expected: int) -> None:
    assert find(table("slide", "My Grade"), LABEL, given, error=LabelError) == expected


def test_a_given_column_that_is_not_there() -> None:
    message = (
        r"no column 'grad' \(columns: \['slide', 'grade'\]\); the nearest is 'grade'; --label-column says"
    )
    with pytest.raises(LabelError, match=message):
        find(table("slide", "grade"), LABEL, "grad", error=LabelError)
    with pytest.raises(LabelError, match=r"no column '3' \(columns: 2\)"):
        find(Table(Path("t.csv"), [], [(1, ["a", "b"])]), LABEL, "3", error=LabelError)
    with pytest.raises(LabelError, match=r"2 columns are named 'x': \['x', 'x'\]; give one by number"):
        find(table("x", "x"), LABEL, "x", error=LabelError)


def test_two_columns_of_one_name_are_told_apart_by_number() -> None:
    with pytest.raises(LabelError, match=r"got \['label', 'label'\]; --label-column says .*, by its number$"):
        find(table("slide", "label", "label"), LABEL, error=LabelError)


def test_accents_of_a_column_are_stored_in_either_way() -> None:
    assert find(table("x", "Pra\u0308parat"), SLIDE, "Pr\u00e4parat", error=LabelError) == 1
