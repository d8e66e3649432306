"""Killed and started again, on a full disk, on any number of workers: always the same bytes."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from feature_folders import shard_folder, write_features
from file_faults import FULL, TOUCHES, disk_full_at, ended_at, files_of
from forked import fork, status_of
from local_cluster import LocalCluster

from data_prep import shard as shard_module
from data_prep.checks.faults import verify
from data_prep.shard import Outcome, main, shard
from data_prep.writing import plan as plan_module
from data_prep.writing.workplace import Workplace
from mhimdist.data.manifest import Manifest
from mhimdist.data.shards import BagShards
from mhimdist.errors import DataError, RunLockedError
from mhimdist.process import run

ROOT = Path(__file__).parents[3]
SAME = {"name": "x", "shard_bytes": 10_000, "workers": 1}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_features(tmp_path)
    return tmp_path


@pytest.fixture
def expected(folder: Path) -> dict[str, bytes]:
    out = shard_folder(folder, name="x")
    content = files_of(out)
    out.rename(folder / "expected")
    assert len(Manifest.read(folder / "expected").info.shards) == 3
    return content


def read_failing_at(number: int, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let the bag of this number (from 0) fail to be read; returns a list of the slides read so far."""
    read, slides = plan_module._read, []

    def failing(bag: plan_module.PlannedBag, stop: object):
        slides.append(bag.columns["slide"])
        if len(slides) == number + 1:
            raise error
        return read(bag, stop)

    monkeypatch.setattr(plan_module, "_read", failing)
    return slides


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), SystemExit(143), DataError("bad"), OSError(28, "full")]
)
def test_what_is_finished_is_not_done_again(
    error: BaseException, folder: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    with monkeypatch.context() as patched:
        read_failing_at(4, error, patched)
        with pytest.raises(type(error)):
            shard_folder(folder, name="x", workers=1)
    assert not (folder / "shards").exists()
    assert "of 3 shards are finished; the same command resumes and keeps them" in capsys.readouterr().err
    first = [row["slide"] for row in Manifest.read(folder / "expected").rows_of_shard("shard-000000.tar")]
    slides = read_failing_at(99, error, monkeypatch)
    out = shard_folder(folder, name="x", workers=1)
    assert not set(slides) & set(first)
    assert files_of(out) == expected
    assert sorted(path.name for path in folder.iterdir()) == ["expected", "features", "labels.csv", "shards"]


def test_what_is_finished_of_other_sources_is_done_again(
    folder: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        read_failing_at(4, DataError("bad"), patched)
        with pytest.raises(DataError):
            shard_folder(folder, name="x", workers=1)
    path = next((folder / "features").glob("plain.npy"))
    np.save(path, np.load(path) + 1)
    shard_folder(folder, name="x", workers=1)
    assert verify(folder / "shards") == []
    changed = BagShards(folder / "shards")
    stored = changed.load(changed.rows_of(["plain"])).features_TD.numpy()
    assert np.array_equal(stored, np.load(path))


def test_shards_with_other_settings_are_not_taken_over(
    folder: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        read_failing_at(4, DataError("bad"), patched)
        with pytest.raises(DataError):
            shard_folder(folder, name="x", workers=1, dtype="float32")
    assert files_of(shard_folder(folder, name="x")) == expected


@pytest.mark.long
@TOUCHES
def test_killed_at_any_touch_of_a_file(every: int, folder: Path, expected: dict[str, bytes]) -> None:
    place = folder / ".shards.sharding"
    act = partial(shard, folder / "features", folder / "labels.csv", folder / "shards", **SAME)
    total = ended_at(0, folder, act)
    shutil.rmtree(folder / "shards")
    assert total > 60
    for number in range(total, 0, -every):
        ended_at(number, folder, act)
        if not (folder / "shards").exists():
            whole = {path.name for path in (place / "shards").glob("*.tar")}
            recorded = {path.name for path in (place / "records").glob("*.tar")}
            assert recorded <= whole
            assert len(whole - recorded) <= 1  # only the shard that was open is written again
            assert act().num_reused == len(recorded)
        elif (folder / ".shards.sharded").exists():  # it was killed before its end
            assert files_of(folder / "shards") == expected
            assert act() == Outcome(6, 3, ())
        assert files_of(folder / "shards") == expected
        assert sorted(path.name for path in folder.iterdir()) == [
            "expected",
            "features",
            "labels.csv",
            "shards",
        ]
        shutil.rmtree(folder / "shards")


def test_what_another_command_made_is_not_taken_for_its_own(folder: Path, expected: dict[str, bytes]) -> None:
    act = partial(shard, folder / "features", folder / "labels.csv", folder / "shards", **SAME)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_: os._exit(9))
        assert status_of(fork(act)) == 9
    for changed in ({"dtype": "float32"}, {"description": "another"}, {"seed": 1}):
        with pytest.raises(DataError, match="already exists"):
            shard(folder / "features", folder / "labels.csv", folder / "shards", **SAME | changed)
    assert act() == Outcome(6, 3, ())
    with pytest.raises(DataError, match="already exists"):
        act()
    assert files_of(folder / "shards") == expected
    assert not list(folder.glob(".*"))


def test_sigkill_at_any_moment(folder: Path, expected: dict[str, bytes]) -> None:
    read, record = plan_module._read, Workplace.record

    def slow() -> None:
        plan_module._read = lambda bag, stop: (time.sleep(0.15), read(bag, stop))[1]
        # However late the signal is, no other shard is recorded and nothing is published.
        Workplace.record = lambda *given: (record(*given), time.sleep(100))
        shard_folder(folder, name="x", workers=2)

    records = folder / ".shards.sharding/records"
    child = fork(slow)
    deadline = time.monotonic() + 300
    while not (records.exists() and list(records.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    assert status_of(child) == -signal.SIGKILL
    assert not (folder / "shards").exists()
    out = shard_folder(folder, name="x")
    assert files_of(out) == expected
    assert not (folder / ".shards.sharding").exists()


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_any_number_of_threads_gives_the_same_bytes(
    workers: int, folder: Path, expected: dict[str, bytes]
) -> None:
    assert files_of(shard_folder(folder, name="x", workers=workers)) == expected


def test_a_failure_in_one_thread_stops_the_others(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_failing_at(3, DataError("this one"), monkeypatch)
    with pytest.raises(DataError, match="this one"):
        shard_folder(folder, workers=3)
    assert not list((folder).rglob("*.part"))


@pytest.mark.long
@pytest.mark.ray
def test_the_workers_of_ray_give_the_same_bytes(
    folder: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")
    # Its workers import the modules of the driver, from the same place.
    ray.init(
        address="local",
        num_cpus=1,  # a second worker would only take time to start
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )
    try:
        plain, kept = folder / "features/plain.npy", folder / "plain.npy"
        plain.rename(kept)
        np.save(plain, np.full((7, 8), np.nan, np.float32))
        with pytest.raises(DataError, match=r"plain\.npy: 56 of its features are NaN or infinite$"):
            shard_folder(folder, name="x", distributed=True)
        kept.rename(plain)
        assert files_of(shard_folder(folder, name="x", distributed=True, workers=2)) == expected
    finally:
        ray.shutdown()


@pytest.mark.ray
@pytest.mark.slow
def test_the_ray_cluster_that_it_is_submitted_to(folder: Path, expected: dict[str, bytes]) -> None:
    paths = ["--features", folder / "features", "--labels", folder / "labels.csv", "--out", folder / "shards"]
    entrypoint = ["--", "python", "-m", "data_prep.shard", *map(str, paths)]
    command = [
        "ray",
        "job",
        "submit",
        "--working-dir",
        ".",
        *entrypoint,
        "--shard-bytes",
        "10000",
        "--name",
        "x",
    ]
    with LocalCluster(num_cpus=2) as cluster:
        done = subprocess.run(command, cwd=ROOT, env=cluster.env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 bags" in done.stdout
    assert files_of(folder / "shards") == expected


def test_the_workers_of_a_cluster_are_given_absolute_paths(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []

    def elsewhere(function: Callable, tasks: list, **_: object) -> Iterator:
        for plan, *rest in tasks:
            given.extend(path for bag in plan.bags for path in bag.source.files())
            with contextlib.chdir("/"):
                yield function(plan, *rest)

    monkeypatch.setattr(shard_module, "results", elsewhere)
    monkeypatch.chdir(folder)
    shard(Path("features"), Path("labels.csv"), Path("shards"), shard_bytes=10_000)
    assert given
    assert all(path.is_absolute() for path in given)
    assert verify(folder / "shards") == []


@pytest.mark.faults(31)
def test_two_at_once_are_refused(folder: Path) -> None:
    with Workplace(folder / "shards"), pytest.raises(RunLockedError, match="another process is making"):
        shard_folder(folder)
    assert not (folder / "shards").exists()


def test_a_disk_that_will_be_full_is_refused_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.raises(OSError, match=r"No space left on device \(\d+ bytes needed, 100 free\)"):
        shard_folder(folder)
    assert not list(folder.glob(".shards*"))


@pytest.mark.faults(29)
def test_a_disk_that_is_full_for_any_of_the_files(folder: Path, expected: dict[str, bytes]) -> None:
    act = partial(shard, folder / "features", folder / "labels.csv", folder / "shards", **SAME)
    with pytest.MonkeyPatch.context() as patch:
        names = disk_full_at(0, folder, patch)
        act()
    shutil.rmtree(folder / "shards")
    kinds = {Path(name).suffix or Path(name).name for name in names}
    assert kinds >= {".part", ".parquet", "shards"}  # shards, indexes and records; the manifest; folders
    for number in range(1, len(names) + 1):
        with pytest.MonkeyPatch.context() as patch:
            disk_full_at(number, folder, patch)
            if number < len(names):
                with pytest.raises(FULL, match="No space left on device"):
                    act()
                assert not (folder / "shards").exists()
            else:  # the parent folder, after the data set has appeared
                with pytest.raises(FULL, match="No space left on device"):
                    act()
        assert act().num_new == 6
        assert files_of(folder / "shards") == expected
        assert not list(folder.glob(".*"))
        shutil.rmtree(folder / "shards")


def test_the_command_says_what_it_passed_over(folder: Path, capsys: pytest.CaptureFixture) -> None:
    (folder / "labels.csv").write_text("slide,label\nplain,0\nnowhere,1\n")
    paths = ["--features", folder / "features", "--labels", folder / "labels.csv", "--out", folder / "shards"]
    run(partial(main, [*map(str, paths), "--skip-unmatched", "--class-map", "0=no,1=yes"]))
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("passed over, for lack of features or of a label: 6 ('nowhere', ")
    assert second.endswith("shards: 1 bags of 1 cases, 10.2 kB (shards: 1; classes: no, yes)")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_bags_of_shards_become_shards_again(dtype: str, folder: Path) -> None:
    first = shard_folder(folder, name="x", dtype=dtype)
    shard(first, None, folder / "again", name="x", shard_bytes=10_000, dtype=dtype)
    assert [path.name for path in sorted((folder / "again").iterdir())] == sorted(files_of(first))
    one, two = BagShards(first), BagShards(folder / "again")
    assert (one.keys, one.cases, one.classes) == (two.keys, two.cases, two.classes)
    for row in range(len(one)):
        assert np.array_equal(one.load([row]).features_TD, two.load([row]).features_TD)
        assert np.array_equal(one.coords(row), two.coords(row))
        assert np.array_equal(one.instance_labels(row), two.instance_labels(row))
