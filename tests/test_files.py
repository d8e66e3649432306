import errno
import fcntl
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from forked import fork, status_of

from mhimdist import files
from mhimdist.errors import DataError
from mhimdist.files import home


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    files.write_text(path, "neu · µ")
    assert path.read_text(encoding="utf-8") == "neu · µ"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        files.write_text(path, "\ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_lock_is_held_by_one_at_a_time_and_its_holder_is_named(tmp_path):
    path = tmp_path / "new" / ".lock"
    first, second = (files.Lock(path, signed=True) for _ in range(2))
    assert first.acquire()
    assert first.acquire()  # changes nothing; one release is enough
    assert (first.is_held, second.is_held) == (True, False)
    assert not second.acquire(wait_s=0)
    assert second.holder == f"process {os.getpid()}"
    first.release()
    with second:
        assert second.is_held
        assert not first.acquire(wait_s=0.1)
    assert not second.is_held
    assert path.exists()  # others may be waiting for it


def test_an_unsigned_lock_leaves_its_file_empty(tmp_path):
    with files.Lock(tmp_path / ".lock") as lock:
        assert lock.path.read_bytes() == b""
        assert lock.holder == "another process"


def test_a_lock_may_be_released_by_another_thread(tmp_path):
    lock = files.Lock(tmp_path / ".lock")
    lock.acquire()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lock.release).result()
    assert files.Lock(tmp_path / ".lock").acquire(wait_s=0)


def test_a_lock_that_is_dropped_is_released(tmp_path):
    lock = files.Lock(tmp_path / ".lock")
    lock.acquire()
    del lock
    assert files.Lock(tmp_path / ".lock").acquire(wait_s=0)


def test_a_lock_and_a_bare_flock_keep_each_other_out(tmp_path):
    lock = files.Lock(tmp_path / ".lock")
    with lock.path.open("a") as file:  # the way an older release takes the lock
        fcntl.flock(file, fcntl.LOCK_EX)
        assert not lock.acquire(wait_s=0)
    with lock, lock.path.open("a") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _hold(path: Path) -> None:
    lock = files.Lock(path, signed=True)
    lock.acquire()
    time.sleep(60)


def test_a_killed_process_releases_its_lock(tmp_path):
    lock = files.Lock(tmp_path / ".lock")
    child = fork(lambda: _hold(lock.path))
    while not lock.path.exists() or lock.holder != f"process {child}":
        time.sleep(0.01)
    assert not lock.acquire(wait_s=0)
    os.kill(child, signal.SIGKILL)
    assert status_of(child) == -signal.SIGKILL
    assert lock.acquire(wait_s=0)


def test_a_forked_child_neither_holds_a_lock_nor_releases_it(tmp_path):
    lock = files.Lock(tmp_path / ".lock")
    with lock:
        assert status_of(fork(lock.release)) == 0  # the child ends without having released anything
        assert not files.Lock(lock.path).acquire(wait_s=0)
        child = fork(lambda: time.sleep(60))
    try:
        assert files.Lock(lock.path).acquire(wait_s=0)
    finally:
        os.kill(child, signal.SIGKILL)
        status_of(child)


def test_a_file_system_without_flock_is_an_error(tmp_path, monkeypatch):
    def missing(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", missing)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSYS)):
        files.Lock(tmp_path / ".lock").acquire()


def test_home_is_the_variable_or_below_the_users_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    for value, expected in (
        ("/storage/mhimdist", Path("/storage/mhimdist")),
        ("~/elsewhere", tmp_path / "user/elsewhere"),
        ("relative", tmp_path / "relative"),
        ("", tmp_path / "user/mhimdist"),
    ):
        monkeypatch.setenv("MHIMDIST_HOME", value)
        assert home() == expected
    monkeypatch.delenv("MHIMDIST_HOME")
    assert home() == tmp_path / "user/mhimdist"


def test_a_run_is_named_by_path_by_the_path_below_home_or_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setenv("MHIMDIST_HOME", str(tmp_path / "home"))
    run = tmp_path / "home" / "runs" / "first"
    run.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for given in (run, "home/runs/first", "runs/first", "first"):
        assert files.run_folder(given) == run
    assert files.run_folder("second") is None
    (tmp_path / "first").mkdir()
    assert files.run_folder("first") == tmp_path / "first"
    assert files.run_folder("runs/first", tmp_path / "elsewhere") is None


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/../../x", "/etc/passwd", "a//b", "a/.", "a\0b"])
def test_a_name_that_leads_out_of_its_folder_becomes_no_path(tmp_path, name):
    with pytest.raises(DataError, match=r"the name is .*: expected a name that stays below"):
        files.inside(tmp_path, name, "the name", error=DataError)


def test_a_name_that_stays_in_its_folder_becomes_a_path(tmp_path):
    assert files.inside(tmp_path, "a", "it", error=DataError) == tmp_path / "a"
    assert files.inside(tmp_path, "a/..b/c", "it", error=DataError) == tmp_path / "a/..b/c"


def test_the_first_link_below_a_folder_is_found(tmp_path):
    (tmp_path / "store/a/b").mkdir(parents=True)
    (tmp_path / "linked").symlink_to(tmp_path / "store")
    assert files.first_link(tmp_path / "linked", tmp_path / "linked/a/b") is None
    (tmp_path / "store/a/c").symlink_to(tmp_path)
    assert files.first_link(tmp_path / "store", tmp_path / "store/a/c/store") == tmp_path / "store/a/c"
