"""Writing shards: one tar with its index, and a folder that appears whole or not at all."""

import contextlib
import hashlib
import io
import os
import shutil
import uuid
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tarfile import BLOCKSIZE
from types import TracebackType
from typing import Any, Self

import webdataset

from mhimdist import atomic
from mhimdist.data.format import (
    EXTENSIONS,
    NPY_HEADER_BYTES,
    TAR_OPTIONS,
    Member,
    dali_index,
    index_name,
    padded,
)
from mhimdist.data.manifest import ShardFile


@dataclass(frozen=True, eq=False)
class Bag:
    """A bag ready to be written: its columns in the manifest, and its members' payloads by kind."""

    columns: dict[str, Any]
    payloads: dict[str, bytes]


class ShardWriter:
    """Writes one shard and its DALI index, and knows where every member lies.

    As a context manager it closes the shard and forces it to disk; after an exception it lets go of it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = _HashingFile(path)
        self._tar = webdataset.TarWriter(self._file, encoder=False, compress=False, **TAR_OPTIONS)
        self._bags: list[list[Member]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            # A tar insists on writing its end, which a full disk would refuse once more.
            self._file.discarding = error is not None
            self._tar.close()
            os.fsync(self._file.fileno())
        if error is None:
            _write_to_disk(self._path.with_name(index_name(self._path.name)), dali_index(self._bags))

    @property
    def summary(self) -> ShardFile:
        """The shard as the manifest lists it; final once the context is left."""
        return ShardFile(
            name=self._path.name,
            bytes=self._file.num_bytes,
            sha256=self._file.sha256.hexdigest(),
            num_bags=len(self._bags),
        )

    def has_room(self, bag: Bag, shard_bytes: int) -> bool:
        """Whether the bag leaves the shard within `shard_bytes`; the first bag of a shard always may."""
        num_bytes = sum(BLOCKSIZE + padded(len(payload)) for payload in bag.payloads.values())
        return not self._bags or self._tar.tarstream.offset + num_bytes <= shard_bytes

    def add(self, bag: Bag) -> dict[str, Any]:
        """Append a bag; its row of the manifest."""
        key = bag.columns["key"]
        members = []
        for kind, extension in EXTENSIONS.items():
            if kind in bag.payloads:
                payload = bag.payloads[kind]
                self._tar.write({"__key__": key, extension: payload})
                offset = self._tar.tarstream.offset - padded(len(payload))
                members.append(Member(key, kind, offset, len(payload), zlib.crc32(payload)))
        self._bags.append(members)
        row = {**bag.columns, "shard": self._path.name}
        for member in members:
            row |= member.columns()
        row["features_data_offset"] = row["features_offset"] + NPY_HEADER_BYTES
        return row


class _HashingFile(io.FileIO):
    """A new file that is hashed as it is written; unbuffered, so that no error waits for its end."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "x")
        self.sha256 = hashlib.sha256()
        self.num_bytes = 0
        self.discarding = False

    def write(self, data: Any, /) -> int:
        left = memoryview(data)
        while left and not self.discarding:
            written = super().write(left)
            self.sha256.update(left[:written])
            self.num_bytes += written
            left = left[written:]
        return memoryview(data).nbytes


@contextlib.contextmanager
def appearing_whole(out: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `out` at the end, or nothing after an exception."""
    folder = out.with_name(f".sharding-{uuid.uuid4().hex}")
    folder.mkdir(parents=True)
    try:
        yield folder
        atomic.sync(folder)
        folder.rename(out)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError) and error.filename is None:  # a write, which does not say to where
            raise OSError(error.errno, error.strerror, str(out)) from error
        raise
    atomic.sync(out.parent)


def _write_to_disk(path: Path, text: str) -> None:
    with path.open("x", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
