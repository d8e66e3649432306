"""Cross-validations that are asked to stop in the middle of an epoch, and resume."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from data_prep import digits
from mhimdist.training import checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.ray]

ROOT = Path(__file__).parents[2]
SLOW = ["--train.model.hidden-dim", "512", "--train.epochs", "2", "--save-every-s", "0.2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data set with enough bags for an epoch to take seconds."""
    return digits.build("digits-c16", tmp_path_factory.mktemp("data") / "digits-c16", scale=0.2, bags=400)


def _command(data: Path, home: Path, *more: str) -> list[str]:
    script = [sys.executable, str(ROOT / "jobs" / "train_c16.py")]
    folds = ["--folds", "2", "--run-folds", "1", "--seeds", "1"]
    return [*script, "--data", str(data), "--home", str(home), *folds, *SLOW, *more]


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def _folds(home: Path) -> list[Path]:
    return sorted((home / "runs" / "train_c16" / "folds").glob("fold-1-seed-1-*"))


def _left(home: Path) -> dict[str, tuple]:
    """The results, histories and weights of all folds, without times."""
    found = {}
    for folder in _folds(home):
        result = json.loads((folder / "result.json").read_text())
        rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
        for row in (result, *rows):
            row.pop("epoch_s"), row.pop("train_s", None)
        found[folder.name] = result, rows, checkpoint.load(folder / "best_student")[0]["student"]
    return found


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    home = tmp_path_factory.mktemp("whole")
    _run(_command(data, home))
    return _left(home)


def _position(home: Path) -> tuple[int, int]:
    """Finished epochs, and finished steps of the next epoch, from the newest checkpoint of all runs."""
    names = [path.name for path in home.glob("**/checkpoints/epoch-*-step-*")]
    _, epoch, _, step = max(names, default="epoch-0-step-0").split("-")
    return int(epoch), int(step)


@pytest.mark.faults(20)
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_sigterm_within_an_epoch_loses_at_most_16_steps(data, undisturbed, tmp_path, workers):
    command = _command(data, tmp_path, "--workers", workers)
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while _position(tmp_path)[1] == 0:  # until a checkpoint within an epoch exists
        assert driver.poll() is None, driver.communicate()
        time.sleep(0.02)
    started = psutil.Process(driver.pid).children(recursive=True)
    assert len(started) > 4
    asked = time.monotonic()
    driver.send_signal(signal.SIGTERM)
    out, err = driver.communicate(timeout=300)
    took_s = time.monotonic() - asked
    assert driver.returncode == 75, out + err
    assert "train_c16 was stopped" in err
    assert "Traceback" not in err
    assert took_s < 20
    _, alive = psutil.wait_procs(started, timeout=120)
    assert not alive, [process.cmdline() for process in alive]
    _, step = _position(tmp_path)
    assert step > 0, "it is saved within the epoch"

    _run(command)
    left = _left(tmp_path)
    if workers == "2":  # two workers sum in another order than one
        assert left.keys() == undisturbed.keys()
        return
    for name, (result, rows, tensors) in undisturbed.items():
        assert left[name][:2] == (result, rows)
        assert all(torch.equal(value, tensors[key]) for key, value in left[name][2].items())
