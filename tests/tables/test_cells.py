import pytest

from mhimdist.tables.cells import is_missing


@pytest.mark.parametrize(
    "cell", ["", " ", "NA", "n/a", "N/A", "#N/A", "NaN", "None", "NULL", "-", "<NA>", "'--"]
)
def test_marks_of_what_is_missing(cell: str) -> None:
    assert is_missing(cell)
    assert is_missing(f" {cell.lower()} ")


@pytest.mark.parametrize("cell", ["0", "x", "no", "negative", "nano", "-1", "unknown", "na1"])
def test_what_is_said(cell: str) -> None:
    assert not is_missing(cell)
