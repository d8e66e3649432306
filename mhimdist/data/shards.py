"""`BagShards`: bags read from memory-mapped shards by row number, in any order.

Dimensions: N bags of the data set or instances of a bag, T instances of a batch, B bags of a batch,
D features.
"""

import json
import math
import mmap
import warnings
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mhimdist.config.train import ConfigWarning, Loading
from mhimdist.data import memory, targets
from mhimdist.data.bags import PackedBags, bag_id
from mhimdist.data.format import (
    COORDS_DTYPE,
    EXTENSIONS,
    FEATURE_DTYPES,
    INSTANCE_LABELS_DTYPE,
    NPY_HEADER_BYTES,
    npy_header,
)
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
from mhimdist.data.remote import Location, RemoteFolder, absolute, is_remote
from mhimdist.data.shard_cache import ShardCache
from mhimdist.data.targets import TaskInfo
from mhimdist.errors import ConfigError, CorruptShard, DataError, ManifestError


class BagShards:
    """The bags of a folder that `data_prep.shard` wrote.

    The manifest has the position of every array, so a bag is a view of a mapped file: nothing is parsed,
    copied or unpickled to find it. You may pickle the object (it then carries only its location and opens it
    again), inherit it through a fork, and read from it in more than one thread.

    Attributes:
        name: the data set's name.
        classes: class names in the order of the class indices.
        keys, slides, cases: key, slide and case of every bag, in the order of the rows.
        labels_N: int64 class index of every bag.
        task, targets_NK: what the bags are labelled with, and their targets, see `BagSource`; if there are
            targets, a bag's class is a stratum of them.
        sizes_N: int64 number of instances of every bag.
        ids_N: int64 `bag_id` of every bag.
        num_features: width D of the features.
        synthetic, description: whether the features were generated, not computed from slides; their source.
        digest: hash of the manifest's content, which includes the sha256 of every shard.
        dtype: dtype of the stored features; float32 if it differs between bags.
        stored_dtypes: names of all stored dtypes.
        shards: the shard files, as the manifest lists them.
        folder: the folder of the shards, as messages name it.
    """

    def __init__(
        self,
        folder: Location,
        *,
        verify: Literal["first_read", "never"] = "first_read",
        shard_cache: ShardCache | None = None,
    ) -> None:
        """Open a data set; this reads only the manifest and the lengths of the shards.

        Args:
            folder: of `manifest.parquet` and the shards, local or a URL; shards there are fetched when read.
            verify: "first_read" checks a member's crc32 and array header when this process first reads it
                and after the file has changed; "never" trusts the files (fetched ones are checked whole).
            shard_cache: cache for remote shards; None for a `ShardCache` with its defaults.

        Raises:
            ConfigError: `verify` is something else, or the URL or its scheme is not allowed.
            ManifestError: the manifest is unusable, or shards are missing, have another length, or are not
                listed.
            RemoteDataError: the server of a remote folder does not answer.
        """
        if verify not in ("first_read", "never"):
            raise ConfigError(f"verify: expected 'first_read' or 'never', got {verify!r}")
        self.verify = verify
        self._location = absolute(folder)
        place = RemoteFolder(self._location) if isinstance(self._location, str) else self._location
        manifest = _remote_manifest(place) if isinstance(place, RemoteFolder) else Manifest.open(place)
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
            kind: {
                part: rows[f"{kind}_{part}"].fill_null(0).to_numpy() for part in ("offset", "bytes", "crc32")
            }
            for kind in ("features", "coords", "instance_labels", "json")
        }
        self._verified: set[tuple[str, int, int]] = set()

    def __len__(self) -> int:
        return len(self.keys)

    def __reduce__(self) -> tuple[Callable[[], "BagShards"], tuple[()]]:
        return partial(_again, self._location, self.verify, self._mapped.cache, self.digest), ()

    def rows_of(self, keys: Sequence[str]) -> np.ndarray:
        """Row numbers of bags, int64.

        Raises:
            DataError: a key is not in the data set.
        """
        unknown = [key for key in keys if key not in self._row_of]
        if unknown:
            raise DataError(
                f"{self.folder} has no bag {unknown[0]!r} ({len(unknown)} of {len(keys)} unknown)"
            )
        return np.array([self._row_of[key] for key in keys], dtype=np.int64)

    def dtypes_of(self, rows: Sequence[int] | np.ndarray) -> frozenset[torch.dtype]:
        """The dtypes in which the features of these rows are stored.

        Raises:
            DataError: a row is out of range.
        """
        return frozenset(getattr(torch, self._dtypes[row]) for row in self._checked(rows).tolist())

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
        if len(rows_B) == 1 and getattr(torch, self._dtypes[rows_B[0]]) == dtype:
            features_TD = self._features_ND(int(rows_B[0]))
        else:
            features_TD = self._buffer(rows_B, dtype, out)
            parts = features_TD.split(self.sizes_N[rows_B].tolist())
            for part_ND, row in zip(parts, rows_B.tolist(), strict=True):
                part_ND.copy_(self._features_ND(row))
        return PackedBags.of_rows(self, rows_B, features_TD)

    def fetch_ahead(self, rows: Iterable[int]) -> None:
        """Start to fetch the remote shards of these rows in the order of first use, several at once.

        Does nothing if the data set is larger than this node's cache: a shard fetched too early would evict
        one that is still needed. Errors are not raised here; the read of the shard raises them.
        """
        self._mapped.fetch_ahead(self._shards[row] for row in rows)

    def payload(self, row: int) -> np.ndarray:
        """A bag's features as the .npy file in its shard, uint8, read-only.

        Raises:
            DataError, CorruptShard: as in `load`.
        """
        (row,) = self._checked([row]).tolist()
        shape = int(self.sizes_N[row]), self.num_features
        mapped, start = self._array(row, "features", FEATURE_DTYPES[self._dtypes[row]], shape)
        num_bytes = int(self._members["features"]["bytes"][row])
        array = np.frombuffer(mapped, np.uint8, num_bytes, start - NPY_HEADER_BYTES)
        array.flags.writeable = False
        return array

    def coords(self, row: int) -> np.ndarray | None:
        """A bag's patch positions, int32 N x 2, read-only, in the units of the source; None if it has none.

        Raises:
            DataError, CorruptShard: as in `load`.
        """
        return self._side_array(row, "coords", COORDS_DTYPE, 2)

    def instance_labels(self, row: int) -> np.ndarray | None:
        """A bag's instance labels, uint8 N, read-only; None if it has none.

        Raises:
            DataError, CorruptShard: as in `load`.
        """
        return self._side_array(row, "instance_labels", INSTANCE_LABELS_DTYPE)

    def details(self, row: int) -> dict[str, Any]:
        """How a bag was made, as its JSON member says: encoder, patch size, level and more.

        Raises:
            DataError, CorruptShard: as in `load`.
        """
        (row,) = self._checked([row]).tolist()
        mapped = self._mapped.map(self._shards[row])
        offset, num_bytes, crc32 = (int(values_N[row]) for values_N in self._members["json"].values())
        content, where = mapped[offset : offset + num_bytes], f"{self.folder}/{self._shards[row]}"
        if (got := zlib.crc32(content)) != crc32:
            raise CorruptShard(f"{where}: {self.keys[row]}.json: expected crc32 {crc32:08x}, got {got:08x}")
        return _json_object(content, f"{where}: {self.keys[row]}.json")

    def _checked(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        rows_B = np.asarray(rows, dtype=np.int64)
        outside = rows_B[(rows_B < 0) | (rows_B >= len(self))]
        if len(outside):
            raise DataError(f"{self.folder} has rows 0 to {len(self) - 1}, got {outside[0]}")
        return rows_B

    def _buffer(self, rows_B: np.ndarray, dtype: torch.dtype, out: Tensor | None) -> Tensor:
        num_instances = int(self.sizes_N[rows_B].sum())
        if out is None:
            num_bytes = num_instances * self.num_features * dtype.itemsize
            if num_bytes >= memory.ASKED_FROM_BYTES:
                memory.require(num_bytes, memory.describe(self, rows_B, dtype))
            return torch.empty((num_instances, self.num_features), dtype=dtype)
        if out.dtype != dtype or len(out) < num_instances or out.shape[1:] != (self.num_features,):
            raise DataError(
                f"out: expected {dtype}, at least {num_instances} x {self.num_features}, "
                f"got {out.dtype}, {tuple(out.shape)}"
            )
        return out[:num_instances]

    def _features_ND(self, row: int) -> Tensor:
        shape = int(self.sizes_N[row]), self.num_features
        dtype = self._dtypes[row]
        mapped, start = self._array(row, "features", FEATURE_DTYPES[dtype], shape)
        flat = torch.frombuffer(mapped, dtype=getattr(torch, dtype), count=math.prod(shape), offset=start)
        return flat.view(shape)

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
            where = f"{self.folder}/{self._shards[row]}: {self.keys[row]}.{EXTENSIONS[kind]}"
            if mapped[offset : offset + NPY_HEADER_BYTES] != npy_header(dtype, shape):
                raise CorruptShard(f"{where}: expected the header of an array of {shape} {dtype.name}")
            with memoryview(mapped) as view, view[offset : offset + num_bytes] as payload:
                got = zlib.crc32(payload)
            if got != crc32:
                raise CorruptShard(f"{where}: expected crc32 {crc32:08x}, got {got:08x}")
            self._verified.add(checked)
        return mapped, offset + NPY_HEADER_BYTES


def _json_object(content: bytes, where: str) -> dict[str, Any]:
    with suppress(ValueError, RecursionError):
        if isinstance(said := json.loads(content), dict):
            return said
    raise CorruptShard(f"{where}: expected a JSON object")


def open_bags(location: Location, loading: Loading | None = None, *, digest: str | None = None) -> BagShards:
    """Open a data set as a configuration says; the process keeps the last one, its maps and its checks.

    Warns if a node's cache cannot keep all shards of a remote data set.

    Args:
        location: as in `BagShards`.
        loading: how it is loaded; None for the defaults.
        digest: the data set's digest, if another process has opened it for the same work.

    Raises:
        ConfigError: the cache cannot keep even the largest shard; otherwise as in `BagShards`.
        ManifestError: as in `BagShards`, or the digest is another one.
        RemoteDataError: as in `BagShards`.
    """
    return _require_digest(_open(location, loading), digest)


def _require_digest(bags: BagShards, digest: str | None) -> BagShards:
    if digest not in (None, bags.digest):
        raise ManifestError(
            f"{bags.folder} has changed since this command opened it: expected the data set {digest}, got "
            f"{bags.digest}; put the old one back, or start the work on the new one under another name"
        )
    return bags


def _again(
    location: Location, verify: Literal["first_read", "never"], cache: ShardCache | None, digest: str
) -> BagShards:
    """Open a data set in another process, which got its place from this one."""
    return _require_digest(BagShards(location, verify=verify, shard_cache=cache), digest)


@lru_cache(maxsize=1)
def _open(location: Location, loading: Loading | None) -> BagShards:
    loading = loading or Loading()
    if not is_remote(location):
        return BagShards(location, verify=loading.verify)
    cache = ShardCache(loading.shard_cache, int(loading.shard_cache_gib * 2**30))
    bags = BagShards(location, verify=loading.verify, shard_cache=cache)
    limit = f"the {memory.gib(cache.limit_bytes)} of each node's shard cache (loading.shard_cache_gib)"
    largest = max(bags.shards, key=lambda shard: shard.bytes)
    if largest.bytes > cache.limit_bytes:
        raise ConfigError(
            f"{bags.folder}: {largest.name} alone has {memory.gib(largest.bytes)}, above {limit}"
        )
    capacity = cache.capacity_bytes()
    if capacity < cache.limit_bytes:
        limit = f"the {memory.gib(capacity)} that the disk of the shard cache {cache.folder} has for them"
    if (total := sum(shard.bytes for shard in bags.shards)) > capacity:
        warnings.warn(
            f"{bags.folder}: its shards have {memory.gib(total)}, above {limit}: every epoch fetches them "
            "again, a shard each time that one of its bags is read after the shard was evicted",
            ConfigWarning,
            stacklevel=2,
        )
    return bags


def _remote_manifest(remote: RemoteFolder) -> Manifest:
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
