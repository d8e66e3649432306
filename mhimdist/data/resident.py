"""Data sets held whole in memory: in one copy for all processes of a node, or on a device.

Dimensions: N bags of the data set, T instances of a batch or of all bags, B bags of a batch, D features.
"""

import fcntl
import mmap
import os
import subprocess
import sys
import uuid
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import torch
from torch import Tensor

from mhimdist.data import memory
from mhimdist.data.bags import BagSource, PackedBags, bag_id
from mhimdist.data.devices import indexed, stored_dtypes
from mhimdist.data.gpu_pages import Place
from mhimdist.errors import ConfigError
from mhimdist.files import Lock

SHARED_MEMORY = Path("/dev/shm")


def resident(
    bags: BagSource, cache: Literal["none", "ram", "device"], device: torch.device | str = "cpu"
) -> BagSource:
    """The data set, held where the configuration says; the process keeps the last one that was requested.

    Args:
        bags: the data set.
        cache: "none" reads each batch from its shards, "ram" holds all bags in the node's shared memory,
            "device" holds them on the device.
        device: device of the run, for "device".

    Raises:
        ConfigError: the data set does not fit on the device; `RamBags` raises it on the first load.
    """
    if cache == "none" or isinstance(bags, _ResidentBags):
        return bags
    global _last
    device = indexed(device)
    made_of = bags, cache, str(device)
    if _last is None or _last[0] != made_of:
        _last = None  # frees the old one's memory first
        _last = made_of, RamBags(bags) if cache == "ram" else DeviceBags(bags, device)
    return _last[1]


_last: tuple[tuple[BagSource, str, str], BagSource] | None = None


class _ResidentBags:
    """Base of both kinds: the data set's table, and each bag's rows in the features of all bags.

    Attributes:
        device: where the features are.
        The others are those of `BagSource`.
    """

    device = torch.device("cpu")

    def __init__(self, bags: BagSource) -> None:
        self.keys, self.cases, self.classes = bags.keys, bags.cases, bags.classes
        self.task, self.targets_NK = bags.task, bags.targets_NK
        self.labels_N, self.sizes_N = bags.labels_N, np.asarray(bags.sizes_N, np.int64)
        self.ids_N = np.array([bag_id(key) for key in bags.keys], dtype=np.int64)
        self.num_features, self.digest = bags.num_features, bags.digest
        self.dtype: torch.dtype = getattr(bags, "dtype", torch.float32)
        self._rows_of = bags.rows_of
        self._starts_N1 = np.concatenate([[0], self.sizes_N.cumsum()])

    def rows_of(self, keys: Sequence[str]) -> np.ndarray:
        """Row numbers of bags, int64."""
        return self._rows_of(keys)

    def load(
        self,
        rows: Sequence[int] | np.ndarray,
        dtype: torch.dtype = torch.float32,
        *,
        out: Tensor | None = None,
    ) -> PackedBags:
        """The bags of these rows, packed in this order, in `dtype` and on the device that holds them.

        A single bag that is held in `dtype` is not copied: read its tensor, but do not write to it.

        Args:
            rows: row numbers; an empty sequence returns a batch of no bags.
            dtype: floating dtype of the batch's features.
            out: a buffer of `dtype`, at least T x D, for features that are converted or copied.
        """
        rows_B = np.asarray(rows, np.int64)
        sizes_B = torch.from_numpy(self.sizes_N[rows_B])
        if not len(rows_B):  # nothing need be held in its dtype
            nothing_0D = torch.empty((0, self.num_features), dtype=dtype, device=self.device)
            return PackedBags.of_rows(self, rows_B, nothing_0D)
        features_AD = self._features(dtype)
        parts = [features_AD[self._starts_N1[row] : self._starts_N1[row + 1]] for row in rows_B.tolist()]
        if len(parts) == 1 and features_AD.dtype == dtype:
            features_TD = parts[0]
        else:
            shape = int(sizes_B.sum()), self.num_features
            features_TD = (
                out[: shape[0]] if out is not None else torch.empty(shape, dtype=dtype, device=self.device)
            )
            for part_ND, held_ND in zip(features_TD.split(sizes_B.tolist()), parts, strict=True):
                part_ND.copy_(held_ND)
        return PackedBags.of_rows(self, rows_B, features_TD)

    def scattered(
        self,
        rows: Sequence[int] | np.ndarray,
        instances: Sequence[np.ndarray],
        dtype: torch.dtype,
        *,
        out: Tensor | None = None,
    ) -> Tensor:
        """The features of some instances, on the device that holds them; see `StoredBags.scattered`."""
        features_AD = self._features(dtype)
        starts_B = self._starts_N1[np.asarray(rows, np.int64)]
        places = [start + each for start, each in zip(starts_B, instances, strict=True)]
        index_K = torch.from_numpy(np.concatenate(places)).to(features_AD.device)
        if out is None or features_AD.dtype != dtype:
            return features_AD[index_K].to(dtype)
        return torch.index_select(features_AD, 0, index_K, out=out[: len(index_K)])

    def _features(self, dtype: torch.dtype) -> Tensor:
        """The features of all bags, laid end to end in the order of the rows."""
        raise NotImplementedError

    @property
    def _num_values(self) -> int:
        return int(self._starts_N1[-1]) * self.num_features


class DeviceBags(_ResidentBags):
    """A data set on a device, in its stored dtype, in one copy for this process."""

    def __init__(self, bags: BagSource, device: torch.device | str) -> None:
        """Read all bags.

        Raises:
            ConfigError: they do not fit on the device.
        """
        super().__init__(bags)
        self.device = device = indexed(device)
        needed = self._num_values * self.dtype.itemsize
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else memory.free_bytes()[0]
        if needed > 0.9 * free:
            raise ConfigError(
                f"loading.cache=device: the features are {memory.gib(needed)}, {device} has "
                f"{memory.gib(free)} free, a tenth of which must stay free; use ram or none"
            )
        shape = int(self._starts_N1[-1]), self.num_features
        self._features_AD = torch.empty(shape, dtype=self.dtype, device=device)
        _fill(self._features_AD, bags, self._starts_N1)

    def _features(self, dtype: torch.dtype) -> Tensor:
        return self._features_AD


class RamBags(_ResidentBags):
    """A data set in this node's shared memory, in the requested dtypes, in one copy for all processes.

    A CPU requests the dtypes of its steps, a GPU usually the stored one, for training and evaluation alike.

    The first process converts all bags into a file in `SHARED_MEMORY`; the others wait for it and map the
    same pages. Each process holds a lock on the file until it ends in any way. The last process removes the
    file; if it is killed, a small process that only waits for this removes the file. If that one is killed,
    too, the next process that holds a data set this way removes the file.

    The lock is a shared flock(2), used directly: any number of readers hold it at once, and the process that
    removes the file takes it exclusively. `files.Lock` is exclusive only, and the shared lock of `filelock`
    needs an SQLite file for each lock.
    """

    def __init__(self, bags: BagSource) -> None:
        """Read nothing yet."""
        super().__init__(bags)
        self._bags = bags
        self._mapped: dict[torch.dtype, Tensor] = {}
        self._files: dict[torch.dtype, BinaryIO] = {}

    def place(self, row: int) -> Place:
        """See `gpu_pages.InFiles`."""
        self._features(self.dtype)
        start = int(self._starts_N1[row]) * self.num_features * self.dtype.itemsize
        return Place(self._files[self.dtype].fileno(), start, version=0)

    def _features(self, dtype: torch.dtype) -> Tensor:
        if dtype not in self._mapped:
            self._mapped[dtype] = self._map(dtype)
        return self._mapped[dtype]

    def _map(self, dtype: torch.dtype) -> Tensor:
        folder = SHARED_MEMORY / f"mhimdist-{os.getuid()}"
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"loading.cache=ram: {folder}: {error.strerror}; use none") from None
        if folder.stat().st_uid != os.getuid():
            raise ConfigError(f"loading.cache=ram: {folder} belongs to another user; use none")
        path = folder / f"{bag_id(self.digest):016x}-{str(dtype).removeprefix('torch.')}"
        with _lock(path):
            file = _in_use(path)
            if file is None:
                _remove_unused(folder)
                file = self._build(path, dtype)
            with path.open("rb") as same:  # a map keeps the lock of the file object that it is made from
                mapped = mmap.mmap(same.fileno(), 0, access=mmap.ACCESS_COPY)
        weakref.finalize(self, _release, path, file)
        self._files[dtype] = file
        shape = int(self._starts_N1[-1]), self.num_features
        return torch.frombuffer(mapped, dtype=dtype, count=self._num_values).view(shape)

    def _build(self, path: Path, dtype: torch.dtype) -> BinaryIO:
        needed = self._num_values * dtype.itemsize
        disk = os.statvfs(path.parent)
        free = min(disk.f_bavail * disk.f_frsize, memory.free_bytes()[0])
        if needed > 0.9 * free:
            raise ConfigError(
                f"loading.cache=ram: the features are {memory.gib(needed)} as {dtype}, {SHARED_MEMORY} has "
                f"{memory.gib(free)} free, a tenth of which must stay free; use none"
            )
        part = path.with_name(f"{path.name}-{uuid.uuid4().hex}.part")
        file = part.open("x+b")
        try:
            fcntl.flock(file, fcntl.LOCK_SH)  # in use, from now until this process ends
            _remove_after_use(part, path)
            os.posix_fallocate(file.fileno(), 0, needed)
            pages = mmap.mmap(file.fileno(), needed)
            shape = int(self._starts_N1[-1]), self.num_features
            _fill(torch.frombuffer(pages, dtype=dtype).view(shape), self._bags, self._starts_N1)
            part.replace(path)
        except BaseException as error:
            file.close()
            if isinstance(error, OSError):
                raise ConfigError(f"loading.cache=ram: {path}: {error.strerror}; use none") from error
            raise
        finally:
            part.unlink(missing_ok=True)
        return file


def _fill(features_AD: Tensor, bags: BagSource, starts_N1: np.ndarray) -> None:
    """Copy all bags; a GPU gets them as stored and converts them itself.

    The pages are not pinned for a GPU: once per process, the crc32 and the disk take longer than the copy.
    """
    for row in range(len(starts_N1) - 1):
        part_ND = features_AD[starts_N1[row] : starts_N1[row + 1]]
        if part_ND.device.type == "cpu":
            features_ND = bags.load([row], features_AD.dtype, out=part_ND).features_TD
        else:
            (stored,) = stored_dtypes(bags, [row], features_AD.dtype)
            # `copy_` from the CPU would convert there.
            features_ND = bags.load([row], stored).features_TD.to(part_ND.device)
        if features_ND.data_ptr() != part_ND.data_ptr():
            part_ND.copy_(features_ND)


def _in_use(path: Path) -> BinaryIO | None:
    """The opened file, which counts as in use until it is closed; None if it does not exist."""
    while path.exists():
        with suppress(FileNotFoundError):
            file = path.open("rb")
            fcntl.flock(file, fcntl.LOCK_SH)
            if os.fstat(file.fileno()).st_nlink:
                return file
            file.close()  # removed between the open and the lock
    return None


def _release(path: Path, file: BinaryIO) -> None:
    """Release a data set in shared memory, and remove it if no other process uses it."""
    file.close()
    with suppress(OSError), _lock(path):
        _remove_if_unused(path)


_AFTER_USE = """
import fcntl, os, sys
file = os.open(sys.argv[1], os.O_RDONLY)
if os.fork():
    os._exit(0)  # the child is then nobody's child: a kill of its parent's children spares it
fcntl.flock(file, fcntl.LOCK_EX)
for path in sys.argv[1:]:
    try:
        if os.stat(path).st_ino == os.fstat(file).st_ino:
            os.unlink(path)
    except FileNotFoundError:
        pass
"""


def _remove_after_use(*paths: Path) -> None:
    """Start a process that removes a file, under any of these names, once no process has a lock on it.

    A killed process removes nothing itself, and Ray kills its workers.
    """
    command = [sys.executable, "-I", "-S", "-c", _AFTER_USE, *map(str, paths)]
    none = subprocess.DEVNULL
    subprocess.run(command, check=True, cwd="/", start_new_session=True, stdin=none, stdout=none, stderr=none)


def _remove_unused(folder: Path) -> None:
    for path in folder.iterdir():
        if path.suffix != ".lock":
            with suppress(OSError):
                _remove_if_unused(path)


def _remove_if_unused(path: Path) -> None:
    with suppress(FileNotFoundError), path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file.fileno()).st_nlink:
                path.unlink()
        except BlockingIOError:  # others use it, or are just removing it: wait for the removal
            fcntl.flock(file, fcntl.LOCK_SH)


def _lock(path: Path) -> Lock:
    return Lock(path.with_suffix(".lock"))
