import gc
import threading
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from feature_folders import NUM_FEATURES, shard_folder, write_features
from memory_bags import MemoryBags, gaussian_bags

from mhimdist.config.train import Loading
from mhimdist.data import memory
from mhimdist.data import read_ahead as module
from mhimdist.data.manifest import Manifest
from mhimdist.data.read_ahead import ReadAhead, read_ahead
from mhimdist.data.shards import BagShards
from mhimdist.errors import ConfigError, CorruptShard, DataError

pytestmark = pytest.mark.numeric
STEPS = [[4, 0], [5], [], [0], [1, 2, 3], [5, 5], [2]]
READERS = [Loading(), Loading(read_ahead=False), Loading(reader="dali")]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_features(tmp_path)
    return shard_folder(tmp_path)


@pytest.mark.parametrize("stored", ["float16", "float32", "bfloat16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loading", READERS, ids=lambda loading: f"{loading.reader}-{loading.read_ahead}")
def test_every_reader_gives_the_same_bits_in_the_same_order(
    loading: Loading, dtype: torch.dtype, stored: str, tmp_path: Path
) -> None:
    write_features(tmp_path)
    bags = BagShards(shard_folder(tmp_path, dtype=stored))
    for first in (0, 3, len(STEPS)):  # 3: as a run that resumes within an epoch
        with read_ahead(bags, STEPS[first:], dtype=dtype, loading=loading) as batches:
            given = list(batches)
        assert len(given) == len(STEPS) - first
        for batch, rows in zip(given, STEPS[first:], strict=True):
            expected = bags.load(rows, dtype)
            assert batch.features_TD.dtype == dtype
            assert torch.equal(batch.features_TD, expected.features_TD)
            assert torch.equal(batch.offsets_B1, expected.offsets_B1)
            assert torch.equal(batch.labels_B, expected.labels_B)
            assert torch.equal(batch.ids_B, expected.ids_B)
            assert batch.keys == expected.keys


def test_two_buffers_serve_an_epoch_and_none_is_filled_while_it_is_in_use(shards: Path) -> None:
    bags = BagShards(shards)
    steps = [[number % 6] for number in range(60)]
    addresses = set()
    with read_ahead(bags, steps) as batches:
        for number, batch in enumerate(batches):
            view = batch.features_TD[1:].numpy()
            addresses.add(batch.features_TD.data_ptr())
            expected = bags.load(steps[number]).features_TD[1:].numpy().copy()
            del batch
            time.sleep(0.001)  # enough time for the thread to refill it
            assert np.array_equal(view, expected)
    # One address at the start of the buffer, and at its end one per size of an odd step.
    assert len(addresses) == 1 + 3


@pytest.mark.parametrize("hold", [1, 2, 3, 60])
def test_batches_that_are_kept_stay_as_they_are(hold: int, shards: Path) -> None:
    bags = BagShards(shards)
    steps = [[number % 6, (number + 1) % 6] for number in range(60)]
    kept: list[tuple[int, torch.Tensor]] = []
    with read_ahead(bags, steps) as batches:
        for number, batch in enumerate(batches):
            kept = [*kept, (number, batch.features_TD.view(-1)[5:])][-hold:]
            for old, tensor in kept:
                assert torch.equal(tensor, bags.load(steps[old]).features_TD.view(-1)[5:])
    gc.collect()
    for old, tensor in kept:
        assert torch.equal(tensor, bags.load(steps[old]).features_TD.view(-1)[5:])


def test_the_next_batch_is_made_while_one_is_used() -> None:
    bags = gaussian_bags(4)
    loaded = [threading.Event() for _ in range(4)]
    load = bags.load
    bags.load = lambda rows, *args, **kw: (load(rows, *args, **kw), loaded[rows[0]].set())[0]  # type: ignore
    with ReadAhead(bags, [[0], [1], [2], [3]], dtype=torch.float32, device="cpu") as batches:
        next(batches)
        assert loaded[1].wait(300)
        assert not loaded[2].wait(0.05)  # but only one: memory is bounded
        next(batches)
        assert loaded[2].wait(300)


def test_leaving_early_ends_the_thread(shards: Path) -> None:
    before = threading.active_count()
    with read_ahead(BagShards(shards), [[0]] * 50) as batches:
        batch = next(batches)
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
    with pytest.raises(StopIteration):
        next(batches)
    assert torch.isfinite(batch.features_TD).all()


@pytest.mark.parametrize("loading", READERS, ids=lambda loading: f"{loading.reader}-{loading.read_ahead}")
def test_what_reading_raises_reaches_the_consumer(loading: Loading, shards: Path) -> None:
    row = Manifest.read(shards).rows.to_pylist()[3]
    content = bytearray((shards / row["shard"]).read_bytes())
    content[row["features_offset"] + 200] ^= 1
    (shards / row["shard"]).write_bytes(content)
    with (
        pytest.raises(CorruptShard, match=rf"{row['key']}\.features\.npy: expected crc32"),
        read_ahead(BagShards(shards), [[0], [1], [3], [4]], loading=loading) as batches,
    ):
        for _ in batches:
            pass


def test_dali_reads_shards_only(bags: MemoryBags) -> None:
    with pytest.raises(ConfigError, match=r"loading\.reader=dali reads shards, got MemoryBags"):
        read_ahead(bags, [[0]], loading=Loading(reader="dali"))


def test_dali_does_not_take_the_bits_of_one_dtype_for_another(shards: Path) -> None:
    bags = BagShards(shards)
    assert bags.stored_dtypes == ("float16",)
    bags.stored_dtypes = ("bfloat16", "float16")  # as after merging
    with pytest.raises(
        ConfigError, match=r"loading\.reader=dali expects features of one dtype, .* has bfloat16, float16"
    ):
        read_ahead(bags, [[0]], loading=Loading(reader="dali"))


@pytest.mark.parametrize("loading", READERS, ids=lambda loading: f"{loading.reader}-{loading.read_ahead}")
def test_steps_that_memory_cannot_hold_are_refused_before_it_is_taken(
    loading: Loading, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_spare", {})
    monkeypatch.setattr(memory, "ASKED_FROM_BYTES", 1)
    bags = BagShards(shards)
    most = int(bags.sizes_N.argmax())
    for left, is_enough in ((10**6, True), (4 * NUM_FEATURES * int(bags.sizes_N[most]), False)):
        monkeypatch.setattr(memory, "free_bytes", lambda left=left: (left, "left"))
        if is_enough:
            with read_ahead(bags, STEPS, loading=loading) as batches:
                assert len(list(batches)) == len(STEPS)
            module._spare.clear()
        else:
            expected = rf"bag '{bags.keys[most]}' \({bags.sizes_N[most]} x 8\).*: needs .* is left"
            with (
                pytest.raises(DataError, match=expected),
                read_ahead(bags, [[0], [most], [1]], loading=loading) as batches,
            ):
                list(batches)


def test_a_bag_that_is_not_converted_takes_no_memory(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_spare", {})
    monkeypatch.setattr(memory, "ASKED_FROM_BYTES", 65)
    monkeypatch.setattr(memory, "free_bytes", lambda: (0, "left"))
    bags = BagShards(shards)
    with read_ahead(bags, [[0], [1], [2]], dtype=torch.float16) as batches:
        for row, batch in enumerate(batches):
            assert batch.features_TD.data_ptr() == bags.load([row], torch.float16).features_TD.data_ptr()


def test_an_epoch_takes_the_memory_of_its_two_largest_neighbours_and_leaves_it_to_the_next(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_spare", {})
    bags = BagShards(shards)
    sizes = bags.sizes_N.tolist()
    addresses = []
    for _ in range(3):
        with read_ahead(bags, [[row] for row in range(6)]) as batches:
            for batch in batches:  # the last batch is still held when the context ends
                addresses.append(batch.features_TD.data_ptr())
        assert module._spare == {}
        del batch
        (buffer,) = module._spare.values()
        room = [-(-size * NUM_FEATURES * 4 // 64) * 64 for size in sizes]
        assert len(buffer) == max(map(sum, pairwise(room)))
    assert len(set(addresses)) <= 1 + 3
