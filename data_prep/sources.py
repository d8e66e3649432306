"""What `data_prep.shard` reads: a folder of per-slide feature files, and a table of labels.

A slide's features are `<slide>.pt` or `<slide>.npy`; the files are treated as hostile. Nothing in them is
executed, and what they claim to hold is compared with their length before anything is allocated.

Dimensions: N instances of a bag, D features.
"""

import csv
import math
import re
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mhimdist.data.format import COORDS_DTYPE, INSTANCE_LABELS_DTYPE
from mhimdist.errors import DataError, LabelError

FEATURE_SUFFIXES = (".pt", ".npy")
FEATURE_KEYS = ("features", "feats")
SIDECARS = ("coords", "instance_labels")
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

SLIDE_COLUMNS = ("slide", "slide_id", "slide_name", "wsi", "wsi_id")
LABEL_COLUMNS = ("label", "class", "target")
CASE_COLUMNS = ("case", "case_id", "patient", "patient_id")

# torch.save before 1.6 began a file with this pickled number; whatever else is not a zip, it did not write.
_LEGACY_TORCH = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")


@dataclass(frozen=True)
class SlideLabel:
    """A row of the label table."""

    slide: str
    case: str
    label: str


@dataclass(frozen=True, eq=False)
class SlideFeatures:
    """What a feature file holds, found sound in shape and type; the values are not yet looked at.

    Attributes:
        features_ND: N x D, N >= 1, D >= 1, one of `FLOATS`, in any layout.
        coords_N2: int32 N x 2.
        instance_labels_N: uint8 N.
        encoder: name of the network that computed the features.
        patch_size: edge of a patch in pixels.
    """

    features_ND: Tensor
    coords_N2: np.ndarray | None = None
    instance_labels_N: np.ndarray | None = None
    encoder: str | None = None
    patch_size: int | None = None


def some(names: Iterable[str], limit: int = 5) -> str:
    """The first few names for a message, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(map(repr, listed[:limit])) + more


def find_features(folder: Path) -> dict[str, Path]:
    """The feature file of every slide in a folder; files with other endings are passed over.

    Raises:
        DataError: no such folder, nothing in it to read, two files for one slide, or a sidecar alone.
    """
    if not folder.is_dir():
        raise DataError(f"no folder of features at {folder}")
    files: dict[str, Path] = {}
    sidecars: list[Path] = []
    for path in sorted(folder.iterdir()):
        if path.suffix not in FEATURE_SUFFIXES or not path.is_file():
            continue
        if _sidecar_of(path.name):
            sidecars.append(path)
        elif path.stem in files:
            raise DataError(f"two files of features for one slide: {files[path.stem].name} and {path.name}")
        else:
            files[path.stem] = path
    if not files:
        found = some(path.name for path in sorted(folder.iterdir())) or "nothing"
        raise DataError(f"no {' or '.join(FEATURE_SUFFIXES)} file in {folder}; it holds {found}")
    for path in sidecars:
        owner = files.get(_sidecar_of(path.name))
        if owner is None or owner.suffix != ".npy":
            raise DataError(f"{path.name} belongs to no {_sidecar_of(path.name)}.npy in {folder}")
    return files


def _sidecar_of(name: str) -> str:
    """The slide that a file of this name is a sidecar of, "" if it is none."""
    for kind in SIDECARS:
        if name.endswith(f".{kind}.npy"):
            return name.removesuffix(f".{kind}.npy")
    return ""


def read_features(path: Path) -> SlideFeatures:
    """Read a `.pt` or `.npy` file of features.

    A `.pt` file holds a tensor, or a dict with the tensor under "features" or "feats" and optionally
    "coords", "instance_labels", "encoder" and "patch_size". Beside a `.npy` file may stand
    `<slide>.coords.npy` and `<slide>.instance_labels.npy`. Arrays are mapped, not read. Features must be
    floats of 2, 4 or 8 bytes or bfloat16, in any byte order and layout; integers are refused, since their
    scale is unknown.

    Raises:
        DataError: the file holds something else; the message names it.
    """
    found = _read_npy_set(path) if path.suffix == ".npy" else _read_pt(path)
    keys = [key for key in FEATURE_KEYS if key in found]
    if len(keys) != 1:
        raise DataError(f"{path}: expected one of the keys {FEATURE_KEYS}, got {sorted(map(str, found))}")
    features_ND = _tensor(found[keys[0]], path, keys[0])
    if features_ND.dtype not in FLOATS:
        raise DataError(f"{path}: features must be floats, got {features_ND.dtype}")
    if features_ND.ndim != 2:
        raise DataError(f"{path}: expected features of shape N x D, got {tuple(features_ND.shape)}")
    num_instances, num_features = features_ND.shape
    if not num_instances or not num_features:
        raise DataError(f"{path}: the bag is empty: its features are {num_instances} x {num_features}")
    num_bytes = num_instances * num_features * features_ND.element_size()
    if num_bytes > path.stat().st_size:  # an expanded tensor: one stored number may claim to be 10^15
        raise DataError(f"{path}: claims {num_instances} x {num_features} features, more than it stores")
    encoder, patch_size = found.get("encoder"), found.get("patch_size")
    return SlideFeatures(
        features_ND,
        coords_N2=_integers(found.get("coords"), path, "coords", (num_instances, 2), COORDS_DTYPE),
        instance_labels_N=_integers(
            found.get("instance_labels"), path, "instance_labels", (num_instances,), INSTANCE_LABELS_DTYPE
        ),
        encoder=encoder if isinstance(encoder, str) else None,
        patch_size=patch_size if isinstance(patch_size, int) else None,
    )


def _read_pt(path: Path) -> dict:
    with path.open("rb") as file:
        legacy = file.read(len(_LEGACY_TORCH)) == _LEGACY_TORCH
    try:
        if not legacy:
            with zipfile.ZipFile(path) as archive:
                if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
                    raise DataError(f"{path}: holds compressed records, which torch.save does not write")
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=not legacy)
    except (DataError, OSError):
        raise
    except Exception as error:  # whatever the damage leads torch's readers to
        if forbidden := re.search(r"GLOBAL (\S+)", str(error)):
            raise DataError(
                f"{path}: refused, it holds {forbidden[1]}; expected a tensor or a dict of tensors"
            ) from error
        raise DataError(f"{path}: damaged, or not a file that torch.save wrote") from error
    if isinstance(loaded, Tensor):
        return {"features": loaded}
    if not isinstance(loaded, dict):
        raise DataError(f"{path}: expected a tensor or a dict of tensors, got {type(loaded).__name__}")
    return loaded


def _read_npy_set(path: Path) -> dict:
    found = {"features": _map_npy(path)}
    for kind in SIDECARS:
        sidecar = path.with_name(f"{path.stem}.{kind}.npy")
        if sidecar.exists():
            found[kind] = _map_npy(sidecar)
    return found


def _map_npy(path: Path) -> np.ndarray:
    """A .npy file as a mapped array in native byte order."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    with path.open("rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            lengths, column_major, dtype = readers[version](file)
        except Exception as error:  # numpy evaluates the header as a literal: anything can be wrong with it
            raise DataError(f"{path}: not a .npy file: {' '.join(str(error).split())[:200]}") from error
        start = file.tell()
    shape = tuple(map(int, lengths))  # numpy lets through a bool for an int
    if dtype.hasobject:
        raise DataError(f"{path}: refused, it holds Python objects; expected numbers")
    expected, got = start + math.prod(shape) * dtype.itemsize, path.stat().st_size
    if min(shape, default=0) < 0 or expected != got:
        raise DataError(f"{path}: its header says {shape} {dtype}, {expected} bytes, but it has {got}")
    # "c", a private writable map, because torch warns of arrays that it could not write to.
    array = np.memmap(path, dtype, "c", start, shape, "F" if column_major else "C")
    return array if dtype.isnative else array.astype(dtype.newbyteorder("="))


def _tensor(value: object, path: Path, what: str) -> Tensor:
    if isinstance(value, np.ndarray):
        try:
            return torch.from_numpy(value)
        except TypeError:
            raise DataError(f"{path}: {what} of type {value.dtype} cannot be used") from None
    if not isinstance(value, Tensor):
        raise DataError(f"{path}: expected {what} to be a tensor, got {type(value).__name__}")
    if value.layout is not torch.strided or value.device.type != "cpu":
        raise DataError(f"{path}: expected {what} to be a dense tensor, got {value.layout} on {value.device}")
    return value.detach()


def _integers(
    value: object, path: Path, what: str, shape: tuple[int, ...], dtype: np.dtype
) -> np.ndarray | None:
    """A tensor of whole numbers as an array of `dtype`; floats will do if each is whole."""
    if value is None:
        return None
    tensor = _tensor(value, path, what)
    if tuple(tensor.shape) != shape:
        raise DataError(f"{path}: expected {what} of shape {shape}, got {tuple(tensor.shape)}")
    if tensor.is_complex():
        raise DataError(f"{path}: expected {what} to be whole numbers, got {tensor.dtype}")
    # Double, because the limits below must be representable.
    array = (tensor.double() if tensor.is_floating_point() else tensor).numpy()
    limits = np.iinfo(dtype)
    if not ((array >= limits.min) & (array <= limits.max)).all():
        raise DataError(f"{path}: expected {what} from {limits.min} to {limits.max}")
    if not (array == (exact := array.astype(dtype))).all():
        raise DataError(f"{path}: expected {what} to be whole numbers")
    return exact


def read_labels(path: Path) -> list[SlideLabel]:
    """Read a CSV table with a header and a row a slide; without a case column, each slide is its own case.

    Columns are found by the usual names (`SLIDE_COLUMNS`, `LABEL_COLUMNS`, `CASE_COLUMNS`), whatever their
    case; others are passed over. A byte-order mark, CRLF and blank lines do not matter.

    Raises:
        LabelError: no such table, no such column, an empty cell, or a slide that stands in it twice.
    """
    if not path.is_file():
        raise LabelError(f"no label table at {path}")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            lines = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise LabelError(f"{path} is no CSV table in UTF-8: {error}") from None
    if len(lines) < 2:
        raise LabelError(f"{path}: expected a header and at least one slide, got {len(lines)} lines")
    header = [cell.strip().lower() for cell in lines[0][1]]
    slide_column, label_column = (_column(header, names, path) for names in (SLIDE_COLUMNS, LABEL_COLUMNS))
    case_column = _column(header, CASE_COLUMNS, path) if set(header) & set(CASE_COLUMNS) else slide_column

    labels: list[SlideLabel] = []
    line_of: dict[str, int] = {}
    for line, cells in lines[1:]:
        if len(cells) != len(header):
            raise LabelError(f"{path}, line {line}: expected {len(header)} cells, got {len(cells)}")
        slide, case, label = (cells[i].strip() for i in (slide_column, case_column, label_column))
        if not (slide and case and label):
            raise LabelError(f"{path}, line {line}: a slide, case or label is empty: {cells}")
        if slide in line_of:
            raise LabelError(
                f"{path}: slide {slide!r} stands in line {line_of[slide]} and again in line {line}"
            )
        line_of[slide] = line
        labels.append(SlideLabel(slide, case, label))
    return labels


def _column(header: list[str], names: Sequence[str], path: Path) -> int:
    found = [index for index, name in enumerate(header) if name in names]
    if len(found) != 1:
        raise LabelError(f"{path}: expected one column named {' or '.join(names)}, got the header {header}")
    return found[0]


def class_order(labels: Sequence[SlideLabel], classes: Sequence[str] | None = None) -> tuple[str, ...]:
    """The classes in the order of their indices: as given, else by number if all are whole, else by name.

    Raises:
        LabelError: a slide's label is not among the given classes, or a class is named twice.
    """
    names = {row.label for row in labels}
    if classes is None:
        numeric = all(re.fullmatch(r"[+-]?[0-9]+", name) for name in names)
        if numeric and len(set(map(int, names))) < len(names):
            raise LabelError(f"labels that are the same number are written differently: {sorted(names)}")
        return tuple(sorted(names, key=int) if numeric else sorted(names))
    if len(set(classes)) < len(classes) or not all(classes):
        raise LabelError(f"expected the names of different classes, got {list(classes)}")
    for row in labels:
        if row.label not in classes:
            raise LabelError(f"slide {row.slide!r} has label {row.label!r}, expected {' or '.join(classes)}")
    return tuple(classes)
