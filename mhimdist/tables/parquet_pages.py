"""The sizes that the footer and the pages of a Parquet file claim, which Parquet readers trust.

Both are in Thrift's compact protocol:
https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift

Why this module decodes them: pyarrow's metadata come from the footer, but pyarrow allocates by the pages. A
file of 519 bytes whose footer claims 1,024 numbers in 66 bytes becomes 264 MiB in memory, and one of 8.6 kB
whose footer claims 1,000 bytes of text becomes 256 MiB. pyarrow does not show page headers, and its memory
pools have no limit. A process with a limited address space still reads both files with 16 MiB left, because
pyarrow's allocator reserves addresses in advance. The limit holds only with the system's allocator; then
every file costs a new process, .6 s for the import of pyarrow alone, and a file above the limit looks like a
machine with too little memory. Decoding the headers of a manifest of 100,000 bags takes 1.2 ms, and the error
names the file and the column. And of a damaged column, pyarrow shows what the footer says by a call that ends
the whole process: "terminate called after throwing an instance of 'parquet::ParquetException'".
(pyarrow 26, Linux.)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from mmap import mmap
from typing import Any

from mhimdist.errors import DataError

_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3
_HEADER_OF = {_DATA: 5, _DICTIONARY: 7, _DATA_V2: 8}
"""By the type of a page: the field of its header that describes its values."""
_ENCODING_FIELD = {_DATA: 2, _DICTIONARY: 2, _DATA_V2: 4}
_BYTE_ARRAY, _DELTA_BYTE_ARRAY = 6, 7
_MAX_DEPTH = 12


@dataclass(frozen=True)
class Column:
    """What the footer says of a column in a row group.

    Attributes:
        path: its name, and for a list also that of its values, joined by ".".
        is_text: whether it is stored as bytes of any length.
        num_values: number of its values, including empty ones.
        stored_bytes: bytes of its pages in the file.
        first_page: where the first of its pages begins.
    """

    path: str
    is_text: bool
    num_values: int
    stored_bytes: int
    first_page: int


@dataclass(frozen=True)
class RowGroup:
    """What the footer says of a row group."""

    num_rows: int
    columns: tuple[Column, ...]


@dataclass(frozen=True)
class Claims:
    """The size of a column of a row group in memory.

    Attributes:
        num_values: number of its values, including empty ones.
        num_bytes: bytes of its pages, decompressed but still encoded.
    """

    num_values: int
    num_bytes: int


def row_groups(content: mmap | bytes, metadata: Any, where: str) -> list[RowGroup]:
    """The row groups of a file, as its footer describes them.

    Args:
        content: bytes of the file.
        metadata: pyarrow's metadata of the file; of row groups and columns it is asked for their number only.
        where: name of the file in messages.

    Raises:
        DataError: the footer cannot be followed.
    """
    with _named(f"{where}: damaged: its footer cannot be followed"):
        length = int.from_bytes(content[-8:-4], "little")
        footer, _ = _struct(content, len(content) - 8 - length)
        groups = [
            RowGroup(group[3], tuple(_column(chunk[3]) for chunk in group[1])) for group in footer.get(4, [])
        ]
        if [len(group.columns) for group in groups] != [metadata.num_columns] * metadata.num_row_groups:
            raise ValueError("pyarrow reads another number of columns")
    return groups


def _column(fields: dict[int, Any]) -> Column:
    first, path = fields[9], b".".join(fields[3]).decode()
    if 0 < (dictionary := fields.get(11, 0)) < first:
        first = dictionary
    return Column(path, fields[1] == _BYTE_ARRAY, fields[5], fields[7], first)


def claims_of(content: mmap | bytes, column: Column, where: str) -> Claims:
    """The claims of all page headers of a column, summed.

    Args:
        content: bytes of the file.
        column: the column.
        where: name of the file in messages.

    Raises:
        DataError: the pages cannot be followed, contradict the footer, or hold text in an encoding that can
            expand it to any length.
    """
    num_values = num_bytes = 0
    with _named(f"{where}: damaged: the pages of {column.path} cannot be followed"):
        for kind, header in _pages(content, column):
            values = header[_HEADER_OF[kind]]
            num_bytes += header[2]
            num_values += values[1] if kind != _DICTIONARY else 0
            if column.is_text and values[_ENCODING_FIELD[kind]] == _DELTA_BYTE_ARRAY:
                raise DataError(
                    f"{where}: refused, {column.path} is in DELTA_BYTE_ARRAY; expected plain or dictionary"
                )
    if num_values != column.num_values:
        raise DataError(
            f"{where}: damaged: {column.path} has {num_values} values, but the footer says "
            f"{column.num_values}"
        )
    return Claims(num_values, num_bytes)


@contextmanager
def _named(message: str) -> Iterator[None]:
    try:
        yield
    except (LookupError, TypeError, ValueError) as error:
        raise DataError(message) from error


def _pages(content: mmap | bytes, column: Column) -> Iterator[tuple[int, dict[int, Any]]]:
    """The type and the header of every page of a column."""
    at = column.first_page
    end = at + column.stored_bytes
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
    if kind == 8:
        length, at = _varint(content, at)
        return bytes(content[at : at + length]), at + length
    if kind in (9, 10):
        return _list(content, at, depth)
    if kind == 12:
        return _struct(content, at, depth + 1)
    raise ValueError(f"a header has no type {kind}")


def _list(content: mmap | bytes, at: int, depth: int) -> tuple[list[Any], int]:
    length, kind = content[at] >> 4, content[at] & 15
    at += 1
    if length == 15:
        length, at = _varint(content, at)
    values = []
    for _ in range(length):
        # In a list, a boolean is a byte.
        value, at = _value(content, at, 3 if kind in (1, 2) else kind, depth + 1)
        values.append(value)
    return values, at


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
