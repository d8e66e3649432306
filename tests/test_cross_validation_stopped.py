"""Cross-validations that are asked to stop."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from data_prep import digits

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parent.parent


def _histories(folder: Path) -> dict[Path, list[str]]:
    return {path: path.read_text().splitlines() for path in folder.glob("units/*/history.jsonl")}


def test_a_sigterm_ends_it_in_a_line_and_the_same_command_goes_on(tmp_path):
    data = digits.build("digits-c16", tmp_path / "digits-c16", scale=0.01, bags=60)
    folder = tmp_path / "home" / "runs" / "train_c16"
    options = ["--data", str(data), "--home", str(tmp_path / "home"), "--folds", "2", "--seeds", "1"]
    script = [sys.executable, str(ROOT / "jobs" / "train_c16.py")]
    command = [*script, *options, "--train.epochs", "20", "--train.model.hidden-dim", "16"]

    driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not any(_histories(folder).values()):
        assert driver.poll() is None
        time.sleep(0.05)
    started = psutil.Process(driver.pid).children(recursive=True)
    assert len(started) > 4
    driver.send_signal(signal.SIGTERM)
    out, err = driver.communicate(timeout=60)
    assert driver.returncode == 75, out + err
    assert "train_c16 was stopped; the same command goes on with it" in err
    assert "Traceback" not in err
    _, alive = psutil.wait_procs(started, timeout=10)
    assert not alive, [process.cmdline() for process in alive]
    before = _histories(folder)
    assert before

    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    after = _histories(folder)
    for path, lines in before.items():  # nothing was trained twice
        assert after[path][: len(lines)] == lines
