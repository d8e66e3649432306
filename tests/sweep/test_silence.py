"""The clock of silent trials, and a real trial whose process is stopped by SIGSTOP."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
import ray
from optuna.trial import TrialState

from data_prep import digits
from mhimdist.config.presets import preset
from mhimdist.errors import ConfigError
from mhimdist.search import storage
from mhimdist.search.options import Sweep
from mhimdist.search.space import Space
from mhimdist.sweep.run import run_sweep
from mhimdist.sweep.silence import Silence, Silent
from mhimdist.sweep.trial import FoldRun

PLAIN = preset("c16", "abmil").override({"teacher.kind": "momentum"})
STAGED = preset("c16", "abmil").override({"teacher.kind": "init_momentum", "epochs": 40})


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def _look(silence: Silence, clock: Clock, until_s: float, running: set[int]) -> list[Silent]:
    """What is found until a time, with a look in every second, as a driver takes many."""
    found = []
    while clock.now < until_s:
        clock.now += 1
        found += silence.look(running)
    return found


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_trial_is_named_and_ended_before_its_first_report_by_the_calibrations_epoch(clock):
    silence = Silence(30.0, clock=clock)
    silence.begun(5, PLAIN)
    assert _look(silence, clock, 5000, set()) == []  # it waits for room
    found = _look(silence, clock, 10_000, {5})
    assert found == [Silent(5, 301, 30.0, 900.0, False), Silent(5, 901, 30.0, 900.0, True)]


def test_short_epochs_have_a_floor(clock):
    silence = Silence(0.1, clock=clock)
    silence.begun(0, PLAIN)
    found = _look(silence, clock, 1000, {0})
    assert [(each.silent_s, each.is_over) for each in found] == [(61, False), (601, True)]


def test_the_longest_epoch_of_any_trial_counts_and_a_report_begins_the_time_anew(clock):
    silence = Silence(1.0, clock=clock)
    for number in (1, 2):
        silence.begun(number, PLAIN)
    assert _look(silence, clock, 100, {1, 2})[0].number == 1  # both are named after 60 s
    for _ in range(3):  # the first one's first report counts from its start, so it tells no epoch
        silence.reported(1)
        clock.now += 20
        silence.look({1, 2})
    found = _look(silence, clock, 2000, {1, 2})
    assert [(each.number, each.silent_s, each.longest_s, each.is_over) for each in found] == [
        (1, 201, 20, False),
        (2, 601, 20, True),
        (1, 601, 20, True),
    ]


def test_a_trial_that_needs_a_first_stage_has_its_time_more(clock):
    silence = Silence(5.0, clock=clock)
    silence.begun(0, STAGED)
    found = _look(silence, clock, 5000, {0})
    assert [(each.silent_s, each.is_over) for each in found] == [
        (60 + 40 * 5 + 1, False),
        (600 + 3 * 40 * 5 + 1, True),
    ]


def test_a_driver_that_was_stopped_itself_blames_no_trial(clock):
    silence = Silence(1.0, clock=clock)
    silence.begun(0, PLAIN)
    assert _look(silence, clock, 30, {0}) == []
    clock.now += 5000
    assert silence.look({0}) == []
    assert [each.silent_s for each in _look(silence, clock, clock.now + 100, {0})] == [61]


@pytest.mark.parametrize(("limit", "ended"), [(12.0, [13]), ("off", [])])
def test_the_limit_can_be_given_and_turned_off(clock, limit, ended):
    silence = Silence(30.0, limit, clock=clock)
    silence.begun(0, STAGED)
    found = _look(silence, clock, 50_000, {0})
    assert [each.silent_s for each in found if each.is_over] == ended
    silence.forget(0)
    assert silence.look({0}) == []


def test_the_option_takes_seconds_auto_and_off():
    for text, value in (("90", 90.0), ("auto", "auto"), ("off", "off")):
        assert Sweep.from_command_line(["--trial-timeout-s", text]).trial_timeout_s == value
    for text in ("0", "never"):
        with pytest.raises(ConfigError, match="trial_timeout_s"):
            Sweep.from_command_line(["--trial-timeout-s", text])


EPOCHS = 8
BASE = preset("c16", "abmil").override(
    {
        **{"model.hidden_dim": 16, "model.attention_dim": 8, "epochs": EPOCHS, "device": "cpu"},
        "teacher.kind": "momentum",
    }
)


def space(s: Space) -> None:
    s.uniform("loss.alpha", 0.01, 1.0, log=True)


def _slow_down() -> None:
    """In a worker of Ray: make epochs slow enough that a signal hits the middle of a trial."""
    train = FoldRun.next_epoch

    def next_epoch(self):
        time.sleep(0.4)
        return train(self)

    FoldRun.next_epoch = next_epoch


def _pid_of(folder: Path) -> int:
    """The process of the trial, once there is one that runs."""
    while True:
        try:
            pid = json.loads((folder / "process.json").read_text())["pid"]
            if psutil.Process(pid).status() != psutil.STATUS_STOPPED:
                return pid
        except (OSError, ValueError, psutil.NoSuchProcess):
            pass
        time.sleep(0.02)


def _stop_twice(folder: Path, stopped: list[int]) -> None:
    """Stop the first trial's process before its first report, and the next one after a few epochs."""
    stopped.append(_pid_of(folder))
    os.kill(stopped[0], signal.SIGSTOP)
    while not any(len(path.read_text().splitlines()) > 2 for path in folder.glob("fold-*/history.jsonl")):
        time.sleep(0.05)
    stopped.append(_pid_of(folder))
    os.kill(stopped[1], signal.SIGSTOP)


@pytest.mark.ray
@pytest.mark.slow
def test_a_stopped_process_is_named_and_ended_and_its_trial_resumes(tmp_path, capsys):
    data = digits.build("digits-c16", tmp_path / "digits-c16", scale=0.01)
    sweep = Sweep(
        home=tmp_path,
        name="silent",
        num_trials=1,
        scheduler="none",
        final_seeds=1,
        max_failures=1,
        trial_timeout_s=20.0,
        train=BASE,
    )
    folder, stopped = tmp_path / "runs" / "silent", []
    tests = Path(__file__).parents[1]
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={
            "worker_process_setup_hook": _slow_down,
            "env_vars": {
                "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(tests), str(tests.parent)])
            },
        },
    )
    stopping = threading.Thread(target=_stop_twice, args=(folder / "trials" / "0000", stopped), daemon=True)
    try:
        stopping.start()
        run_sweep(sweep, space, data=data)
        stopping.join(timeout=1)
    finally:
        ray.shutdown()
    assert not stopping.is_alive()
    out = capsys.readouterr().out
    for pid in stopped:
        assert f"(process {pid} on {os.uname().nodename}); the longest epoch took" in out
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    assert out.count(": its process is ended") == 2
    assert out.count("trial 0 lost its process; it resumes from its last checkpoint\n") == 2
    (trial,) = storage.read(storage.sqlite_url(folder / "study.db"), "silent")
    assert trial.state == TrialState.COMPLETE
    (history,) = folder.glob("trials/0000/fold-*/history.jsonl")
    assert len(history.read_text().splitlines()) == EPOCHS
