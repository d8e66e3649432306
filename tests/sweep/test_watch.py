import io

import pytest
from rich.console import Console

from mhimdist.sweep.watch import Watch


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def _watch(is_terminal: bool) -> tuple[Watch, io.StringIO, Clock, Console]:
    text, clock = io.StringIO(), Clock()
    console = Console(file=text, force_terminal=is_terminal, width=100, color_system=None)
    return Watch(console, num_trials=4, clock=clock), text, clock, console


def test_a_log_gets_a_line_for_every_trial_that_ends():
    watch, text, clock, _ = _watch(is_terminal=False)
    with watch:
        watch.count_ended(0, "complete", 0.8)
        watch.progressed(1, num_steps=10, all_folds=2)
        clock.now = 30.0
        watch.ended(1, "pruned", 0.9, "validation AUC 0.900 after   5 epochs")
        watch.ended(2, "failed", None, "ValueError: no")
    assert text.getvalue().splitlines() == [
        "[2/4] trial   1 pruned   validation AUC 0.900 after   5 epochs | best 0.800 (trial 0) | 30 s, "
        "about 1 min 00 s left",
        "[3/4] trial   2 failed   ValueError: no | best 0.800 (trial 0) | 30 s, about 15 s left",
    ]


def test_a_terminal_gets_a_table_of_the_running_trials():
    watch, text, clock, console = _watch(is_terminal=True)
    watch.progressed(7, num_steps=50, all_folds=2)
    clock.now = 12.0
    watch.progressed(7, step=30, num_steps=50, num_folds=1, all_folds=2, value=0.91234)
    console.print(watch)
    lines = text.getvalue().splitlines()
    assert lines[0].split() == ["running", "folds", "epochs", "validation", "AUC", "time"]
    assert lines[2].split() == ["trial", "7", "1/2", "30/50", "0.912", "12.0", "s"]
    assert lines[3].strip() == "0 of 4 done (none yet) | none complete | 12 s"


def test_a_log_says_every_few_minutes_which_trials_run_and_which_wait():
    watch, text, clock, _ = _watch(is_terminal=False)
    for number in (1, 2, 3):
        watch.progressed(number, num_steps=10, all_folds=1)
    clock.now = 100.0
    watch.progressed(1, step=4, num_steps=10, all_folds=1, value=0.75)
    watch.tick({1, 2})
    assert text.getvalue() == ""
    for clock.now in (180.0, 190.0, 359.0):
        watch.tick({1, 2})
    assert text.getvalue().splitlines() == [
        "[0/4] running (epochs, validation AUC): trial 1 4/10 0.750, trial 2 0/10 -, 1 trial waiting for "
        "room | none complete | 3 min 00 s"
    ]
    clock.now = 360.0
    watch.tick({1, 2, 3})
    assert "trial 3 0/10 - | none complete" in text.getvalue().splitlines()[1]


def test_a_terminal_has_its_table_and_gets_no_such_line():
    watch, text, clock, _ = _watch(is_terminal=True)
    watch.progressed(1, num_steps=10, all_folds=1)
    clock.now = 500.0
    watch.tick({1})
    assert text.getvalue() == ""


@pytest.mark.faults(46)
def test_a_trial_that_is_silent_for_ten_of_its_epochs_is_named_once():
    watch, text, clock, _ = _watch(is_terminal=True)
    watch.progressed(5, num_steps=10, all_folds=1)
    for step, clock.now in ((1, 50.0), (2, 60.0), (3, 67.0)):  # the first waited for its process
        watch.progressed(5, step=step, num_steps=10, all_folds=1, value=0.5)
    clock.now = 167.0
    watch.tick({5})
    assert text.getvalue() == ""
    clock.now = 168.0
    watch.tick(set())  # it lost its process, and waits for another one
    assert text.getvalue() == ""
    for clock.now in (168.0, 169.0):
        watch.tick({5})
    said = "trial 5 has reported nothing for 1 min 41 s; its longest epoch took 10 s"
    assert text.getvalue().splitlines() == [said]
    clock.now = 170.0
    watch.progressed(5, step=4, num_steps=10, all_folds=1, value=0.5)
    clock.now = 1300.0
    watch.tick({5})
    assert len(text.getvalue().splitlines()) == 2


@pytest.mark.faults(46)
def test_a_trial_that_is_silent_before_its_second_epoch_is_named_after_its_time_at_work():
    watch, text, clock, _ = _watch(is_terminal=True)
    watch.progressed(5, num_steps=10, all_folds=1)
    for clock.now in (700.0, 1300.0):  # the first look finds that it has a process
        watch.tick({5})
    assert text.getvalue() == ""
    clock.now = 1301.0
    watch.tick({5})
    said = "trial 5 has reported nothing for 10 min 01 s; it has not ended two epochs"
    assert text.getvalue().splitlines() == [said]
