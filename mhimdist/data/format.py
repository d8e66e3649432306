"""The format of a data set on disk: the names, headers and members of its shards.

A data set is a folder of `shard-000000.tar`, ..., each with a DALI index such as `shard-000000.idx`, and one
`manifest.parquet` with one row per bag (`manifest.py`). A shard is an uncompressed tar that the `webdataset`
library and DALI read as it is; our readers use the manifest's offsets and never parse a tar. Every byte of a
shard is either in the payload of a member, whose crc32 is in the manifest, or follows from the manifest (tar
headers, padding), so `data_prep.verify` can tell which byte is wrong.

The crc32 is that of zlib, computed by ISA-L with the instructions that multiply without carries: at the speed
of memory, about six times as fast as zlib, and without Python's lock, so that a reader checks each member the
first time it reads it, while the step before computes. It finds damage. What must hold against somebody who
forges bytes rests on the sha256 of each shard, which `data_prep.verify` and the shard cache compare.

Dimensions: N instances of a bag, D features.
"""

import hashlib
import struct
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import numpy as np

EXTENSIONS = {
    "coords": "coords.npy",
    "features": "features.npy",
    "instance_labels": "instance_labels.npy",
    "json": "json",
}
"""The kinds of member that a bag can have, with their file extensions, in their order in a tar."""

FEATURE_DTYPES: dict[str, np.dtype] = {
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
    "float32": np.dtype("<f4"),
}
"""The stored dtype by its name in the manifest; bfloat16, unknown to .npy, is stored as its bits."""
NPY_HEADER_BYTES = 128  # a multiple of 64, so that array data in a tar is aligned for any vector unit
COORDS_DTYPE = np.dtype("<i4")
INSTANCE_LABELS_DTYPE = np.dtype("u1")

TAR_OPTIONS: dict[str, Any] = {
    "user": "mhimdist",
    "group": "mhimdist",
    "mode": 0o644,
    "mtime": 0,
}
"""Options for `webdataset.TarWriter`, without traces of machine or time: equal input makes equal bytes."""


def escape_key(slide: str) -> str:
    """The key of a slide: its name with all but `[A-Za-z0-9_-]` percent-encoded as UTF-8, as in `unquote`.

    `webdataset` and DALI cut a member's name at its first dot, a slash would make a folder, and a space ends
    a field in DALI's index.
    """
    return quote(slide, safe="").replace(".", "%2E").replace("~", "%7E")


def stored_order(name: str, seed: int = 0) -> bytes:
    """The sort key of a slide's name: in this order the bags of a data set fill its shards.

    Args:
        name: the slide.
        seed: seed of the order; the default is that of `data_prep.shard`.
    """
    return hashlib.blake2b(f"{seed}/{name}".encode()).digest()


def shard_name(index: int) -> str:
    """File name of the shard with this number, from 0."""
    return f"shard-{index:06d}.tar"


def shard_number(name: str) -> int:
    """The number of the shard with this file name, the inverse of `shard_name`."""
    return int(name.removeprefix("shard-").removesuffix(".tar"))


def index_name(shard: str) -> str:
    """File name of the DALI index of a shard."""
    return f"{shard.removesuffix('.tar')}.idx"


def npy_header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """The .npy header (version 1.0, row-major) with which every one- or two-dimensional array starts.

    It is written here and not by numpy, whose padding differs between versions: a reader of shards compares
    bytes with it and parses nothing.
    """
    text = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': {shape!r}, }}"
    magic = b"\x93NUMPY\x01\x00" + struct.pack("<H", NPY_HEADER_BYTES - 10)
    return magic + f"{text:<{NPY_HEADER_BYTES - 11}}\n".encode()


def tar_header(name: str, num_bytes: int) -> bytes:
    """The tar header of a member, as `webdataset.TarWriter` writes it with `TAR_OPTIONS`."""
    info = tarfile.TarInfo(name)
    info.size = num_bytes
    info.mtime, info.mode = TAR_OPTIONS["mtime"], TAR_OPTIONS["mode"]
    info.uname, info.gname = TAR_OPTIONS["user"], TAR_OPTIONS["group"]
    # TarWriter always uses this format, whatever its `format` says; a long name gets an extra block.
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def padded(num_bytes: int, block_bytes: int = tarfile.BLOCKSIZE) -> int:
    """`num_bytes` rounded up to whole blocks, as a tar stores a payload."""
    return -(-num_bytes // block_bytes) * block_bytes


def extension(kind: str, feature_set: str = "") -> str:
    """The extension of a member of this kind; features of a named set carry its name: `features.uni.npy`."""
    if kind == "features" and feature_set:
        return f"features.{feature_set}.npy"
    return EXTENSIONS[kind]


@dataclass(frozen=True)
class Member:
    """One file in a shard.

    Attributes:
        key: the key of its bag.
        kind: a key of `EXTENSIONS`.
        offset, num_bytes, crc32: the place and the crc32 of its payload.
        feature_set: the name of the bag's features; "" if they have none.
    """

    key: str
    kind: str
    offset: int
    num_bytes: int
    crc32: int
    feature_set: str = ""

    @property
    def extension(self) -> str:
        """What follows the key and a dot in the member's name."""
        return extension(self.kind, self.feature_set)

    @property
    def name(self) -> str:
        """The name of the member in the tar."""
        return f"{self.key}.{self.extension}"

    def columns(self) -> dict[str, int]:
        """The manifest's columns that describe this member."""
        return {
            f"{self.kind}_offset": self.offset,
            f"{self.kind}_bytes": self.num_bytes,
            f"{self.kind}_crc32": self.crc32,
        }


def members_of(row: Mapping[str, Any]) -> Iterator[Member]:
    """The members of a bag in their order in the tar, from the bag's manifest row as a dict."""
    for kind in EXTENSIONS:
        if row[f"{kind}_offset"] is not None:
            offset, num_bytes, crc32 = (row[f"{kind}_{part}"] for part in ("offset", "bytes", "crc32"))
            yield Member(row["key"], kind, offset, num_bytes, crc32, row.get("feature_set", ""))


def dali_index(bags: Sequence[Iterable[Member]]) -> str:
    """The text of a shard's DALI index, byte for byte as NVIDIA's `wds2idx` would write it."""
    lines = [
        " ".join(f"{m.extension} {m.offset} {m.num_bytes} {m.name}" for m in members) for members in bags
    ]
    return f"v1.2 {len(lines)}\n" + "".join(f"{line}\n" for line in lines)
