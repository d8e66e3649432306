import io
import re
import time

import pytest
from rich.console import Console

from data_prep.writing import progress
from data_prep.writing.progress import Count, bar, doing


def test_a_log_gets_lines_with_rate_and_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.01)
    done = iter(range(0, 10**9, 10**6))
    deadline = time.monotonic() + 300
    with bar(2 * 10**9, lambda: next(done), "sharding"):
        text = ""
        while text.count("\n") < 3 and time.monotonic() < deadline:
            text += capsys.readouterr().err
    line = text.splitlines()[1]
    assert re.fullmatch(r"sharding [0-9.]+ MB of 2\.0 GB, [0-9.]+ [kM]B/s, [0-9]+ s left", line)


def test_a_terminal_gets_a_bar_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_POLL_S", 0.01)
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    with bar(10**6, lambda: 5 * 10**5, "checking", console):
        deadline = time.monotonic() + 300
        while "0.5/1.0 MB" not in screen.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert "checking" in screen.getvalue()
    assert "0.5/1.0 MB" in screen.getvalue()


def test_what_is_counted_is_no_bytes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.01)
    done = Count()
    with doing("looking for features in [x]"), bar(20_000, lambda: done.total, "looking at", unit="slides"):
        text, deadline = "", time.monotonic() + 300
        while not (text.count("at ") > 3 and "[x]" in text) and time.monotonic() < deadline:
            done.add()
            time.sleep(0.005)
            text += capsys.readouterr().err
    lines = text.splitlines()
    assert any(re.fullmatch(r"looking for features in \[x\]: 0 s so far", line) for line in lines)
    pattern = r"looking at [0-9]+ of 20,000 slides, [0-9.]+/s, [0-9]+ s left"
    assert any(re.fullmatch(pattern, line) for line in lines)


def test_nothing_is_said_without_a_terminal(capsys: pytest.CaptureFixture) -> None:
    with doing("[bold]x"), bar(10, lambda: 5):
        pass
    assert capsys.readouterr().err == ""
