"""Limits on decompression: on the size that data claim, and on the size that they really become."""

import zlib

import pyarrow as pa

from mhimdist.errors import DataError

MAX_INFLATION = 100
"""How many times larger than its stored bytes an array may be. Features compress 2 to 5 times; an array that
claims more than this is a bomb."""

SMALL_BYTES = 2**24
"""A size that is never a bomb: instance labels that are all alike take next to no bytes."""

CHECKSUM_BYTES = 64
"""More than the checksums that may follow a chunk."""


def refuse_inflation(where: str, what: str, num_bytes: int, stored_bytes: int) -> None:
    """Refuse an array that claims to be far larger than its stored bytes.

    Args:
        where: names the file.
        what: names the array.
        num_bytes: bytes that the array claims to have.
        stored_bytes: bytes that the file stores for it.

    Raises:
        DataError: it claims more than `MAX_INFLATION` times its stored bytes, and more than `SMALL_BYTES`.
    """
    if num_bytes > max(MAX_INFLATION * stored_bytes, SMALL_BYTES):
        raise DataError(
            f"{where}: claims {num_bytes} bytes of {what}, but stores {stored_bytes}, less than 1 in "
            f"{MAX_INFLATION}"
        )


def refuse_bomb(where: str, codec: str, stored: bytes, limit: int) -> None:
    """Refuse compressed data that become larger than they should, whatever they claim.

    Args:
        where: names the data.
        codec: "zlib", "gzip", "zstd", or "blosc" and "lz4" as numcodecs writes them.
        stored: the compressed data.
        limit: bytes that they should become; this check takes no more memory than that.

    Raises:
        DataError: they become more than `limit` bytes, or they are damaged.
    """
    most = limit + CHECKSUM_BYTES
    try:
        if codec == "zlib":
            num_bytes = len(zlib.decompressobj().decompress(stored, most + 1))
        elif codec in ("gzip", "zstd"):
            num_bytes = len(pa.CompressedInputStream(pa.BufferReader(stored), codec).read(most + 1))
        else:
            # Their decoders trust the size in the header, and refuse to write more than that.
            place = {"blosc": 4, "lz4": 0}[codec]
            num_bytes = int.from_bytes(stored[place : place + 4], "little")
    except (zlib.error, pa.ArrowException, OSError) as error:
        raise DataError(f"{where}: damaged: {error}") from error
    if num_bytes > most:
        raise DataError(f"{where}: becomes more than the {limit} bytes expected")
