"""Features in .npy files with sidecars, and in .npz files."""

import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from data_prep.readers import damage
from data_prep.readers.arrays import map_npy, zipped_npy, zipped_scalar
from data_prep.readers.fields import FEATURES, SIDE_ARRAYS
from mhimdist.errors import DataError

UNNAMED = "arr_0"
"""The array of `np.savez(path, array)`."""

_TEXT_BYTES = 4096
_MOST_RECORDS = 1000


def sidecar_of(path: Path) -> str:
    """The slide that a file of this name is a sidecar of; "" if it is not a sidecar."""
    slide, _, kind = path.stem.rpartition(".")
    return slide if path.suffix.lower() == ".npy" and kind in SIDE_ARRAYS else ""


def sidecars(path: Path) -> dict[str, Path]:
    """The sidecars next to a .npy file, by kind."""
    paths = {kind: path.with_name(f"{path.stem}.{kind}{path.suffix}") for kind in SIDE_ARRAYS}
    return {kind: sidecar for kind, sidecar in paths.items() if sidecar.exists()}


def read(path: Path, arrays: Collection[str] = ()) -> dict[Any, Any]:
    """Read a .npy file of features, and `<slide>.coords.npy` and `<slide>.instance_labels.npy` next to it.

    Raises:
        DataError: a file is not a .npy file, or is damaged.
    """
    found: dict[Any, Any] = {next(iter(arrays), FEATURES[0]): map_npy(path)}
    return found | {kind: map_npy(sidecar) for kind, sidecar in sidecars(path).items()}


def read_npz(path: Path, arrays: Collection[str]) -> dict[Any, Any]:
    """Read the wanted arrays of a .npz file by name, and its scalars of text or numbers.

    An array that is alone in the file needs no name. Only headers and scalars are inflated now.

    Raises:
        DataError: the file is damaged, or a record claims to be far larger than it is stored.
    """
    with damage.named(f"{path}: damaged, or not a .npz file"), zipfile.ZipFile(path) as archive:
        records = {
            record.filename.removesuffix(".npy"): record
            for record in archive.infolist()
            if record.filename.endswith(".npy")
        }
        found: dict[Any, Any] = dict.fromkeys(records)
        if len(records) > _MOST_RECORDS:
            raise DataError(
                f"{path}: refused, it holds {len(records)} arrays; expected at most {_MOST_RECORDS}"
            )
        for name, record in records.items():
            is_small = record.file_size <= _TEXT_BYTES
            scalar = zipped_scalar(path, archive, record) if is_small else None
            if scalar is not None:
                found[name] = scalar
            elif is_small or name in arrays or name == UNNAMED:
                found[name] = zipped_npy(path, archive, record)
    if list(found) == [UNNAMED]:
        return {next(iter(arrays)): found[UNNAMED]}
    return found
