"""Features in HDF5 files, as CLAM, TRIDENT and STAMP write them.

CLAM writes `features` and `coords` in chunks of one row, which the HDF5 library reads one after the other.
Uncompressed chunks are therefore read by their offsets in the file, which is about three times as fast.
Compressed chunks are first inflated here, within a limit, because the library inflates a chunk to any size.

Dimensions: D features.
"""

import itertools
import math
from collections.abc import Collection
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from data_prep.readers import damage
from data_prep.readers.arrays import RowReader, by_rows, has_batch_axis, native
from data_prep.readers.fields import SIDE_ARRAYS
from data_prep.readers.inflation import refuse_bomb, refuse_inflation
from mhimdist.errors import DataError

_DEFLATE, _SHUFFLE, _FLETCHER32, _LZF = 1, 2, 3, 32000
_FILTERS = (_DEFLATE, _SHUFFLE, _FLETCHER32, _LZF)
"""The filters that are read: with others, the library may inflate a chunk to any size."""

_MOST_TEXT_BYTES = 2**22
_MOST_NAMES = 1000
"""So many arrays are named; a hostile file may hold any number."""


def read(path: Path, arrays: Collection[str]) -> dict[Any, Any]:
    """Read the wanted arrays of an HDF5 file, and its attributes; other names get no value.

    An array in a group is named by its path, as `group/array`. If none of the wanted arrays of features is
    there, the other names are those of all arrays, also in groups, for a message. TRIDENT's attributes belong
    to the arrays, STAMP's to the file.

    Raises:
        DataError: the file is damaged or not HDF5, or an array's data are in another file or were never
            written.
    """
    with damage.named(f"{path}: damaged, or not an HDF5 file"):
        file = h5py.File(path, "r", locking=False)
        found: dict[Any, Any] = dict.fromkeys(file)
        attributes: dict[str, Any] = {}
        for name in arrays:
            # Links and external storage could lead to any file of the machine.
            dataset = _at(path, file, name)
            if isinstance(dataset, h5py.Dataset):
                found[name] = _rows(path, name, dataset)
                attributes |= _attributes(path, dataset)
        wanted = [name for name in arrays if name not in SIDE_ARRAYS]
        if wanted and all(found.get(name) is None for name in wanted):
            found = {name: found.get(name) for name in _names_of_arrays(file)}
        return attributes | _attributes(path, file) | found


def _attributes(path: Path, holder: Any) -> dict[str, Any]:
    """The attributes with one value; others say nothing that is used here.

    Text is stored once and named by any number of values, so lists and many attributes could be a bomb.

    Raises:
        DataError: their text is too long together.
    """
    found: dict[str, Any] = {}
    num_bytes = 0
    for name in itertools.islice(holder.attrs, _MOST_NAMES):
        if math.prod(holder.attrs.get_id(name).shape or ()) != 1:
            continue
        value = found[name] = holder.attrs[name]
        num_bytes += len(value) if isinstance(value, str | bytes) else np.asarray(value).nbytes
        if num_bytes > _MOST_TEXT_BYTES:
            raise DataError(f"{path}: refused, its attributes have more than {_MOST_TEXT_BYTES} bytes")
    return found


def _at(path: Path, file: h5py.File, name: str) -> Any:
    """What is at a path in a file, without following a link; None if nothing is."""
    at: Any = file
    for part in filter(None, name.split("/")):
        link = at.get(part, getlink=True) if isinstance(at, h5py.Group) else None
        if isinstance(link, (h5py.ExternalLink, h5py.SoftLink)):
            raise DataError(f"{path}: refused, {name!r} is a link to {link.path!r}")
        at = at[part] if link is not None else None
    return at


def _names_of_arrays(file: h5py.File) -> list[str]:
    """The paths of the arrays in a file and in its groups, without following links; at most so many."""
    names: list[str] = []

    def note(name: str, found: Any) -> bool | None:
        if isinstance(found, h5py.Dataset):
            names.append(name)
        return len(names) >= _MOST_NAMES or None

    file.visititems(note)
    return names


def _rows(path: Path, name: str, dataset: h5py.Dataset) -> np.ndarray | RowReader:
    if dataset.external or dataset.is_virtual:
        raise DataError(f"{path}: refused, the data of {name!r} are in other files")
    if dataset.dtype.kind not in "fiub":
        raise DataError(f"{path}: {name} of type {dataset.dtype} cannot be used")
    if dataset.shape is None or not dataset.shape or not dataset.size:
        return np.empty(dataset.shape or (), dataset.dtype)
    num_bytes, stored_bytes = dataset.nbytes, dataset.id.get_storage_size()
    refuse_inflation(str(path), name, num_bytes, stored_bytes)
    if dataset.chunks is not None:
        return _Chunks(path, name, dataset).rows()
    if stored_bytes < num_bytes:  # missing bytes read as zeros
        raise DataError(f"{path}: {name} has {num_bytes} bytes, but only {stored_bytes} were written")
    if (offset := dataset.id.get_offset()) is None:  # small enough to be in the file's header
        return native(dataset[()])
    return native(np.memmap(path, dataset.dtype, "c", offset, dataset.shape))


class _Chunks:
    """An array in chunks, all of which are written and none of which is a bomb."""

    def __init__(self, path: Path, name: str, dataset: h5py.Dataset) -> None:
        self._path, self._name = path, name
        self._dataset = dataset  # keeps the file open
        self._axis = 1 if has_batch_axis(dataset.shape) else 0  # of the rows
        self._chunk_rows = dataset.chunks[self._axis]
        self._chunk_bytes = math.prod(dataset.chunks) * dataset.dtype.itemsize
        stored_bytes = dataset.id.get_storage_size()
        refuse_inflation(str(path), f"a chunk of {name}", self._chunk_bytes, stored_bytes)
        settings = dataset.id.get_create_plist()
        filters = [settings.get_filter(index) for index in range(settings.get_nfilters())]
        for code, _, values, label in filters:
            if code not in _FILTERS:
                label = label.decode(errors="replace") or code
                raise DataError(f"{path}: {name} is stored with the filter {label!r}; expected gzip or lzf")
            if code == _LZF and values[2] != self._chunk_bytes:  # the library allocates it
                raise DataError(f"{path}: damaged: {name} says two sizes of its chunks")
        self._codes = [code for code, *_ in filters]
        if sum(code in (_DEFLATE, _LZF) for code in self._codes) > 1:
            raise DataError(f"{path}: refused, {name} is compressed twice")
        expected = math.prod(
            -(-size // edge) for size, edge in zip(dataset.shape, dataset.chunks, strict=True)
        )
        # Missing chunks read as zeros. Without filters all chunks have one length, and need no counting.
        got = dataset.id.get_num_chunks() if self._codes else stored_bytes // self._chunk_bytes
        if got != expected:
            raise DataError(f"{path}: {name} has {expected} chunks, but only {got} were written")

    def rows(self) -> RowReader:
        """A reader of the array; the rows of a chunk are best read together."""
        dataset = self._dataset
        reader = by_rows(dataset, self._chunk_rows)
        whole_rows = not self._axis and dataset.chunks[1:] == dataset.shape[1:]
        if not self._codes and whole_rows and not dataset.file.userblock_size:
            return RowReader(reader.shape, reader.dtype, self._read_runs, reader.step)

        def read(start: int, end: int) -> np.ndarray:
            with damage.named(f"{self._path}: {self._name} is damaged"):
                self._refuse_bombs(start, end)
                return reader.read(start, end)

        return RowReader(reader.shape, reader.dtype, read, reader.step)

    @cached_property
    def _bytes(self) -> np.ndarray:
        return np.memmap(self._path, np.uint8, "c")

    @cached_property
    def _places(self) -> list[list[Any]]:
        """The chunks, grouped by their number along the rows."""
        places: list[list[Any]] = [[] for _ in range(-(-self._dataset.shape[self._axis] // self._chunk_rows))]

        def note(chunk: Any) -> None:
            places[chunk.chunk_offset[self._axis] // self._chunk_rows].append(chunk)

        self._dataset.id.chunk_iter(note)
        for chunk in (chunk for row in places for chunk in row):
            if chunk.byte_offset + chunk.size > len(self._bytes):
                raise DataError(
                    f"{self._path}: damaged: chunks of {self._name} reach beyond the end of the file"
                )
        return places

    @cached_property
    def _starts(self) -> np.ndarray:
        """Offsets in the file of the uncompressed chunks of whole rows, int64."""
        if any(row.size != self._chunk_bytes for (row,) in self._places):
            raise DataError(f"{self._path}: damaged: chunks of {self._name} have the wrong size")
        return np.array([row.byte_offset for (row,) in self._places], np.int64)

    def _refuse_bombs(self, start: int, end: int) -> None:
        places = self._places[start // self._chunk_rows : -(-end // self._chunk_rows)]
        if _DEFLATE not in self._codes:  # lzf makes at most 88 bytes of one, the others none
            return
        for row in places:
            for chunk in row:
                mask, stored = self._dataset.id.read_direct_chunk(chunk.chunk_offset)
                if not mask >> self._codes.index(_DEFLATE) & 1:  # otherwise it was stored as it is
                    where = f"{self._path}: the chunk of {self._name} at {chunk.chunk_offset}"
                    refuse_bomb(where, "zlib", stored, self._chunk_bytes)

    def _read_runs(self, start: int, end: int) -> np.ndarray:
        """The rows from `start` to `end`, copied in runs of chunks that follow each other in the file."""
        row_bytes = self._chunk_bytes // self._chunk_rows
        rows_NB = np.empty((end - start, row_bytes), np.uint8)
        first, last = start // self._chunk_rows, -(-end // self._chunk_rows)
        starts = self._starts[first:last]
        breaks = np.flatnonzero(np.diff(starts) != self._chunk_bytes) + 1
        for low, high in zip([0, *breaks], [*breaks, len(starts)], strict=True):
            from_row = max(start, (first + low) * self._chunk_rows)
            to_row = min(end, (first + high) * self._chunk_rows)
            place = starts[low] + (from_row - (first + low) * self._chunk_rows) * row_bytes
            run = self._bytes[place : place + (to_row - from_row) * row_bytes]
            rows_NB[from_row - start : to_row - start] = run.reshape(-1, row_bytes)
        rows = rows_NB.view(self._dataset.dtype).reshape(end - start, *self._dataset.shape[1:])
        return rows.astype(rows.dtype.newbyteorder("="), copy=False)
