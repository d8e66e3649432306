"""The sizes that the pages of a Parquet file claim in their headers, which Parquet readers trust.

Headers are in Thrift's compact protocol:
https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift

Why this module decodes them: pyarrow's metadata come from the footer, but pyarrow allocates by the pages. A
file of 519 bytes whose footer claims 1,024 numbers in 66 bytes becomes 264 MiB in memory, and one of 8.6 kB
whose footer claims 1,000 bytes of text becomes 256 MiB. pyarrow does not show page headers, and its memory
pools have no limit. A process with a limited address space still reads both files with 16 MiB left, because
pyarrow's allocator reserves addresses in advance. The limit holds only with the system's allocator; then
every file costs a new process, .6 s for the import of pyarrow alone, and a file above the limit looks like a
machine with too little memory. Decoding the headers of a manifest of 100,000 bags takes 1.2 ms, and the error
names the file and the column. (pyarrow 26, Linux.)
"""

from collections.abc import Iterator
from dataclasses import dataclass
from mmap import mmap
from typing import Any

from mhimdist.errors import DataError

_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3
_HEADER_OF = {_DATA: 5, _DICTIONARY: 7, _DATA_V2: 8}
"""By the type of a page: the field of its header that describes its values."""
_ENCODING_FIELD = {_DATA: 2, _DICTIONARY: 2, _DATA_V2: 4}
_DELTA_BYTE_ARRAY = 7
_MAX_DEPTH = 8


@dataclass(frozen=True)
class Claims:
    """The size of a column of a row group in memory.

    Attributes:
        num_values: number of its values, including empty ones.
        num_bytes: bytes of its pages, decompressed but still encoded.
    """

    num_values: int
    num_bytes: int


def claims_of(content: mmap | bytes, column: Any, where: str) -> Claims:
    """The claims of all page headers of a column, summed.

    Args:
        content: bytes of the file.
        column: pyarrow's metadata of the column in a row group.
        where: name of the file in messages.

    Raises:
        DataError: the pages cannot be followed, contradict the footer, or hold text in an encoding that can
            expand it to any length.
    """
    name, num_values, num_bytes = column.path_in_schema, 0, 0
    try:
        for kind, header in _pages(content, column):
            values = header[_HEADER_OF[kind]]
            num_bytes += header[2]
            num_values += values[1] if kind != _DICTIONARY else 0
            text = column.physical_type == "BYTE_ARRAY"
            if text and values[_ENCODING_FIELD[kind]] == _DELTA_BYTE_ARRAY:
                raise DataError(
                    f"{where}: refused, {name} is in DELTA_BYTE_ARRAY; expected plain or dictionary"
                )
    except (LookupError, TypeError, ValueError) as error:
        raise DataError(f"{where}: damaged: the pages of {name} cannot be followed") from error
    if num_values != column.num_values:
        raise DataError(
            f"{where}: damaged: {name} has {num_values} values, but the footer says {column.num_values}"
        )
    return Claims(num_values, num_bytes)


def _pages(content: mmap | bytes, column: Any) -> Iterator[tuple[int, dict[int, Any]]]:
    """The type and the header of every page of a column."""
    at = column.data_page_offset
    if column.has_dictionary_page and 0 < (first := column.dictionary_page_offset) < at:
        at = first
    end = at + column.total_compressed_size
    if not 0 <= at <= end <= len(content):
        raise ValueError("not in the file")
    while at < end:
        header, at = _struct(content, at)
        if min(header[2], header[3]) < 0:
            raise ValueError("a negative length")
        at += header[3]
        if header[1] in _HEADER_OF:
            yield header[1], header
    if at != end:
        raise ValueError("a page goes beyond its column")


def _struct(content: mmap | bytes, at: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """The fields by number, and the position after the struct."""
    fields: dict[int, Any] = {}
    number = 0
    while (head := content[at]) != 0:
        at += 1
        if head >> 4:
            number += head >> 4
        else:
            number, at = _integer(content, at)
        fields[number], at = _value(content, at, head & 15, depth)
    return fields, at + 1


def _value(content: mmap | bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if depth > _MAX_DEPTH:
        raise ValueError("too deep")
    if kind in (1, 2):  # the type of a boolean is its value
        return kind == 1, at
    if kind == 3:
        return content[at], at + 1
    if kind in (4, 5, 6):
        return _integer(content, at)
    if kind == 7:
        return None, at + 8
    if kind == 8:  # text, such as the least value: skipped
        length, at = _varint(content, at)
        return None, at + length
    if kind == 12:
        return _struct(content, at, depth + 1)
    raise ValueError(f"a page's header has no type {kind}")


def _integer(content: mmap | bytes, at: int) -> tuple[int, int]:
    value, at = _varint(content, at)
    return (value >> 1) ^ -(value & 1), at


def _varint(content: mmap | bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
