"""Writing shards: a tar and its index, hashed while it is written, and a folder that appears whole.

Dimensions: N instances of a bag, D features.
"""

import contextlib
import hashlib
import io
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tarfile import BLOCKSIZE, RECORDSIZE
from types import TracebackType
from typing import Any, Self

from isal import isal_zlib

from mhimdist import files
from mhimdist.data.format import (
    EXTENSIONS,
    NPY_HEADER_BYTES,
    Member,
    dali_index,
    extension,
    index_name,
    padded,
    tar_header,
)
from mhimdist.data.manifest import ShardFile

CHUNK_BYTES = 2**20
"""Bytes that are converted, checked, hashed and written at a time: they stay in the processor's cache."""

_LOCK, _MADE = "lock", "made"


@dataclass(frozen=True)
class Payload:
    """The content of a member: its length and its buffers in order; a buffer may be refilled for the next."""

    num_bytes: int
    buffers: Iterable[Any]


@dataclass(frozen=True, eq=False)
class Bag:
    """A bag that is ready to be written: its columns in the manifest, and its payloads by kind."""

    columns: dict[str, Any]
    payloads: dict[str, Payload | bytes]


class ShardWriter:
    """Writes one shard and its DALI index, and records where every member is.

    It is a context manager that closes the shard and forces it to disk; after an exception it removes the
    shard. The bytes are those of `webdataset.TarWriter` with `format.TAR_OPTIONS`.
    """

    def __init__(self, path: Path) -> None:
        """Begin a shard; it gets the name `path` only at the end of the context."""
        self._path = path
        self._part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
        self._file = _HashingFile(self._part)
        self._position = 0
        self._bags: list[list[Member]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self._file:
                if error is None:
                    self._write(bytes(padded(self._position + 2 * BLOCKSIZE, RECORDSIZE) - self._position))
                    self._file.force()
            if error is None:
                index = self._path.with_name(index_name(self._path.name))
                files.write_text(index, dali_index(self._bags))
                self._part.rename(self._path)
                files.sync(self._path.parent)
        finally:
            self._part.unlink(missing_ok=True)

    @property
    def summary(self) -> ShardFile:
        """The shard as the manifest lists it; final after the end of the context."""
        return ShardFile(
            name=self._path.name,
            bytes=self._file.num_bytes,
            sha256=self._file.sha256.hexdigest(),
            num_bags=len(self._bags),
        )

    def add(self, bag: Bag) -> dict[str, Any]:
        """Append a bag, and return its row of the manifest.

        Raises:
            ValueError: a payload has another length than it says.
        """
        key, feature_set = bag.columns["key"], bag.columns.get("feature_set", "")
        members = [
            self._add_member(key, kind, bag.payloads[kind], feature_set)
            for kind in EXTENSIONS
            if kind in bag.payloads
        ]
        self._bags.append(members)
        row = {**bag.columns, "shard": self._path.name}
        for member in members:
            row |= member.columns()
        row["features_data_offset"] = row["features_offset"] + NPY_HEADER_BYTES
        return row

    def _add_member(self, key: str, kind: str, payload: Payload | bytes, feature_set: str) -> Member:
        if isinstance(payload, bytes):
            payload = Payload(len(payload), [payload])
        self._write(tar_header(f"{key}.{extension(kind, feature_set)}", payload.num_bytes))
        offset, crc32 = self._position, 0
        for buffer in payload.buffers:
            crc32 = isal_zlib.crc32(buffer, crc32)
            self._write(buffer)
        if (got := self._position - offset) != payload.num_bytes:
            raise ValueError(f"{key}, {kind}: expected {payload.num_bytes} bytes, got {got}")
        self._write(bytes(padded(self._position) - self._position))
        return Member(key, kind, offset, payload.num_bytes, crc32, feature_set)

    def _write(self, buffer: Any) -> None:
        self._file.write(buffer)
        self._position += memoryview(buffer).nbytes


class _HashingFile:
    """A new file that is hashed while it is written; small pieces are written together."""

    def __init__(self, path: Path) -> None:
        self.sha256 = hashlib.sha256()
        self.num_bytes = 0
        self._raw = io.FileIO(path, "x")
        self._small = bytearray()

    def write(self, buffer: Any) -> None:
        """Append a buffer; the caller may refill it afterwards."""
        view = memoryview(buffer).cast("B")
        if len(view) < CHUNK_BYTES // 8:  # headers, padding, small bags
            self._small += view
            if len(self._small) >= CHUNK_BYTES:
                self._flush()
        else:
            self._flush()
            self._write_now(view)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._raw.close()

    def force(self) -> None:
        """Force everything to disk."""
        self._flush()
        os.fsync(self._raw.fileno())

    def _flush(self) -> None:
        small, self._small = self._small, bytearray()
        self._write_now(memoryview(small))

    def _write_now(self, view: memoryview) -> None:
        self.sha256.update(view)
        self.num_bytes += len(view)
        while view:
            view = view[self._raw.write(view) :]


@contextlib.contextmanager
def appearing_whole(out: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `out` at the end; after an exception it is removed.

    Folders that killed processes left next to `out` are removed, too.

    Raises:
        OSError: the folder cannot be made or written; the error names `out`.
    """
    with working_beside(out) as folder:
        yield folder
        files.sync(folder)
        folder.rename(out)
    files.sync(out.parent)


@contextlib.contextmanager
def working_beside(out: Path) -> Iterator[Path]:
    """A folder next to `out` for what is only needed meanwhile; it is removed at the end.

    A killed process leaves it, and the next one that works beside `out` removes it.

    Raises:
        OSError: the folder cannot be made or written; the error names `out`.
    """
    _remove_abandoned(out.parent)
    place = out.with_name(f".sharding-{uuid.uuid4().hex}")
    folder = place / _MADE
    folder.mkdir(parents=True)
    try:
        with files.Lock(place / "taken"):
            (place / "taken").rename(place / _LOCK)  # a process that finds it under this name finds it locked
            yield folder
    except OSError as error:
        raise naming(out, error) from error
    finally:
        with contextlib.suppress(OSError):
            _remove(place)


def _remove_abandoned(parent: Path) -> None:
    for path in parent.glob(f".sharding-*/{_LOCK}"):
        lock = files.Lock(path)
        with contextlib.suppress(OSError):
            if lock.acquire(wait_s=0):  # otherwise another process still fills it
                with lock:
                    _remove(path.parent)


def _remove(place: Path) -> None:
    """Remove a place, its lock last: after an interruption, the next process still finds the rest."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(place / _MADE)
    shutil.rmtree(place)


def naming(out: Path, error: OSError) -> OSError:
    """The error itself, or one that names `out` if the error of a write names no file."""
    if error.filename is None and error.errno is not None:
        return OSError(error.errno, error.strerror, str(out))
    return error
