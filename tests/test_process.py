import errno
import subprocess
import sys

import pytest

from mhimdist.errors import DataError
from mhimdist.process import run


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
