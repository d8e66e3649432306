"""Files that are emptied, cut or swapped under a sweep: an error of ours, and no result of other data."""

import gc
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
import ray

from data_prep import digits
from mhimdist.config.presets import preset
from mhimdist.errors import CrossValidationError, SweepError
from mhimdist.search.options import Sweep
from mhimdist.search.space import Space
from mhimdist.sweep import run
from mhimdist.sweep.run import run_sweep

ROOT = Path(__file__).parents[2]
BASE = preset("c16", "abmil").override(
    {
        "model.hidden_dim": 16,
        "model.attention_dim": 8,
        "epochs": 6,
        "device": "cpu",
        "teacher.kind": "momentum",
    }
)


def space(s: Space) -> None:
    s.uniform("loss.alpha", 0.01, 1.0, log=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return digits.build("digits-c16", tmp_path_factory.mktemp("data") / "digits-c16", scale=0.01)


class Reached(Exception):
    """The sweep would start Ray now."""


@pytest.fixture
def begun(data, tmp_path, monkeypatch) -> tuple[Sweep, Path]:
    """A sweep whose first start was killed while two trials ran."""

    def connect(**named) -> None:
        raise Reached

    monkeypatch.setattr(run, "connect", connect)
    sweep = Sweep(home=tmp_path, name="kept", num_trials=3, train=BASE)
    with pytest.raises(Reached):
        run_sweep(sweep, space, data=data)
    gc.collect()  # its process would be gone, and its connections to the study with it
    for number in range(2):
        (sweep.folder / "trials" / f"{number:04d}" / "fold-1-seed-2021").mkdir(parents=True)
    return sweep, sweep.folder / "study.db"


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.7])
def test_a_study_that_was_emptied_or_cut_is_not_begun_anew(begun, data, kept):
    sweep, database = begun
    size = database.stat().st_size
    with database.open("r+b") as file:
        file.truncate(int(kept * size))
    left = database.read_bytes()
    with pytest.raises(SweepError, match=r"study\.db") as error:
        run_sweep(sweep, space, data=data)
    if kept:
        assert database.read_bytes() == left
    else:
        assert "has 0 trials, but" in str(error.value)
        assert "those up to number 1" in str(error.value)
    assert sorted(path.name for path in (sweep.folder / "trials").iterdir()) == ["0000", "0001"]


def test_a_study_that_was_removed_is_not_begun_anew(begun, data):
    sweep, database = begun
    database.unlink()
    with pytest.raises(SweepError, match="those up to number 1: the study was emptied or replaced"):
        run_sweep(sweep, space, data=data)


def _wait_for_epochs(folder: Path, number: int) -> None:
    while not any(len(path.read_text().splitlines()) >= number for path in folder.rglob("history.jsonl")):
        time.sleep(0.02)


@pytest.mark.ray
@pytest.mark.slow
def test_a_study_that_is_emptied_under_a_running_sweep_ends_it_with_a_reason(data, tmp_path):
    options = ["--num-trials", "40", "--scheduler", "none", "--final-seeds", "1", "--train.epochs", "8"]
    command = [sys.executable, "tests/sweep_once.py", str(data), str(tmp_path), *options]
    driver = subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    folder = tmp_path / "runs" / "sweep"
    _wait_for_epochs(folder / "trials" if folder.exists() else tmp_path, 2)
    with (folder / "study.db").open("r+b") as file:
        file.truncate(0)
    _, err = driver.communicate()
    assert driver.returncode == 1
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("error: sweep was stopped, and the same command resumes it: ")
    assert not (folder / "result.json").exists()
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 1
    assert "the study was emptied or replaced" in done.stderr
    with closing(sqlite3.connect(folder / "study.db")) as database:
        assert database.execute("pragma integrity_check").fetchone() == ("ok",)


@pytest.mark.ray
@pytest.mark.slow
def test_data_that_are_swapped_under_a_running_sweep_give_no_test_result(tmp_path, capsys):
    data = digits.build("digits-c16", tmp_path / "data" / "digits-c16", scale=0.01)
    other = digits.build("digits-c16", tmp_path / "other" / "digits-c16", scale=0.01, seed=1)
    sweep = Sweep(home=tmp_path, name="swapped", num_trials=2, scheduler="none", final_seeds=1, train=BASE)

    def swap() -> None:
        _wait_for_epochs(sweep.folder, 1)
        data.rename(data.with_name("before"))
        other.rename(data)

    swapping = threading.Thread(target=swap, daemon=True)
    swapping.start()
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        # A trial finds it, or a final run if the trials have ended before the swap.
        with pytest.raises((SweepError, CrossValidationError), match="has changed since"):
            run_sweep(sweep, space, data=data)
    finally:
        ray.shutdown()
    swapping.join(timeout=1)
    assert not swapping.is_alive()
    assert not (sweep.folder / "result.json").exists()
    assert not [*sweep.folder.glob("final/*/result.json")]
