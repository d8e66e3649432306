"""The tests that wait for a GPU: the kernels against their specification, and all with the mark `gpu`."""

import importlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from benchmarks.gpu_check.notes import REQUIRED, Notes
from benchmarks.gpu_check.setting import Setting

ROOT = Path(__file__).parents[3]
_KERNELS = sorted((ROOT / "tests" / "ops").glob("*_against_reference.py"))
# No others: a plug-in of somebody else's environment may refuse to work with these, and then no test runs.
_PLUG_INS = ("xdist.plugin", "pytest_timeout", "_hypothesis_pytestplugin")
_LEFT_S = 5.0  # from the end of the tests to that of the part


def check(notes: Notes, setting: Setting) -> None:
    """Run the kernels' tests ("kernels") or those with the mark ("marked"), as the argument says."""
    importlib.import_module("pytest")
    if setting.argument == "kernels":
        chosen = ["-m", "", *map(str, _KERNELS)]
    else:
        chosen = ["-m", "gpu", "-k", "not kernels_on_the_device", *map(str, marked_files())]
    with tempfile.TemporaryDirectory(prefix="gpu-check-tests-") as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={report}", "-vv"]
        # A plug-in that is missing leaves an option of pyproject.toml unknown.
        command += ["-W", "ignore::pytest.PytestConfigWarning", "--continue-on-collection-errors"]
        command += [option for name in _PLUG_INS if importlib.util.find_spec(name) for option in ("-p", name)]
        if importlib.util.find_spec("xdist"):
            command += ["-n", str(max(min(8, len(os.sched_getaffinity(0)) // 2), 1)), "--dist", "loadgroup"]
        try:
            run = subprocess.run(
                [*command, *chosen],
                cwd=ROOT,
                env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
                timeout=setting.limit_s - _LEFT_S,
            )
        except subprocess.TimeoutExpired:
            notes.fail(
                "time", f"not done after {setting.limit_s - _LEFT_S:.0f} s; the log says how far they got"
            )
            return
        if not report.exists():
            notes.fail("pytest", f"ended with status {run.returncode} and without a report; see the log")
            return
        read_report(notes, report)


def marked_files() -> list[Path]:
    """The test files that use the mark `gpu`, so that new ones need not be listed."""
    files = (path for path in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in path.read_text("utf-8"))
    return sorted(files)


def read_report(notes: Notes, report: Path) -> None:
    """Count the outcomes of a JUnit report; leave out the modules that need one that is not installed."""
    counts: dict[str, int] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        problem = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        outcome = "passed" if problem is None else problem.tag
        if problem is not None and outcome != "skipped":
            text = f"{problem.get('message')}\n{problem.text}"
            module = _missing_module(text) if outcome == "error" else None
            if module is not None and module not in REQUIRED:
                outcome = "left out"
                notes.leave_out(name, f"no module named {module}")
            else:
                notes.fail(name, text)
        counts[outcome] = counts.get(outcome, 0) + 1
    notes.check("tests", counts.get("passed", 0) > 0, counts)


def _missing_module(text: str) -> str | None:
    _, found, rest = text.rpartition("ModuleNotFoundError: No module named '")
    return rest.partition("'")[0].partition(".")[0] if found else None
