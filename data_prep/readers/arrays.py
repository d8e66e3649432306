"""Arrays in files, as the readers return them: mapped where possible, otherwise read by rows.

The size that a file claims is compared with its length before anything is allocated.

Dimensions: N instances of a bag, D features.
"""

import io
import math
import threading
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from isal import isal_zlib

from data_prep.readers import damage
from data_prep.readers.inflation import refuse_inflation
from mhimdist import files
from mhimdist.errors import CorruptShard, DataError

MAX_HEADER_BYTES = 2**14
"""Most bytes of a .npy header; numpy reads fewer."""

_PIECE_BYTES = 2**20
_MOST = 2**48
"""No array is so long; numpy raises errors of many kinds for lengths about 2^63."""

_one_at_a_time = threading.Lock()
"""Guards the parsing of .npy headers: they are Python literals, and in CPython 3.11 threads that parse at the
same time can fail with "AST constructor recursion depth mismatch"."""


@dataclass(frozen=True, eq=False)
class RowReader:
    """An array that is read in blocks of rows.

    Attributes:
        shape: of the whole array.
        dtype: of the rows that `read` returns, in native byte order.
        read: returns the rows from a start to an end.
        step: number of rows that are best read together, such as those of a chunk.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[int, int], np.ndarray]
    step: int = 1


def has_batch_axis(shape: tuple[int, ...]) -> bool:
    """Whether an array is 1 x N x D, as some encoders write it; it is then read as N x D."""
    return len(shape) == 3 and shape[0] == 1


def by_rows(array: Any, step: int = 1) -> RowReader:
    """A reader of a numpy, HDF5 or zarr array, with rows in native byte order and without a batch axis."""
    shape, dtype = tuple(map(int, array.shape)), np.dtype(array.dtype).newbyteorder("=")
    batched = has_batch_axis(shape)

    def read(start: int, end: int) -> np.ndarray:
        rows = array[0, start:end] if batched else array[start:end]
        return np.asarray(rows).astype(dtype, copy=False)

    return RowReader(shape[1:] if batched else shape, dtype, read, step)


def native(array: np.ndarray) -> np.ndarray | RowReader:
    """The array in native byte order; its bytes are swapped only as they are read."""
    return array if array.dtype.isnative else by_rows(array)


def as_a_whole(shape: tuple[int, ...], dtype: np.dtype, load: Callable[[], np.ndarray]) -> RowReader:
    """A reader of an array that can only be read whole, which its first rows cause; a scalar has one row.

    Args:
        shape: of the array; a leading axis of 1 is dropped if `has_batch_axis` says so.
        dtype: of the array, in any byte order; rows are in this machine's.
        load: reads the array, at most once.
    """
    shape, dtype = (shape[1:] if has_batch_axis(shape) else shape) or (1,), dtype.newbyteorder("=")

    @cache
    def rows_N() -> np.ndarray:
        return load().astype(dtype, copy=False).reshape(shape)

    return RowReader(shape, dtype, lambda start, end: rows_N()[start:end])


def checked(array: np.ndarray | RowReader, path: Path, start: int, num_bytes: int, crc32: int) -> RowReader:
    """A reader that returns rows only if the array's bytes in the file have this checksum.

    Args:
        array: the array.
        path: the file that holds it.
        start: the first of its bytes.
        num_bytes: their number.
        crc32: the checksum that they should have.

    Raises:
        CorruptShard: raised by the reader if they have another checksum.
    """
    reader = array if isinstance(array, RowReader) else by_rows(array)

    @cache
    def check() -> None:
        got = 0
        with path.open("rb") as file:
            file.seek(start)
            for place in range(0, num_bytes, _PIECE_BYTES):
                got = isal_zlib.crc32(file.read(min(_PIECE_BYTES, num_bytes - place)), got)
        if got != crc32:
            raise CorruptShard(
                f"{path}: bytes {start} to {start + num_bytes}: expected crc32 {crc32:08x}, got {got:08x}"
            )

    def read(first: int, end: int) -> np.ndarray:
        check()
        return reader.read(first, end)

    return RowReader(reader.shape, reader.dtype, read, reader.step)


def map_npy(path: Path, start: int = 0, num_bytes: int | None = None) -> np.ndarray | RowReader:
    """Map a .npy file, or one inside another file, into memory.

    Args:
        path: the file.
        start: where in the file the .npy begins.
        num_bytes: its length; by default the rest of the file.

    Raises:
        DataError: it is not a .npy, holds Python objects, or claims another length than it has.
    """
    with files.open_file(path) as file:
        file.seek(start)
        shape, dtype, order, header_bytes = _npy_header(file.read(MAX_HEADER_BYTES), str(path))
    expected = header_bytes + math.prod(shape) * dtype.itemsize
    got = path.stat().st_size - start if num_bytes is None else num_bytes
    if expected != got:
        raise DataError(f"{path}: its header says {shape} {dtype}, {expected} bytes, but it has {got}")
    if not math.prod(shape):  # there is nothing to map
        try:
            return np.empty(shape, dtype.newbyteorder("="))
        except ValueError as error:  # a length of 0 beside others that no memory holds
            raise DataError(f"{path}: its header says {shape} {dtype}: {error}") from None
    # "c", a private writable map, because torch warns about arrays that it cannot write to.
    return native(np.memmap(path, dtype, "c", start + header_bytes, shape, order))


def zipped_npy(path: Path, archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> RowReader:
    """A reader of a .npy record in a .npz file: reads the header now, and the rest with its first rows.

    Args:
        path: the .npz file, for messages.
        archive: the same file, open.
        record: the record to read.

    Raises:
        DataError: as in `map_npy`, or the record claims to be far larger than it is stored.
    """
    where = f"{path}: {record.filename}"
    if record.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{where}: expected a stored or deflated record, got method {record.compress_type}")
    refuse_inflation(str(path), record.filename, record.file_size, record.compress_size)
    with archive.open(record) as file:
        shape, dtype, order, header_bytes = _npy_header(file.read(MAX_HEADER_BYTES), where)
    num_bytes = math.prod(shape) * dtype.itemsize
    if (expected := header_bytes + num_bytes) != record.file_size:
        raise DataError(
            f"{where}: its header says {shape} {dtype}, {expected} bytes, but it has {record.file_size}"
        )

    def load() -> np.ndarray:
        content = np.empty(num_bytes, np.uint8)
        with damage.named(f"{where}: damaged"), zipfile.ZipFile(path) as again, again.open(record) as file:
            file.read(header_bytes)
            # In pieces, because zipfile, if asked for all, inflates everything before it counts.
            for start in range(0, num_bytes, _PIECE_BYTES):
                piece = file.read(min(_PIECE_BYTES, num_bytes - start))
                content[start : start + _PIECE_BYTES] = np.frombuffer(piece, np.uint8)
        return content.view(dtype).reshape(shape, order=order)

    return as_a_whole(shape, dtype, load)


def zipped_scalar(path: Path, archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> np.ndarray | None:
    """The one value of a small .npy record, in an array; None if the record holds another number of values.

    Reading it in the open archive matters: to open the file again for each of many records takes a time that
    grows with the square of their number.

    Raises:
        DataError: as in `zipped_npy`.
    """
    array = zipped_npy(path, archive, record)
    if array.shape != (1,):
        return None
    with archive.open(record) as file:
        content = file.read()
    return np.frombuffer(content, array.dtype, 1, len(content) - array.dtype.itemsize).reshape(1)


def _npy_header(content: bytes, where: str) -> tuple[tuple[int, ...], np.dtype, Literal["C", "F"], int]:
    """Shape, dtype and order ("C" or "F") of the .npy that begins with this, and the length of its header."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        with _one_at_a_time:
            lengths, column_major, dtype = readers[version](file)
    except Exception as error:  # numpy evaluates the header as a literal: anything can be wrong with it
        raise DataError(f"{where}: not a .npy file: {' '.join(str(error).split())[:200]}") from error
    shape = tuple(map(int, lengths))  # numpy accepts a bool as an int
    if dtype.hasobject:
        raise DataError(f"{where}: refused, it holds Python objects; expected numbers")
    if not all(0 <= length < _MOST for length in shape) or not dtype.itemsize:
        raise DataError(
            f"{where}: its header says {shape} {dtype}; expected numbers, and lengths from 0 to 2^48"
        )
    return shape, dtype, "F" if column_major else "C", file.tell()
