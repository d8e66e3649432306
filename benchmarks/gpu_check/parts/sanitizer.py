"""compute-sanitizer on our kernels alone: accesses outside of memory, and races within a block."""

import shutil
import subprocess
import sys

from benchmarks.gpu_check.notes import Notes
from benchmarks.gpu_check.setting import Setting

_SHARES = {"memcheck": 0.55, "racecheck": 0.35}
"""The tools, and the share of the part's time that each gets."""
_FOUND = 9


def check(notes: Notes, setting: Setting) -> None:
    """Run small bags under each tool."""
    program = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if program is None:
        notes.leave_out("part", "no compute-sanitizer, which comes with the CUDA toolkit")
        return
    for tool, share in _SHARES.items():
        limit_s = setting.limit_s * share
        command = [program, "--tool", tool, "--error-exitcode", str(_FOUND), "--print-limit", "5"]
        command += [sys.executable, "-m", "benchmarks.gpu_check.small_kernels"]
        try:
            run = subprocess.run(command, capture_output=True, text=True, timeout=limit_s)
        except subprocess.TimeoutExpired:
            notes.fail(tool, f"not done after {limit_s:.0f} s; give it more with --budget")
            continue
        print(run.stdout + run.stderr)
        tail = (run.stdout + run.stderr)[-1000:]
        notes.check(tool, run.returncode == 0, {"exit_status": run.returncode, "tail": tail})
