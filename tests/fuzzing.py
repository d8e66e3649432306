"""Forges files: hypothesis changes valid ones, and a child process with little memory reads them.

A reader may refuse a case by one of our errors, or read it. Any other exception, a signal, a case that takes
too long, a process, a connection or a file that appears elsewhere fails the test.
"""

import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from forked import fork, limit_addresses, status_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mhimdist.errors import MhimdistError

CASES = pytest.mark.parametrize(
    "num_cases", [500, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.fuzz])]
)
"""The number of forged files: few in each run of the tests, very many in the slow ones."""

ROOM_BYTES = 2**30
MOST_S = 20
FORBIDDEN = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "socket.connect",
    "pty.spawn",
)
RAN = 77

INTERESTING = [
    *(b"", b"\0", b"\xff", b"\xff" * 8, b"\0" * 512, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"),
    *((2**63).to_bytes(8, "little"), (2**62).to_bytes(8, "big"), b"9" * 30, b"-1", b"1e999", b"NaN", b"null"),
    *(
        b"../../x",
        b"/etc/passwd",
        b"[" * 3000,
        b"{" * 3000,
        b'"',
        b"\n",
        b"\r\n",
        b"=cmd()",
        b"\xf0\x9f\xa7\xaa",
    ),
]

Change = tuple[str, float, bytes, int]
"""What is done, where (as a share of the content), with what, and over how many bytes."""

CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["put", "insert", "cut", "repeat", "flip", "end"]),
        st.floats(0, 1),
        st.sampled_from(INTERESTING) | st.binary(max_size=40),
        st.integers(0, 300),
    ),
    min_size=1,
    max_size=6,
)


def changed(content: bytes, changes: Sequence[Change]) -> bytes:
    """A valid content after some changes."""
    for what, share, new, length in changes:
        at = int(share * len(content))
        if what == "put":
            content = content[:at] + new + content[at + len(new) :]
        elif what == "insert":
            content = content[:at] + new + content[at:]
        elif what == "cut":
            content = content[:at] + content[at + length :]
        elif what == "repeat":
            content = content[:at] + content[at : at + length] * 3 + content[at + length :]
        elif what == "flip" and at < len(content):
            content = content[:at] + bytes([content[at] ^ 1 << length % 8]) + content[at + 1 :]
        elif what == "end":
            content = content[:at]
    return content


def forged(valid: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Contents near valid ones."""
    return st.builds(changed, st.sampled_from(valid), CHANGES)


def fuzz(
    num_cases: int,
    cases: st.SearchStrategy,
    read: Callable[[object], object],
    *,
    allowed: tuple[type[BaseException], ...] = (MhimdistError,),
) -> None:
    """Read very many cases in a child; this process's folder is where files may appear."""
    folder = Path.cwd()
    (folder / "read").mkdir(exist_ok=True)
    before = set(os.listdir(folder.parent)) | set(os.listdir(folder))

    def child() -> None:
        sys.addaudithook(_end_if_something_runs)
        # pytest-timeout's handler would wait for the code that hangs.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        limit_addresses(ROOM_BYTES)
        os.chdir(folder / "read")
        counts = {"read": 0, "refused": 0}

        @settings(
            max_examples=num_cases,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
        @given(cases)
        def each(case: object) -> None:
            signal.alarm(MOST_S)  # it ends the child, whatever code hangs
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    read(case)
                    counts["read"] += 1
                except allowed as error:
                    if not str(error):
                        raise AssertionError("an error says nothing") from error
                    counts["refused"] += 1
            signal.alarm(0)

        each()
        print("counts", *counts.values())

    status = status_of(fork(child, folder / "said"))
    said = (folder / "said").read_text(errors="replace")
    assert status != RAN, f"something ran: {said[-3000:]}"
    assert status != -signal.SIGALRM, f"a case took more than {MOST_S} s: {said[-3000:]}"
    assert status == 0, said[-6000:]
    num_read, num_refused = map(int, said.splitlines()[-1].removeprefix("counts").split())
    assert num_refused > 0
    assert num_read + num_refused >= 0.9 * num_cases
    after = set(os.listdir(folder.parent)) | set(os.listdir(folder))
    assert after - before <= {"said"}


def _end_if_something_runs(event: str, arguments: tuple) -> None:
    if event in FORBIDDEN:
        os.write(2, f"{event} {arguments!r}\n".encode())
        os._exit(RAN)
