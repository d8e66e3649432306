"""The places of an HDF5 array's chunks, read from its B-tree past the library.

The library tells them one by one, as objects of Python: in a process with PyTorch these take twice the time
of everything else that sharding does with a chunk of one row, most of it in Python's collector. Here a node
of the tree is one `pread`, and its entries are never objects. The library also follows a tree that leads
back to itself until the process dies, if asked for no more than the array's stored bytes; here that is an
error, so the tree is read before the library is asked anything.

Version 1 of the B-tree is read, which the library writes unless it is asked for a newer format. Newer ones
are left to the library. What is found here is only a claim of the file: `hdf5_chunks.py` checks that it is a
grid of chunks within the file.

The format: HDF5 File Format Specification, version 3, IV.A.1 (object headers), IV.A.2.i (layout) and III.A.1
(B-trees).

Dimensions: C chunks of an array, R its axes.
"""

import os
from typing import NamedTuple

import h5py
import numpy as np

from mhimdist.errors import DataError

_LAYOUT, _CONTINUATION = 8, 16  # messages of an object header
_CHUNKED, _NOWHERE = 2, 2**64 - 1
_MOST_BLOCKS, _MOST_BYTES = 64, 2**20  # of an object header, and of each of its blocks
_MOST_LEVELS = 8  # a node has up to 2^16 children
_NODE_HEADER_BYTES = 24


class _File(NamedTuple):
    """An open file: its descriptor, where its addresses count from, and what messages call it."""

    descriptor: int
    base: int
    where: str

    def read(self, num_bytes: int, address: int) -> bytes:
        start = self.base + address
        content = os.pread(self.descriptor, num_bytes, start) if start < 2**63 else b""
        if len(content) < num_bytes:
            raise self.damaged(f"{num_bytes} bytes at {address}, got the end of the file")
        return content

    def damaged(self, expected: str) -> DataError:
        return DataError(f"{self.where} is damaged: expected {expected}")


def places(dataset: h5py.Dataset, where: str, num_chunks: int) -> np.ndarray | None:
    """What the B-tree of an array says about its chunks, in the order of the tree.

    Args:
        dataset: the array, in chunks; nothing that makes the library walk its tree is asked of it.
        where: names the array in messages.
        num_chunks: C, the most that there may be.

    Returns:
        A record per chunk: `size` in the file, `mask` of skipped filters, `offsets`, `start` in the file,
        counted behind a user block. None if the file is in another format.

    Raises:
        DataError: the tree is damaged, or has more chunks.
    """
    whole, num_axes = dataset.file, len(dataset.shape)
    if whole.id.get_create_plist().get_sizes() != (8, 8):
        return None
    file = _File(int(whole.id.get_vfd_handle()), int(whole.userblock_size), where)
    # Asking for the address of the array itself would walk the tree.
    root = _root(file, int(whole.id.links.get_info(dataset.name.encode()).u), num_axes)
    if root is None:
        return None
    entry = np.dtype(
        [("size", "<u4"), ("mask", "<u4"), ("offsets", "<u8", (num_axes + 1,)), ("start", "<u8")]
    )
    return np.empty(0, entry) if root == _NOWHERE else _leaves(file, root, entry, num_chunks)


def _root(file: _File, header: int, num_axes: int) -> int | None:
    """Where the array's B-tree begins; None if it has none of version 1."""
    head = file.read(16, header)
    if newer := head.startswith(b"OHDR"):
        size_bytes = 1 << (head[5] & 3)
        at = header + 6 + (16 if head[5] & 0x20 else 0) + (4 if head[5] & 0x10 else 0)
        blocks = [(at + size_bytes, int.from_bytes(file.read(size_bytes, at), "little"))]
        kind_bytes, head_bytes = 1, 6 if head[5] & 4 else 4
    elif head[0] == 1:
        blocks, kind_bytes, head_bytes = [(header + 16, int.from_bytes(head[8:12], "little"))], 2, 8
    else:
        return None
    for number in range(_MOST_BLOCKS):
        if number == len(blocks):
            return None
        start, num_bytes = blocks[number]
        if num_bytes > _MOST_BYTES:
            return None
        block, at = file.read(num_bytes, start), 0
        if number and newer:  # "OCHK" before the messages, a checksum behind them
            block, at = block[:-4], 4
        while at + head_bytes <= len(block):
            kind = int.from_bytes(block[at : at + kind_bytes], "little")
            length = int.from_bytes(block[at + kind_bytes : at + kind_bytes + 2], "little")
            message = block[at + head_bytes : at + head_bytes + length]
            at += head_bytes + length
            if kind == _CONTINUATION:
                blocks.append(
                    (int.from_bytes(message[:8], "little"), int.from_bytes(message[8:16], "little"))
                )
            elif kind == _LAYOUT:
                is_tree = message[:3] == bytes((3, _CHUNKED, num_axes + 1))
                return int.from_bytes(message[3:11], "little") if is_tree else None
    return None


def _leaves(file: _File, root: int, entry: np.dtype, num_chunks: int) -> np.ndarray:
    # What is a circle, or leads many times to one node, would have more entries than the file has bytes for.
    most = min(num_chunks, os.fstat(file.descriptor).st_size // entry.itemsize)
    nodes, level = [root], None
    for _ in range(_MOST_LEVELS):
        parts, num_entries = [], 0
        for address in nodes:
            head = file.read(_NODE_HEADER_BYTES, address)
            here, count = head[5], int.from_bytes(head[6:8], "little")
            if head[:5] != b"TREE\x01" or level not in (None, here):
                raise file.damaged(f"a node of its chunks' tree at {address}")
            num_entries, level = num_entries + count, here
            if num_entries > most:
                raise file.damaged(f"at most {num_chunks} chunks in its tree, got more")
            parts.append(file.read(count * entry.itemsize, address + _NODE_HEADER_BYTES))
        found = np.frombuffer(b"".join(parts), entry)
        if not level:
            return found
        nodes, level = found["start"].tolist(), level - 1
    raise file.damaged(f"a tree of its chunks with at most {_MOST_LEVELS} levels")
