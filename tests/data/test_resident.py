import multiprocessing
import os
import random
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from feature_folders import shard_folder, write_features
from forked import fork, status_of

from mhimdist.config.train import Loading
from mhimdist.data import resident as resident_module
from mhimdist.data.read_ahead import read_ahead
from mhimdist.data.resident import DeviceBags, RamBags, resident
from mhimdist.data.shards import BagShards
from mhimdist.errors import ConfigError

STEPS = [[4, 0], [5], [], [0], [1, 2, 3]]
SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_features(tmp_path)
    return shard_folder(tmp_path)


@pytest.fixture(autouse=True)
def shared_memory(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of /dev/shm; no data set is kept from test to test."""
    folder = tmp_path_factory.mktemp("shm")
    monkeypatch.setattr(resident_module, "SHARED_MEMORY", folder)
    monkeypatch.setattr(resident_module, "_last", None)
    return folder


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]


@pytest.mark.parametrize("cache", ["ram", "device"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
def test_a_resident_data_set_gives_the_same_batches(cache: str, dtype: torch.dtype, shards: Path) -> None:
    bags = BagShards(shards)
    held = resident(bags, cache)
    assert resident(bags, cache) is held
    assert (held.keys, held.cases, held.classes, held.digest) == (
        bags.keys,
        bags.cases,
        bags.classes,
        bags.digest,
    )
    assert held.rows_of(bags.keys[2:4]).tolist() == [2, 3]
    for _ in range(2):
        with read_ahead(held, STEPS, dtype=dtype, loading=Loading(cache=cache)) as batches:
            for batch, rows in zip(batches, STEPS, strict=True):
                expected = bags.load(rows, dtype)
                assert torch.equal(batch.features_TD, expected.features_TD)
                assert torch.equal(batch.offsets_B1, expected.offsets_B1)
                assert torch.equal(batch.labels_B, expected.labels_B)
                assert torch.equal(batch.ids_B, expected.ids_B)
                assert batch.keys == expected.keys


def test_none_is_the_data_set_itself(shards: Path) -> None:
    bags = BagShards(shards)
    assert resident(bags, "none") is bags


def test_a_gpu_by_either_name_holds_one_copy(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(resident_module, "DeviceBags", lambda bags, device: asked.append(device) or object())
    bags = BagShards(shards)
    held = resident(bags, "device", "cuda")
    assert resident(bags, "device", "cuda:3") is held
    assert resident(bags, "device", "cuda:2") is not held
    assert asked == [torch.device("cuda", 3), torch.device("cuda", 2)]


def _read(shared: Path, shards: Path, connection) -> None:
    resident_module.SHARED_MEMORY = shared
    bags = RamBags(BagShards(shards))
    total = float(bags.load([0, 1, 2]).features_TD.sum())
    connection.send((total, [(p.name, p.stat().st_ino) for p in files(shared)]))
    connection.recv()


@pytest.mark.long
def test_processes_share_one_copy_and_the_last_one_removes_it(shards: Path, shared_memory: Path) -> None:
    expected = float(BagShards(shards).load([0, 1, 2]).features_TD.sum())
    pipes = [SPAWN.Pipe() for _ in range(2)]
    children = [SPAWN.Process(target=_read, args=(shared_memory, shards, there)) for _, there in pipes]
    for child in children:
        child.start()
    told = []
    for here, _ in pipes:
        assert here.poll(300)
        told.append(here.recv())
    assert told[0] == told[1]
    assert told[0][0] == expected
    assert len(told[0][1]) == 1
    for (here, _), child in zip(pipes, children, strict=True):
        assert files(shared_memory)
        here.send("end")
        child.join(300)
        assert child.exitcode == 0
    assert files(shared_memory) == []


def test_killed_processes_leave_nothing_when_the_last_one_is_gone(shards: Path, shared_memory: Path) -> None:
    pipes = [multiprocessing.Pipe() for _ in range(2)]
    children = [fork(partial(_read, shared_memory, shards, there)) for _, there in pipes]
    for here, _ in pipes:
        assert here.poll(300)
        here.recv()
    random.shuffle(children)  # it makes no difference which child made the file
    os.kill(children[0], signal.SIGKILL)
    assert status_of(children[0]) == -signal.SIGKILL
    time.sleep(0.05)  # enough time for a removal
    (file,) = files(shared_memory)  # still in use
    os.kill(children[1], signal.SIGKILL)
    assert status_of(children[1]) == -signal.SIGKILL
    deadline = time.monotonic() + 300
    while file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_is_left_all_the_same_is_used_or_removed(
    shards: Path, shared_memory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:  # as if all processes had been killed at the same time
        patch.setattr(resident_module, "_release", lambda _, file: file.close())
        patch.setattr(resident_module, "_remove_after_use", lambda *_: None)
        total = float(RamBags(BagShards(shards)).load([0, 1, 2]).features_TD.sum())
    (file,) = files(shared_memory)
    left = file.stat().st_ino
    same = RamBags(BagShards(shards))
    assert float(same.load([0, 1, 2]).features_TD.sum()) == total
    assert [path.stat().st_ino for path in files(shared_memory)] == [left]
    write_features(tmp_path / "other", seed=1)
    other = RamBags(BagShards(shard_folder(tmp_path / "other")))
    other.load([0])
    assert len(files(shared_memory)) == 2  # the first is in use
    del same
    assert file not in files(shared_memory)
    del other
    assert files(shared_memory) == []


def test_what_does_not_fit_is_said_with_numbers(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident_module.memory, "free_bytes", lambda: (300, "left"))
    bags = BagShards(shards)
    with pytest.raises(ConfigError, match=r"loading\.cache=device: the features are .* MiB, cpu has .* free"):
        DeviceBags(bags, "cpu")
    with pytest.raises(ConfigError, match=r"loading\.cache=ram: the features are .* as torch\.float32"):
        RamBags(bags).load([0])
