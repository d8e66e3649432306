"""The matrix of faults: which row which tests show, and whether they passed.

`pytest -m faults --faults=faults.json` prints the matrix of a run and writes it; a row that no test of the
run shows fails the command. `python tests/faults_matrix.py` writes docs/faults.md anew.
"""

import ast
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_rows import DATA, FURTHER, ROWS, SWEEPS, TRAINING

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "faults.md"
SOAK = ROOT / "docs" / "soak.json"
BEGIN = """# What happens when things break

Each row is a fault that tests inject for real: processes are killed and stopped, bits are flipped, disks fill
up, files are forged, nodes are removed. `make test-faults` runs these tests, prints the matrix, writes
`faults.json`, and fails if a row is not shown. It reads a few forged files of each kind; `make fuzz` reads
10,000 of each. `python tests/faults_matrix.py` writes this page.

`make soak` puts many of these faults on training runs and sweeps, at random, for an hour; see
[what it checks](security.md#what-a-long-run-under-random-faults-checks).
"""
PARTS = {
    "Data": DATA,
    "Training": TRAINING,
    "Sweeps and clusters": SWEEPS,
    "Found in audits": FURTHER,
}


class Matrix:
    """Collects the outcomes of marked tests; under pytest-xdist, of all processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.outcomes: dict[int, dict[str, str]] = defaultdict(dict)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a test's worst outcome of its three phases."""
        name = report.nodeid.rpartition("@")[0] or report.nodeid  # pytest-xdist appends the group
        worse = ("skipped", "passed", "failed")
        if report.when == "call" or report.outcome != "passed":
            for row in dict(report.user_properties).get("faults", ()):
                before = self.outcomes[row].get(name, "skipped")
                self.outcomes[row][name] = max(before, report.outcome, key=worse.index)

    def state(self, row: int) -> str:
        """What the run says of a row: "passed", "failed" or "not shown"."""
        found = set(self.outcomes[row].values())
        return "failed" if "failed" in found else "passed" if "passed" in found else "not shown"

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the matrix, and fail if a row is not shown."""
        if hasattr(session.config, "workerinput"):
            return
        rows = {
            str(number): {
                "fault": row.title,
                "state": self.state(number),
                "tests": dict(sorted(self.outcomes[number].items())),
            }
            for number, row in ROWS.items()
        }
        self.path.write_text(json.dumps(rows, indent=1) + "\n")
        if session.exitstatus == 0 and any(row["state"] != "passed" for row in rows.values()):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print a line for each row."""
        terminalreporter.section("faults")
        for number, row in ROWS.items():
            state, outcomes = self.state(number), list(self.outcomes[number].values())
            counts = f"{outcomes.count('passed')} of {len(outcomes)}"
            terminalreporter.line(f"{number:3}  {state:9}  {counts:>10}  {row.title}", red=state != "passed")
        shown = sum(self.state(number) == "passed" for number in ROWS)
        terminalreporter.line(f"{shown} of {len(ROWS)} rows passed; {self.path}")


def rows_of(item: pytest.Item) -> list[int]:
    """The rows that a test shows.

    Raises:
        pytest.UsageError: a mark names a row that does not exist.
    """
    found = sorted({row for mark in item.iter_markers("faults") for row in mark.args})
    if unknown := [row for row in found if row not in ROWS]:
        raise pytest.UsageError(f"{item.nodeid}: tests/fault_rows.py has no row {unknown[0]}")
    return found


def marked() -> dict[int, list[tuple[str, str]]]:
    """File and name of the tests that show each row, read from the files without importing them."""
    found: dict[int, list[tuple[str, str]]] = {number: [] for number in ROWS}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for function in ast.parse(path.read_text()).body:
            if isinstance(function, ast.FunctionDef):
                for row in _rows_of_decorators(function):
                    found[row].append((path.relative_to(ROOT).as_posix(), function.name))
    return found


def _rows_of_decorators(function: ast.FunctionDef) -> Iterator[int]:
    for decorator in function.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.faults":
            yield from map(ast.literal_eval, decorator.args)


def page() -> str:
    """The text of docs/faults.md."""
    tests, lines = marked(), [BEGIN]
    for title, rows in PARTS.items():
        lines += [f"## {title}", "", "| row | fault | what you see | shown by |", "| --- | --- | --- | --- |"]
        for number, row in rows.items():
            names = "<br>".join(f"[{_spoken(name)}](../{path})" for path, name in tests[number])
            lines.append(f"| {number} | {row.title} | {row.outcome} | {names or 'no test'} |")
        lines.append("")
    if SOAK.exists():
        lines += _soak(json.loads(SOAK.read_text()))
    return "\n".join(lines).rstrip() + "\n"


def _soak(found: dict) -> list[str]:
    """What a soak did and found, from the file that `make soak` writes."""
    faults: dict[str, dict[str, int]] = defaultdict(dict)
    for name, count in found["fault"].items():
        kind, _, part = name.partition(" in ")
        faults[_spoken(kind)][part or "training"] = count
    finished = " and ".join(f"{count} {name}" for name, count in found["finished"].items())
    needs = found["needs"]
    return [
        "## The last long run under random faults",
        "",
        f"`make soak` injected faults for {found['asked']:g} minutes, with seed {found['seed']}, at commit "
        f"`{found['commit'][:12]}`. {_sentence(found['broken'])}",
        "",
        f"{finished.capitalize()} were disturbed until they ended, in {sum(found['start'].values())} starts. "
        "Each left, bit for bit, what an undisturbed run leaves. "
        f"At most {needs['most processes']} processes ran at once, and one held at most "
        f"{needs['most open files of one']} files open. "
        f"All {needs['files in /dev/shm']} files in /dev/shm were removed.",
        "",
        "| fault | in training | in a sweep |",
        "| --- | ---: | ---: |",
        *(f"| {kind} | {n.get('training', 0)} | {n.get('sweep', 0)} |" for kind, n in sorted(faults.items())),
    ]


def _sentence(broken: list[str]) -> str:
    return "Nothing was lost, doubled or changed." if not broken else f"It broke: {'; '.join(broken)}."


def _spoken(name: str) -> str:
    return name.removeprefix("test_").replace("_", " ")


if __name__ == "__main__":
    PAGE.write_text(page())
