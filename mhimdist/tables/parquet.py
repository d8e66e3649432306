"""Parquet tables: the cells of their plain columns as text, within limits against bombs."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mhimdist.errors import DataError
from mhimdist.tables.parquet_pages import claims_of, row_groups
from mhimdist.tables.text import Line

MAX_INFLATION = 100
"""Largest ratio of the cells in memory, if above `SMALL_BYTES`, to the bytes of the file."""
SMALL_BYTES = 2**24
_CELL_BYTES = 8


def lines_of(path: Path, content: bytes, error: type[DataError]) -> list[Line]:
    """The header and the rows of a Parquet file; the header is line 0, the first row line 1.

    Lists, structs and columns of bytes are no cells of a table and are left out.

    Args:
        path: names the file in messages.
        content: its bytes.
        error: type of the error to raise.

    Raises:
        DataError: as `error`; the file is damaged, or would be far larger in memory than it is on disk.
    """
    try:
        # From memory: given a path, pyarrow would read a parent folder named "a=b" as a column.
        file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
        plain = [index for index, field in enumerate(file.schema_arrow) if _is_plain(field.type)]
        names = [file.schema_arrow.field(index).name for index in plain]
        _refuse_bomb(path, content, file, names, error)
        table = _read(path, content, file, plain, names, error)
        columns = [column.to_pylist() for column in table.columns]
    except error:
        raise
    except (pa.ArrowException, OSError, ValueError, DataError) as problem:
        raise error(f"{path} cannot be read as Parquet: {problem}") from problem
    rows = zip(*columns, strict=True)
    cells = [
        (number, ["" if cell is None else str(cell) for cell in row]) for number, row in enumerate(rows, 1)
    ]
    return [(0, names), *cells] if names else []


def _is_plain(kind: pa.DataType) -> bool:
    """Whether a value of this type is a cell; whatever is not known here, now or later, is none."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return (
        _is_text(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_temporal(kind)
        or pa.types.is_null(kind)
    )


def _refuse_bomb(
    path: Path, content: bytes, file: pq.ParquetFile, names: list[str], error: type[DataError]
) -> None:
    metadata = file.metadata
    limit = max(MAX_INFLATION * len(content), SMALL_BYTES)
    num_bytes = metadata.num_rows * max(len(names), 1) * _CELL_BYTES
    for group in row_groups(content, metadata, str(path)):
        for column in group.columns:
            if column.path in names:
                claims = claims_of(content, column, str(path))
                num_bytes += max(claims.num_bytes - claims.num_values * _CELL_BYTES, 0)
    if num_bytes > limit:
        raise error(f"{path}: refused, it claims {metadata.num_rows} rows in {len(content)} bytes")


def _read(
    path: Path,
    content: bytes,
    file: pq.ParquetFile,
    plain: list[int],
    names: list[str],
    error: type[DataError],
) -> Any:
    # As dictionaries, which store a repeated text once.
    text = [
        name
        for name, index in zip(names, plain, strict=True)
        if _is_text(file.schema_arrow.field(index).type)
    ]
    file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True, read_dictionary=text)
    # Without threads, which can still run when the interpreter ends.
    table = file.read(columns=names, use_threads=False)
    num_bytes = 0
    for name in text:
        for chunk in table[name].chunks:
            lengths = pc.take(pc.binary_length(chunk.dictionary), chunk.indices)
            num_bytes += pc.sum(lengths.cast(pa.int64())).as_py() or 0
    if num_bytes > max(MAX_INFLATION * len(content), SMALL_BYTES):
        raise error(f"{path}: refused, it repeats its text to {num_bytes} bytes")
    return table


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return kind in (pa.string(), pa.large_string(), pa.string_view())
