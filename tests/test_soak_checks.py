"""A soak's checks can fail: each finds the damage that it is there for."""

import json
import os
import random
import subprocess
import sys
from collections import Counter

import pytest
import soak_checks
import soak_processes
from soak_checks import Broken, bags_of_epochs, history, is_flat, same_training
from soak_processes import MARK, Keeper


def _write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _epoch(number, loss=1.0):
    return {"epoch": number, "loss": loss, "train_s": 1.0, "epoch_s": 2.0}


def _steps(epoch, *keys):
    return [{"epoch": epoch, "step": step, "keys": [key]} for step, key in enumerate(keys)]


@pytest.mark.parametrize("epochs", [(0, 2), (0, 0, 1), (1, 0), (1, 2)])
def test_an_epoch_that_is_lost_doubled_or_moved_is_found(epochs, tmp_path):
    _write(tmp_path / "history.jsonl", *map(_epoch, epochs))
    with pytest.raises(Broken, match="the epochs of its history"):
        history(tmp_path)


def test_the_last_line_that_a_kill_has_torn_does_not_count(tmp_path):
    (tmp_path / "history.jsonl").write_text(json.dumps(_epoch(0)) + '\n{"epoch": 1, "lo')
    assert history(tmp_path) == [{"epoch": 0, "loss": 1.0}]


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (_steps(0, "a", "b"), "saw 2 bags, 2 distinct"),
        (_steps(0, "a", "b", "c", "c"), "saw 4 bags, 3 distinct"),
        (_steps(0, "a", "b", "b"), "saw 3 bags, 2 distinct"),
        (_steps(0, "a", "b", "c") + _steps(0, "b"), r"\['a'\], then \['b'\]"),
    ],
)
def test_a_bag_that_is_lost_doubled_or_moved_is_found(steps, said, tmp_path):
    folder = tmp_path / "run"
    _write(folder / "history.jsonl", _epoch(0))
    _write(tmp_path / "run.steps", *steps)
    with pytest.raises(Broken, match=said):
        bags_of_epochs(folder, {"a", "b", "c"})


def test_a_step_that_is_repeated_with_the_same_bags_is_no_doubled_bag(tmp_path):
    folder = tmp_path / "run"
    _write(folder / "history.jsonl", _epoch(0))
    _write(tmp_path / "run.steps", *_steps(0, "a", "b", "c"), *_steps(0, "a", "b"))
    bags_of_epochs(folder, {"a", "b", "c"})


@pytest.mark.parametrize("what", ["rss", "files", "threads"])
def test_what_grows_is_found(what, tmp_path):
    folder = tmp_path / "run"
    flat = {"pid": 1, "rss": 2**29, "files": 20, "threads": 9}
    _write(tmp_path / "run.process", *([flat] * 9))
    is_flat(folder)
    step = soak_checks.MOST_GROWTH_BYTES // 4 if what == "rss" else 1
    _write(tmp_path / "run.process", *[flat | {what: flat[what] + step * n} for n in range(9)])
    with pytest.raises(Broken, match="process 1"):
        is_flat(folder)


def test_another_loss_is_found_and_other_times_are_not(tmp_path):
    _write(tmp_path / "mine" / "history.jsonl", _epoch(0), _epoch(1) | {"train_s": 7.0})
    _write(tmp_path / "whole" / "history.jsonl", *map(_epoch, range(3)))
    same_training(tmp_path / "mine", tmp_path / "whole", is_finished=False)
    _write(tmp_path / "mine" / "history.jsonl", _epoch(0), _epoch(1, loss=1.0 + 2**-50))
    with pytest.raises(Broken, match="epoch 1 is"):
        same_training(tmp_path / "mine", tmp_path / "whole", is_finished=False)


def test_a_process_that_is_left_is_found_and_ended(monkeypatch):
    with Keeper("left") as keeper:
        left = subprocess.Popen(
            [sys.executable, "-c", "print(flush=True); import time; time.sleep(60)"],
            env=keeper.environment(MHIMDIST_SOAK_PART="training"),
            stdout=subprocess.PIPE,
        )
        left.stdout.readline()
        keeper.gone(0, holding="sweep")
        with pytest.raises(Broken, match=r"time\.sleep"):
            keeper.gone(0, holding="training")
    assert left.wait(20) == -9
    left.stdout.close()
    assert MARK not in os.environ


def test_a_clock_that_cannot_jump_is_said(monkeypatch, tmp_path):
    class Soak:
        work, done = tmp_path, Counter()

        def chance(self, name):
            return random.Random(name)

        def count(self, what):
            self.done[what] += 1

    clock = soak_processes.Clock(Soak(), "sweep")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    clock.jump()
    assert clock.environment() == {}
    assert Soak.done == Counter()
    assert Keeper("m").skipped == ["clock jumps: the package time-machine is not installed"]
    monkeypatch.undo()
    clock.jump()
    assert Soak.done == Counter({"fault clock_jump in sweep": 1})
    assert abs(float(clock.file.read_text())) <= 1000 * soak_processes.DAY_S
