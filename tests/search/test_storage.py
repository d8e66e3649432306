import sqlite3
import sys
from contextlib import closing
from types import SimpleNamespace

import optuna
import psutil
import pytest

from mhimdist.errors import DiskFullError, SweepError
from mhimdist.search import storage

SECRET = "tok3n"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"postgresql://ada:{SECRET}@db:5432/studies", "postgresql://ada:***@db:5432/studies"),
        (
            f"mysql+pymysql://db/s?passwd={SECRET}&charset=utf8",
            "mysql+pymysql://db/s?charset=utf8&passwd=hidden",
        ),
        (
            f"postgresql://db/s?sslmode=require&password={SECRET}",
            "postgresql://db/s?password=hidden&sslmode=require",
        ),
        ("postgresql://ada@db/studies", "postgresql://ada@db/studies"),
        ("sqlite:////home/ada/runs/a b/study.db", "sqlite:////home/ada/runs/a b/study.db"),
        (f"no url but {SECRET}", "(a URL that cannot be read)"),
    ],
)
def test_a_url_is_shown_without_its_password(url, shown):
    found = storage.hidden(url)
    assert SECRET not in found
    assert found.split("?")[0] == shown.split("?")[0]
    assert set(found.partition("?")[2].split("&")) == set(shown.partition("?")[2].split("&"))


@pytest.mark.faults(37)
@pytest.mark.parametrize(
    "url",
    [
        f"nodatabase://ada:{SECRET}@db/studies",
        f"no url but {SECRET}",
        f"sqlite:////nowhere/at/all.db?password={SECRET}",
    ],
)
def test_no_error_shows_a_password(url):
    with pytest.raises(SweepError, match="cannot keep an Optuna study") as caught:
        storage.open_storage(url)
    assert SECRET not in str(caught.value)
    assert caught.value.__suppress_context__


def test_a_database_without_its_driver_names_the_package_that_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    with pytest.raises(SweepError, match=r"ada:\*\*\*@db/studies cannot keep an Optuna study: .*psycopg2"):
        storage.open_storage(f"postgresql+psycopg2://ada:{SECRET}@db/studies")


def test_connections_are_checked_before_they_are_used(tmp_path):
    opened = storage.open_storage(storage.sqlite_url(tmp_path / "study.db"))
    assert opened.engine.pool._pre_ping is True


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/shared/home/runs", "nfs4"), ("/shared/fast/runs", None), ("/tmp", None), ("/sharedness", None)],
)
def test_a_network_file_system_is_told_from_a_local_disk(monkeypatch, tmp_path, path, kind):
    mounts = [("/", "ext4"), ("/shared", "nfs4"), ("/shared/fast", "xfs")]
    found = [SimpleNamespace(mountpoint=at, fstype=of) for at, of in mounts]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: found)
    assert storage.network_filesystem(type(tmp_path)(path)) == kind


@pytest.fixture
def locked(tmp_path, monkeypatch):
    """A study on a network file system whose file another connection locks, as another process would.

    On a local disk there is a log beside the file, and a reader locks nothing.
    """
    monkeypatch.setattr(storage, "network_filesystem", lambda path: "nfs4")
    monkeypatch.setattr(storage, "LOCK_TIMEOUT_S", 0.2)
    url = storage.sqlite_url(tmp_path / "study.db")
    study, _ = storage.create(url, "sweep", None, [optuna.study.StudyDirection.MAXIMIZE])
    with closing(sqlite3.connect(tmp_path / "study.db")) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield url, study
        other.rollback()


@pytest.mark.faults(49)
def test_a_locked_study_is_called_locked(locked, tmp_path):
    _, study = locked
    with pytest.raises(SweepError, match=rf"{tmp_path}/study.db: another process has kept the study locked"):
        study.ask()


def test_a_study_that_is_locked_when_it_is_opened_is_called_locked(locked, tmp_path):
    url, _ = locked
    with pytest.raises(SweepError, match=rf"{tmp_path}/study.db: another process has kept the study locked"):
        storage.open_storage(url)


def test_whoever_reads_a_study_on_a_local_disk_makes_no_writer_wait(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "LOCK_TIMEOUT_S", 0.2)
    url = storage.sqlite_url(tmp_path / "study.db")
    study, _ = storage.create(url, "sweep", None, [optuna.study.StudyDirection.MAXIMIZE])
    with closing(sqlite3.connect(tmp_path / "study.db", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM trials").fetchall()
        study.ask()
        assert [trial.number for trial in storage.read(url, "sweep")] == [0]


def _fill(study):
    for number in range(1000):
        study.set_user_attr(f"attribute {number}", "x" * 1000)


@pytest.mark.faults(29, 49)
def test_a_full_disk_is_called_full_and_the_study_can_be_used_again(tmp_path):
    url = storage.sqlite_url(tmp_path / "study.db")
    study, _ = storage.create(url, "sweep", None, [optuna.study.StudyDirection.MAXIMIZE])
    with study._storage._engine.connect() as connection:  # the pool hands this connection out again
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
    with pytest.raises(DiskFullError, match=rf"disk full: {tmp_path}/study.db cannot be written"):
        _fill(study)
    study._storage._engine.dispose()
    with study._storage._engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count=1000000")
    study.set_user_attr("after", "more space")
    assert storage.create(url, "sweep", None, study.directions)[0].user_attrs["after"] == "more space"


@pytest.mark.faults(30, 47)
@pytest.mark.parametrize("name", ["a?b", "a%41", "a?mode=memory", "a%3Fb", "a b#c"])
def test_a_study_is_where_its_folder_is_whatever_the_folder_is_called(tmp_path, name):
    file = tmp_path / name / "study.db"
    file.parent.mkdir()
    url = storage.sqlite_url(file)
    study, _ = storage.create(url, "sweep", None, [optuna.study.StudyDirection.MAXIMIZE])
    study.set_user_attr("is", "here")
    assert file.stat().st_size > 0
    assert [each.name for each in tmp_path.iterdir()] == [name]
    assert storage.create(url, "sweep", None, study.directions)[0].user_attrs == {"is": "here"}
    assert storage.create(storage.hidden(url), "sweep", None, study.directions)[0].user_attrs == {
        "is": "here"
    }
