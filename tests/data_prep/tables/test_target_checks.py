from pathlib import Path

import numpy as np
import pytest

from data_prep.tables.labels import SlideLabel
from data_prep.tables.target_checks import described, refuse_unlearnable, targets_of, warning_of_cases
from mhimdist.data.targets import TaskInfo
from mhimdist.errors import LabelError

MULTILABEL = TaskInfo(name="multilabel", columns=("a", "b"))


def rows(*targets: tuple[float | None, ...], cases: str = "pqrs") -> list[SlideLabel]:
    return [
        SlideLabel(f"s{i}", case, str(each), f"t.csv, line {i + 2}", each)
        for i, (each, case) in enumerate(zip(targets, cases, strict=False))
    ]


def test_missing_targets_are_nan() -> None:
    np.testing.assert_array_equal(targets_of(rows((1, None), (0, 1))), [[1, np.nan], [0, 1]])


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([(1, 0), (1, 1)], "column 'a' holds 1 or nothing in all"),
        ([(1, None), (0, 1)], "column 'b' holds 1 or nothing in all"),
        ([(1, None), (0, None)], "column 'b' holds nothing in all"),
    ],
)
def test_columns_that_say_one_thing_are_refused(targets: list, message: str) -> None:
    with pytest.raises(LabelError, match=message):
        refuse_unlearnable(rows(*targets), MULTILABEL, Path("t.csv"))


def test_one_slide_may_be_appended() -> None:
    refuse_unlearnable(rows((1, 0)), MULTILABEL, Path("t.csv"))


def test_a_case_is_named_unless_its_slides_agree_where_both_know() -> None:
    assert warning_of_cases(rows((1, None), (1, 0), (None, 0), cases="ppp")) is None
    assert warning_of_cases(rows((1, 0), (0, 1), cases="pq")) is None
    said = warning_of_cases(rows((1, 0), (1, 1), (0, 1), (0, 0), cases="ppqq"))
    assert said is not None
    assert said.startswith("2 cases have slides with different labels")
    assert "case 'p' has 's0' (t.csv, line 2)" in said


def test_labels_are_counted_among_those_known() -> None:
    targets_NK = targets_of(rows((1, None), (0, 1), (1, 0)))
    assert described(MULTILABEL, targets_NK) == "multilabel: a 2 of 3, b 1 of 2"
