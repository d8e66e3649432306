import sys
from types import SimpleNamespace

import psutil
import pytest

from mhimdist.errors import SweepError
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
