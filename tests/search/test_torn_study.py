"""A study whose file was torn: SQLite makes it whole again after a kill, and other damage is named."""

import os
import random
import signal
import sqlite3
import warnings
from contextlib import closing
from pathlib import Path

import optuna
import pytest
from forked import fork, status_of
from optuna.trial import TrialState

from mhimdist.errors import MhimdistError, SweepError
from mhimdist.search import storage

NUM_TRIALS = 30


def _study(folder: Path) -> optuna.Study:
    url = storage.sqlite_url(folder / "study.db")
    return storage.create(url, "sweep", None, [optuna.study.StudyDirection.MAXIMIZE])[0]


def _fill(study: optuna.Study, num_trials: int) -> None:
    for number in range(num_trials):
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        trial.report(number / 2, 1)
        study.tell(trial, number)


def _values(folder: Path) -> list[float]:
    return [trial.value for trial in _study(folder).trials if trial.state == TrialState.COMPLETE]


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


@pytest.mark.faults(35)
@pytest.mark.parametrize("has_log", [True, False])
def test_a_write_that_was_killed_within_is_undone_and_the_study_resumes_twice(tmp_path, monkeypatch, has_log):
    if not has_log:
        monkeypatch.setattr(storage, "network_filesystem", lambda path: "nfs4")
    _fill(_study(tmp_path), 3)

    def torn() -> None:
        """Write a part to the disk, as SQLite does within a large write, and be killed before its end."""
        with closing(sqlite3.connect(tmp_path / "study.db", isolation_level=None)) as opened:
            opened.execute("PRAGMA cache_size=1")
            opened.execute("PRAGMA cache_spill=1")
            opened.execute("BEGIN")
            opened.execute("UPDATE trial_values SET value = 99")
            opened.execute("CREATE TABLE filler (x)")
            opened.executemany("INSERT INTO filler VALUES (?)", [("y" * 5000,) for _ in range(200)])
            os.kill(os.getpid(), signal.SIGKILL)

    place, other = ("study.db-wal", None) if has_log else ("study.db", "study.db-journal")
    size = _size(tmp_path / place)
    assert status_of(fork(torn)) == -signal.SIGKILL
    assert _size(tmp_path / place) > size, "it holds half of the write"
    assert other is None or _size(tmp_path / other) > 0
    assert _values(tmp_path) == [0, 1, 2]
    _fill(_study(tmp_path), 2)
    assert _values(tmp_path) == [0, 1, 2, 0, 1]
    assert not (tmp_path / "study.db-journal").exists()


@pytest.mark.faults(35)
@pytest.mark.parametrize("num_lost", [20, 4096, 20_000])
def test_a_study_whose_end_is_missing_keeps_its_trials_or_is_named(tmp_path, num_lost):
    _fill(_study(tmp_path), NUM_TRIALS)
    file = tmp_path / "study.db"
    os.truncate(file, file.stat().st_size - num_lost)
    for _ in range(2):  # the second start finds what the first left
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = _values(tmp_path)
            except MhimdistError as error:
                found = str(error)
        assert found == list(range(NUM_TRIALS)) or (str(file) in found and "malformed" in found)


@pytest.mark.faults(35)
@pytest.mark.parametrize("content", [b"no database at all" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
def test_what_is_no_study_is_named(tmp_path, content):
    (tmp_path / "study.db").write_bytes(content)
    with pytest.raises(SweepError, match=rf"{tmp_path}/study\.db"):
        _study(tmp_path)
    assert (tmp_path / "study.db").read_bytes() == content


@pytest.mark.long
@pytest.mark.faults(35)
def test_an_overwritten_study_ends_with_no_other_error_than_ours(tmp_path):
    _fill(_study(tmp_path), 5)
    whole = (tmp_path / "study.db").read_bytes()
    places = [*random.Random(0).sample(range(128, len(whole), 64), 60), 0, 64]
    refusals = []
    for at in places:
        place = tmp_path / f"{at}"
        place.mkdir(exist_ok=True)
        torn = bytearray(whole)
        torn[at : at + 64] = b"\xff" * len(torn[at : at + 64])
        (place / "study.db").write_bytes(torn)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                _values(place)
            except MhimdistError as error:
                refusals.append((place / "study.db", str(error)))
    assert refusals
    assert [said for file, said in refusals if str(file) not in said] == []
