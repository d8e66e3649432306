"""What `data_prep.shard` reads: features of slides, recognised by looking at the files.

The files are treated as hostile. Nothing in them is executed, and what they claim to hold is compared with
their length before anything is allocated.

Dimensions: N instances of a bag, D features.
"""

import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_prep.readers import hdf5, npy, parquet, pt, tar, zarr_store
from data_prep.readers.arrays import RowReader, by_rows, has_batch_axis
from data_prep.readers.fields import DETAILS, describe
from data_prep.readers.stated import NOTHING_STATED, Stated
from mhimdist.data.format import COORDS_DTYPE, INSTANCE_LABELS_DTYPE
from mhimdist.errors import DataError

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

SUFFIXES = {
    ".pt": "torch",
    ".pth": "torch",
    ".npy": "npy",
    ".npz": "npz",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".zarr": "zarr",
    ".tar": "tar",
    ".parquet": "parquet",
}
"""Files that are looked at, and what they are taken for if their content does not tell."""

READERS: dict[str, Callable[..., dict[Any, Any]]] = {
    "torch": pt.read,
    "npy": npy.read,
    "npz": npy.read_npz,
    "hdf5": hdf5.read,
    "zarr": zarr_store.read,
    "tar": tar.read,
    "parquet": parquet.read,
}
"""By family: what turns a file, for bundles a place in it, and the names of the arrays that are wanted into
arrays and details by name."""

BUNDLES: dict[str, Callable[..., Iterator[tuple[str, tuple, dict[str, Any]]]]] = {
    "tar": tar.bags_in,
    "parquet": parquet.bags_in,
}
"""Families whose files hold many bags."""


@dataclass(frozen=True)
class Source:
    """Where the features of a slide lie.

    Attributes:
        path: the file, or the folder of a zarr store.
        family: a key of `READERS`.
        place: of the bag in a bundle, in the words of the bundle's reader.
        coords: a file that holds the coordinates of the same slide, as CLAM's h5_files do for its pt_files.
        said: what a bundle says of the bag: label, case and `DETAILS`; else what its folder's name says.
        stated: what the user says of all.
    """

    path: Path
    family: str
    place: tuple = ()
    coords: Path | None = None
    said: tuple[tuple[str, Any], ...] = ()
    stated: Stated = NOTHING_STATED

    @property
    def details(self) -> dict[str, Any]:
        """`said` as a dict."""
        return dict(self.said)

    def files(self) -> list[Path]:
        """Files on which the bag depends, for telling whether it changed."""
        if self.path.is_dir():
            return sorted(path for path in self.path.rglob("*") if path.is_file())
        more = npy.sidecars(self.path).values() if self.family == "npy" else ()
        return [self.path, *more, *([self.coords] if self.coords else [])]


class SlideFeatures:
    """What a source holds, found sound in shape and type; the values are not yet looked at.

    Attributes:
        num_instances, num_features: N and D, each at least 1.
        dtype: of the features, one of `FLOATS`.
        details: encoder, patch size and so on: those of `DETAILS` that are known.
        has_coords, has_instance_labels: whether it holds them.
    """

    def __init__(
        self,
        found: Mapping[Any, Any],
        details: Mapping[str, Any],
        where: str,
        *,
        names: tuple[str, ...],
        bfloat16: bool = False,
        max_bytes: int | None = None,
    ) -> None:
        """Check the arrays that a reader found.

        Args:
            found: arrays by name.
            details: those of `DETAILS` that are known.
            where: names the source in messages.
            names: which the features may have.
            bfloat16: whether features of 16 bits are those of bfloat16.
            max_bytes: length of the file, which uncompressed features cannot exceed.

        Raises:
            DataError: it holds something else.
        """
        keys = [key for key in names if found.get(key) is not None]
        if len(keys) != 1:
            there = some(sorted(map(str, found)), 20) or "nothing"
            raise DataError(f"{where}: expected one of the keys {names}, got {there}")
        self._where = where
        self._found = found
        self._features = _array(found[keys[0]], where, keys[0])
        self.dtype = self._features.dtype if isinstance(self._features, Tensor) else _torch(self._features)
        if bfloat16:
            if self.dtype != torch.uint16:
                raise DataError(f"{where}: expected the bits of bfloat16 as uint16, got {self.dtype}")
            self.dtype = torch.bfloat16
        shape = tuple(self._features.shape)
        if shape and not all(shape):  # as TRIDENT writes of a slide without tissue
            raise DataError(f"{where}: the bag is empty: its features are {' x '.join(map(str, shape))}")
        if self.dtype not in FLOATS:
            raise DataError(f"{where}: features must be floats, got {self.dtype}")
        if len(shape) != 2:
            raise DataError(f"{where}: expected features of shape N x D, got {shape}")
        self.num_instances, self.num_features = map(int, shape)
        num_bytes = self.num_instances * self.num_features * self.dtype.itemsize
        if max_bytes is not None and num_bytes > max_bytes:
            # An expanded tensor: one stored number may claim to be 10^15.
            raise DataError(f"{where}: claims {shape[0]} x {shape[1]} features, more than it stores")
        # Some tools add the width and height of a patch, which are not kept.
        self.has_coords = self._has("coords", (self.num_instances, 2), (self.num_instances, 4))
        self.has_instance_labels = self._has("instance_labels", (self.num_instances,))
        self.details = dict(details)

    def blocks(self, max_bytes: int) -> Iterator[Tensor]:
        """The features in order, some rows at a time, so that a bag of any size needs little memory.

        A block has about `max_bytes`, but at least one row, and with chunks in the file, one chunk of rows.
        """
        row_bytes = self.num_features * self.dtype.itemsize
        step = max(1, max_bytes // row_bytes)
        if isinstance(self._features, RowReader):
            step = -(-step // self._features.step) * self._features.step
        for start in range(0, self.num_instances, step):
            end = min(start + step, self.num_instances)
            yield self._rows(start, end)

    @property
    def features_ND(self) -> Tensor:
        """All features, N x D, one of `FLOATS`, in any layout."""
        return self._rows(0, self.num_instances)

    @cached_property
    def coords_N2(self) -> np.ndarray | None:
        """Coordinates, int32 N x 2; those in micrometres are rounded to whole ones."""
        rounded = "coords_unit" in self.details
        if not self.has_coords:
            return None
        return self._integers("coords", COORDS_DTYPE, rounded=rounded)[:, :2]

    @cached_property
    def instance_labels_N(self) -> np.ndarray | None:
        """Labels of the instances, uint8 N."""
        return self._integers("instance_labels", INSTANCE_LABELS_DTYPE) if self.has_instance_labels else None

    @property
    def encoder(self) -> str | None:
        """Name of the network that computed the features."""
        return self.details.get("encoder")

    @property
    def patch_size(self) -> int | None:
        """Edge of a patch in pixels."""
        return self.details.get("patch_size")

    def _rows(self, start: int, end: int) -> Tensor:
        if isinstance(self._features, Tensor):
            return self._features[start:end].view(self.dtype)
        return torch.from_numpy(self._features.read(start, end)).view(self.dtype)

    def _has(self, name: str, *expected: tuple[int, ...]) -> bool:
        if self._found.get(name) is None:
            return False
        got = tuple(_array(self._found[name], self._where, name).shape)
        if got not in expected:
            raise DataError(f"{self._where}: expected {name} of shape {expected[0]}, got {got}")
        return True

    def _integers(self, name: str, dtype: np.dtype, *, rounded: bool = False) -> np.ndarray:
        """An array of whole numbers as `dtype`; floats will do if each is whole, or are `rounded`."""
        array = _array(self._found[name], self._where, name)
        tensor = array if isinstance(array, Tensor) else torch.from_numpy(array.read(0, array.shape[0]))
        if tensor.is_complex():
            raise DataError(f"{self._where}: expected {name} to be whole numbers, got {tensor.dtype}")
        # Double, because the limits below must be representable.
        values = (tensor.double() if tensor.is_floating_point() else tensor).numpy()
        values = np.rint(values) if rounded else values
        limits = np.iinfo(dtype)
        if not ((values >= limits.min) & (values <= limits.max)).all():
            raise DataError(f"{self._where}: expected {name} from {limits.min} to {limits.max}")
        if not (values == (exact := values.astype(dtype))).all():
            raise DataError(f"{self._where}: expected {name} to be whole numbers")
        return exact


def some(names: Iterable[str], limit: int = 5) -> str:
    """The first few names for a message, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(map(repr, listed[:limit])) + more


def read_features(source: Source) -> SlideFeatures:
    """Open what a source holds; arrays are mapped or read later.

    Features are a tensor or array, N x D or 1 x N x D, or stand under one of `fields.FEATURES` beside
    "coords" (N x 2, or N x 4 whose first two columns are taken), "instance_labels" and `DETAILS`. They must
    be floats of 2, 4 or 8 bytes or bfloat16, in any byte order and layout; integers are refused, since their
    scale is unknown.

    Raises:
        DataError: the file holds something else, or another detail than was stated; the message names it.
    """
    path, where, said, stated = source.path, _where(source), source.details, source.stated
    place = (source.place,) if source.family in BUNDLES else ()
    found = READERS[source.family](path, *place, stated.arrays)
    details = {name: said[name] for name in DETAILS if said.get(name) is not None} | describe(found)
    if source.coords is not None:
        beside = hdf5.read(source.coords, ("coords",))
        found, details = {"coords": beside.get("coords"), **found}, describe(beside) | details
    for name, value in stated.details.items():
        if details.setdefault(name, value) != value:
            option = f"--{name.replace('_', '-')}"
            raise DataError(f"{where}: its {name} is {details[name]!r}, but {option} says {value!r}")
    return SlideFeatures(
        found,
        details,
        where,
        names=stated.features,
        bfloat16=said.get("dtype") == "bfloat16",
        # What compressed files claim was compared with their length by their readers.
        max_bytes=path.stat().st_size if source.family in ("torch", "npy") else None,
    )


def family_of(path: Path) -> str | None:
    """What a file or folder is by its first bytes, a key of `READERS`; None if they do not tell."""
    if path.is_dir():
        return "zarr" if zarr_store.is_store(path) else None
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith(b"PK\x03\x04"):
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except Exception:  # whatever the damage leads zipfile to; the reader will name it
            return None
        if any(name.endswith("data.pkl") for name in names):
            return "torch"
        return "npz" if any(name.endswith(".npy") for name in names) else None
    if head[257:262] == b"ustar":
        return "tar"
    signs = {
        pt.LEGACY_MAGIC: "torch",
        b"\x93NUMPY": "npy",
        b"\x89HDF\r\n\x1a\n": "hdf5",
        b"PAR1": "parquet",
    }
    return next((family for sign, family in signs.items() if head.startswith(sign)), None)


def _where(source: Source) -> str:
    slide = source.details.get("slide")
    return f"{source.path}: {slide}" if source.place and slide else str(source.path)


def _torch(reader: RowReader) -> torch.dtype:
    return torch.from_numpy(np.empty(0, reader.dtype)).dtype


def _array(value: object, where: str, what: str) -> Tensor | RowReader:
    """An array that was found, without a batch axis."""
    if isinstance(value, (np.ndarray, RowReader)):
        try:
            torch.from_numpy(np.empty(0, value.dtype))
        except TypeError:
            raise DataError(f"{where}: {what} of type {value.dtype} cannot be used") from None
        if isinstance(value, RowReader):
            return value
        if not value.dtype.isnative:
            return by_rows(value)
        value = torch.from_numpy(value)
    if not isinstance(value, Tensor):
        raise DataError(f"{where}: expected {what} to be a tensor, got {type(value).__name__}")
    if value.layout is not torch.strided or value.device.type != "cpu":
        raise DataError(
            f"{where}: expected {what} to be a dense tensor, got {value.layout} on {value.device}"
        )
    value = value.detach()
    return value[0] if has_batch_axis(tuple(value.shape)) else value
