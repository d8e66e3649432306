"""The page of faults is the one that the tests' marks make, and a run's matrix says what the run showed."""

import json

import pytest
from fault_rows import ROWS
from faults_matrix import PAGE, SOAK, Matrix, marked, page


def test_the_page_is_current():
    assert PAGE.read_text() == page(), "run `python tests/faults_matrix.py`"


def test_the_soak_on_the_page_was_long_and_lost_nothing():
    if not SOAK.exists():
        pytest.skip("no soak is on the page")
    found = json.loads(SOAK.read_text())
    assert (found["broken"], found["skipped"]) == ([], [])
    assert found["asked"] >= 30
    assert found["finished"].keys() == {"sweeps", "training runs"}
    for kind in ("clock_jump", "sigterm", "sigkill", "sigstop", "full_disk"):
        assert found["fault"][f"{kind} in training"] > 0


def test_every_row_has_a_test():
    assert [number for number, tests in marked().items() if not tests] == []


def _report(name: str, outcome: str, *rows: int, when: str = "call") -> pytest.TestReport:
    return pytest.TestReport(
        name, ("", 0, ""), {}, outcome, None, when, [], 0, 0, 0, [("faults", list(rows))]
    )


def test_a_row_is_shown_by_a_test_that_passed_and_by_none_that_failed(tmp_path):
    matrix = Matrix(tmp_path / "faults.json")
    matrix.pytest_runtest_logreport(_report("a@group", "passed", 1, 2))
    matrix.pytest_runtest_logreport(_report("b", "failed", 2))
    matrix.pytest_runtest_logreport(_report("b", "passed", 2))
    matrix.pytest_runtest_logreport(_report("c", "skipped", 3, when="setup"))
    matrix.pytest_runtest_logreport(_report("d", "passed", 4))
    matrix.pytest_runtest_logreport(_report("d", "failed", 4, when="teardown"))
    matrix.pytest_runtest_logreport(_report("e", "passed", 5, when="setup"))
    states = [matrix.state(row) for row in (1, 2, 3, 4, 5)]
    assert states == ["passed", "failed", "not shown", "failed", "not shown"]
    assert matrix.outcomes[1] == {"a": "passed"}


class Session:
    """As much of a session of successful tests as the matrix sees."""

    config = object()
    exitstatus = 0


def _status(matrix: Matrix) -> int:
    session = Session()
    matrix.pytest_sessionfinish(session)
    return session.exitstatus


def test_a_run_fails_unless_every_row_is_shown(tmp_path):
    matrix = Matrix(tmp_path / "faults.json")
    for row in ROWS:
        matrix.pytest_runtest_logreport(_report(f"t{row}", "passed", row))
    assert _status(matrix) == 0
    del matrix.outcomes[9]
    assert _status(matrix) == 1
    written = json.loads((tmp_path / "faults.json").read_text())
    assert written["9"] == {"fault": ROWS[9].title, "state": "not shown", "tests": {}}
    assert written["8"]["tests"] == {"t8": "passed"}
