"""Features that `torch.save` wrote: tensors, or numpy arrays as TRIDENT writes them.

Nothing in the files is executed. A tensor in a .pt file is mapped. An array is part of the pickle, so it is
read whole, as are members of a tar; both are read one more time when shards are planned.
"""

import io
import re
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from data_prep.readers import damage
from data_prep.readers.fields import FEATURES
from mhimdist import files
from mhimdist.errors import DataError

# torch.save before 1.6 began a file with this pickled number. It wrote all other files as zips.
LEGACY_MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")

_NUMBERS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")


class _RefusedError(Exception):
    """A pickle makes something other than an array of numbers."""


def _empty_array(kind: type, shape: tuple[int, ...], typecode: bytes) -> np.ndarray:
    """The empty array that numpy's pickles begin with; any other use of the function would be an attack."""
    if kind is not np.ndarray or shape != (0,) or typecode != b"b":
        raise _RefusedError(f"an array of {kind.__name__}, of shape {shape}, that numpy would not write")
    return np.ndarray((0,), np.int8)


def _numeric_dtype(name: str, *_: object) -> np.dtype:
    if name not in _NUMBERS:
        raise _RefusedError(f"an array of type {name!r}; expected numbers")
    return np.dtype(name, copy=True)


def _no_bytes(*contents: object) -> bytes:
    if contents:
        raise _RefusedError("bytes that numpy would not write")
    return b""


_ARRAYS: list[Any] = [
    (_no_bytes, "builtins.bytes"),
    *((_empty_array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    (_numeric_dtype, "numpy.dtype"),
    np.ndarray,
    *{type(np.dtype(name)) for name in _NUMBERS},
]
"""What a pickle may call to make an array: our functions under the names of numpy's."""

_one_at_a_time = threading.Lock()
"""Guards torch's list of what a pickle may call; all threads share that list."""


def read(path: Path, arrays: object = ()) -> dict[Any, Any]:
    """Read a file of `torch.save`: a tensor gets the name "features", a dict stays as it is.

    Raises:
        DataError: the file is damaged, or holds anything but a tensor, an array, or a dict of them.
    """
    with path.open("rb") as file:
        legacy = file.read(len(LEGACY_MAGIC)) == LEGACY_MAGIC
    if not legacy:
        return _load(path, str(path), legacy=False)
    with files.mapped(path) as content:
        return _load(content, str(path), legacy=True)


def read_bytes(content: bytes, where: str) -> dict[Any, Any]:
    """Do the same as `read`, from memory; `where` names the content in messages.

    Raises:
        DataError: as in `read`.
    """
    return _load(io.BytesIO(content), where, legacy=content.startswith(LEGACY_MAGIC))


def _load(file: Path | IO[bytes], where: str, *, legacy: bool) -> dict[Any, Any]:
    with damage.named(f"{where}: damaged, or not a file that torch.save wrote", why=False):
        if not legacy:
            with zipfile.ZipFile(file) as archive:
                if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
                    raise DataError(f"{where}: holds compressed records, which torch.save does not write")
        loaded = _unpickle(file, where)
    if isinstance(loaded, (Tensor, np.ndarray)):
        return {FEATURES[0]: loaded}
    if not isinstance(loaded, dict):
        raise DataError(f"{where}: expected a tensor or a dict of tensors, got {type(loaded).__name__}")
    return loaded


def _unpickle(file: Path | IO[bytes], where: str) -> Any:
    """The content of the file; tried without arrays first, because arrays need a lock."""
    for allowed in ([], _ARRAYS):
        if not isinstance(file, Path):
            file.seek(0)
        with _allowing(allowed):
            try:
                return torch.load(file, map_location="cpu", weights_only=True, mmap=isinstance(file, Path))
            except _RefusedError as error:
                raise DataError(f"{where}: refused, it holds {error}") from error
            except Exception as error:
                forbidden = re.search(r"GLOBAL (\S+)", str(error))
                if forbidden is None and not allowed:
                    continue  # another thread's allowance may have ended within this load: with the lock
                if forbidden is None:
                    raise
                refusal = DataError(
                    f"{where}: refused, it holds {forbidden[1]}; expected a tensor or a dict of tensors"
                )
        if not forbidden[1].startswith(("numpy.", "bytes")):
            break
    raise refusal


@contextmanager
def _allowing(functions: list[Any]) -> Iterator[None]:
    if not functions:
        yield
        return
    with _one_at_a_time, torch.serialization.safe_globals(functions):
        yield
