"""Runs job scripts in the test process, for cases that end before training; imports take seconds."""

import runpy
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from subprocess import CompletedProcess
from unittest.mock import patch

ROOT = Path(__file__).parent.parent


def run_here(script: str, *arguments: str, home: Path) -> CompletedProcess[str]:
    """Run `jobs/{script}` with these arguments as in a terminal of 80 columns."""
    status, out, err = 0, StringIO(), StringIO()
    with (
        patch.object(sys, "argv", [script, *arguments]),
        patch.dict("os.environ", {"MHIMDIST_HOME": str(home), "COLUMNS": "80"}),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            runpy.run_path(str(ROOT / "jobs" / script), run_name="__main__")
        except SystemExit as end:
            status = end.code or 0
    return CompletedProcess([script, *arguments], status, out.getvalue(), err.getvalue())
