"""Features in HDF5 files, as CLAM, TRIDENT and STAMP write them.

CLAM writes `features` and `coords` in chunks of one row, which the HDF5 library reads one after the other;
uncompressed chunks are therefore read by their places in the file, which is about three times as fast.

Dimensions: D features.
"""

import math
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from data_prep.arrays import RowReader, native, refuse_inflation
from mhimdist.errors import DataError

ARRAYS = ("features", "feats", "coords", "instance_labels")


def read(path: Path) -> dict[Any, Any]:
    """The arrays of an HDF5 file, and what its attributes tell of them.

    `features` (CLAM, TRIDENT) or `feats` (STAMP), `coords`, `instance_labels`, and under the names of
    `sources.DETAILS` the attributes: TRIDENT's stand at the arrays, STAMP's at the file.

    Raises:
        DataError: damaged, no HDF5, or an array whose data lie in another file.
    """
    try:
        file = h5py.File(path, "r", locking=False)
    except OSError as error:
        raise DataError(f"{path}: damaged, or not an HDF5 file: {error}") from error
    found: dict[Any, Any] = {}
    attributes: dict[str, Any] = {}
    try:
        for name in ARRAYS:
            # Links and external storage could lead to any file of the machine.
            if isinstance(link := file.get(name, getlink=True), (h5py.ExternalLink, h5py.SoftLink)):
                raise DataError(f"{path}: refused, {name!r} is a link to {link.path!r}")
            if link is not None and isinstance(dataset := file[name], h5py.Dataset):
                found[name] = _rows(path, name, dataset)
                attributes |= dict(dataset.attrs)
        attributes |= dict(file.attrs)
    except (OSError, RuntimeError, KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged: {error}") from error
    return found | describe(attributes)


def describe(attributes: dict[str, Any]) -> dict[str, Any]:
    """What attributes in the words of CLAM, TRIDENT or STAMP say, in ours: `sources.DETAILS`."""

    def first(*names: str) -> Any:
        return next((attributes[name] for name in names if name in attributes), None)

    details = {
        "encoder": first("encoder", "extractor"),
        "patch_size": first("patch_size", "tile_size_px"),
        "level": first("patch_level", "level"),
        "magnification": first("target_magnification", "magnification"),
        "coords_unit": first("unit", "coords_unit"),
    }
    return {name: value for name, value in details.items() if value is not None}


def _rows(path: Path, name: str, dataset: h5py.Dataset) -> np.ndarray | RowReader:
    if dataset.external or dataset.is_virtual:
        raise DataError(f"{path}: refused, the data of {name!r} lie in other files")
    if dataset.dtype.kind not in "fiub":
        raise DataError(f"{path}: {name} of type {dataset.dtype} cannot be used")
    if dataset.shape is None or not dataset.shape or not dataset.size:
        return np.empty(dataset.shape or (), dataset.dtype)
    filtered = bool(dataset.id.get_create_plist().get_nfilters())
    num_bytes, stored_bytes = dataset.nbytes, dataset.id.get_storage_size()
    refuse_inflation(str(path), name, num_bytes, stored_bytes)
    chunk_bytes = math.prod(dataset.chunks or ()) * dataset.dtype.itemsize
    refuse_inflation(str(path), f"a chunk of {name}", chunk_bytes, stored_bytes)
    if not filtered and stored_bytes < num_bytes:  # unwritten chunks read as zeros
        raise DataError(f"{path}: {name} is of {num_bytes} bytes, but only {stored_bytes} were written")
    shape = dataset.shape
    if len(shape) == 3 and shape[0] == 1:  # some encoders of TRIDENT's keep a batch axis
        return RowReader(
            shape[1:], dataset.dtype.newbyteorder("="), lambda a, b: _in_native(dataset[0, a:b]), 256
        )
    if (offset := dataset.id.get_offset()) is not None:
        return native(np.memmap(path, dataset.dtype, "c", offset, shape))
    whole_rows = dataset.chunks is not None and dataset.chunks[1:] == shape[1:]
    plain = not filtered and whole_rows and not dataset.file.userblock_size
    reader = _ChunkMap(path, dataset).read if plain else lambda a, b: _in_native(dataset[a:b])
    return RowReader(shape, dataset.dtype.newbyteorder("="), reader, dataset.chunks[0])


def _in_native(array: np.ndarray) -> np.ndarray:
    return array.astype(array.dtype.newbyteorder("="), copy=False)


class _ChunkMap:
    """Reads an uncompressed array, whose chunks are of whole rows, by the places of its chunks."""

    def __init__(self, path: Path, dataset: h5py.Dataset) -> None:
        self._path = path
        self._dataset = dataset  # keeps the file open
        self._chunk_rows = dataset.chunks[0]
        self._row_bytes = dataset.nbytes // dataset.shape[0]

    @cached_property
    def _bytes(self) -> np.ndarray:
        return np.memmap(self._path, np.uint8, "c")

    @cached_property
    def _starts(self) -> np.ndarray:
        """Where the chunks begin in the file, int64, -1 for none."""
        starts = np.full(-(-len(self._dataset) // self._chunk_rows), -1, np.int64)

        def note(chunk: Any) -> None:
            starts[chunk.chunk_offset[0] // self._chunk_rows] = chunk.byte_offset

        self._dataset.id.chunk_iter(note)
        ends = starts + self._chunk_rows * self._row_bytes
        if starts.min() < 0 or ends.max() > len(self._bytes):
            raise DataError(f"{self._path}: damaged: chunks of {self._dataset.name!r} are not in the file")
        return starts

    def read(self, start: int, end: int) -> np.ndarray:
        """The rows from `start` to `end`, copied in runs of chunks that follow each other in the file."""
        rows_NB = np.empty((end - start, self._row_bytes), np.uint8)
        chunk_bytes = self._chunk_rows * self._row_bytes
        first, last = start // self._chunk_rows, -(-end // self._chunk_rows)
        starts = self._starts[first:last]
        breaks = np.flatnonzero(np.diff(starts) != chunk_bytes) + 1
        for low, high in zip([0, *breaks], [*breaks, len(starts)], strict=True):
            from_row = max(start, (first + low) * self._chunk_rows)
            to_row = min(end, (first + high) * self._chunk_rows)
            place = starts[low] + (from_row - (first + low) * self._chunk_rows) * self._row_bytes
            run = self._bytes[place : place + (to_row - from_row) * self._row_bytes]
            rows_NB[from_row - start : to_row - start] = run.reshape(-1, self._row_bytes)
        return _in_native(rows_NB.view(self._dataset.dtype).reshape(end - start, *self._dataset.shape[1:]))
