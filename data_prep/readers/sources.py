"""Sources of features: one per slide, recognised by the content of its file.

The files are treated as hostile. Nothing in them is executed, and the size that they claim is compared with
their length before anything is allocated.

Dimensions: N instances of a bag, D features.
"""

import difflib
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_prep.readers import dsmil_csv, hdf5, npy, parquet, pt, tar, zarr_store
from data_prep.readers.added import Added
from data_prep.readers.arrays import RowReader, by_rows, has_batch_axis, map_npy
from data_prep.readers.fields import DETAILS, SIDE_ARRAYS, describe
from data_prep.readers.stated import NOTHING_STATED, Stated
from mhimdist.data.format import COORDS_DTYPE, INSTANCE_LABELS_DTYPE
from mhimdist.errors import DataError
from mhimdist.tables.reading import LFS_POINTER

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
"""Suffixes of files that are looked at, and the family of a file if its content does not tell."""

READERS: dict[str, Callable[..., dict[Any, Any]]] = {
    "torch": pt.read,
    "npy": npy.read,
    "npz": npy.read_npz,
    "hdf5": hdf5.read,
    "zarr": zarr_store.read,
    "tar": tar.read,
    "parquet": parquet.read,
    "csv": dsmil_csv.read,
}
"""By family, the function that reads arrays and details by name, given the file, for bundles a place in it,
and the names of the wanted arrays."""

BUNDLES: dict[str, Callable[..., Iterator[tuple[str, tuple, dict[str, Any]]]]] = {
    "tar": tar.bags_in,
    "parquet": parquet.bags_in,
}
"""Families whose files hold many bags."""


@cache
def others() -> Added:
    """The readers that other packages add, imported once."""
    return Added(READERS, SUFFIXES)


@dataclass(frozen=True)
class Source:
    """Where the features of a slide are.

    Attributes:
        path: the file, or the folder of a zarr store.
        family: a key of `READERS`, or the name of a reader that another package adds.
        place: place of the bag in a bundle, as the bundle's reader defines it.
        coords: a file that holds the coordinates of the same slide: CLAM's h5_files do for its pt_files,
            slideflow's `<slide>.index.npz` for `<slide>.pt`, and torchmil's coords for its features.
        instance_labels: a .npy file that holds the labels of the slide's instances, as torchmil's
            patch_labels do.
        said: the details of the bag: in a bundle label, case and `DETAILS`, otherwise the encoder in the
            name of the folder.
        stated: what the user states about all features.
    """

    path: Path
    family: str
    place: tuple = ()
    coords: Path | None = None
    instance_labels: Path | None = None
    said: tuple[tuple[str, Any], ...] = ()
    stated: Stated = NOTHING_STATED

    @property
    def details(self) -> dict[str, Any]:
        """`said` as a dict."""
        return dict(self.said)

    def files(self) -> list[Path]:
        """The files that the bag depends on, to find out whether they changed."""
        if self.path.is_dir():
            return sorted(path for path in self.path.rglob("*") if path.is_file())
        more = npy.sidecars(self.path).values() if self.family == "npy" else ()
        beside = (self.coords, self.instance_labels)
        return [self.path, *more, *(path for path in beside if path is not None)]


class SlideFeatures:
    """The content of a source, checked in shape and type; the values are not checked yet.

    Attributes:
        num_instances, num_features: N and D, each at least 1.
        dtype: of the features, one of `FLOATS`.
        details: the `DETAILS` that are known, such as encoder and patch size.
        has_coords, has_instance_labels: whether the source holds them.
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
            details: the `DETAILS` that are known.
            where: names the source in messages.
            names: names that the array of features may have.
            bfloat16: whether the 16-bit features are the bits of bfloat16.
            max_bytes: length of the file, which uncompressed features cannot exceed.

        Raises:
            DataError: the arrays are not a bag.
        """
        self._where = where
        self._found = found
        self._features = _as_rows(_array(*_features_in(found, names, where)))
        self.dtype = self._features.dtype if isinstance(self._features, Tensor) else _torch(self._features)
        if bfloat16:
            if self.dtype != torch.uint16:
                raise DataError(f"{where}: expected the bits of bfloat16 as uint16, got {self.dtype}")
            self.dtype = torch.bfloat16
        shape = tuple(self._features.shape)
        if shape and not all(shape):  # as TRIDENT writes for a slide without tissue
            raise DataError(f"{where}: the bag is empty: its features are {' x '.join(map(str, shape))}")
        if self.dtype not in FLOATS:
            raise DataError(f"{where}: expected features to be floats, got {self.dtype}")
        if len(shape) != 2:
            raise DataError(f"{where}: expected features of shape N x D, got {shape}")
        self.num_instances, self.num_features = map(int, shape)
        self._refuse_transposed()
        num_bytes = self.num_instances * self.num_features * self.dtype.itemsize
        if max_bytes is not None and num_bytes > max_bytes:
            # An expanded tensor: one stored number may claim to be 10^15 numbers.
            raise DataError(f"{where}: claims {shape[0]} x {shape[1]} features, more than it stores")
        # Some tools add the width and height of a patch, which are dropped.
        self.has_coords = self._has("coords", (self.num_instances, 2), (self.num_instances, 4))
        self.has_instance_labels = self._has("instance_labels", (self.num_instances,))
        self.details = dict(details)

    def blocks(self, max_bytes: int) -> Iterator[Tensor]:
        """The features in order, in blocks of rows, so that a bag of any size needs little memory.

        A block has about `max_bytes`, but at least one row, or one chunk of rows if the file has chunks.

        Raises:
            DataError: the rows are damaged.
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
        """All features, N x D, of a dtype in `FLOATS` and in any layout."""
        return self._rows(0, self.num_instances)

    @cached_property
    def coords_N2(self) -> np.ndarray | None:
        """Coordinates, int32 N x 2; micrometres are rounded to whole numbers. None if there are none.

        Raises:
            DataError: they are not whole numbers, or do not fit int32.
        """
        rounded = "coords_unit" in self.details
        if not self.has_coords:
            return None
        return self._integers("coords", COORDS_DTYPE, rounded=rounded)[:, :2]

    @cached_property
    def instance_labels_N(self) -> np.ndarray | None:
        """Labels of the instances, uint8 N; None if there are none.

        Raises:
            DataError: they are not whole numbers from 0 to 255.
        """
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
            raise DataError(
                f"{self._where}: expected {name} of shape {expected[0]}, got {got}{_way_out(name)}"
            )
        return True

    def _refuse_transposed(self) -> None:
        """Refuse D x N features by name, if the coordinates tell them from N x D."""
        coords = self._found.get("coords")
        if coords is None or self.num_instances == self.num_features:
            return
        rows = tuple(_array(coords, self._where, "coords").shape)
        if len(rows) == 2 and rows[0] == self.num_features:
            raise DataError(
                f"{self._where}: its features are {self.num_instances} x {self.num_features}, its "
                f"coordinates {rows[0]} x {rows[1]}: the features are transposed; save them as "
                "patches x features"
            )

    def _integers(self, name: str, dtype: np.dtype, *, rounded: bool = False) -> np.ndarray:
        """An array of whole numbers as `dtype`; floats must be whole too, unless they are `rounded`."""
        array = _array(self._found[name], self._where, name)
        tensor = array if isinstance(array, Tensor) else torch.from_numpy(array.read(0, array.shape[0]))
        if tensor.is_complex():
            raise DataError(
                f"{self._where}: expected {name} to be whole numbers, got {tensor.dtype}{_way_out(name)}"
            )
        # Double, because it must represent the limits below.
        values = (tensor.double() if tensor.is_floating_point() else tensor).numpy()
        values = np.rint(values) if rounded else values
        limits = np.iinfo(dtype)
        if not ((values >= limits.min) & (values <= limits.max)).all():
            raise DataError(
                f"{self._where}: expected {name} from {limits.min} to {limits.max}{_way_out(name)}"
            )
        if not (values == (exact := values.astype(dtype))).all():
            raise DataError(f"{self._where}: expected {name} to be whole numbers{_way_out(name)}")
        return exact


def _way_out(name: str) -> str:
    return "; --drop-coords leaves the coordinates out" if name == "coords" else ""


def _features_in(found: Mapping[Any, Any], names: tuple[str, ...], where: str) -> tuple[Any, str, str]:
    """The array of features, the source and the array's name, as `_array` takes them.

    Raises:
        DataError: none of the names is there, or more than one.
    """
    keys = [key for key in names if found.get(key) is not None]
    if len(keys) > 1:
        raise DataError(
            f"{where}: holds features under {some(keys)}; give --feature-key with one of them, such as "
            f"--feature-key {keys[0]}"
        )
    if not keys:
        there = sorted(map(str, found))
        others = [name for name in there if name.rpartition("/")[2] not in SIDE_ARRAYS]
        near = difflib.get_close_matches(names[0], others, 1) or others[:1]
        hint = f"; give --feature-key, such as --feature-key {near[0]}" if near else ""
        if there and not others:
            hint = "; it holds coordinates and no features: give the folder of the features"
        raise DataError(
            f"{where}: expected one of the keys {names}, got {some(there, 20) or 'nothing'}{hint}"
        )
    return found[keys[0]], where, keys[0]


def _as_rows(array: Tensor | RowReader) -> Tensor | RowReader:
    """The features of a single patch, of shape D, as 1 x D; others as they are."""
    if len(array.shape) != 1 or not array.shape[0]:
        return array
    if isinstance(array, Tensor):
        return array[None]
    reader, width = array, array.shape[0]
    return RowReader((1, width), reader.dtype, lambda start, end: reader.read(0, width)[None][start:end])


def some(names: Iterable[str], limit: int = 5) -> str:
    """The first few names for a message, and the number of further ones."""
    listed = list(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(map(repr, listed[:limit])) + more


def read_features(source: Source) -> SlideFeatures:
    """Open a source; its arrays are mapped now, or read later.

    Features are a tensor or array, N x D, 1 x N x D or, for a single patch, D. It is alone in its file, or
    under one of the names in `fields.FEATURES` next to "coords" (N x 2, or N x 4, of which the first two
    columns are taken), "instance_labels" and `DETAILS`. Features must be floats of 2, 4 or 8 bytes or
    bfloat16, in any byte order and layout; integers are refused, because their scale is unknown.

    Raises:
        DataError: the file holds something else, or a detail differs from the stated one; the message names
            the file.
    """
    path, where, said, stated = source.path, _where(source), source.details, source.stated
    place = (source.place,) if source.family in BUNDLES else ()
    try:
        if source.family in READERS:
            found = READERS[source.family](path, *place, stated.arrays)
        else:
            found = others().read(source.family, path, stated.arrays)
    except DataError:
        refuse_pointer(path)
        raise
    details = {name: said[name] for name in DETAILS if said.get(name) is not None} | describe(found)
    if source.coords is not None and not stated.drop_coords:
        beside = _beside(source.coords)
        found, details = {"coords": beside.get("coords"), **found}, describe(beside) | details
    if source.instance_labels is not None:
        found = {"instance_labels": map_npy(source.instance_labels), **found}
    if stated.drop_coords:
        found = {name: value for name, value in found.items() if name != "coords"}
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
        # Readers of compressed files have already compared the claimed size with the stored one.
        max_bytes=path.stat().st_size if source.family in ("torch", "npy") else None,
    )


def refuse_pointer(path: Path) -> None:
    """Refuse the small text that Git keeps in place of a large file.

    Raises:
        DataError: it is one.
    """
    if path.is_file():
        with path.open("rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                raise DataError(
                    f"{path} is a pointer of Git LFS, not the file itself; fetch it with `git lfs pull`"
                )


def _beside(path: Path) -> Mapping[Any, Any]:
    """Coordinates, and details, in a file that is next to that of the features."""
    if path.suffix == ".npz":  # slideflow's
        return {"coords": npy.read_npz(path, (npy.UNNAMED,)).get(npy.UNNAMED)}
    if path.suffix == ".npy":  # torchmil's
        return {"coords": map_npy(path)}
    return hdf5.read(path, ("coords",))


def family_of(path: Path) -> str | None:
    """The family of a file or folder by its first bytes, a key of `READERS`; None if they do not tell."""
    if path.is_dir():
        return "zarr" if zarr_store.is_store(path) else None
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith(b"PK\x03\x04"):
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except Exception:  # damage makes zipfile raise anything; the reader will name it
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
        dsmil_csv.SIGN: "csv",
    }
    known = next((family for sign, family in signs.items() if head.startswith(sign)), None)
    return known or others().family_of(head)


def _where(source: Source) -> str:
    slide = source.details.get("slide")
    return f"{source.path}: {slide}" if source.place and slide else str(source.path)


def _torch(reader: RowReader) -> torch.dtype:
    return torch.from_numpy(np.empty(0, reader.dtype)).dtype


def _array(value: object, where: str, what: str) -> Tensor | RowReader:
    """A found array, without a batch axis."""
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
    if value.layout is not torch.strided or value.device.type != "cpu" or value.is_nested:
        kind = "a nested one" if value.is_nested else f"{value.layout} on {value.device}"
        raise DataError(f"{where}: expected {what} to be a dense tensor, got {kind}")
    value = value.detach()
    return value[0] if has_batch_axis(tuple(value.shape)) else value
