"""Chunks of HDF5 read past the library: the same bits as its own slicing, and a typed error for what lies."""

import os
import tempfile
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.readers import hdf5
from data_prep.readers.arrays import RowReader
from mhimdist.errors import DataError

DTYPES = ("<f2", ">f2", "<f4", ">f4", "<f8", "<i4", ">i8", "u1")
FILTERS: tuple[dict[str, Any], ...] = (
    {},
    {"shuffle": True},
    {"compression": "gzip"},
    {"compression": "gzip", "shuffle": True, "compression_opts": 9},
    {"compression": "gzip", "fletcher32": True},
    {"compression": "lzf", "shuffle": True},
)


def opened(path: Path) -> RowReader:
    found = hdf5.read(path, ("features",))["features"]
    assert isinstance(found, RowReader)
    return found


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_rows_are_those_of_the_library_bit_for_bit(data: st.DataObject, tmp_path: Path) -> None:
    rows, width = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 9))
    batched = data.draw(st.booleans())
    shape = (1, rows, width) if batched else (rows, width)
    chunks = tuple(data.draw(st.integers(1, size)) for size in shape)
    dtype, how = np.dtype(data.draw(st.sampled_from(DTYPES))), data.draw(st.sampled_from(FILTERS))
    libver = data.draw(st.sampled_from(["earliest", "latest"]))
    generator = np.random.default_rng(data.draw(st.integers(0, 99)))
    # Bits of any kind, also NaN with a payload; zeros in places, which gzip makes small.
    values = np.frombuffer(generator.bytes(rows * width * dtype.itemsize), dtype).reshape(shape).copy()
    values[..., :: data.draw(st.integers(1, 4))] = 0
    # The reader of the example before may still hold its file open.
    path = Path(tempfile.mkdtemp(dir=tmp_path)) / "bag.h5"
    with h5py.File(path, "w", libver=libver) as file:
        growing = (None,) * len(shape) if data.draw(st.booleans()) else None
        made = file.create_dataset("features", shape, dtype, chunks=chunks, maxshape=growing, **how)
        for row in generator.permutation(rows):  # the chunks come in any order
            made[(slice(None), row) if batched else row] = values[(slice(None), row) if batched else row]
    with h5py.File(path, "r") as file:
        expected = file["features"][0] if batched else file["features"][:]
    reader = opened(path)
    assert (reader.shape, reader.dtype) == (expected.shape, dtype.newbyteorder("="))
    start = data.draw(st.integers(0, rows))
    end = data.draw(st.integers(start, rows))
    for first, last in ((0, rows), (start, end)):
        got = reader.read(first, last)
        assert got.dtype.isnative
        assert got.tobytes() == expected[first:last].astype(dtype.newbyteorder("=")).tobytes()


@pytest.mark.parametrize("how", FILTERS)
def test_no_rows_are_read_of_an_array_that_has_some(how: dict[str, Any], tmp_path: Path) -> None:
    with h5py.File(tmp_path / "bag.h5", "w") as file:
        file.create_dataset("features", data=np.ones((5, 3), "<f2"), chunks=(1, 2), **how)
    for at in (0, 4, 5):
        assert opened(tmp_path / "bag.h5").read(at, at).shape == (0, 3)


@pytest.mark.parametrize("how", FILTERS[:4])
def test_rows_that_nobody_wrote_are_no_zeros(how: dict[str, Any], tmp_path: Path) -> None:
    with h5py.File(tmp_path / "bag.h5", "w") as file:
        made = file.create_dataset("features", (9, 4), "<f4", chunks=(2, 4), fillvalue=7, **how)
        made[:5] = 1
    with pytest.raises(DataError, match="has 5 chunks, but only 3 were written"):
        hdf5.read(tmp_path / "bag.h5", ("features",))


def test_a_chunk_that_the_filter_left_as_it_is(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((4, 6)).astype("<f4")
    with h5py.File(tmp_path / "bag.h5", "w") as file:
        made = file.create_dataset("features", (4, 6), "<f4", chunks=(1, 6), compression="gzip", shuffle=True)
        made[:] = values
        made.id.write_direct_chunk((1, 0), values[1].tobytes(), filter_mask=3)
        made.id.write_direct_chunk((2, 0), zlib.compress(values[2].tobytes()), filter_mask=1)
    assert opened(tmp_path / "bag.h5").read(0, 4).tobytes() == values.tobytes()


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (zlib.compress(bytes(25)), "becomes more than the 24 bytes expected"),
        (zlib.compress(bytes(2**16)), "becomes more than the 24 bytes expected"),
        (zlib.compress(bytes(23)), "damaged: expected 24 bytes and the end, got 23"),
        (zlib.compress(bytes(range(24)))[:-5], "damaged"),
        (b"no zlib", "damaged"),
        (zlib.compress(bytes(24)) + bytes(200), "chunks of features have the wrong size"),
    ],
)
def test_a_chunk_that_lies_is_named(stored: bytes, message: str, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "bag.h5", "w") as file:
        made = file.create_dataset("features", (4, 6), "<f4", chunks=(1, 6), compression="gzip")
        made[:] = np.arange(24).reshape(4, 6)
        made.id.write_direct_chunk((2, 0), stored)
    with pytest.raises(DataError, match=message):
        opened(tmp_path / "bag.h5").read(0, 4)


@pytest.mark.parametrize("how", [{}, {"compression": "gzip"}])
def test_a_file_that_is_cut_while_it_is_read(how: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "bag.h5"
    values = np.random.default_rng(0).standard_normal((64, 512)).astype("<f4")
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=values, chunks=(1, 512), **how)
    reader = opened(path)
    assert reader.read(0, 2).tobytes() == values[:2].tobytes()
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(
        DataError, match=r"bag\.h5: damaged: expected \d+ bytes of features at \d+, got the end"
    ):
        reader.read(0, 64)
