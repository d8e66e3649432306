"""Arrays in HDF5 that are stored in chunks, read past the HDF5 library.

CLAM writes features in chunks of one row, and the library takes its time for each of them. So the places of
the chunks are read once (`hdf5_tree.py`), and their bytes by `pread`: a run of neighbours by one call.
Compressed chunks are inflated here in any case, within a limit, because the library inflates a chunk to any
size. What is rare is left to the library: other filters, types that it converts, user blocks.

Nothing here starts threads: sharding gives every core a shard of its own already.

Dimensions: C chunks of an array, R its axes, K chunks that are read together.
"""

import math
import os
from array import array
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from isal import isal_zlib
from isal.isal_zlib import IsalError

from data_prep.readers import damage, hdf5_tree
from data_prep.readers.arrays import RowReader, by_rows, has_batch_axis
from data_prep.readers.inflation import refuse_bomb, refuse_inflation
from mhimdist.errors import DataError

_DEFLATE, _SHUFFLE, _FLETCHER32, _LZF = 1, 2, 3, 32000
_FILTERS = (_DEFLATE, _SHUFFLE, _FLETCHER32, _LZF)
"""The filters that are read: with others, the library may inflate a chunk to any size."""

_READ_HERE: tuple[list[int], ...] = ([], [_SHUFFLE], [_DEFLATE], [_SHUFFLE, _DEFLATE])
"""The filters in the order of writing that are undone here; others are left to the library."""


class Chunks:
    """An array in chunks, all of which are written and none of which is a bomb."""

    def __init__(self, path: Path, name: str, dataset: h5py.Dataset) -> None:
        """Refuse what cannot be read, or would fill the memory.

        Args:
            path: the file.
            name: the name of the array, for messages.
            dataset: the array; this object keeps its file open.

        Raises:
            DataError: it has a filter that is not read, lacks chunks, or claims more than is stored.
        """
        self._path, self._name, self._dataset = path, name, dataset
        self._axis = 1 if has_batch_axis(dataset.shape) else 0  # of the rows
        self._chunk_rows = dataset.chunks[self._axis]
        self._chunk_bytes = math.prod(dataset.chunks) * dataset.dtype.itemsize
        expected = math.prod(
            -(-size // edge) for size, edge in zip(dataset.shape, dataset.chunks, strict=True)
        )
        # Before all else, because the library dies of some trees.
        self._in_tree = hdf5_tree.places(dataset, f"{path}: {name}", expected)
        if self._in_tree is None:
            stored_bytes = dataset.id.get_storage_size()
        else:
            # Chunks that share bytes store no more than the file has.
            num_bytes = os.fstat(self._file).st_size
            stored_bytes = min(int(self._in_tree["size"].sum(dtype=np.int64)), num_bytes)
        refuse_inflation(str(path), name, dataset.nbytes, stored_bytes)
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
        # Missing chunks read as zeros. Without filters all chunks have one length, and need no counting.
        if self._in_tree is not None:
            got = len(self._in_tree)
        else:
            got = dataset.id.get_num_chunks() if self._codes else stored_bytes // self._chunk_bytes
        if got != expected:
            raise DataError(f"{path}: {name} has {expected} chunks, but only {got} were written")

    def rows(self) -> RowReader:
        """A reader of the array; the rows of a chunk are best read together."""
        dataset = self._dataset
        reader = by_rows(dataset, self._chunk_rows)
        as_stored = h5py.h5t.py_create(dataset.dtype, logical=True).equal(dataset.id.get_type())
        if as_stored and self._codes in _READ_HERE and not dataset.file.userblock_size:
            return RowReader(reader.shape, reader.dtype, self._read, reader.step)

        def read(start: int, end: int) -> np.ndarray:
            with damage.named(f"{self._path}: {self._name} is damaged"):
                self._refuse_bombs(start, end)
                return reader.read(start, end)

        return RowReader(reader.shape, reader.dtype, read, reader.step)

    @cached_property
    def _file(self) -> int:
        """A descriptor of the file, which the library holds open as long as this object lives."""
        return int(self._dataset.file.id.get_vfd_handle())

    @cached_property
    def _places(self) -> "_Places":
        """Where the chunks are; they are those of the whole array."""
        with damage.named(f"{self._path}: {self._name} is damaged"):
            places = self._found()
        chunks_R, shape_R = self._dataset.chunks, self._dataset.shape
        order = [self._axis, *(axis for axis in range(len(shape_R)) if axis != self._axis)]
        edges_R = np.array([-(-size // edge) for size, edge in zip(shape_R, chunks_R, strict=True)])
        numbers_CR, rest_CR = np.divmod(places.offsets_CR, chunks_R)
        if rest_CR.any() or (numbers_CR < 0).any() or (numbers_CR >= edges_R).any():
            raise DataError(f"{self._path}: damaged: chunks of {self._name} lie beside their grid")
        number_C = np.ravel_multi_index(tuple(numbers_CR[:, order].T), tuple(edges_R[order]))
        ascending = np.argsort(number_C, kind="stable")
        if not np.array_equal(number_C[ascending], np.arange(math.prod(edges_R))):
            raise DataError(f"{self._path}: damaged: chunks of {self._name} are missing or there twice")
        places = _Places(*(each[ascending] for each in places))
        if (places.starts_C < 0).any() or (
            places.starts_C > os.fstat(self._file).st_size - places.sizes_C
        ).any():
            raise DataError(f"{self._path}: damaged: chunks of {self._name} reach beyond the end of the file")
        is_plain_C = np.full(len(number_C), _DEFLATE not in self._codes)
        if _DEFLATE in self._codes:
            is_plain_C = places.masks_C >> self._codes.index(_DEFLATE) & 1 != 0
        # zlib makes bytes at most a thousandth longer, and the library stores those as they are.
        wrong_C = np.where(
            is_plain_C, places.sizes_C != self._chunk_bytes, places.sizes_C > 2 * self._chunk_bytes + 64
        )
        if wrong_C.any():
            raise DataError(f"{self._path}: damaged: chunks of {self._name} have the wrong size")
        return places

    def _found(self) -> "_Places":
        """What the file says about the chunks, in any order and not yet checked."""
        num_axes = len(self._dataset.shape)
        if (found := self._in_tree) is not None:
            offsets_CR = found["offsets"][:, :-1]  # the last one is of bytes in an element
            each = offsets_CR, found["mask"], found["start"], found["size"]
            return _Places(*(part.astype(np.int64) for part in each))
        numbers = array("q")  # no objects, because the collector of a large process looks at each of them

        def note(chunk: Any) -> None:
            numbers.extend((*chunk.chunk_offset, chunk.filter_mask, chunk.byte_offset, chunk.size))

        self._dataset.id.chunk_iter(note)
        table = np.frombuffer(numbers, np.int64).reshape(-1, num_axes + 3)
        return _Places(table[:, :num_axes], *table[:, num_axes:].T)

    def _refuse_bombs(self, start: int, end: int) -> None:
        if _DEFLATE not in self._codes:  # lzf makes at most 88 bytes of one, the others none
            return
        for row in self._by_rows[start // self._chunk_rows : -(-end // self._chunk_rows)]:
            for chunk in row:
                mask, stored = self._dataset.id.read_direct_chunk(chunk.chunk_offset)
                if not mask >> self._codes.index(_DEFLATE) & 1:  # otherwise it was stored as it is
                    where = f"{self._path}: the chunk of {self._name} at {chunk.chunk_offset}"
                    refuse_bomb(where, "zlib", stored, self._chunk_bytes)

    @cached_property
    def _by_rows(self) -> list[list[Any]]:
        """The chunks that the library reads, grouped by their number along the rows."""
        groups: list[list[Any]] = [[] for _ in range(-(-self._dataset.shape[self._axis] // self._chunk_rows))]

        def note(chunk: Any) -> None:
            groups[chunk.chunk_offset[self._axis] // self._chunk_rows].append(chunk)

        self._dataset.id.chunk_iter(note)
        return groups

    def _read(self, start: int, end: int) -> np.ndarray:
        """The rows from `start` to `end`, in native byte order."""
        dataset, places = self._dataset, self._places
        shape_R, chunks_R = dataset.shape, dataset.chunks
        beside = len(places.starts_C) // -(
            -shape_R[self._axis] // self._chunk_rows
        )  # chunks of the same rows
        first, last = start // self._chunk_rows, -(-end // self._chunk_rows)
        chosen = slice(first * beside, last * beside)
        read_KB = self._bytes_of(_Places(*(each[chosen] for each in places)))
        read = read_KB.view(dataset.dtype).reshape(-1, *chunks_R)
        origin = first * self._chunk_rows
        if not self._axis and chunks_R[1:] == shape_R[1:]:
            rows = read.reshape(-1, *shape_R[1:])[start - origin : end - origin]
        else:
            covered = [*shape_R]
            covered[self._axis] = min(last * self._chunk_rows, shape_R[self._axis]) - origin
            whole = np.empty(covered, dataset.dtype)
            for block, offsets in zip(read, places.offsets_CR[chosen].tolist(), strict=True):
                offsets[self._axis] -= origin
                part = whole[tuple(slice(at, at + edge) for at, edge in zip(offsets, chunks_R, strict=True))]
                part[...] = block[tuple(map(slice, part.shape))]
            rows = whole[0] if self._axis else whole
            rows = rows[start - origin : end - origin]
        return rows.astype(rows.dtype.newbyteorder("="), copy=False)

    def _bytes_of(self, places: "_Places") -> np.ndarray:
        """The chunks as they were before they were filtered, one after the other, uint8 K x their bytes."""
        out_KB = np.empty((len(places.starts_C), self._chunk_bytes), np.uint8)
        if not len(out_KB):
            return out_KB
        if _DEFLATE in self._codes:
            self._inflate(places, out_KB.reshape(-1).data)
        else:
            heads = np.flatnonzero(
                np.diff(places.starts_C, prepend=-1 - self._chunk_bytes) != self._chunk_bytes
            )
            memory, tails = out_KB.reshape(-1).data, [*heads[1:].tolist(), len(out_KB)]
            for low, high in zip(heads.tolist(), tails, strict=True):
                self._fill(
                    memory[low * self._chunk_bytes : high * self._chunk_bytes], int(places.starts_C[low])
                )
        if _SHUFFLE in self._codes:
            shuffled_K = places.masks_C >> self._codes.index(_SHUFFLE) & 1 == 0
            itemsize = self._dataset.dtype.itemsize
            # Every edge is given, because no chunk at all leaves none to infer.
            planes = out_KB[shuffled_K].reshape(-1, itemsize, self._chunk_bytes // itemsize)
            out_KB[shuffled_K] = planes.transpose(0, 2, 1).reshape(-1, self._chunk_bytes)
        return out_KB

    def _inflate(self, places: "_Places", out: memoryview) -> None:
        """Write the chunks one after the other, each inflated to the bytes that it must have and no more."""
        skipped, num_bytes = 1 << self._codes.index(_DEFLATE), self._chunk_bytes
        ends_K = places.starts_C + places.sizes_C
        gaps_K = places.starts_C[1:] - ends_K[:-1]  # a node of the tree lies between some chunks
        heads = [0, *(np.flatnonzero((gaps_K < 0) | (gaps_K > num_bytes)) + 1).tolist()]
        at = 0
        for low, high in zip(heads, [*heads[1:], len(ends_K)], strict=True):
            base = int(places.starts_C[low])
            read = memoryview(self._stored(base, int(ends_K[high - 1]) - base))
            firsts, lasts = (places.starts_C[low:high] - base).tolist(), (ends_K[low:high] - base).tolist()
            masks = places.masks_C[low:high].tolist()
            for first, last, mask in zip(firsts, lasts, masks, strict=True):
                if mask & skipped:
                    plain: bytes | memoryview = read[first:last]
                else:
                    inflating = isal_zlib.decompressobj()
                    try:
                        plain = inflating.decompress(read[first:last], num_bytes + 1)
                    except IsalError as error:  # type: ignore[misc]  # isal's stub calls the class an instance
                        where = self._where(places, at // num_bytes)
                        raise DataError(f"{where}: damaged: {error}") from error
                    if len(plain) != num_bytes or not inflating.eof:
                        raise self._other_length(places, at // num_bytes, len(plain))
                out[at : at + num_bytes] = plain
                at += num_bytes

    def _where(self, places: "_Places", number: int) -> str:
        at = tuple(places.offsets_CR[number].tolist())
        return f"{self._path}: the chunk of {self._name} at {at}"

    def _other_length(self, places: "_Places", number: int, got: int) -> DataError:
        where = self._where(places, number)
        if got > self._chunk_bytes:
            return DataError(f"{where}: becomes more than the {self._chunk_bytes} bytes expected")
        return DataError(f"{where}: damaged: expected {self._chunk_bytes} bytes and the end, got {got} bytes")

    def _stored(self, start: int, num_bytes: int) -> bytearray:
        stored = bytearray(num_bytes)
        self._fill(memoryview(stored), start)
        return stored

    def _fill(self, memory: memoryview, start: int) -> None:
        done = 0
        while done < len(memory):
            got = os.preadv(self._file, [memory[done:]], start + done)
            if not got:
                raise self._cut(start, len(memory))
            done += got

    def _cut(self, start: int, num_bytes: int) -> DataError:
        return DataError(
            f"{self._path}: damaged: expected {num_bytes} bytes of {self._name} at {start}, got the end of "
            "the file"
        )


class _Places(NamedTuple):
    """Where chunks are: their first elements, the filters that were skipped, and their bytes in the file."""

    offsets_CR: np.ndarray
    masks_C: np.ndarray
    starts_C: np.ndarray
    sizes_C: np.ndarray
