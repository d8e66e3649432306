"""Features in zarr stores of version 2 or 3: a group laid out like an HDF5 file, or a single array."""

import itertools
import math
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.readers import damage
from data_prep.readers.arrays import RowReader, by_rows, has_batch_axis
from data_prep.readers.fields import SIDE_ARRAYS
from data_prep.readers.inflation import refuse_bomb, refuse_inflation
from mhimdist import files
from mhimdist.errors import DataError

MARKS = ("zarr.json", ".zgroup", ".zarray")

_MOST_FOLDERS = 4
"""So deep are groups searched for the names of arrays; a link may lead back to a folder above."""

_PLAIN = ("bytes", "crc32c", "shuffle")
_COMPRESSORS = ("blosc", "gzip", "lz4", "zlib", "zstd")
"""The compressors that are read: the size that others decompress to cannot be known beforehand."""


def is_store(path: Path) -> bool:
    """Whether a folder is a zarr store."""
    return any((path / name).is_file() for name in MARKS)


def read(path: Path, arrays: Collection[str]) -> dict[Any, Any]:
    """Read the wanted arrays of a zarr store, and its attributes, as `hdf5.read` does.

    Raises:
        DataError: the store is damaged, an array holds anything but numbers, or chunks were never written.
    """
    import zarr  # importing it takes longer than reading many a folder

    with damage.named(f"{path}: damaged, or not a zarr store"):
        node = zarr.open(path, mode="r")
        if isinstance(node, zarr.Array):
            return {**node.attrs, next(iter(arrays)): _rows(path, "features", node)}
        found: dict[Any, Any] = dict.fromkeys(node)
        attributes: dict[str, Any] = {}
        for name in arrays:
            _refuse_links(path, files.inside(path, name.strip("/"), "an array's name", error=DataError))
            if isinstance(array := node.get(name), zarr.Array):
                found[name] = _rows(path, name, array)
                attributes |= dict(array.attrs)
        wanted = [name for name in arrays if name not in SIDE_ARRAYS]
        if wanted and all(found.get(name) is None for name in wanted):
            below = node.members(max_depth=_MOST_FOLDERS)
            found = {name: found.get(name) for name, member in below if isinstance(member, zarr.Array)}
        return attributes | dict(node.attrs) | found


def _rows(path: Path, name: str, array: Any) -> np.ndarray | RowReader:
    dtype = np.dtype(array.dtype)
    if dtype.kind not in "fiub":
        raise DataError(f"{path}: {name} of type {dtype} cannot be used")
    if not array.shape or not array.size:
        return np.empty(array.shape, dtype)
    stored_bytes, chunk_bytes = array.nbytes_stored(), math.prod(array.chunks) * dtype.itemsize
    refuse_inflation(str(path), name, array.nbytes, stored_bytes)
    refuse_inflation(str(path), f"a chunk of {name}", chunk_bytes, stored_bytes)
    if (got := array.nchunks_initialized) != array.nchunks:  # zarr would read the others as zeros
        raise DataError(f"{path}: {name} has {array.nchunks} chunks, but only {got} were written")
    compressor = _compressor(path, name, array)
    axis = 1 if has_batch_axis(array.shape) else 0  # of the rows
    num_chunks = [-(-size // edge) for size, edge in zip(array.shape, array.chunks, strict=True)]
    folder = path / array.path
    reader = by_rows(array, array.chunks[axis])

    def check(start: int, end: int) -> None:
        numbers = [range(count) for count in num_chunks]
        numbers[axis] = range(start // reader.step, -(-end // reader.step))
        for place in itertools.product(*numbers):
            chunk = folder / array.metadata.encode_chunk_key(place)
            _refuse_links(path, chunk)
            if not chunk.is_file():
                raise DataError(f"{path}: {name} has no file {chunk.relative_to(path)}")
            if compressor is not None:
                refuse_bomb(str(chunk), compressor, chunk.read_bytes(), chunk_bytes)

    def rows(start: int, end: int) -> np.ndarray:
        check(start, end)
        with damage.named(f"{path}: {name} is damaged"):
            return reader.read(start, end)

    return RowReader(reader.shape, reader.dtype, rows, reader.step)


def _refuse_links(store: Path, path: Path) -> None:
    """Refuse a link within a store: it could lead to any file of the machine. The store itself may be one.

    Raises:
        DataError: a link is on the way to the path.
    """
    link = files.first_link(store, path)
    if link is not None:
        raise DataError(f"{store}: refused, {link.relative_to(store)} is a link to {os.readlink(link)!r}")


def _compressor(path: Path, name: str, array: Any) -> str | None:
    """The compressor of an array's chunks; None if they are not compressed."""
    codecs = (
        array.metadata.codecs if array.metadata.zarr_format == 3 else (*array.filters, *array.compressors)
    )
    names = [getattr(codec, "codec_id", None) or codec.to_dict()["name"] for codec in codecs]
    if unknown := [codec for codec in names if codec not in (*_PLAIN, *_COMPRESSORS)]:
        raise DataError(
            f"{path}: {name} is stored with the codec {unknown[0]!r}; expected {_COMPRESSORS} or none"
        )
    compressors = [codec for codec in names if codec in _COMPRESSORS]
    if len(compressors) > 1:
        raise DataError(f"{path}: refused, {name} is compressed twice")
    return compressors[0] if compressors else None
