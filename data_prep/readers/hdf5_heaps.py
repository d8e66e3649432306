"""The heaps of an HDF5 file that hold its texts; the library reads a damaged one without end.

See "Global Heap" in the HDF5 File Format Specification.
"""

from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

import h5py

from mhimdist import files
from mhimdist.errors import DataError

_SIGNATURE, _VERSION = b"GCOL", 1
_HEADER_BYTES = 16
"""Of a heap, and of each of its objects, whether lengths take 4 or 8 bytes."""

_BLOCK_BYTES = 2**22
_LEAST_BYTES = 4096


def refuse_endless(path: Path, file: h5py.File) -> None:
    """Refuse a file with a heap in which an object of no length is followed by itself.

    HDF5 2.0 follows it for ever, in C, where no signal ends it. Any bytes that look like a heap are checked,
    because a damaged file may name any place; it takes one pass over the file.

    Args:
        path: the file.
        file: the same file, open.

    Raises:
        DataError: there is such a heap, or heaps overlap so often that there are more objects than fit in the
            file.
    """
    _, length_bytes = file.id.get_create_plist().get_sizes()
    left = path.stat().st_size // _HEADER_BYTES
    with files.open_file(path) as content:
        place, kept = 0, b""
        while block := content.read(_BLOCK_BYTES):
            found, start = kept + block, place - len(kept)
            at = found.find(_SIGNATURE)
            while at >= 0:
                for num_bytes in _objects(content, start + at, length_bytes):
                    left -= 1
                    if num_bytes == 0:
                        raise DataError(f"{path}: damaged, its heap of texts at byte {start + at} has no end")
                    if left < 0:
                        raise DataError(f"{path}: damaged, its heaps of texts overlap at byte {start + at}")
                at = found.find(_SIGNATURE, at + 1)
            place += len(block)
            content.seek(place)
            kept = found[1 - len(_SIGNATURE) :]


def _objects(content: BufferedReader, start: int, length_bytes: int) -> Iterator[int]:
    """The bytes of each object of the heap at a place; none if no heap is there."""

    def head(at: int) -> tuple[bytes, int]:
        content.seek(at)
        found = content.read(_HEADER_BYTES)
        return found, int.from_bytes(found[8 : 8 + length_bytes], "little")

    found, num_bytes = head(start)
    if len(found) < _HEADER_BYTES or found[4] != _VERSION or num_bytes < _LEAST_BYTES:
        return
    at, end = start + _HEADER_BYTES, start + num_bytes
    while at + _HEADER_BYTES <= end:
        found, size = head(at)
        if len(found) < _HEADER_BYTES:
            return
        needed = size if found[:2] == b"\0\0" else _HEADER_BYTES + (size + 7) // 8 * 8
        yield needed
        at += needed
