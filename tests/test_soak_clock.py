"""The clock that a soak gives its processes jumps while they run, and nothing but the wall clock does."""

import os
import subprocess
import sys
from datetime import datetime

from soak_processes import CLOCK

PROGRAM = """
import os, time
from datetime import datetime
from pathlib import Path

def say():
    print(time.time(), datetime.now().timestamp(), time.monotonic(), flush=True)

say()
Path(os.environ["MHIMDIST_SOAK_CLOCK"]).write_text("-8640000")
ends = time.monotonic() + 20
while time.time() > float(os.environ["JUMPED_BEFORE"]) and time.monotonic() < ends:
    time.sleep(0.05)
say()
"""


def test_the_clock_of_a_process_jumps_while_it_runs(tmp_path):
    file = tmp_path / "clock"
    file.write_text("864000")
    now = datetime.now().timestamp()
    environment = {"MHIMDIST_SOAK_CLOCK": str(file), "JUMPED_BEFORE": str(now)}
    path = os.pathsep.join(filter(None, [str(CLOCK), os.environ.get("PYTHONPATH")]))
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | environment | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    first, then = ([float(each) for each in line.split()] for line in ran.stdout.splitlines())
    for clock in (0, 1):
        assert 864_000 <= first[clock] - now < 864_000 + 60
        assert -8_640_000 <= then[clock] - now < -8_640_000 + 60
    assert 0 < then[2] - first[2] < 60
