"""What reaches a GPU, by a stand-in whose copies run as late as CUDA allows; no GPU is needed."""

import ctypes
import weakref
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from feature_folders import NUM_FEATURES, normal_shards
from late_gpu import DEVICE, Event, LateGpu, MadeOnTheCpu, Stream, bytes_at, same_bits
from torch import Tensor

from mhimdist.config.train import Loading
from mhimdist.data import read_ahead as module
from mhimdist.data.bags import PackedBags
from mhimdist.data.dali import PREFETCHED_STEPS, DaliBatches
from mhimdist.data.read_ahead import ReadAhead, read_ahead
from mhimdist.data.shards import BagShards

STEPS = [[1, 0], [2], [], [3, 1, 0], [0], [1], [3, 2], [2, 2], [1, 3]]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> LateGpu:
    gpu = LateGpu(monkeypatch)
    gpu.replace_copies(monkeypatch)
    return gpu


def train(gpu: LateGpu, batches: Any, hold: int) -> list[Tensor]:
    """The features that the consumer's stream finds in each batch when it comes to it: after the last."""
    found: list[Tensor] = []
    held: list[PackedBags] = []
    for batch in batches:
        gpu.consumer.submit(lambda features_TD=batch.features_TD: found.append(features_TD.clone()))
        held = [*held, batch][-hold:]
    return found


@pytest.mark.parametrize("reads_pages", [False, True])
@pytest.mark.parametrize("hold", [1, 3, 40])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "stored", [["float16"], ["float32"], ["bfloat16", "float16", "float32"]], ids="-".join
)
def test_late_copies_bring_the_bits_of_the_shards(
    gpu: LateGpu, stored: list[str], dtype: torch.dtype, hold: int, reads_pages: bool, tmp_path: Path
) -> None:
    gpu.reads_pages = reads_pages
    bags = BagShards(normal_shards(tmp_path, *stored))
    steps = [[4 * (number % len(stored)) + row for row in rows] for number, rows in enumerate(4 * STEPS)]
    for _ in range(2):
        with ReadAhead(bags, steps, dtype=dtype, device=DEVICE) as batches:
            found = train(gpu, batches, hold)
            gpu.consumer.run()
        assert len(found) == len(steps)
        for features_TD, rows in zip(found, steps, strict=True):
            assert same_bits(features_TD, bags.load(rows, dtype).features_TD)
    converts_on_a_core = stored == ["float32"] and dtype != torch.float32
    assert (gpu.fetched > 0) == (reads_pages and not converts_on_a_core)


def test_the_late_gpu_shows_memory_that_is_filled_too_early(gpu: LateGpu, tmp_path: Path) -> None:
    """The assumption of the test above: without the wait for a half's copy, its features are wrong."""
    bags = BagShards(normal_shards(tmp_path, "float16"))
    steps = 4 * STEPS
    with ReadAhead(bags, steps, dtype=torch.bfloat16, device=DEVICE) as batches:
        Event.ignores_waits = True
        found = train(gpu, batches, 1)
        Event.ignores_waits = False
        gpu.consumer.run()
    are_right = [
        same_bits(features_TD, bags.load(rows, torch.bfloat16).features_TD)
        for features_TD, rows in zip(found, steps, strict=True)
    ]
    assert not all(are_right)


@pytest.mark.parametrize(
    ("stored", "dtype", "received"),
    [
        ("float16", torch.bfloat16, torch.float16),
        ("float16", torch.float32, torch.float16),
        ("bfloat16", torch.float32, torch.bfloat16),
        ("float32", torch.bfloat16, torch.bfloat16),
    ],
)
def test_a_gpu_receives_features_as_stored_unless_they_are_wider_than_the_step(
    gpu: LateGpu, stored: str, dtype: torch.dtype, received: torch.dtype, tmp_path: Path
) -> None:
    bags = BagShards(normal_shards(tmp_path, stored))
    for loading in (Loading(), Loading(read_ahead=False)):
        gpu.received.clear()
        with read_ahead(bags, STEPS, dtype=dtype, device=DEVICE, loading=loading) as batches:
            for batch in batches:
                assert batch.features_TD.dtype == dtype
        assert len(gpu.received) == len(STEPS)
        assert {got for keys, got in gpu.received if keys} == {received}


def test_bags_of_several_dtypes_are_received_as_stored_one_at_a_time(gpu: LateGpu, tmp_path: Path) -> None:
    bags = BagShards(normal_shards(tmp_path, "bfloat16", "float16"))
    expected = {((key,), getattr(torch, key.split("-")[0])) for key in bags.keys}
    with ReadAhead(
        bags, [*([row] for row in range(8)), [0, 4]], dtype=torch.bfloat16, device=DEVICE
    ) as batches:
        list(batches)
    assert set(gpu.received) == expected | {((bags.keys[0], bags.keys[4]), torch.float32)}


def test_the_memory_is_that_of_the_two_largest_neighbours_as_they_are_read(
    gpu: LateGpu, tmp_path: Path
) -> None:
    bags = BagShards(normal_shards(tmp_path, "float16"))
    sizes = [-(-int(bags.sizes_N[rows].sum()) * NUM_FEATURES * 2 // 64) * 64 for rows in STEPS if rows]
    addresses = set()
    for _ in range(3):
        with ReadAhead(bags, [rows for rows in STEPS if rows], dtype=torch.float32, device=DEVICE) as batches:
            assert len(batches._arena._buffer) == max(map(sum, pairwise(sizes)))
            addresses.add(batches._arena._buffer.ctypes.data)
            list(batches)
    assert len(addresses) == 1
    assert list(module._spare) == [True]


def test_a_batch_is_kept_for_its_consumer_who_waits_for_its_copy_only(gpu: LateGpu, tmp_path: Path) -> None:
    bags = BagShards(normal_shards(tmp_path, "float16"))
    with ReadAhead(bags, [[0], [1], [3]], dtype=torch.float16, device=DEVICE) as batches:
        first = next(batches)
        assert gpu.kept_for == [gpu.consumer] * 4
        while batches._ready is None:  # the thread has submitted the second copy
            pass
        second = batches._ready
        assert isinstance(second, PackedBags)
        gpu.consumer.run()
        assert same_bits(first.features_TD, bags.load([0], torch.float16).features_TD)
        assert second.features_TD.isnan().all()


@pytest.mark.parametrize("num_targets", [None, 1, 3])
@pytest.mark.parametrize("num_bags", [0, 1, 2, 5])
def test_a_batchs_numbers_reach_a_gpu_by_one_copy_from_pinned_memory(
    num_bags: int, num_targets: int | None
) -> None:
    sizes = [3, 1, 4, 1, 5][:num_bags]
    offsets_B1 = torch.tensor([0, *sizes]).cumsum(0)
    labels_B, ids_B = torch.arange(num_bags) % 2, torch.arange(num_bags) + 2**40
    batch = PackedBags(torch.ones(sum(sizes), 2), offsets_B1, labels_B, ids_B, tuple("abcde"[:num_bags]))
    names = ["offsets_B1", "labels_B", "ids_B"]
    if num_targets is not None:
        batch = replace(batch, targets_BK=torch.rand(num_bags, num_targets))
        names.append("targets_BK")
    with MadeOnTheCpu() as asked:
        moved = batch.to(DEVICE)
    assert asked.requests == ["to", "pin_memory", "to"]  # features, memory for the numbers, numbers
    for name in names:
        ours, theirs = getattr(moved, name), getattr(batch, name)
        assert same_bits(ours, theirs)
        assert num_bags == 0 or ours.data_ptr() % 16 == 0
        assert num_bags == 0 or ours.data_ptr() != theirs.data_ptr()


class _Output:
    """One array of `_Outputs`, with DALI's signature."""

    def __init__(self, address: int, num_bytes: int, stream: Stream) -> None:
        self._address, self._num_bytes, self._stream = address, num_bytes, stream

    def copy_to_external(self, ptr: Any, cuda_stream: Any, *, non_blocking: bool) -> None:
        assert non_blocking
        assert cuda_stream.value == Stream.cuda_stream
        source, num_bytes, target = self._address, self._num_bytes, ptr.value
        self._stream.submit(lambda: ctypes.memmove(target, bytes_at(source, num_bytes), num_bytes))


class _Outputs:
    """A step's outputs; as soon as nobody refers to them, DALI fills their memory with something else."""

    def __init__(self, decoded: Any, stream: Stream) -> None:
        self._arrays, self._stream = [np.array(decoded.at(bag)) for bag in range(len(decoded))], stream
        weakref.finalize(self, _reuse, self._arrays)

    def __getitem__(self, bag: int) -> _Output:
        array = self._arrays[bag]
        return _Output(array.ctypes.data, array.nbytes, self._stream)


def _reuse(arrays: list[np.ndarray]) -> None:
    for array in arrays:
        array.view(np.uint8)[:] = 0xFF
    _reused.append(arrays)  # the memory stays DALI's


_reused: list[list[np.ndarray]] = []


class DaliOnAGpu:
    """DALI's CPU pipeline in place of its GPU pipeline.

    Attributes:
        device_ids: the GPU that each pipeline was given.
        outputs: the outputs that have not been released.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, gpu: LateGpu, *, is_late: bool) -> None:
        """Replace DALI's; copies run late or, if not `is_late`, at once."""
        pytest.importorskip("nvidia.dali")
        from nvidia.dali import data_node, pipeline

        self.device_ids: list[int] = []
        self.outputs: weakref.WeakSet[_Outputs] = weakref.WeakSet()
        these, stream = self, gpu.consumer
        if not is_late:
            monkeypatch.setattr(stream, "submit", lambda work: work())

        class Pipeline(pipeline.Pipeline):  # type: ignore[misc]  # DALI has no types
            def __init__(self, *, device_id: int, **options: Any) -> None:
                these.device_ids.append(device_id)
                super().__init__(device_id=None, **options)

            def run(self) -> tuple[_Outputs]:
                (decoded,) = super().run()
                these.outputs.add(outputs := _Outputs(decoded, stream))
                return (outputs,)

        monkeypatch.setattr(pipeline, "Pipeline", Pipeline)
        monkeypatch.setattr(data_node.DataNode, "gpu", lambda node: node)


@pytest.mark.parametrize("stored", ["float16", "bfloat16", "float32"])
def test_dalis_outputs_are_held_until_they_are_copied(
    stored: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gpu = LateGpu(monkeypatch)
    dali = DaliOnAGpu(monkeypatch, gpu, is_late=True)
    bags = BagShards(normal_shards(tmp_path, stored))
    steps, found = 3 * STEPS, []
    with MadeOnTheCpu(), DaliBatches(bags, steps, dtype=bags.dtype, device=DEVICE) as batches:
        for batch in batches:
            gpu.consumer.submit(lambda features_TD=batch.features_TD: found.append(features_TD.clone()))
            del batch
            assert len(dali.outputs) <= PREFETCHED_STEPS  # the memory is bounded if the GPU is behind
        assert len(dali.outputs) == PREFETCHED_STEPS
    assert not dali.outputs
    gpu.consumer.run()
    assert len(found) == len(steps)
    for features_TD, rows in zip(found, steps, strict=True):
        assert same_bits(features_TD, bags.load(rows, bags.dtype).features_TD)
    assert dali.device_ids == [3]


def test_dalis_outputs_are_released_as_soon_as_they_are_copied(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    dali = DaliOnAGpu(monkeypatch, LateGpu(monkeypatch), is_late=False)
    bags = BagShards(normal_shards(tmp_path, "float16"))
    with MadeOnTheCpu(), DaliBatches(bags, STEPS, dtype=torch.float16, device=DEVICE) as batches:
        for _ in batches:
            assert not dali.outputs


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stored", ["float16", "bfloat16", "float32"])
def test_dali_brings_a_gpu_the_bits_of_the_shards(
    stored: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    dali = DaliOnAGpu(monkeypatch, LateGpu(monkeypatch), is_late=False)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    bags, loading = BagShards(normal_shards(tmp_path, stored)), Loading(reader="dali")
    with MadeOnTheCpu(), read_ahead(bags, STEPS, dtype=dtype, device="cuda", loading=loading) as batches:
        for batch, rows in zip(batches, STEPS, strict=True):
            assert same_bits(batch.features_TD, bags.load(rows, dtype).features_TD)
    assert dali.device_ids == [2]


def test_dalis_files_stay_mapped_until_they_are_decoded(tmp_path: Path) -> None:
    pytest.importorskip("nvidia.dali")
    bags = BagShards(normal_shards(tmp_path, "float16"))
    steps = [[0], [1], [2], [3]]
    with DaliBatches(bags, steps, dtype=torch.float16, device=torch.device("cpu")) as batches:
        for number, batch in enumerate(batches):
            assert same_bits(batch.features_TD, bags.load(steps[number], torch.float16).features_TD)
            lengths = [len(bags.payload(rows[0])) for rows in steps[number + 1 : number + PREFETCHED_STEPS]]
            assert [len(file) for (file,) in batches._decoding] == lengths
