"""Batches on their way to a GPU: pinned and copied aside, decoded by DALI, or held there whole."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from feature_folders import shard_folder, write_features

from mhimdist.config.train import Loading
from mhimdist.data import read_ahead as module
from mhimdist.data import resident as resident_module
from mhimdist.data.bags import PackedBags
from mhimdist.data.read_ahead import ReadAhead, read_ahead
from mhimdist.data.resident import DeviceBags, RamBags, resident
from mhimdist.data.shards import BagShards
from mhimdist.errors import ConfigError

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
STEPS = [[4, 0], [5], [], [0], [1, 2, 3], [5, 5], [2]]
READERS = [Loading(), Loading(read_ahead=False), Loading(reader="dali")]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def sharded(folder: Path, stored: str) -> BagShards:
    write_features(folder)
    return BagShards(shard_folder(folder, dtype=stored))


def assert_same(batch: PackedBags, bags: BagShards, rows: list[int], dtype: torch.dtype) -> None:
    expected = bags.load(rows, dtype)
    for name in ("features_TD", "offsets_B1", "labels_B", "ids_B"):
        got = getattr(batch, name)
        assert got.device.type == torch.device(DEVICE).type
        assert got.dtype == getattr(expected, name).dtype
        assert torch.equal(got.cpu(), getattr(expected, name))
    assert batch.keys == expected.keys
    assert batch.sizes() == expected.sizes()


@pytest.mark.parametrize("stored", ["float16", "float32", "bfloat16"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loading", READERS, ids=lambda loading: f"{loading.reader}-{loading.read_ahead}")
def test_every_reader_brings_the_same_bits(
    loading: Loading, dtype: torch.dtype, stored: str, tmp_path: Path
) -> None:
    if loading.reader == "dali":
        pytest.importorskip("nvidia.dali")
    bags = sharded(tmp_path, stored)
    for first in (0, 3):  # 3: as a run that resumes within an epoch
        with read_ahead(bags, STEPS[first:], dtype=dtype, device=DEVICE, loading=loading) as batches:
            given = list(batches)
        assert len(given) == len(STEPS) - first
        for batch, rows in zip(given, STEPS[first:], strict=True):
            assert_same(batch, bags, rows, dtype)


def test_what_is_read_ahead_is_pinned_and_in_the_dtype_it_is_stored_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_spare", {})
    bags = sharded(tmp_path, "float16")
    with ReadAhead(bags, STEPS, dtype=torch.float32, device=DEVICE) as batches:
        buffer = torch.from_numpy(batches._arena._buffer)
        assert buffer.is_pinned()
        two_largest = max(int(bags.sizes_N[[*one, *two]].sum()) for one, two in pairwise(STEPS))
        assert len(buffer) <= two_largest * bags.num_features * 2 + 2 * 64
        for batch, rows in zip(batches, STEPS, strict=True):
            assert_same(batch, bags, rows, torch.float32)
    assert list(module._spare) == [True]


def test_batches_stay_as_they_are_while_the_next_ones_are_copied(tmp_path: Path) -> None:
    bags = sharded(tmp_path, "float16")
    steps = [[number % 6] for number in range(200)]
    with read_ahead(bags, steps, device=DEVICE) as batches:
        kept, sums = [], []
        for number, batch in enumerate(batches):
            torch.cuda._sleep(200_000)  # the consumer's kernels run late, but still find this batch
            sums.append(batch.features_TD.double().sum())
            if number % 7 == 0:
                kept.append((number, batch))
    for number, got in enumerate(sums):
        assert float(got) == float(bags.load(steps[number]).features_TD.double().sum())
    for number, batch in kept:
        assert_same(batch, bags, steps[number], torch.float32)


def test_what_ram_holds_is_brought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident_module, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(resident_module, "_last", None)
    bags = sharded(tmp_path / "data", "float16")
    held = resident(bags, "ram", DEVICE)
    assert isinstance(held, RamBags)
    with read_ahead(held, STEPS, device=DEVICE, loading=Loading(cache="ram")) as batches:
        for batch, rows in zip(batches, STEPS, strict=True):
            assert_same(batch, bags, rows, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stored", ["float16", "float32", "bfloat16"])
def test_a_data_set_is_held_on_the_device(
    stored: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resident_module, "_last", None)
    bags = sharded(tmp_path, stored)
    held = resident(bags, "device", DEVICE)
    assert isinstance(held, DeviceBags)
    with read_ahead(held, STEPS, dtype=dtype, device=DEVICE, loading=Loading(cache="device")) as batches:
        for batch, rows in zip(batches, STEPS, strict=True):
            assert_same(batch, bags, rows, dtype)
    one, again = (held.load([2], bags.dtype).features_TD for _ in range(2))
    assert one.data_ptr() == again.data_ptr()  # a view of the held features, not a copy


def test_a_data_set_that_the_device_cannot_hold_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bags = sharded(tmp_path, "float16")
    needed = int(bags.sizes_N.sum()) * bags.num_features * 2
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (needed, 80 << 30))
    with pytest.raises(ConfigError, match=r"loading\.cache"):
        DeviceBags(bags, DEVICE)
