"""Batches on their way to a GPU: pinned and copied aside, decoded by DALI, or held there whole.

The same tests run on the CPU, where nothing is pinned and all streams are one.
"""

import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Literal

import pytest
import torch
from feature_folders import normal_shards
from late_gpu import same_bits

from mhimdist.config.train import Loading
from mhimdist.data import read_ahead as module
from mhimdist.data import resident as resident_module
from mhimdist.data.bags import PackedBags
from mhimdist.data.dali import DaliBatches
from mhimdist.data.read_ahead import ReadAhead, read_ahead
from mhimdist.data.resident import DeviceBags, RamBags, resident
from mhimdist.data.shards import BagShards
from mhimdist.errors import ConfigError

STEPS = [[1, 0], [2], [], [3], [1, 2, 3], [2, 2], [0]]
READERS = [Loading(), Loading(read_ahead=False), Loading(reader="dali")]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


STORED = [("float16",), ("float32",), ("bfloat16",)]
MIXED = ("bfloat16", "float16", "float32")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    return request.param


def sharded(folder: Path, stored: tuple[str, ...]) -> BagShards:
    return BagShards(normal_shards(folder, *stored))


def steps_of(bags: BagShards) -> list[list[int]]:
    """Steps of zero to three bags of every stored dtype."""
    return [[(row + 4 * number) % len(bags) for row in rows] for number, rows in enumerate(STEPS)]


def assert_same(batch: PackedBags, bags: BagShards, rows: list[int], dtype: torch.dtype, device: str) -> None:
    expected = bags.load(rows, dtype)
    for name in ("features_TD", "offsets_B1", "labels_B", "ids_B"):
        got = getattr(batch, name)
        assert got.device.type == device
        assert same_bits(got.cpu(), getattr(expected, name)), name
    assert batch.keys == expected.keys
    assert batch.sizes() == expected.sizes()


@pytest.mark.parametrize("stored", STORED, ids="-".join)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loading", READERS, ids=lambda loading: f"{loading.reader}-{loading.read_ahead}")
def test_every_reader_brings_the_same_bits(
    loading: Loading, dtype: torch.dtype, stored: tuple[str, ...], device: str, tmp_path: Path
) -> None:
    if loading.reader == "dali":
        pytest.importorskip("nvidia.dali")
    bags = sharded(tmp_path, stored)
    for first in (0, 3):  # 3: as a run that resumes within an epoch
        with read_ahead(bags, STEPS[first:], dtype=dtype, device=device, loading=loading) as batches:
            given = list(batches)
        assert len(given) == len(STEPS) - first
        for batch, rows in zip(given, STEPS[first:], strict=True):
            assert_same(batch, bags, rows, dtype, device)


def _waits(device: str) -> None:
    """Make whatever reads a batch late: the host on a CPU, the kernels on a GPU."""
    if device == "cuda":
        torch.cuda._sleep(200_000)
    else:
        time.sleep(0.0005)


@pytest.mark.parametrize("hold", [1, 3, 100])
@pytest.mark.parametrize("consumer", [_waits, lambda device: None], ids=["slow", "fast"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_read_ahead_is_what_waiting_reads_bring(
    dtype: torch.dtype, consumer: Callable[[str], None], hold: int, device: str, tmp_path: Path
) -> None:
    """Over epochs of steps of all sizes and stored dtypes, with a consumer that keeps batches."""
    bags = sharded(tmp_path, MIXED)
    steps = 6 * steps_of(bags)
    for _ in range(3):
        kept: list[PackedBags] = []
        sums, expected = [], []
        with (
            read_ahead(bags, steps, dtype=dtype, device=device) as ahead,
            read_ahead(bags, steps, dtype=dtype, device=device, loading=Loading(read_ahead=False)) as waiting,
        ):
            for ours, theirs in zip(ahead, waiting, strict=True):
                consumer(device)
                sums.append(ours.features_TD.double().sum())
                expected.append(theirs.features_TD.double().sum())
                kept = [*kept, ours][-hold:]
                del ours
        for batch, rows in zip(kept, steps[-len(kept) :], strict=True):
            assert_same(batch, bags, rows, dtype, device)
        assert torch.equal(torch.stack(sums), torch.stack(expected))


@pytest.mark.gpu
def test_what_is_read_ahead_is_pinned_and_in_the_dtype_it_is_stored_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_spare", {})
    bags = sharded(tmp_path, ("float16",))
    for dtype in DTYPES:
        with ReadAhead(bags, STEPS, dtype=dtype, device="cuda") as batches:
            buffer = torch.from_numpy(batches._arena._buffer)
            assert buffer.is_pinned()
            two_largest = max(int(bags.sizes_N[[*one, *two]].sum()) for one, two in pairwise(STEPS))
            assert len(buffer) <= two_largest * bags.num_features * 2 + 2 * 64
            for batch, rows in zip(batches, STEPS, strict=True):
                assert_same(batch, bags, rows, dtype, "cuda")
        assert list(module._spare) == [True]


def test_epochs_share_one_buffer(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_spare", {})
    bags = sharded(tmp_path, ("float16",))
    addresses = set()
    for _ in range(4):
        with ReadAhead(bags, STEPS, dtype=torch.float32, device=device) as batches:
            addresses.add(batches._arena._buffer.ctypes.data)
            for batch in batches:
                assert torch.isfinite(batch.features_TD).all()
                del batch
        assert list(module._spare) == [device == "cuda"]
    assert len(addresses) == 1


def test_batches_stay_as_they_are_while_the_next_ones_are_copied(device: str, tmp_path: Path) -> None:
    bags = sharded(tmp_path, ("float16",))
    steps = [[number % 4] for number in range(200)]
    with read_ahead(bags, steps, device=device) as batches:
        kept, sums = [], []
        for number, batch in enumerate(batches):
            _waits(device)  # the consumer's kernels run late, but still find this batch
            sums.append(batch.features_TD.double().sum())
            if number % 7 == 0:
                kept.append((number, batch))
    for number, got in enumerate(sums):
        assert float(got) == pytest.approx(float(bags.load(steps[number]).features_TD.double().sum()))
    for number, batch in kept:
        assert_same(batch, bags, steps[number], torch.float32, device)


def test_what_ram_holds_is_brought(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident_module, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(resident_module, "_last", None)
    bags = sharded(tmp_path / "data", ("float16",))
    held = resident(bags, "ram", device)
    assert isinstance(held, RamBags)
    for dtype in (torch.float32, torch.bfloat16):
        with read_ahead(held, STEPS, dtype=dtype, device=device, loading=Loading(cache="ram")) as batches:
            for batch, rows in zip(batches, STEPS, strict=True):
                assert_same(batch, bags, rows, dtype, device)
    # A GPU needs no copy per dtype of its steps.
    assert set(held._mapped) == ({torch.float16} if device == "cuda" else {torch.float32, torch.bfloat16})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stored", [*STORED, MIXED], ids="-".join)
def test_a_data_set_is_held_on_the_device(
    stored: tuple[str, ...],
    dtype: torch.dtype,
    device: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resident_module, "_last", None)
    bags = sharded(tmp_path, stored)
    held = resident(bags, "device", device)
    assert isinstance(held, DeviceBags)
    assert resident(bags, "device", device) is held
    steps = steps_of(bags)
    with read_ahead(held, steps, dtype=dtype, device=device, loading=Loading(cache="device")) as batches:
        for batch, rows in zip(batches, steps, strict=True):
            assert_same(batch, bags, rows, dtype, device)
    one, again = (held.load([2], bags.dtype).features_TD for _ in range(2))
    assert one.data_ptr() == again.data_ptr()  # a view of the held features, not a copy


@pytest.mark.gpu
def test_a_data_set_that_the_device_cannot_hold_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bags = sharded(tmp_path, ("float16",))
    needed = int(bags.sizes_N.sum()) * bags.num_features * 2
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (needed, 80 << 30))
    with pytest.raises(ConfigError, match=r"loading\.cache"):
        DeviceBags(bags, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("reader", ["mmap", "dali"])
def test_every_gpu_gets_its_own_batches(reader: Literal["mmap", "dali"], tmp_path: Path) -> None:
    """The GPU that is named, or this thread's current one; on one GPU these are the same."""
    if reader == "dali":
        pytest.importorskip("nvidia.dali")
    bags, loading = sharded(tmp_path, ("float16",)), Loading(reader=reader)
    for index in range(torch.cuda.device_count()):
        with torch.cuda.device(index):
            for name in ("cuda", f"cuda:{index}"):
                with read_ahead(bags, STEPS, dtype=torch.bfloat16, device=name, loading=loading) as batches:
                    for batch, rows in zip(batches, STEPS, strict=True):
                        assert_same(batch, bags, rows, torch.bfloat16, "cuda")
                        assert batch.features_TD.device == batch.ids_B.device == torch.device("cuda", index)
                    if isinstance(batches, DaliBatches):
                        assert batches._pipeline.device_id == index


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dali_holds_its_outputs_for_a_gpu_that_is_behind(dtype: torch.dtype, tmp_path: Path) -> None:
    pytest.importorskip("nvidia.dali")
    bags = sharded(tmp_path, ("float16",))
    steps, found = 20 * STEPS, []
    with read_ahead(bags, steps, dtype=dtype, device="cuda", loading=Loading(reader="dali")) as batches:
        for batch in batches:
            torch.cuda._sleep(500_000)
            found.append(batch.features_TD.clone())
            del batch
    for features_TD, rows in zip(found, steps, strict=True):
        assert same_bits(features_TD.cpu(), bags.load(rows, dtype).features_TD)
