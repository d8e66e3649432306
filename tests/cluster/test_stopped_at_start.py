"""SIGTERM while Ray starts: the command ends as it does later, and nothing of Ray is left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.ray("idle heads"), pytest.mark.slow]
ROOT = Path(__file__).parents[2]
PROGRAM = """
import time
from mhimdist.cluster.connect import connect
from mhimdist.process import Stopping, run
def main():
    with Stopping("it is saved") as stopping:
        print("starting", flush=True)
        connect()
        print("started", flush=True)
        time.sleep(120)
run(main)
"""


@pytest.mark.faults(20, 45)
@pytest.mark.parametrize("delay_s", [0.0, 0.3, 1.0, 2.0, 4.0])
def test_sigterm_around_the_start_of_ray_saves_and_leaves_nothing(delay_s, tmp_path):
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        env={**env, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as command:
        assert command.stdout.readline() == "starting\n"
        time.sleep(delay_s)
        seen: set[psutil.Process] = set()
        command.send_signal(signal.SIGTERM)
        while command.poll() is None:
            try:
                seen |= set(psutil.Process(command.pid).children(recursive=True))
            except psutil.NoSuchProcess:
                break
            time.sleep(0.01)
        _, said = command.communicate(timeout=120)
    assert (command.returncode, said) == (os.EX_TEMPFAIL, "it is saved\n")
    _, alive = psutil.wait_procs(seen, timeout=60)
    assert not alive, [process.cmdline() for process in alive]
