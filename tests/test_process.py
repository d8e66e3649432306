import errno

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
