"""Killed and started again, on several workers, with more slides: always the same bytes."""

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from feature_folders import SLIDES, shard_folder, write_features
from forked import fork, status_of
from local_cluster import LocalCluster

from data_prep import shard as shard_module
from data_prep.checks.faults import verify
from data_prep.shard import Outcome, main, shard
from data_prep.writing import plan as plan_module
from data_prep.writing.workplace import Workplace
from mhimdist.data.manifest import Manifest
from mhimdist.data.shards import BagShards
from mhimdist.errors import DataError, DiskFullError, LabelError, ManifestError, RunLockedError
from mhimdist.process import run

ROOT = Path(__file__).parents[3]
SAME = {"name": "x", "shard_bytes": 10_000, "workers": 1}


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


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
    """Have the bag of this number (from 0) fail to be read; the slides that were read, as they are."""
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
    assert "of 3 shards are finished: the same command goes on with them" in capsys.readouterr().err
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


EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "fcntl.flock"}


def ended_at(number: int, folder: Path, act: Callable[[], object]) -> int:
    """Act in a child that ends at this touch of a file below the folder (from 1); how many it made."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        count = 0

        def hook(event: str, arguments: tuple) -> None:
            nonlocal count
            if event in EVENTS and str(folder) in str(arguments):
                count += 1
                if count == number:
                    os._exit(9)

        sys.addaudithook(hook)
        act()
        os.write(writing, str(count).encode())
        os._exit(0)
    os.close(writing)
    assert status_of(child) in (0, 9)
    with open(reading) as pipe:
        return int(pipe.read() or 0)


# All of them take a minute; of every seventh, the last is among them.
TOUCHES = pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)])


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
            assert len(whole - recorded) <= 1  # only what was open is done again
            assert act().num_reused == len(recorded)
        elif (folder / ".shards.sharded").exists():  # it had not ended
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
        with pytest.raises(DataError, match="exists already"):
            shard(folder / "features", folder / "labels.csv", folder / "shards", **SAME | changed)
    assert act() == Outcome(6, 3, ())
    with pytest.raises(DataError, match="exists already"):
        act()
    assert files_of(folder / "shards") == expected
    assert not list(folder.glob(".*"))


def test_sigkill_at_any_moment(folder: Path, expected: dict[str, bytes]) -> None:
    read, record = plan_module._read, Workplace.record

    def slow() -> None:
        plan_module._read = lambda bag, stop: (time.sleep(0.15), read(bag, stop))[1]
        # However late the signal is: no other shard is recorded, and nothing published.
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


@pytest.mark.ray
def test_the_workers_of_ray_give_the_same_bytes(
    folder: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")
    # Its workers import what the driver does, from where it does.
    ray.init(
        address="local",
        num_cpus=1,  # a second worker would only take its time to start
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


def test_two_at_once_are_refused(folder: Path) -> None:
    with Workplace(folder / "shards"), pytest.raises(RunLockedError, match="another process is making"):
        shard_folder(folder)
    assert not (folder / "shards").exists()


def test_a_disk_that_will_be_full_is_refused_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.raises(OSError, match=r"No space left on device \(\d+ bytes needed, 100 free\)"):
        shard_folder(folder)
    assert not list(folder.glob(".shards*"))


def append(folder: Path, **options) -> shard_module.Outcome:
    return shard(folder / "features", folder / "labels.csv", folder / "shards", append=True, **options)


def test_slides_are_added_and_nothing_is_rewritten(folder: Path) -> None:
    features = folder / "features"
    table = (folder / "labels.csv").read_text()
    late = [path for path in features.iterdir() if path.name.startswith(("plain", "-xxx"))]
    (folder / "late").mkdir()
    for path in late:
        path.rename(folder / "late" / path.name)
    (folder / "labels.csv").write_text("\n".join(table.splitlines()[:5]))
    out = shard_folder(folder, name="x", description="d", dtype="bfloat16")
    before = files_of(out)
    times = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    (folder / "labels.csv").write_text(table)
    for path in (folder / "late").iterdir():
        path.rename(features / path.name)
    assert append(folder).num_new == 2
    assert append(folder).num_new == 0
    after = files_of(out)
    for name in before.keys() - {"manifest.parquet"}:
        assert after[name] == before[name]
        assert (out / name).stat().st_mtime_ns == times[name]
    assert len(after) > len(before)
    assert verify(out) == []
    bags, info = BagShards(out), Manifest.read(out).info
    assert sorted(bags.slides) == sorted(SLIDES)
    assert (info.name, info.description, set(Manifest.read(out).rows["dtype"].to_pylist())) == (
        "x",
        "d",
        {"bfloat16"},
    )
    stored = bags.load([bags.slides.index("plain")]).features_TD.numpy()
    assert np.allclose(stored, np.load(features / "plain.npy"), rtol=2**-8)


@TOUCHES
def test_an_append_that_was_killed_at_any_touch_of_a_file(every: int, folder: Path) -> None:
    table = (folder / "labels.csv").read_text()
    few = "\n".join(table.splitlines()[:4])
    (folder / "few.csv").write_text(few)
    out = folder / "shards"
    options = {"shard_bytes": 1, "workers": 1}
    shard(folder / "features", folder / "few.csv", out, skip_unmatched=True, name="x", **options)
    before = files_of(out)
    assert append(folder, **options).num_new == 3
    after = files_of(out)
    (folder / "some.csv").write_text("\n".join(table.splitlines()[:5]))
    another = partial(shard, folder / "features", folder / "some.csv", out, skip_unmatched=True, append=True)
    nothing = partial(shard, folder / "features", folder / "few.csv", out, skip_unmatched=True, append=True)

    def begin() -> None:
        shutil.rmtree(out)
        shutil.rmtree(folder / ".shards.sharding", ignore_errors=True)
        out.mkdir()
        for name, content in before.items():
            (out / name).write_bytes(content)

    begin()
    total = ended_at(0, folder, partial(append, folder, **options))
    seen = set()
    for number in range(total, 0, -every):
        begin()
        ended_at(number, folder, partial(append, folder, **options))
        assert len(BagShards(out)) in (3, 6)  # whole before and after, at any moment
        left = sorted(out.glob("*.tar"))[len(Manifest.read(out).info.shards) :]
        seen.add(len(left))
        assert sorted({fault.file for fault in verify(out)}) == [path.name for path in left]
        assert all("an append that has not finished" in fault.what for fault in verify(out))
        if number % 3 == 0:
            nothing()  # an append of nothing cleans up, too
            assert verify(out) == []
            assert set(files_of(out)) in (set(before), set(after))
        elif number % 3 == 1:
            assert another(**options).num_new in (0, 1)
            assert verify(out) == []
        assert append(folder, **options).num_new in (0, 2, 3)
        assert verify(out) == []
        assert sorted(BagShards(out).slides) == sorted(SLIDES)
        if number % 3 != 1:
            assert files_of(out) == after
        assert not list(folder.glob(".*"))
    assert seen == {0, 1, 2, 3} or every > 1


def test_a_stray_shard_is_neither_read_nor_replaced(folder: Path) -> None:
    out = shard_folder(folder)
    (out / "shard-000003.tar").write_bytes(b"mine")
    np.save(folder / "features/more.npy", np.ones((3, 8), np.float32))
    (folder / "labels.csv").write_text((folder / "labels.csv").read_text() + "\nmore,normal,case 9")
    with pytest.raises(ManifestError, match=r"shard-000003\.tar: not in the manifest"):
        append(folder)
    assert (out / "shard-000003.tar").read_bytes() == b"mine"


FULL = (OSError, DiskFullError)


def disk_full_at(number: int, folder: Path, patch: pytest.MonkeyPatch) -> list[str]:
    """Have the file of this number (from 1) that is forced to disk find no room there; the names of all."""
    force, names = os.fsync, []

    def full(descriptor: int) -> None:
        name = Path(os.readlink(f"/proc/self/fd/{descriptor}")).relative_to(folder)
        names.append(str(name))
        if len(names) == number:
            raise OSError(errno.ENOSPC, "No space left on device")
        force(descriptor)

    patch.setattr(os, "fsync", full)
    return names


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
            else:  # the folder around it, when it is there already
                with pytest.raises(FULL, match="No space left on device"):
                    act()
        assert act().num_new == 6
        assert files_of(folder / "shards") == expected
        assert not list(folder.glob(".*"))
        shutil.rmtree(folder / "shards")


def test_an_append_to_a_full_disk_leaves_what_was_there(folder: Path) -> None:
    table = (folder / "labels.csv").read_text()
    (folder / "few.csv").write_text("\n".join(table.splitlines()[:5]))
    out = folder / "shards"
    shard(folder / "features", folder / "few.csv", out, skip_unmatched=True, name="x", shard_bytes=1)
    before = files_of(out)
    options = {"shard_bytes": 1, "workers": 1}
    with pytest.MonkeyPatch.context() as patch:
        names = disk_full_at(0, folder, patch)
        append(folder, **options)
    after = files_of(out)
    for number in range(1, len(names) + 1):
        for name in after.keys() - before.keys():
            (out / name).unlink(missing_ok=True)
        (out / "manifest.parquet").write_bytes(before["manifest.parquet"])
        with pytest.MonkeyPatch.context() as patch:
            disk_full_at(number, folder, patch)
            with pytest.raises(FULL, match="No space left on device"):
                append(folder, **options)
        assert len(BagShards(out)) in (4, 6)
        assert {
            name: files_of(out)[name] for name in before.keys() - {"manifest.parquet"}
        }.items() <= before.items()
        assert append(folder, **options).num_new in (0, 2)
        assert files_of(out) == after
        assert not list(folder.glob(".*"))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ("relabel", LabelError, "is in the data set as 'normal' of case .*, and in the table as 'tumour'"),
        ("class", LabelError, "has label 'new', expected normal or tumour"),
        ("width", DataError, r"slide 'more': its features are 5 wide, those of the data set 8"),
    ],
)
def test_what_does_not_belong_is_not_added(change: str, error: type, message: str, folder: Path) -> None:
    before = files_of(shard_folder(folder))
    table = (folder / "labels.csv").read_text()
    if change == "relabel":
        table = table.replace('"plain",normal', '"plain",tumour')
    else:
        np.save(folder / "features/more.npy", np.ones((3, 5 if change == "width" else 8), np.float32))
        table += f"\nmore,{'new' if change == 'class' else 'normal'},case 9"
    (folder / "labels.csv").write_text(table)
    with pytest.raises(error, match=message):
        append(folder)
    assert files_of(folder / "shards") == before


def test_features_of_another_encoder_are_not_added(folder: Path) -> None:
    shutil.rmtree(folder / "features")
    (folder / "features").mkdir()
    lines = ["slide,label"]
    for slide, encoder in (("a", None), ("b", "uni"), ("c", "resnet")):
        features = {"features": torch.full((2, 8), float(len(lines))), "encoder": encoder}
        torch.save(features, folder / f"features/{slide}.pt")
        (folder / "labels.csv").write_text("\n".join([*lines, f"{slide},x"]))
        lines.append(f"{slide},x")
        if slide == "a":
            shard_folder(folder)
        elif slide == "b":
            assert append(folder).num_new == 1
        else:
            with pytest.raises(
                DataError, match=r"slide 'c': its features are of 'resnet', those of .* 'uni'"
            ):
                append(folder)


def test_a_new_class_can_be_added_behind_the_others(folder: Path) -> None:
    shard_folder(folder)
    np.save(folder / "features/more.npy", np.ones((3, 8), np.float32))
    (folder / "labels.csv").write_text((folder / "labels.csv").read_text() + "\nmore,new,case 9")
    with pytest.raises(LabelError, match="expected classes that begin with those of the data set"):
        append(folder, classes=["new", "normal", "tumour"])
    append(folder, classes=["normal", "tumour", "new"])
    bags = BagShards(folder / "shards")
    assert bags.classes == ("normal", "tumour", "new")
    assert bags.labels_N[bags.slides.index("more")] == 2


def test_the_command_says_what_it_passed_over(folder: Path, capsys: pytest.CaptureFixture) -> None:
    (folder / "labels.csv").write_text("slide,label\nplain,0\nnowhere,1\n")
    paths = ["--features", folder / "features", "--labels", folder / "labels.csv", "--out", folder / "shards"]
    run(partial(main, [*map(str, paths), "--skip-unmatched", "--class-map", "0=no,1=yes"]))
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("passed over, without features or label: 6 ('nowhere', ")
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
