import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress

import pytest

from mhimdist.errors import DataError, PreemptedError
from mhimdist.process import SIGNALS, Stopping, run, signals_after


def _raising(error: BaseException):
    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (DataError("slide 'a': no features\n  in x"), "error: slide 'a': no features in x\n"),
        (OSError(errno.ENOSPC, "No space left on device", "out"), "error: No space left on device: out\n"),
        (OSError(errno.ENOSPC, "No space left on device"), "error: No space left on device\n"),
        (OSError("in its own words"), "error: in its own words\n"),
        (OSError(), "error: OSError\n"),
    ],
)
def test_expected_errors_are_one_line_and_status_1(error, line, capsys) -> None:
    with pytest.raises(SystemExit) as exit_info:
        run(_raising(error))
    assert exit_info.value.code == 1
    assert capsys.readouterr() == ("", line)


def test_ctrl_c_is_status_130(capsys) -> None:
    with pytest.raises(SystemExit) as exit_info:
        run(_raising(KeyboardInterrupt()))
    assert exit_info.value.code == 130
    assert "Traceback" not in capsys.readouterr().err


def test_our_own_faults_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run(_raising(ZeroDivisionError()))


def test_success_is_silent(capsys) -> None:
    run(lambda: None)
    assert capsys.readouterr() == ("", "")


_AS_A_PROGRAM = """
import atexit, os, sys, threading, time
from mhimdist.errors import DataError, PreemptedError
from mhimdist.process import run

class Last:
    def __del__(self):  # called while the interpreter is taken apart
        os.abort()

last = Last()
atexit.register(lambda: print("exit functions ran"))

def main():
    threading.Thread(target=lambda: (time.sleep(0.2), print("the thread has ended"))).start()
    print("buffered", end=" ")
    raise {error}

run(main)
"""


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        ("DataError('no column')", 1, "error: no column\n"),
        ("PreemptedError('resume it')", 75, "resume it\n"),
        ("KeyboardInterrupt", 130, "interrupted\n"),
    ],
)
def test_nothing_that_happens_behind_the_message_changes_the_status(error, status, said) -> None:
    command = [sys.executable, "-c", _AS_A_PROGRAM.replace("{error}", error)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (status, said)
    assert done.stdout == "buffered the thread has ended\nexit functions ran\n"


@pytest.fixture(autouse=True)
def _signals_as_before() -> Iterator[None]:
    """`run` keeps signals from a program's exit functions; these tests go on after it."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def _preempted() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_sigterm_anywhere_in_a_command_is_one_line_and_status_75(capsys) -> None:
    with pytest.raises(SystemExit) as exit_info:
        run(_preempted)
    assert exit_info.value.code == os.EX_TEMPFAIL
    assert capsys.readouterr() == ("", "stopped by SIGTERM; the same command resumes it\n")


def test_a_signal_that_a_library_swallowed_stops_the_command_before_the_next_part(capsys) -> None:
    def main() -> None:
        with suppress(BaseException):  # as a callback of C code does
            _preempted()
        with Stopping("not reached"):
            print("trained on")

    with pytest.raises(SystemExit) as exit_info:
        run(main)
    assert exit_info.value.code == os.EX_TEMPFAIL
    assert capsys.readouterr() == ("", "stopped by SIGTERM; the same command resumes it\n")
    assert Stopping._innermost is None


def test_the_inner_context_says_what_was_stopped_and_the_outer_one_knows() -> None:
    with Stopping("outer") as outer:
        with pytest.raises(PreemptedError, match="inner"), Stopping("inner"):
            _preempted()
        assert outer.is_asked
    with pytest.raises(KeyboardInterrupt), Stopping("outer"), Stopping("inner"):
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.faults(45)
@pytest.mark.parametrize("fails", [False, True])
def test_a_block_that_a_signal_must_not_cut_ends_first(fails) -> None:
    done = []

    def start() -> None:
        with Stopping("outer"), signals_after() as are_ours:
            _preempted()
            done.append(are_ours)
            if fails:
                raise RuntimeError("the library's start, which nobody needs any more")

    with pytest.raises(PreemptedError, match="outer"):
        start()
    assert done == [True]


def test_a_second_signal_cuts_even_that_block() -> None:
    done = []

    def start() -> None:
        with Stopping("outer"), signals_after():
            for number in range(2):
                os.kill(os.getpid(), signal.SIGINT)
                done.append(number)

    with pytest.raises(KeyboardInterrupt):
        start()
    assert done == [0]


def test_within_gently_the_code_itself_decides_after_such_a_block() -> None:
    with Stopping("outer") as stopping, stopping.gently():
        with signals_after():
            _preempted()
        assert stopping.is_asked


def test_without_a_context_signals_do_what_they_always_do() -> None:
    before = signal.getsignal(signal.SIGINT)
    with signals_after() as are_ours:
        assert (are_ours, signal.getsignal(signal.SIGINT)) == (False, before)


_WHILE_IT_LEAVES = """
import atexit, os, signal, sys
from mhimdist.errors import DataError
from mhimdist.process import run

def leave():
    for _ in range({times}):
        os.kill(os.getpid(), signal.SIGTERM)
    print("exit functions ran", flush=True)

atexit.register(leave)

def main():
    if {fails}:
        raise DataError("no column")

run(main)
"""


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize(("times", "said"), [(1, "exit functions ran\n"), (2, "")])
def test_a_signal_after_the_end_changes_no_status_and_a_second_one_ends_the_exit_functions(
    times, said, fails
) -> None:
    code = _WHILE_IT_LEAVES.replace("{times}", str(times)).replace("{fails}", str(fails))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (int(fails), said)
