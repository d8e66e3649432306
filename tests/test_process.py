import errno
import os
import signal
import subprocess
import sys

import pytest

from mhimdist.errors import DataError, PreemptedError
from mhimdist.process import Stopping, run, signals_afterwards


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


def _ask() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.faults(45)
def test_a_signal_within_a_library_is_delivered_after_it() -> None:
    before, done = signal.getsignal(signal.SIGTERM), []

    def library() -> None:
        assert callable(signal.signal(signal.SIGTERM, lambda *_: sys.exit(15)))
        _ask()
        signal.signal(signal.SIGUSR1, signal.signal(signal.SIGUSR1, signal.SIG_IGN))
        done.append("whole")

    def command() -> None:
        with Stopping("resume it"), signals_afterwards():
            library()

    with pytest.raises(PreemptedError, match="resume it"):
        command()
    assert done == ["whole"]
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_librarys_handler_stays_where_there_was_none() -> None:
    before, heard = signal.getsignal(signal.SIGTERM), []
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with signals_afterwards():
            signal.signal(signal.SIGTERM, lambda *_: heard.append("theirs"))
        _ask()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == ["theirs"]
