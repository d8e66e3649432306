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

from data_prep import read_hdf5, read_numpy, read_parquet, read_tar, read_torch, read_zarr
from data_prep.arrays import RowReader
from mhimdist.data.format import COORDS_DTYPE, INSTANCE_LABELS_DTYPE
from mhimdist.errors import DataError

FEATURE_KEYS = ("features", "feats")
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
DETAILS: dict[str, type] = {
    "encoder": str,
    "patch_size": int,
    "level": int,
    "magnification": float,
    "coords_unit": str,
}
"""What is kept of a bag's making: the encoder's name, the edge of a patch in pixels, the level of the slide's
pyramid, the magnification, and the unit of the coordinates ("um" for STAMP's, else pixels of level 0)."""

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
    "torch": read_torch.read,
    "npy": read_numpy.read,
    "npz": read_numpy.read_npz,
    "hdf5": read_hdf5.read,
    "zarr": read_zarr.read,
    "tar": read_tar.read,
    "parquet": read_parquet.read,
}
"""By family: what turns a file (and for bundles, a place in it) into arrays and details by name."""

BUNDLES = {"tar": read_tar.bags_in, "parquet": read_parquet.bags_in}
"""Families whose files hold many bags."""


@dataclass(frozen=True)
class Source:
    """Where the features of a slide lie.

    Attributes:
        path: the file, or the folder of a zarr store.
        family: a key of `READERS`.
        place: of the bag in a bundle, in the words of the bundle's reader.
        coords: a file that holds the coordinates of the same slide, as CLAM's h5_files do for its pt_files.
        said: what a bundle says of the bag: label, case and `DETAILS`.
    """

    path: Path
    family: str
    place: tuple = ()
    coords: Path | None = None
    said: tuple[tuple[str, Any], ...] = ()

    @property
    def details(self) -> dict[str, Any]:
        """`said` as a dict."""
        return dict(self.said)

    def files(self) -> list[Path]:
        """Files on which the bag depends, for telling whether it changed."""
        if self.path.is_dir():
            return sorted(path for path in self.path.rglob("*") if path.is_file())
        sidecars = [self.path.with_name(f"{self.path.stem}.{kind}.npy") for kind in read_numpy.SIDECARS]
        more = [path for path in sidecars if self.family == "npy" and path.exists()]
        return [self.path, *more, *([self.coords] if self.coords else [])]


class SlideFeatures:
    """What a source holds, found sound in shape and type; the values are not yet looked at.

    Attributes:
        num_instances, num_features: N and D, each at least 1.
        dtype: of the features, one of `FLOATS`.
        details: encoder, patch size and so on: those of `DETAILS` that are known.
        has_coords, has_instance_labels: whether it holds them.
    """

    def __init__(self, found: Mapping[Any, Any], where: str, max_bytes: int | None = None) -> None:
        """Check the arrays that a reader found.

        Args:
            found: arrays and details by name.
            where: names the source in messages.
            max_bytes: length of the file, which uncompressed features cannot exceed.

        Raises:
            DataError: it holds something else.
        """
        keys = [key for key in FEATURE_KEYS if key in found]
        if len(keys) != 1:
            names = sorted(map(str, found))
            raise DataError(f"{where}: expected one of the keys {FEATURE_KEYS}, got {names}")
        self._where = where
        self._found = found
        self._features = _array(found[keys[0]], where, keys[0])
        self.dtype = self._features.dtype if isinstance(self._features, Tensor) else _torch(self._features)
        if self.dtype not in FLOATS:
            raise DataError(f"{where}: features must be floats, got {self.dtype}")
        shape = tuple(self._features.shape)
        if len(shape) != 2:
            raise DataError(f"{where}: expected features of shape N x D, got {shape}")
        self.num_instances, self.num_features = map(int, shape)
        if not self.num_instances or not self.num_features:
            raise DataError(f"{where}: the bag is empty: its features are {shape[0]} x {shape[1]}")
        num_bytes = self.num_instances * self.num_features * self.dtype.itemsize
        if max_bytes is not None and num_bytes > max_bytes:
            # An expanded tensor: one stored number may claim to be 10^15.
            raise DataError(f"{where}: claims {shape[0]} x {shape[1]} features, more than it stores")
        self.has_coords = self._has("coords", (self.num_instances, 2))
        self.has_instance_labels = self._has("instance_labels", (self.num_instances,))
        self.details = {
            name: value
            for name, kind in DETAILS.items()
            if (value := _detail(found.get(name), kind)) is not None
        }

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
            if isinstance(self._features, Tensor):
                yield self._features[start:end]
            else:
                yield torch.from_numpy(self._features.read(start, end))

    @property
    def features_ND(self) -> Tensor:
        """All features, N x D, one of `FLOATS`, in any layout."""
        if isinstance(self._features, Tensor):
            return self._features
        return torch.from_numpy(self._features.read(0, self.num_instances))

    @cached_property
    def coords_N2(self) -> np.ndarray | None:
        """Coordinates, int32 N x 2; those in micrometres are rounded to whole ones."""
        rounded = "coords_unit" in self.details
        return self._integers("coords", COORDS_DTYPE, rounded=rounded) if self.has_coords else None

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

    def _has(self, name: str, expected: tuple[int, ...]) -> bool:
        if self._found.get(name) is None:
            return False
        got = tuple(_array(self._found[name], self._where, name).shape)
        if got != expected:
            raise DataError(f"{self._where}: expected {name} of shape {expected}, got {got}")
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

    Features are a tensor or array, or stand under "features" or "feats" beside "coords", "instance_labels"
    and `DETAILS`. They must be floats of 2, 4 or 8 bytes or bfloat16, in any byte order and layout; integers
    are refused, since their scale is unknown.

    Raises:
        DataError: the file holds something else; the message names it.
    """
    path, reader = source.path, READERS[source.family]
    found = reader(path, source.place) if source.family in BUNDLES else reader(path)
    if source.details.get("dtype") == "bfloat16" and isinstance(bits := found.get("features"), np.ndarray):
        found["features"] = _bfloat16(bits, _where(source))
    for name, value in source.said:
        if name in DETAILS and value is not None:
            found.setdefault(name, value)
    if source.coords is not None:
        beside = read_hdf5.read(source.coords)
        found = {name: beside[name] for name in ("coords", *DETAILS) if name in beside} | found
    # What compressed files claim was compared with their length by their readers.
    plain = source.family in ("torch", "npy")
    return SlideFeatures(found, _where(source), path.stat().st_size if plain else None)


def family_of(path: Path) -> str | None:
    """What a file or folder is by its first bytes, a key of `READERS`; None if they do not tell."""
    if path.is_dir():
        return "zarr" if read_zarr.is_store(path) else None
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith(b"PK\x03\x04"):
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except zipfile.BadZipFile:
            return None
        if any(name.endswith("data.pkl") for name in names):
            return "torch"
        return "npz" if any(name.endswith(".npy") for name in names) else None
    if head[257:262] == b"ustar":
        return "tar"
    signs = {
        read_torch.LEGACY_MAGIC: "torch",
        b"\x93NUMPY": "npy",
        b"\x89HDF\r\n\x1a\n": "hdf5",
        b"PAR1": "parquet",
    }
    return next((family for sign, family in signs.items() if head.startswith(sign)), None)


def _where(source: Source) -> str:
    slide = source.details.get("slide")
    return f"{source.path}: {slide}" if source.place and slide else str(source.path)


def _bfloat16(bits_ND: np.ndarray, where: str) -> Tensor:
    """Features that shards of ours hold as bits, because .npy does not know bfloat16."""
    if bits_ND.dtype != np.uint16:
        raise DataError(f"{where}: expected the bits of bfloat16 as uint16, got {bits_ND.dtype}")
    return torch.from_numpy(bits_ND).view(torch.bfloat16)


def _torch(reader: RowReader) -> torch.dtype:
    return torch.from_numpy(np.empty(0, reader.dtype)).dtype


def _array(value: object, where: str, what: str) -> Tensor | RowReader:
    if isinstance(value, (np.ndarray, RowReader)):
        try:
            torch.from_numpy(np.empty(0, value.dtype))
        except TypeError:
            raise DataError(f"{where}: {what} of type {value.dtype} cannot be used") from None
        return torch.from_numpy(value) if isinstance(value, np.ndarray) else value
    if not isinstance(value, Tensor):
        raise DataError(f"{where}: expected {what} to be a tensor, got {type(value).__name__}")
    if value.layout is not torch.strided or value.device.type != "cpu":
        raise DataError(
            f"{where}: expected {what} to be a dense tensor, got {value.layout} on {value.device}"
        )
    return value.detach()


def _detail(value: object, kind: type) -> Any:
    """A detail in its type, None if it is not of it: attributes of files come in many."""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if kind is str:
        return value if isinstance(value, str) and value else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return kind(value) if value == value and abs(value) < 2**31 and kind(value) == value else None
