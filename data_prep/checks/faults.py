"""Faults: the bytes of a data set that differ from its manifest."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from tarfile import (
    BLKTYPE,
    BLOCKSIZE,
    CHRTYPE,
    DIRTYPE,
    FIFOTYPE,
    LENGTH_NAME,
    LNKTYPE,
    RECORDSIZE,
    REGTYPE,
    SYMTYPE,
    XHDTYPE,
    HeaderError,
    TarInfo,
)
from typing import Any, BinaryIO

from isal import isal_zlib

from data_prep.writing.tasks import label_of, stated_label
from mhimdist import files
from mhimdist.data.format import (
    COORDS_DTYPE,
    FEATURE_DTYPES,
    INSTANCE_LABELS_DTYPE,
    Member,
    dali_index,
    escape_key,
    index_name,
    members_of,
    npy_header,
    padded,
    tar_header,
)
from mhimdist.data.manifest import DatasetInfo, Manifest, ShardFile, arriving
from mhimdist.data.targets import CLASSIFICATION

CHUNK_BYTES = 2**20
DATALESS_TYPES = {
    SYMTYPE: "symbolic link",
    LNKTYPE: "hard link",
    DIRTYPE: "folder",
    CHRTYPE: "device",
    BLKTYPE: "device",
    FIFOTYPE: "pipe",
}
TAR_TYPES = {REGTYPE: "file", XHDTYPE: "extended header", **DATALESS_TYPES}


@dataclass(frozen=True)
class Fault:
    """A difference between a data set and its manifest.

    Attributes:
        file: file name of the shard or index.
        what: what was expected and what was found.
        member: name of the member, if the fault is in one.
        start, end: the bytes of the file at fault, `end` excluded.
    """

    file: str
    what: str
    member: str | None = None
    start: int | None = None
    end: int | None = None

    def __str__(self) -> str:
        place = self.file
        if self.member is not None:
            place += f", member {self.member!r}"
        if self.start is not None:
            place += f", bytes {self.start} to {self.end}"
        return f"{place}: {self.what}"


def verify(
    folder: Path, *, workers: int = 1, on_bytes: Callable[[int], None] = lambda _: None
) -> list[Fault]:
    """Compare a folder of shards with its manifest, byte for byte.

    Nothing in a shard is executed or unpacked. Every byte is checked twice: as part of a header, a payload or
    padding, which shows where a fault is, and in the sha256 of the whole file.

    Args:
        folder: a folder that `data_prep.shard` wrote.
        workers: number of shards that threads read at a time; hashing releases Python's lock.
        on_bytes: any of the threads calls it with the number of bytes read since the last call, for a
            progress bar.

    Returns:
        The faults in the order of the shards; an empty list if all is as it was written.

    Raises:
        ManifestError: the manifest itself cannot be trusted, so there is nothing to compare with.
    """
    manifest = Manifest.read(folder)
    faults = [Fault(name, what) for name, what in manifest.file_faults(folder).items()]
    what = "left by an append that has not finished; the next append removes it, even if it adds nothing"
    leftovers = arriving(folder) - {shard.name for shard in manifest.info.shards}
    faults += [Fault(name, what) for name in sorted(leftovers) if (folder / name).exists()]
    rows_of = manifest.rows_by_shard()

    def check(shard: ShardFile) -> list[Fault]:
        rows, path = rows_of[shard.name], folder / shard.name
        found = list(_index_faults(folder / index_name(shard.name), rows))
        try:
            found += verify_shard(path, shard, rows, manifest.info, on_bytes=on_bytes)
        except FileNotFoundError:  # already among the faults
            pass
        except OSError as error:  # a failing disk, say; the other shards are still checked
            found.append(Fault(shard.name, f"cannot be read: {error.strerror}"))
        return found

    with ThreadPoolExecutor(workers) as threads:
        try:
            for found in threads.map(check, manifest.info.shards):
                faults += found
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise
    return faults


def verify_shard(
    path: Path,
    shard: ShardFile,
    rows: Sequence[Mapping[str, Any]],
    info: DatasetInfo,
    *,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> list[Fault]:
    """Compare one shard with its rows of the manifest, as `verify` does with all shards.

    Args:
        path: the shard.
        shard: its entry in the manifest.
        rows: its bags in the manifest, in their order.
        info: the manifest's description of the data set.
        on_bytes: called with the number of bytes read since the last call.

    Returns:
        The faults; an empty list if the shard is as it was written.

    Raises:
        OSError: the shard is missing or cannot be read.
    """
    with files.open_file(path) as file:
        reader = _HashingReader(file, on_bytes)
        faults = list(_layout_faults(reader, shard.name, rows, info))
        reader.skip_to_end()
        if faults:
            members = [member for row in rows for member in members_of(row)]
            faults = [*_foreign_members(file, shard.name, members), *faults]
        elif (got := reader.sha256.hexdigest()) != shard.sha256:
            faults.append(Fault(shard.name, f"expected sha256 {shard.sha256}, got {got}"))
    return faults


class _HashingReader:
    """Reads a file once from front to back, and hashes it on the way."""

    def __init__(self, file: BinaryIO, on_bytes: Callable[[int], None]) -> None:
        self._file = file
        self._on_bytes = on_bytes
        self.sha256 = hashlib.sha256()
        self.position = 0

    def take(self, num_bytes: int) -> bytes:
        """Read the next bytes; fewer at the end of the file."""
        data = self._file.read(num_bytes)
        self.sha256.update(data)
        self.position += len(data)
        self._on_bytes(len(data))
        return data

    def take_payload(self, num_bytes: int) -> tuple[bytes, int]:
        """Read past the next bytes; return the first `CHUNK_BYTES` of them, and the crc32 of all."""
        first = self.take(min(num_bytes, CHUNK_BYTES))
        crc32, left = isal_zlib.crc32(first), num_bytes - len(first)
        while left and (chunk := self.take(min(left, CHUNK_BYTES))):
            crc32, left = isal_zlib.crc32(chunk, crc32), left - len(chunk)
        return first, crc32

    def skip_to_end(self) -> None:
        """Hash the rest of the file."""
        while self.take(CHUNK_BYTES):
            pass


def _layout_faults(
    reader: _HashingReader, shard: str, rows: Sequence[Mapping[str, Any]], info: DatasetInfo
) -> Iterator[Fault]:
    """Read a shard as it must have been written, and yield the faults."""
    for number, row in enumerate(rows):
        if row["key"] != (key := escape_key(row["slide"])):
            yield Fault(shard, f"expected the key {key!r} for slide {row['slide']!r}, got {row['key']!r}")
        for member in members_of(row):
            start, header = reader.position, tar_header(member.name, member.num_bytes)
            if (expected := start + len(header)) != member.offset:
                what = f"expected at byte {expected}, but the manifest has it at {member.offset}"
                yield Fault(shard, what, member.name, start, expected)
                return
            found = reader.take(len(header))
            if found != header:
                what = f"expected its tar header, found {_describe(found)}"
                yield Fault(shard, what, member.name, start, member.offset)
            end = member.offset + member.num_bytes
            first, crc32 = reader.take_payload(member.num_bytes)
            if reader.position < end:
                what = f"cut off: the file ends here, and {len(rows) - number} of {len(rows)} bags are lost"
                yield Fault(shard, what, member.name, reader.position, end)
                return
            if crc32 != member.crc32:
                what = f"expected a payload of crc32 {member.crc32:08x}, got {crc32:08x}"
                yield Fault(shard, what, member.name, member.offset, end)
            elif wrong := _content_fault(first, member, row, info):
                yield Fault(shard, wrong, member.name, member.offset, end)
            if any(reader.take(padded(end) - end)):
                what = "expected zeros after its payload"
                yield Fault(shard, what, member.name, end, padded(end))
    start = reader.position
    end = padded(start + 2 * BLOCKSIZE, RECORDSIZE)
    tail = reader.take(end - start)
    if any(tail):
        what = f"expected zeros after the last member, found {_describe(tail)}"
        yield Fault(shard, what, start=start, end=end)
    elif len(tail) < end - start:
        yield Fault(shard, "cut off in the zeros after the last member", start=reader.position, end=end)


def _content_fault(first: bytes, member: Member, row: Mapping[str, Any], info: DatasetInfo) -> str | None:
    """What is wrong with a payload of the right crc32, given its first bytes; None if nothing is."""
    if member.kind == "json":
        label = stated_label(label_of(row, info), info.task or CLASSIFICATION)
        expected = {"slide": row["slide"], "case": row["case"], **label}
        try:
            said = json.loads(first)
            told = {field: said[field] for field in expected}
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            return f"expected JSON with {expected}, got none: {error}"
        return None if told == expected else f"expected {expected}, got {told}"
    num_instances = row["num_instances"]
    header = {
        "coords": npy_header(COORDS_DTYPE, (num_instances, 2)),
        "features": npy_header(FEATURE_DTYPES[row["dtype"]], (num_instances, row["num_features"])),
        "instance_labels": npy_header(INSTANCE_LABELS_DTYPE, (num_instances,)),
    }[member.kind]
    got = first[: len(header)]
    return None if got == header else f"expected the array header {header!r}, got {got!r}"


def _describe(header: bytes) -> str:
    """The member that a tar header announces, in words."""
    try:
        info = TarInfo.frombuf(header[:BLOCKSIZE], "utf-8", "surrogateescape")
    except HeaderError as error:
        return f"none ({error})"
    kind = TAR_TYPES.get(info.type, f"of type {info.type!r}")
    target = f" to {info.linkname!r}" if info.linkname else ""
    return f"{info.name!r} ({kind}{target}, {info.size} bytes)"


def _foreign_members(file: BinaryIO, shard: str, members: Sequence[Member]) -> Iterator[Fault]:
    """Members that a tar reader would find but the manifest does not list, up to the first damage.

    Headers are parsed here, because `tarfile` silently stops at a damaged one and obeys extended ones.
    """
    expected = Counter(member.name[:LENGTH_NAME] for member in members)
    has_long_names = any(len(member.name) > LENGTH_NAME for member in members)
    num_bytes, offset = os.fstat(file.fileno()).st_size, 0
    while offset < num_bytes:
        file.seek(offset)
        header = file.read(BLOCKSIZE)
        try:
            info = TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except HeaderError:
            return
        end = offset + BLOCKSIZE + (padded(info.size) if info.type not in DATALESS_TYPES else 0)
        if info.type == REGTYPE and expected[info.name]:
            expected[info.name] -= 1
        elif info.type != XHDTYPE or not has_long_names:
            what = f"not in the manifest: {_describe(header)}"
            yield Fault(shard, what, info.name, offset, end)
        if end <= offset:  # a forged negative size
            return
        offset = end


def _index_faults(path: Path, rows: Sequence[Mapping[str, Any]]) -> Iterator[Fault]:
    expected = dali_index([members_of(row) for row in rows]).encode()
    try:
        with files.open_file(path) as file:
            got = file.read(len(expected) + 1)
    except FileNotFoundError:
        yield Fault(path.name, "missing")
        return
    except OSError as error:
        yield Fault(path.name, f"cannot be read: {error.strerror}")
        return
    if got != expected:
        lines = zip_longest(got.split(b"\n"), expected.split(b"\n"))
        line, (found, wanted) = next(item for item in enumerate(lines, 1) if item[1][0] != item[1][1])
        yield Fault(path.name, f"line {line}: expected {wanted!r}, got {found!r}")
