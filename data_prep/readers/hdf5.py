"""Features in HDF5 files, as CLAM, TRIDENT and STAMP write them.

Arrays in chunks are read by `hdf5_chunks.py`.

Dimensions: D features.
"""

import functools
import itertools
import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from data_prep.readers import damage
from data_prep.readers.arrays import RowReader, native
from data_prep.readers.fields import NAMES_OF_DETAILS, SIDE_ARRAYS
from data_prep.readers.hdf5_chunks import Chunks
from data_prep.readers.hdf5_heaps import refuse_endless
from data_prep.readers.inflation import refuse_inflation
from mhimdist.errors import DataError

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
        check_texts = functools.cache(lambda: refuse_endless(path, file))
        for name in arrays:
            # Links and external storage could lead to any file of the machine.
            dataset = _at(path, file, name)
            if isinstance(dataset, h5py.Dataset):
                found[name] = _rows(path, name, dataset)
                attributes |= _attributes(path, dataset, check_texts)
        wanted = [name for name in arrays if name not in SIDE_ARRAYS]
        if wanted and all(found.get(name) is None for name in wanted):
            found = {name: found.get(name) for name in _names_of_arrays(file)}
        return attributes | _attributes(path, file, check_texts) | found


def _attributes(path: Path, holder: Any, check_texts: Callable[[], None]) -> dict[str, Any]:
    """The attributes with one value; others say nothing that is used here.

    Text is stored once and named by any number of values, so lists and many attributes could be a bomb. Only
    that of `DETAILS` is read, and `check_texts` is called before it.

    Raises:
        DataError: their text is too long together.
    """
    found: dict[str, Any] = {}
    num_bytes = 0
    for name in itertools.islice(holder.attrs, _MOST_NAMES):
        attribute = holder.attrs.get_id(name)
        if math.prod(attribute.shape or ()) != 1:
            continue
        if attribute.dtype.kind not in "fiubS":  # stored elsewhere in the file, such as text
            if name not in NAMES_OF_DETAILS:
                continue
            check_texts()
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
    if dataset.chunks is not None:
        return Chunks(path, name, dataset).rows()
    num_bytes, stored_bytes = dataset.nbytes, dataset.id.get_storage_size()
    refuse_inflation(str(path), name, num_bytes, stored_bytes)
    if stored_bytes < num_bytes:  # missing bytes read as zeros
        raise DataError(f"{path}: {name} has {num_bytes} bytes, but only {stored_bytes} were written")
    if (offset := dataset.id.get_offset()) is None:  # small enough to be in the file's header
        return native(dataset[()])
    return native(np.memmap(path, dataset.dtype, "c", offset, dataset.shape))
