"""Bags in pages that a GPU reads: what is registered, and what happens where that is refused."""

import gc
import logging
import os
from pathlib import Path

import pytest
import torch
from feature_folders import normal_shards
from late_gpu import DEVICE, LateGpu, same_bits

from mhimdist.config.train import Loading
from mhimdist.data import gpu_pages, memory
from mhimdist.data import resident as resident_module
from mhimdist.data.gpu_pages import GpuPages
from mhimdist.data.read_ahead import ReadAhead, read_ahead
from mhimdist.data.resident import RamBags
from mhimdist.data.shards import BagShards

STEPS = [[1, 0], [2], [], [3, 1, 0], [0]]


class Calls:
    """CUDA's functions: what is registered, by address."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, refuses: bool = False) -> None:
        self.registered: dict[int, int] = {}
        self.tries, self._refuses = 0, refuses
        monkeypatch.setattr(gpu_pages, "_call", self._call)

    def _call(self, name: str, address: int, length: int = 0, flags: int = 0) -> None:
        if name == "cudaHostUnregister":
            del self.registered[address]
            return
        self.tries += 1
        if self._refuses:
            raise OSError(801, "cudaHostRegister returned error 801")
        assert address % os.sysconf("SC_PAGESIZE") == 0
        assert flags == 8
        self.registered[address] = length


def bag(pages: GpuPages, bags: BagShards, row: int) -> torch.Tensor | None:
    shape = int(bags.sizes_N[row]), bags.num_features
    return pages.bag(row, bags.place(row), shape, bags.dtype)


def test_each_bag_is_registered_once_and_released_with_the_data_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls, bags, pages = Calls(monkeypatch), BagShards(normal_shards(tmp_path, "float16")), GpuPages()
    for _ in range(2):
        for row in range(len(bags)):
            found = bag(pages, bags, row)
            assert found is not None
            assert same_bits(found, bags.load([row], bags.dtype).features_TD)
            del found
    assert calls.tries == len(bags) == len(calls.registered)
    del pages
    gc.collect()
    assert not calls.registered


def test_only_a_share_of_the_free_memory_is_registered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls, bags = Calls(monkeypatch), BagShards(normal_shards(tmp_path, "float16"))
    each = [int(size) * bags.num_features * 2 for size in bags.sizes_N]
    monkeypatch.setattr(memory, "free_bytes", lambda: (4 * (each[0] + each[1]), "in this test"))
    pages = GpuPages()
    assert [bag(pages, bags, row) is not None for row in (0, 1, 2, 0, 1)] == [True, True, False, True, True]
    assert calls.tries == 2


def test_a_refusal_is_final_and_said_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calls, bags = Calls(monkeypatch, refuses=True), BagShards(normal_shards(tmp_path, "float16"))
    pages = GpuPages()
    with caplog.at_level(logging.INFO):
        assert all(bag(pages, bags, row) is None for row in range(len(bags)))
    assert calls.tries == len(caplog.records) == 1
    assert "cores copy bags to the GPU" in caplog.text


def test_a_file_that_changes_is_mapped_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls, bags, pages = Calls(monkeypatch), BagShards(normal_shards(tmp_path, "float16")), GpuPages()
    for time in (1, 2):
        os.utime(Path(bags.folder) / bags.shards[0].name, ns=(time, time))
        for _ in range(2):
            found = bag(pages, bags, 1)
            assert found is not None
            assert same_bits(found, bags.load([1], bags.dtype).features_TD)
    assert calls.tries == 2
    assert len(calls.registered) == 2  # a copy from the old pages may be under way


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_no_core_copies_what_a_gpu_reads(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gpu = LateGpu(monkeypatch, reads_pages=True)
    gpu.replace_copies(monkeypatch)
    bags = BagShards(normal_shards(tmp_path, "float16"))
    expected = [bags.load(rows, dtype).features_TD for rows in STEPS]
    load, loaded = bags.load, []
    monkeypatch.setattr(
        bags, "load", lambda rows, *args, **options: loaded.append(list(rows)) or load(rows, *args, **options)
    )
    with ReadAhead(bags, STEPS, dtype=dtype, device=DEVICE) as batches:
        given = list(batches)
        gpu.consumer.run()
    for batch, rows, expected_TD in zip(given, STEPS, expected, strict=True):
        assert same_bits(batch.features_TD, expected_TD)
        assert batch.keys == tuple(bags.keys[row] for row in rows)
    assert loaded == [[]]


def test_a_gpu_reads_what_ram_holds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(resident_module, "SHARED_MEMORY", tmp_path)
    gpu = LateGpu(monkeypatch, reads_pages=True)
    gpu.replace_copies(monkeypatch)
    bags = BagShards(normal_shards(tmp_path / "data", "float16"))
    held = RamBags(bags)
    with read_ahead(
        held, STEPS, dtype=torch.bfloat16, device=DEVICE, loading=Loading(cache="ram")
    ) as batches:
        given = list(batches)
        gpu.consumer.run()
    for batch, rows in zip(given, STEPS, strict=True):
        assert same_bits(batch.features_TD, bags.load(rows, torch.bfloat16).features_TD)
    assert gpu.fetched == sum(map(len, STEPS))
    assert set(held._mapped) == {torch.float16}  # nothing more is held for the step without bags


@pytest.mark.gpu
@pytest.mark.parametrize("flags", [8, 0], ids=["read", "refused"])
def test_a_gpu_reads_pages_or_a_core_copies_them(
    flags: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """To register read-only pages for writing is refused; nothing of the error is left for torch."""
    monkeypatch.setattr(gpu_pages, "_READ_ONLY", flags)
    bags = BagShards(normal_shards(tmp_path, "float16"))
    for _ in range(2):
        with ReadAhead(bags, STEPS, dtype=torch.bfloat16, device="cuda") as batches:
            given = [batch.features_TD.cpu() for batch in batches]
        for features_TD, rows in zip(given, STEPS, strict=True):
            assert same_bits(features_TD, bags.load(rows, torch.bfloat16).features_TD)
    pages = GpuPages()
    assert (bag(pages, bags, 1) is not None) == (flags == 8)
    assert float(torch.ones(3, device="cuda").sum()) == 3
