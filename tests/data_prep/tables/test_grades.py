import random

import pytest

from data_prep.tables.grades import grades_in_order
from mhimdist.errors import LabelError


@pytest.mark.parametrize(
    "order",
    [
        ("-1", "0", "1.5", "10"),
        ("G1", "G2", "G10"),
        ("pT1a", "pT1b", "pT2"),
        ("I", "II", "IIIA", "IIIB", "IV"),
        ("stage_0", "stage_i", "stage_iv"),
        ("negative", "weak", "Strong"),
        ("well_differentiated", "Poorly-differentiated"),
        ("none", "severe"),
    ],
)
def test_names_that_say_their_order(order: tuple[str, ...]) -> None:
    for seed in range(5):
        shuffled = random.Random(seed).sample(order, len(order))
        assert grades_in_order([*shuffled, *shuffled], "here") == order


@pytest.mark.parametrize(
    "names",
    [
        ("G1", "grade 2"),
        ("1", "1a"),
        ("G1", "G01"),
        ("low", "Low "),
        ("low", "mild"),
        ("medium", "moderate"),
        ("3+3", "3+4"),
        ("A", "B", "C"),
        ("1", "II"),
    ],
)
def test_names_that_do_not_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(LabelError, match=r"here: the order of the grades .* is not certain; .* --classes"):
        grades_in_order(names, "here")


def test_one_grade_is_none() -> None:
    with pytest.raises(LabelError, match=r"expected two or more grades, got \['G1'\]"):
        grades_in_order(["G1", "G1"], "here")
