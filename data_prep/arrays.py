"""Arrays in files, as readers of features hand them on: mapped where that is possible, else read by rows.

What a file claims to hold is compared with its length before anything is allocated.

Dimensions: N instances of a bag, D features.
"""

import math
import threading
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np

from mhimdist.errors import DataError

MAX_INFLATION = 100
"""How many times its stored bytes a compressed array may claim to be: features compress 2 to 5 times, and
what claims more is a bomb."""

_one_at_a_time = threading.Lock()
"""For numpy's .npy headers: they are Python literals, and in CPython 3.11 threads that parse at the same time
can fail with "AST constructor recursion depth mismatch"."""


@dataclass(frozen=True, eq=False)
class RowReader:
    """An array that is read some rows at a time.

    Attributes:
        shape: of the whole array.
        dtype: of what `read` returns, in native byte order.
        read: the rows from a start to an end.
        step: rows that are best read together, such as those of a chunk.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[int, int], np.ndarray]
    step: int = 1


def native(array: np.ndarray) -> np.ndarray | RowReader:
    """An array in native byte order, turned only as it is read."""
    if array.dtype.isnative:
        return array
    dtype = array.dtype.newbyteorder("=")
    return RowReader(array.shape, dtype, lambda start, end: array[start:end].astype(dtype))


def refuse_inflation(where: str, what: str, num_bytes: int, stored_bytes: int) -> None:
    """Raise `DataError` if an array claims to be far larger than what is stored of it."""
    if num_bytes > MAX_INFLATION * max(stored_bytes, 1):
        raise DataError(
            f"{where}: claims {num_bytes} bytes of {what}, but stores {stored_bytes}, less than 1 in "
            f"{MAX_INFLATION}"
        )


def map_npy(path: Path, start: int = 0, num_bytes: int | None = None) -> np.ndarray | RowReader:
    """A .npy file, or one inside another file, as a mapped array.

    Args:
        path: the file.
        start: where in it the .npy begins.
        num_bytes: its length, by default all that is left.

    Raises:
        DataError: it is none, holds Python objects, or claims another length than it has.
    """
    with path.open("rb") as file:
        file.seek(start)
        shape, dtype, order = _npy_header(file, str(path))
        data_start = file.tell()
    expected = data_start - start + math.prod(shape) * dtype.itemsize
    got = path.stat().st_size - start if num_bytes is None else num_bytes
    if expected != got:
        raise DataError(f"{path}: its header says {shape} {dtype}, {expected} bytes, but it has {got}")
    # "c", a private writable map, because torch warns of arrays that it could not write to.
    return native(np.memmap(path, dtype, "c", data_start, shape, order))


def read_zipped_npy(archive: zipfile.ZipFile, record: zipfile.ZipInfo, where: str) -> np.ndarray | RowReader:
    """A .npy record of a .npz file, inflated if its header is honest.

    Raises:
        DataError: as `map_npy`, or it claims to be far larger than it is stored.
    """
    refuse_inflation(where, record.filename, record.file_size, record.compress_size)
    with archive.open(record) as file:
        shape, dtype, order = _npy_header(file, f"{where}: {record.filename}")
        expected, got = file.tell() + math.prod(shape) * dtype.itemsize, record.file_size
        if expected != got:
            raise DataError(
                f"{where}: {record.filename}: its header says {shape} {dtype}, {expected} bytes, but it has "
                f"{got}"
            )
        # A bytearray, because torch warns of arrays that it could not write to.
        content = np.frombuffer(bytearray(file.read()), dtype)
    return native(content.reshape(shape, order=order))


def _npy_header(file: IO[bytes], where: str) -> tuple[tuple[int, ...], np.dtype, Literal["C", "F"]]:
    """Shape, dtype and order ("C" or "F") of the .npy that begins here; leaves the file at its data."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        version = np.lib.format.read_magic(file)
        with _one_at_a_time:
            lengths, column_major, dtype = readers[version](file)
    except Exception as error:  # numpy evaluates the header as a literal: anything can be wrong with it
        raise DataError(f"{where}: not a .npy file: {' '.join(str(error).split())[:200]}") from error
    shape = tuple(map(int, lengths))  # numpy lets through a bool for an int
    if dtype.hasobject:
        raise DataError(f"{where}: refused, it holds Python objects; expected numbers")
    if min(shape, default=0) < 0:
        raise DataError(f"{where}: its header says {shape} {dtype}")
    return shape, dtype, "F" if column_major else "C"
