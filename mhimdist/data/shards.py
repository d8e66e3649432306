"""`BagShards`: bags read from memory-mapped shards by row number, in any order.

Dimensions: N bags of the data set or instances of a bag, T instances of a batch, B bags of a batch,
D features.
"""

import math
import mmap
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from isal import isal_zlib
from torch import Tensor

from mhimdist import files
from mhimdist.data import feature_sets, memory, targets
from mhimdist.data.bags import PackedBags, bag_id
from mhimdist.data.format import (
    COORDS_DTYPE,
    FEATURE_DTYPES,
    INSTANCE_LABELS_DTYPE,
    NPY_HEADER_BYTES,
    extension,
    npy_header,
)
from mhimdist.data.gpu_pages import Place
from mhimdist.data.manifest import (
    ARRIVING_NAME,
    MANIFEST_NAME,
    MAX_BYTES,
    Manifest,
    missing,
    parse_arriving,
    settled,
)
from mhimdist.data.mapped_shards import MappedShards
from mhimdist.data.remote import Location, RemoteFolder, absolute
from mhimdist.data.scattered import OpenFile, read_rows
from mhimdist.data.shard_cache import ShardCache
from mhimdist.data.stored import StoredBags
from mhimdist.data.targets import TaskInfo
from mhimdist.errors import ConfigError, CorruptShard, DataError

_PARTS = ("offset", "bytes", "crc32")


class BagShards(StoredBags):
    """The bags of a folder that `data_prep.shard` wrote.

    The manifest has the position of every array, so a bag is a view of a mapped file: nothing is parsed,
    copied or unpickled to find it. You may pickle the object (it then carries only its location and opens it
    again), inherit it through a fork, and read from it in more than one thread.

    Attributes:
        shards: the shard files, as the manifest lists them.
        feature_set: the name of the set that is read; "" without name.
        The others are those of `StoredBags`.
    """

    bag_of = "slide"

    def __init__(
        self,
        folder: Location,
        *,
        features: str | None = None,
        verify: Literal["first_read", "never"] = "first_read",
        shard_cache: ShardCache | None = None,
    ) -> None:
        """Open a data set; this reads only the manifest and the lengths of the shards.

        Args:
            folder: of `manifest.parquet` and the shards, local or a URL; shards there are fetched when read.
            features: name of the feature set to read, if there are several; shards of others are not fetched.
            verify: "first_read" checks a member's crc32 and array header when this process first reads it
                and after the file has changed; "never" trusts the files (fetched ones are checked whole).
            shard_cache: cache for remote shards; None for a `ShardCache` with its defaults.

        Raises:
            ConfigError: `verify` is something else, the URL is not allowed, or there is no such feature set.
            ManifestError: the manifest is unusable, or shards are missing, have another length, or are not
                listed.
            RemoteDataError: the server of a remote folder does not answer.
        """
        if verify not in ("first_read", "never"):
            raise ConfigError(f"verify: expected 'first_read' or 'never', got {verify!r}")
        self.verify = verify
        self._location = absolute(folder)
        place = RemoteFolder(self._location) if isinstance(self._location, str) else self._location
        manifest = remote_manifest(place) if isinstance(place, RemoteFolder) else Manifest.open(place)
        self.features, self.feature_set = features, _one_of(manifest.feature_sets, features, folder)
        manifest = manifest.of(self.feature_set)
        self._mapped = MappedShards(place, manifest.info.shards, shard_cache)
        self.folder = self._mapped.folder

        rows = manifest.rows
        self.name, self.classes = manifest.info.name, manifest.info.classes
        self.digest = manifest.content_sha256
        self.synthetic, self.description = manifest.info.synthetic, manifest.info.description
        self.keys: tuple[str, ...] = tuple(rows["key"].to_pylist())
        self.slides: tuple[str, ...] = tuple(rows["slide"].to_pylist())
        self.cases: tuple[str, ...] = tuple(rows["case"].to_pylist())
        self.labels_N = rows["label"].to_numpy().astype(np.int64)
        self.task = manifest.info.task or TaskInfo()
        self.targets_NK = targets.of_rows(rows, self.task)
        self.sizes_N = rows["num_instances"].to_numpy().astype(np.int64)
        self.ids_N = np.array([bag_id(key) for key in self.keys], dtype=np.int64)
        self.num_features = int(rows["num_features"][0].as_py())
        self.stored_dtypes: tuple[str, ...] = tuple(sorted(rows["dtype"].unique().to_pylist()))
        one, *others = self.stored_dtypes
        self.dtype: torch.dtype = torch.float32 if others else getattr(torch, one)

        self._row_of = {key: row for row, key in enumerate(self.keys)}
        self._dtypes: list[str] = rows["dtype"].to_pylist()
        self._shards: list[str] = rows["shard"].to_pylist()
        self.shards = manifest.info.shards
        self._members = {
            kind: {part: rows[f"{kind}_{part}"].fill_null(0).to_numpy() for part in _PARTS}
            for kind in ("features", "coords", "instance_labels", "json")
        }
        self._verified: set[tuple[str, int, int]] = set()

    def __reduce__(self) -> tuple[Callable[[], "BagShards"], tuple[()]]:
        how = self._location, self.features, self.verify, self._mapped.cache, self.digest
        return partial(_again, type(self), *how), ()

    def rows_of(self, keys: Sequence[str]) -> np.ndarray:
        """See `StoredBags.rows_of`."""
        if unknown := [key for key in keys if key not in self._row_of]:
            raise DataError(
                f"{self.folder} has no bag {unknown[0]!r} ({len(unknown)} of {len(keys)} unknown)"
            )
        return np.array([self._row_of[key] for key in keys], dtype=np.int64)

    def dtypes_of(self, rows: Sequence[int] | np.ndarray) -> frozenset[torch.dtype]:
        """See `StoredBags.dtypes_of`."""
        return frozenset(getattr(torch, self._dtypes[row]) for row in self._checked(rows).tolist())

    def is_view(self, rows: Sequence[int] | np.ndarray, dtype: torch.dtype) -> bool:
        """See `StoredBags.is_view`."""
        return len(rows) == 1 and getattr(torch, self._dtypes[rows[0]]) == dtype

    def load(
        self,
        rows: Sequence[int] | np.ndarray,
        dtype: torch.dtype = torch.float32,
        *,
        out: Tensor | None = None,
    ) -> PackedBags:
        """The bags of these rows, packed in this order, with features in `dtype`.

        Features are converted in one pass from the mapped file into the batch. A single bag that is stored
        in `dtype` is not copied: its tensor is the file's pages, so read it, but do not write to it.

        Args:
            rows: row numbers; an empty sequence returns a batch of no bags.
            dtype: floating dtype of the batch's features.
            out: a buffer of `dtype`, at least T x D, for features that must be converted or copied. Filling
                pages that the process already has is several times as fast as requesting new ones; the
                features are valid until the buffer is filled again.

        Raises:
            DataError: a row is out of range, `out` is too small or of another dtype, or the batch needs more
                memory than this process can have; the message names its largest bag.
            CorruptShard: the bytes of a shard are not those that the manifest describes.
        """
        rows_B = self._checked(rows)
        if self.is_view(rows_B, dtype):
            features_TD = self._features_ND(int(rows_B[0]))
        else:
            features_TD = memory.buffer(self, rows_B, int(self.sizes_N[rows_B].sum()), dtype, out)
            parts = features_TD.split(self.sizes_N[rows_B].tolist())
            for part_ND, row in zip(parts, rows_B.tolist(), strict=True):
                part_ND.copy_(self._features_ND(row))
        return PackedBags.of_rows(self, rows_B, features_TD)

    def scattered(
        self,
        rows: Sequence[int] | np.ndarray,
        instances: Sequence[np.ndarray],
        dtype: torch.dtype,
        *,
        out: Tensor | None = None,
    ) -> Tensor:
        """See `StoredBags.scattered`."""
        rows_B, sizes = self._checked(rows), [len(each) for each in instances]
        features_TD = memory.buffer(self, rows_B, sum(sizes), dtype, out)
        parts = features_TD.split(sizes)
        for part_KD, row, chosen_K in zip(parts, rows_B.tolist(), instances, strict=True):
            if len(chosen_K) == self.sizes_N[row]:
                part_KD.copy_(self._features_ND(row))
            elif len(chosen_K):
                file, start = self._file(row)
                read_rows(file, start, chosen_K, getattr(torch, self._dtypes[row]), part_KD)
        return features_TD

    def fetch_ahead(self, rows: Iterable[int]) -> None:
        """See `StoredBags.fetch_ahead`."""
        self._mapped.fetch_ahead(self._shards[row] for row in rows)

    def place(self, row: int) -> Place:
        """See `gpu_pages.InFiles`."""
        (row,) = self._checked([row]).tolist()
        shape = int(self.sizes_N[row]), self.num_features
        _, start = self._array(row, "features", FEATURE_DTYPES[self._dtypes[row]], shape)
        name = self._shards[row]
        return Place(self._mapped.mapped(name).descriptor, start, self._mapped.changes[name])

    def payload(self, row: int) -> np.ndarray:
        """See `StoredBags.payload`; it is the file in the shard."""
        (row,) = self._checked([row]).tolist()
        shape = int(self.sizes_N[row]), self.num_features
        mapped, start = self._array(row, "features", FEATURE_DTYPES[self._dtypes[row]], shape)
        num_bytes = int(self._members["features"]["bytes"][row])
        array = np.frombuffer(mapped, np.uint8, num_bytes, start - NPY_HEADER_BYTES)
        array.flags.writeable = False
        return array

    def coords(self, row: int) -> np.ndarray | None:
        """See `StoredBags.coords`."""
        return self._side_array(row, "coords", COORDS_DTYPE, 2)

    def instance_labels(self, row: int) -> np.ndarray | None:
        """See `StoredBags.instance_labels`."""
        return self._side_array(row, "instance_labels", INSTANCE_LABELS_DTYPE)

    def details(self, row: int) -> dict[str, Any]:
        """See `StoredBags.details`."""
        (row,) = self._checked([row]).tolist()
        mapped = self._mapped.map(self._shards[row])
        offset, num_bytes, crc32 = (int(values_N[row]) for values_N in self._members["json"].values())
        where = f"{self.folder}/{self._shards[row]}: {self.keys[row]}.json"
        return _json_object(mapped[offset : offset + num_bytes], crc32, where)

    def _checked(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        rows_B = np.asarray(rows, dtype=np.int64)
        outside = rows_B[(rows_B < 0) | (rows_B >= len(self))]
        if len(outside):
            raise DataError(f"{self.folder} has rows 0 to {len(self) - 1}, got {outside[0]}")
        return rows_B

    def _features_ND(self, row: int) -> Tensor:
        shape = int(self.sizes_N[row]), self.num_features
        dtype = self._dtypes[row]
        mapped, start = self._array(row, "features", FEATURE_DTYPES[dtype], shape)
        flat = torch.frombuffer(mapped, dtype=getattr(torch, dtype), count=math.prod(shape), offset=start)
        return flat.view(shape)

    def _file(self, row: int) -> tuple[OpenFile, int]:
        """The shard of a bag and where its features start; the first read checks the header if asked to."""
        file, offset = self._mapped.file(self._shards[row]), int(self._members["features"]["offset"][row])
        changes = self._mapped.changes[self._shards[row]]
        known = {("features", row, changes), ("header", row, changes)}
        if self.verify == "first_read" and not known & self._verified:
            shape, dtype = (int(self.sizes_N[row]), self.num_features), FEATURE_DTYPES[self._dtypes[row]]
            if os.pread(file.descriptor, NPY_HEADER_BYTES, offset) != npy_header(dtype, shape):
                raise CorruptShard(f"{self._where(row, 'features')}: {_another_header(shape, dtype)}")
            self._verified.add(("header", row, changes))
        return file, offset + NPY_HEADER_BYTES

    def _where(self, row: int, kind: str) -> str:
        return f"{self.folder}/{self._shards[row]}: {self.keys[row]}.{extension(kind, self.feature_set)}"

    def _side_array(self, row: int, kind: str, dtype: np.dtype, *columns: int) -> np.ndarray | None:
        (row,) = self._checked([row]).tolist()
        if not self._members[kind]["bytes"][row]:
            return None
        shape = int(self.sizes_N[row]), *columns
        mapped, start = self._array(row, kind, dtype, shape)
        array = np.frombuffer(mapped, dtype, math.prod(shape), start).reshape(shape)
        array.flags.writeable = False
        return array

    def _array(self, row: int, kind: str, dtype: np.dtype, shape: tuple[int, ...]) -> tuple[mmap.mmap, int]:
        """The mapped shard of a member and the start of its array data; checks it if `verify` asks for it."""
        mapped = self._mapped.map(self._shards[row])
        offset, num_bytes, crc32 = (int(values_N[row]) for values_N in self._members[kind].values())
        checked = kind, row, self._mapped.changes[self._shards[row]]
        if self.verify == "first_read" and checked not in self._verified:
            where = self._where(row, kind)
            if mapped[offset : offset + NPY_HEADER_BYTES] != npy_header(dtype, shape):
                raise CorruptShard(f"{where}: {_another_header(shape, dtype)}")
            with memoryview(mapped) as view, view[offset : offset + num_bytes] as payload:
                got = isal_zlib.crc32(payload)
            if got != crc32:
                raise CorruptShard(f"{where}: expected crc32 {crc32:08x}, got {got:08x}")
            self._verified.add(checked)
        return mapped, offset + NPY_HEADER_BYTES


def _again(
    kind: type[BagShards],
    location: Location,
    features: str | None,
    verify: Literal["first_read", "never"],
    cache: ShardCache | None,
    digest: str,
) -> BagShards:
    """Open a data set in another process, which got its place from this one."""
    bags = kind(location, features=features, verify=verify, shard_cache=cache)
    bags.require_digest(digest)
    return bags


def _json_object(content: bytes, crc32: int, where: str) -> dict[str, Any]:
    if (got := isal_zlib.crc32(content)) != crc32:
        raise CorruptShard(f"{where}: expected crc32 {crc32:08x}, got {got:08x}")
    with suppress(ValueError):
        if isinstance(said := files.parse_json(content), dict):
            return said
    raise CorruptShard(f"{where}: expected a JSON object")


def _another_header(shape: tuple[int, ...], dtype: np.dtype) -> str:
    return f"expected the header of an array of {shape} {dtype.name}"


def _one_of(names: Sequence[str], features: str | None, folder: Location) -> str:
    """The name of the one feature set that is asked for; "" if features have no name."""
    wanted = feature_sets.chosen(names, features, str(folder)) or ("",)
    if len(wanted) > 1:
        raise ConfigError(f"features: expected one feature set, got {features!r}; open_bags takes several")
    return wanted[0]


def remote_manifest(remote: RemoteFolder) -> Manifest:
    """The manifest of a remote folder, which agrees with the folder's files if it can list them."""
    return settled(partial(_look, remote), remote.name)


def _look(remote: RemoteFolder) -> tuple[Manifest, dict[str, str]]:
    """A remote folder's manifest, and the folder's faults if it can be listed."""
    try:
        content = remote.read(MANIFEST_NAME, MAX_BYTES)
    except FileNotFoundError as error:
        raise missing(str(error)) from None
    manifest = Manifest.parse(content, f"{remote.name}/{MANIFEST_NAME}")
    if (sizes := remote.sizes()) is None:
        return manifest, {}
    names: frozenset[str] = frozenset()
    if ARRIVING_NAME in sizes:
        with suppress(FileNotFoundError):
            names = parse_arriving(remote.read(ARRIVING_NAME, MAX_BYTES), f"{remote.name}/{ARRIVING_NAME}")
    return manifest, manifest.faults_of(sizes, names)
