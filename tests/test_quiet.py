"""`-q` leaves out progress and nothing else; `-v` shows where an error came from."""

import time

import pytest

from data_prep.writing import progress
from mhimdist import process, terminal
from mhimdist.config.options import Options
from mhimdist.errors import ConfigError
from mhimdist.search.options import Sweep
from mhimdist.sweep.watch import print_line


@pytest.fixture(autouse=True)
def loud_again(monkeypatch):
    monkeypatch.setattr(terminal, "_is_quiet", False)
    monkeypatch.setattr(process, "_is_verbose", False)


def test_progress_is_shown_unless_a_command_is_quiet(capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.01)

    def work():
        print_line("trial 1 complete")
        with progress.bar(10, lambda: 5, "sharding"):
            time.sleep(0.1)
        terminal.console().print("the result")
        return capsys.readouterr()

    loud = work()
    assert loud.out.splitlines() == ["trial 1 complete", "the result"]
    assert "sharding" in loud.err
    Sweep.from_command_line(["-q"])
    quiet = work()
    assert (quiet.out, quiet.err) == ("the result\n", "")


@pytest.mark.parametrize("options", [[], ["-v"]])
def test_an_error_shows_where_it_came_from_if_asked(options, capsys):
    def fail():
        Options.from_command_line([*options])
        raise ConfigError("no such thing")

    with pytest.raises(SystemExit) as ended:
        process.run(fail)
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert said.endswith("error: no such thing\n")
    assert ("in fail" in said) == bool(options)
