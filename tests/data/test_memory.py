import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from feature_folders import forge_manifest
from forked import fork, limit_addresses, status_of

from data_prep.shard import shard
from mhimdist.data import memory
from mhimdist.data.read_ahead import read_ahead
from mhimdist.data.shards import BagShards
from mhimdist.errors import DataError

LARGEST, GIANT, WIDTH = 44_402, 444_020, 1024  # CAMELYON16's largest bag, and a bag ten times as large


def read_the_giant(shards: Path, room: int) -> None:
    bags = BagShards(shards, verify="never")
    before = anonymous_bytes()
    giant_ND = bags.load([1], torch.float16).features_TD  # the file's pages
    assert giant_ND.shape == (GIANT, WIDTH)
    assert float(giant_ND[::1000].sum()) == 0
    assert anonymous_bytes() - before < 2**24
    limit_addresses(room)
    assert bags.load([0]).features_TD.shape == (LARGEST, WIDTH)
    assert anonymous_bytes() - before < 4 * LARGEST * WIDTH + 2**25
    for read in (
        lambda: bags.load([1]),
        lambda: bags.load([0, 1]),
        lambda: next(read_ahead(bags, [[0], [1]])),
    ):
        try:
            read()
        except DataError as error:
            print(error)


def anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


@pytest.mark.faults(14)
def test_a_giant_bag_is_read_in_bounded_memory_and_refused_beyond_it(tmp_path: Path) -> None:
    (tmp_path / "features").mkdir()
    for name in ("a", "b"):
        np.save(tmp_path / "features" / f"{name}.npy", np.zeros((2, WIDTH), np.float16))
    (tmp_path / "labels.csv").write_text("a,x\nb,x\n")
    shards = tmp_path / "shards"
    shard(tmp_path / "features", tmp_path / "labels.csv", shards)
    num_bytes = [128 + 2 * size * WIDTH for size in (LARGEST, GIANT)]

    def enlarge(rows: list[dict]) -> None:
        start = 1024
        for row, size, length in zip(rows, (LARGEST, GIANT), num_bytes, strict=True):
            row |= {"num_instances": size, "features_offset": start, "features_bytes": length}
            row["features_data_offset"] = start + 128
            start += length

    total = 4096 + sum(num_bytes)
    forge_manifest(shards, enlarge, lambda info: info["shards"][0].update(bytes=total))
    os.truncate(shards / "shard-000000.tar", total)  # a hole in a file costs nothing to write
    room = int(4 * LARGEST * WIDTH / memory.USED_SHARE) + 2**26
    said = tmp_path / "said"
    assert status_of(fork(lambda: read_the_giant(shards, room), said)) == 0, said.read_text()
    lines = said.read_text().splitlines()
    assert len(lines) == 3
    for line, what, needed in zip(
        lines, ("", " and 1 more in its batch", ""), ("1.7 GiB", "1.9 GiB", "1.9 GiB"), strict=True
    ):
        expected = (
            rf"bag '[ab]' \(444,020 x 1,024\){what} as torch\.float32.*: needs {needed}, but [\d.]+ MiB is"
        )
        assert re.match(f"{expected} left ", line), line


def test_the_least_of_all_limits_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_left_of_cgroups", lambda: iter([10**6]))
    assert memory.free_bytes() == (10**6, "left in its control group (a container's or a job's)")
    monkeypatch.setattr(memory, "_left_of_cgroups", lambda: iter([2**62, -5 * 2**62]))
    assert memory.free_bytes()[0] == 0
    with pytest.raises(DataError, match=r"^it: needs 64\.0 MiB, but 0\.0 MiB is left in its control group"):
        memory.require(memory.ASKED_FROM_BYTES, "it")
    memory.require(memory.ASKED_FROM_BYTES - 1, "it")
    monkeypatch.setattr(memory, "_left_of_cgroups", lambda: iter([2**62]))
    assert memory.free_bytes()[1] == "available on this machine"


@pytest.mark.parametrize(
    ("own", "group", "names"),
    [
        ("0::/a/b\n", "a", ("memory.max", "memory.current", "inactive_file")),
        ("0::/of/the/host\n", "", ("memory.max", "memory.current", "inactive_file")),
        (
            "5:cpu,memory:/a/b\n0::/\n",
            "memory/a/b",
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ),
    ],
    ids=["version 2", "in a container", "version 1"],
)
def test_control_groups(
    own: str, group: str, names: tuple[str, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own").write_text(own)
    root = tmp_path / "cgroup"
    folder = root / group
    folder.mkdir(parents=True)
    (root / "a/b").mkdir(parents=True, exist_ok=True)
    if group == "a":
        (root / "a/b/memory.max").write_text("max\n")
        (root / "a/b/memory.current").write_text("1\n")
    (folder / names[0]).write_text("1000\n")
    (folder / names[1]).write_text("700\n")
    (folder / "memory.stat").write_text(f"anon 500\n{names[2]} 50\n")
    monkeypatch.setattr(memory, "CGROUPS", root)
    monkeypatch.setattr(memory, "OWN_CGROUPS", tmp_path / "own")
    assert list(memory._left_of_cgroups()) == [350]
    monkeypatch.setattr(memory, "OWN_CGROUPS", tmp_path / "none")
    assert list(memory._left_of_cgroups()) == []


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps what is freed")
def test_large_blocks_go_back_to_the_system_when_they_are_freed():
    code = (
        "import ctypes, psutil\n"
        "from mhimdist.data import memory\n"
        "libc = ctypes.CDLL('libc.so.6')\n"
        "libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]\n"
        "libc.free.argtypes = [ctypes.c_void_p]\n"
        "rss = psutil.Process().memory_info\n"
        "libc.free(libc.malloc(2**24))  # glibc keeps blocks of that size from now on\n"
        "memory.give_back_large_blocks()\n"
        "blocks = [libc.malloc(2**20) for _ in range(64)]\n"
        "for block in blocks: ctypes.memset(block, 1, 2**20)\n"
        "full = rss().rss\n"
        "for block in blocks[:-1]: libc.free(block)  # the last one would keep an arena's holes\n"
        "print(full - rss().rss)\n"
    )
    freed = int(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    )
    assert freed > 60 * 2**20
