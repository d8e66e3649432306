"""Features in .npy files with sidecars, and in .npz files."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.arrays import RowReader, map_npy, read_zipped_npy
from mhimdist.errors import DataError

SIDECARS = ("coords", "instance_labels")
_TEXT_BYTES = 4096


def sidecar_of(name: str) -> str:
    """The slide that a file of this name is a sidecar of, "" if it is none."""
    for kind in SIDECARS:
        if name.endswith(f".{kind}.npy"):
            return name.removesuffix(f".{kind}.npy")
    return ""


def read(path: Path) -> dict[Any, Any]:
    """A .npy file of features, and `<slide>.coords.npy` and `<slide>.instance_labels.npy` beside it."""
    found: dict[Any, Any] = {"features": map_npy(path)}
    for kind in SIDECARS:
        sidecar = path.with_name(f"{path.stem}.{kind}.npy")
        if sidecar.exists():
            found[kind] = map_npy(sidecar)
    return found


def read_npz(path: Path) -> dict[Any, Any]:
    """The arrays of a .npz file by name; scalars of text or numbers as such."""
    try:
        with zipfile.ZipFile(path) as archive:
            records = [record for record in archive.infolist() if record.filename.endswith(".npy")]
            return {
                record.filename.removesuffix(".npy"): _plain(read_zipped_npy(archive, record, str(path)))
                for record in records
            }
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise DataError(f"{path}: damaged, or not a .npz file: {error}") from error


def _plain(array: np.ndarray | RowReader) -> Any:
    scalar = isinstance(array, np.ndarray) and not array.ndim and array.nbytes <= _TEXT_BYTES
    return array.item() if scalar and isinstance(array, np.ndarray) else array
