"""Features in zarr stores, of version 2 or 3: a group as an HDF5 file would be, or one array."""

from pathlib import Path
from typing import Any

import numpy as np

from data_prep.arrays import RowReader, refuse_inflation
from data_prep.read_hdf5 import ARRAYS, describe
from mhimdist.errors import DataError

MARKS = ("zarr.json", ".zgroup", ".zarray")


def is_store(path: Path) -> bool:
    """Whether a folder is a zarr store."""
    return any((path / name).is_file() for name in MARKS)


def read(path: Path) -> dict[Any, Any]:
    """The arrays of a zarr store and what its attributes tell, as `read_hdf5.read`.

    Raises:
        DataError: damaged, or arrays of anything but numbers.
    """
    import zarr  # it takes longer to import than many a folder to read

    try:
        node = zarr.open(path, mode="r")
        if isinstance(node, zarr.Array):
            return {"features": _rows(path, "features", node), **describe(dict(node.attrs))}
        arrays = {name: node[name] for name in ARRAYS if isinstance(node.get(name), zarr.Array)}
        attributes: dict[str, Any] = {}
        for array in arrays.values():
            attributes |= dict(array.attrs)
        attributes |= dict(node.attrs)
        return {name: _rows(path, name, array) for name, array in arrays.items()} | describe(attributes)
    except DataError:
        raise
    except Exception as error:  # whatever the damage leads zarr's readers to
        raise DataError(
            f"{path}: damaged, or not a zarr store: {' '.join(str(error).split())[:200]}"
        ) from error


def _rows(path: Path, name: str, array: Any) -> np.ndarray | RowReader:
    dtype = np.dtype(array.dtype)
    if dtype.kind not in "fiub":
        raise DataError(f"{path}: {name} of type {dtype} cannot be used")
    if not array.shape or not array.size:
        return np.empty(array.shape, dtype)
    refuse_inflation(str(path), name, array.nbytes, array.nbytes_stored())
    refuse_inflation(
        str(path), f"a chunk of {name}", int(np.prod(array.chunks)) * dtype.itemsize, array.nbytes
    )

    def rows(start: int, end: int) -> np.ndarray:
        try:
            return np.asarray(array[start:end]).astype(dtype.newbyteorder("="), copy=False)
        except Exception as error:
            raise DataError(f"{path}: {name} is damaged: {' '.join(str(error).split())[:200]}") from error

    return RowReader(tuple(array.shape), dtype.newbyteorder("="), rows, array.chunks[0])
