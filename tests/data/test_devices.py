"""Which GPU a run means, in which dtype its features are read, and that no choice changes a bit of them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from feature_folders import normal_shards
from memory_bags import gaussian_bags

from mhimdist.data.devices import indexed, read_dtype, stored_dtypes
from mhimdist.data.resident import RamBags
from mhimdist.data.shards import BagShards
from mhimdist.errors import DataError

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64


@pytest.mark.parametrize("dtype", [F16, BF16, F32])
@pytest.mark.parametrize("stored", [F16, BF16, F32, F64])
def test_a_cpu_reads_in_the_dtype_of_the_step(stored, dtype):
    assert read_dtype({stored}, dtype, "cpu") == dtype


@pytest.mark.parametrize(
    ("stored", "dtype", "expected"),
    [
        (F16, BF16, F16),  # what shards hold, and what a GPU computes in
        (F16, F32, F16),
        (F16, F16, F16),
        (BF16, BF16, BF16),
        (BF16, F32, BF16),
        (BF16, F16, BF16),
        (F32, F32, F32),
        (F32, BF16, BF16),  # the core narrows faster than it copies
        (F32, F16, F16),
        (F64, F32, F32),
        (F64, BF16, BF16),
        (F64, F16, F16),
    ],
)
def test_a_gpu_converts_what_is_not_wider_than_the_step(stored, dtype, expected):
    assert read_dtype({stored}, dtype, "cuda") == expected


@pytest.mark.parametrize("dtype", [F16, BF16, F32])
@pytest.mark.parametrize("stored", [{F16, BF16}, {F16, F32}, {BF16, F32}, {F16, BF16, F32}])
def test_a_gpu_converts_a_step_of_several_dtypes_from_the_one_that_holds_them_all(stored, dtype):
    assert read_dtype(stored, dtype, "cuda") == F32


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_a_step_without_bags_has_the_dtype_of_the_others(device_type):
    assert read_dtype(set(), BF16, device_type) == BF16


def _rounded(bits: np.ndarray) -> np.ndarray:
    """bfloat16 bits of float32 bits, to the nearest or even: the specification, in integers."""
    return ((bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    return request.param


@pytest.mark.parametrize("path", ["directly", "by float32"])
def test_every_float16_becomes_the_nearest_or_even_bfloat16(device, path):
    """The same bits by a core, by a GPU, directly or by float32: all of them round once, as specified."""
    values = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(F16).to(device)
    got = (values if path == "directly" else values.to(F32)).to(BF16).cpu()
    wide = values.cpu().float()
    assert torch.equal(got.isnan(), wide.isnan())
    is_number = ~wide.isnan().numpy()
    expected = _rounded(wide.numpy().view(np.uint32))
    assert np.array_equal(got.view(torch.int16).numpy().view(np.uint16)[is_number], expected[is_number])
    assert int((got.float() != wide).sum()) > 2**15  # most had to be rounded


def test_float32_becomes_the_nearest_or_even_bfloat16(device):
    generator = np.random.default_rng(0)
    bits = generator.integers(0, 2**32, 1 << 16, dtype=np.uint32)
    bits[::4] = bits[::4] & 0xFFFF0000 | 0x8000  # halfway between two bfloat16
    bits = bits[np.isfinite(bits.view(np.float32))]
    got = torch.from_numpy(bits.view(np.float32)).to(device).to(BF16).cpu()
    assert np.array_equal(got.view(torch.int16).numpy().view(np.uint16), _rounded(bits))


def test_every_bfloat16_becomes_the_same_float16_by_either_way(device):
    values = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(BF16)
    values = values[~values.isnan()]
    direct, by_float32 = values.to(F16), values.to(device).to(F32).to(F16).cpu()
    with np.errstate(over="ignore"):
        expected = torch.from_numpy(values.float().numpy().astype(np.float16))
    assert torch.equal(direct.view(torch.int16), expected.view(torch.int16))
    assert torch.equal(by_float32.view(torch.int16), expected.view(torch.int16))
    assert torch.equal(values.to(device).to(F16).cpu().view(torch.int16), expected.view(torch.int16))


def test_a_gpu_without_index_is_the_current_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 5)
    assert indexed("cuda") == indexed(torch.device("cuda")) == torch.device("cuda", 5)
    assert indexed("cuda:2") == torch.device("cuda:2")
    assert indexed("cpu") == torch.device("cpu")


def test_a_data_set_tells_the_dtypes_of_its_bags(tmp_path: Path):
    bags = BagShards(normal_shards(tmp_path, "bfloat16", "float16", "float32"))
    dtype_of = {key: getattr(torch, key.split("-")[0]) for key in bags.keys}
    for row, key in enumerate(bags.keys):
        assert stored_dtypes(bags, [row], F64) == {dtype_of[key]}
    assert stored_dtypes(bags, np.array([0, 4, 5]), F64) == {dtype_of[bags.keys[row]] for row in (0, 4, 5)}
    assert len(stored_dtypes(bags, range(len(bags)), F64)) == 3
    assert stored_dtypes(bags, [], F64) == frozenset()
    with pytest.raises(DataError, match="has rows 0 to 11, got 12"):
        stored_dtypes(bags, [12], F64)


def test_a_data_set_in_ram_is_read_as_stored_too(tmp_path: Path):
    bags = RamBags(BagShards(normal_shards(tmp_path, "float16")))
    assert stored_dtypes(bags, [0, 1], F64) == {F16}


def test_a_data_set_that_tells_no_dtype_is_read_in_the_one_of_the_step():
    assert stored_dtypes(gaussian_bags(4), [0, 1], BF16) == {BF16}
