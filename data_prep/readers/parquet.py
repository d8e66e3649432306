"""Bags in Parquet files: one row per bag (`features`: list of lists) or per instance (`features`: a list).

A Parquet file is read by row groups, and a column of a row group in pieces from its beginning. If a row is an
instance, the sizes of bags follow from the metadata; if a row is a bag, one pass over the file finds them. In
both cases, reading a bag means passing over everything before it in its group, so files with a few bags per
group are read fastest.

Dimensions: N instances of a bag, D features.
"""

import mmap
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.readers import damage
from data_prep.readers.arrays import RowReader, as_a_whole
from data_prep.readers.fields import DETAILS, SIDE_ARRAYS
from data_prep.readers.inflation import refuse_inflation
from mhimdist.errors import DataError
from mhimdist.tables.parquet_pages import Column, RowGroup, claims_of, row_groups

SLIDE_COLUMNS = ("slide", "slide_id", "slide_name")
DETAIL_COLUMNS = ("label", "case", *DETAILS)

Piece = tuple[int, int, int]
"""A row group, the first row in it, and the number of rows."""

_BATCH_ROWS = 1024
"""Instances that are decoded at a time."""

_ITEM_BYTES = 8
"""Most bytes of a number in memory; for text, of the number of its entry in a dictionary."""

Place = tuple[tuple[Piece, ...], int, int]
"""Where a bag is, which may be in more than one group, and its N and D."""


@dataclass(frozen=True)
class _File:
    """An open file, and the names of its columns of slides and features."""

    path: Path
    content: mmap.mmap
    parquet: pq.ParquetFile
    groups: list[RowGroup]
    slide: str
    features: str

    @property
    def bag_a_row(self) -> bool:
        """Whether a row is a bag."""
        return _is_list(self.parquet.schema_arrow.field(self.features).type.value_type)


def bags_in(path: Path, arrays: Collection[str]) -> Iterator[tuple[str, Place, dict[str, Any]]]:
    """The bags of a file: slide, place, and the bag's values in the columns of `DETAIL_COLUMNS`.

    Raises:
        DataError: the file is damaged, lacks columns, or holds the instances of a slide apart.
    """
    file = _open(path, arrays)
    details = [name for name in DETAIL_COLUMNS if name in file.parquet.schema_arrow.names]
    pieces: dict[str, list[Piece]] = {}
    shapes: dict[str, tuple[int, int]] = {}
    said: dict[str, dict[str, Any]] = {}
    previous = None
    for group in range(file.parquet.num_row_groups):
        in_group = _shapes(file, group)
        for slide, start, end, row in _runs(file, group, details):
            if slide in pieces and (slide != previous or file.bag_a_row):
                raise DataError(f"{path}: the rows of slide {slide!r} are not together")
            if end - start > 1 and file.bag_a_row:
                raise DataError(f"{path}: slide {slide!r} is in it twice")
            pieces.setdefault(slide, []).append((group, start, end - start))
            N, D = in_group[start] if file.bag_a_row else (end - start, in_group[0][1])
            before, width = shapes.get(slide, (0, D))
            if width != D:
                raise DataError(f"{path}: {slide}: {file.features} has rows of {width} and of {D} numbers")
            shapes[slide] = before + N, D
            said.setdefault(slide, row)
            previous = slide
    for slide, place in pieces.items():
        yield slide, (tuple(place), *shapes[slide]), said[slide]


def read(path: Path, place: Place, arrays: Collection[str]) -> dict[Any, Any]:
    """Read the arrays of a bag by name. Rows cannot be read in part, so the whole bag is in memory.

    Args:
        path: the Parquet file.
        place: row groups and rows of the bag, and its N and D, as `bags_in` yields them.
        arrays: names of the arrays to read.

    Raises:
        DataError: the file is damaged, or holds something other than `bags_in` found.
    """
    file = _open(path, arrays)
    pieces, N, D = place
    schema = file.parquet.schema_arrow
    shapes = {file.features: (N, D), "coords": (N, 2), "instance_labels": (N,)}
    return {
        name: _array(file, name, pieces, shape, _leaf(path, name, schema.field(name).type))
        for name, shape in shapes.items()
        if name in schema.names
    }


def _open(path: Path, arrays: Collection[str]) -> _File:
    with damage.named(f"{path} cannot be read as Parquet"):
        schema = pq.read_schema(path, memory_map=True)
        named = [field for field in schema if field.name in (*SLIDE_COLUMNS, *DETAIL_COLUMNS)]
        # As dictionaries, which hold a name once even if it is in the column a million times.
        text = [field.name for field in named if field.type in (pa.string(), pa.large_string())]
        parquet = pq.ParquetFile(path, memory_map=True, page_checksum_verification=True, read_dictionary=text)
    names = schema.names
    features = _one(path, names, [name for name in arrays if name not in SIDE_ARRAYS])
    if not _is_list(kind := schema.field(features).type):
        raise DataError(f"{path}: expected features as lists of numbers, got {kind}")
    with path.open("rb") as opened:
        content = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    groups = row_groups(content, parquet.metadata, str(path))
    return _File(path, content, parquet, groups, _one(path, names, SLIDE_COLUMNS), features)


def _one(path: Path, names: list[str], wanted: Sequence[str]) -> str:
    found = [name for name in wanted if name in names]
    if len(found) != 1:
        raise DataError(f"{path}: expected one column named {' or '.join(wanted)}, got {names}")
    return found[0]


def _runs(file: _File, group: int, details: list[str]) -> Iterator[tuple[str, int, int, dict[str, Any]]]:
    """The slides of a row group: name, first row, end, and the details in the first row."""
    columns = [file.slide, *details]
    for name in columns:
        _refuse_bomb(file, group, name)
    with damage.named(f"{file.path} is damaged"):
        table = file.parquet.read_row_group(group, columns=columns, use_threads=False).unify_dictionaries()
    slides = table[file.slide].combine_chunks()
    if not pa.types.is_dictionary(slides.type) or slides.null_count:
        got = next((slide for slide in slides.to_pylist() if not isinstance(slide, str)), None)
        raise DataError(f"{file.path}: expected the names of slides in {file.slide!r}, got {got!r}")
    numbers = slides.indices.to_numpy()
    starts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist()] if len(numbers) else []
    for start, end in zip(starts, [*starts[1:], len(numbers)], strict=True):
        if not (slide := slides[start].as_py()):
            raise DataError(f"{file.path}: expected the names of slides in {file.slide!r}, got {slide!r}")
        yield slide, start, end, {name: table[name][start].as_py() for name in details}


def _shapes(file: _File, group: int) -> list[tuple[int, int]]:
    """N and D of each bag in a row group; if a row is an instance, of all rows together."""
    num_rows = file.groups[group].num_rows
    if file.bag_a_row:
        rows = (0, num_rows)
        return [matrix.shape for matrix in _matrices(file, file.features, (group, *rows))]
    kind = file.parquet.schema_arrow.field(file.features).type
    if pa.types.is_fixed_size_list(kind):
        return [(num_rows, kind.list_size)]
    (column,) = _leaves(file, group, file.features)
    width, rest = divmod(column.num_values, max(num_rows, 1))
    if rest:
        raise DataError(f"{file.path}: {file.features} has rows of different lengths")
    return [(num_rows, width)]


def _array(
    file: _File, name: str, pieces: tuple[Piece, ...], shape: tuple[int, ...], dtype: np.dtype
) -> RowReader:
    def load() -> np.ndarray:
        array = np.concatenate([matrix for piece in pieces for matrix in _matrices(file, name, piece)])
        if name == "coords" and array.shape == (shape[0], 4):  # with width and height
            array = array[:, :2]
        if array.shape != shape:
            raise DataError(f"{file.path}: expected {name} of shape {shape}, got {array.shape}")
        return array

    return as_a_whole(shape, dtype, load)


def _matrices(file: _File, name: str, piece: Piece) -> Iterator[np.ndarray]:
    """The rows of a piece in order: one bag, or some instances, at a time."""
    group, first, num_rows = piece
    _refuse_bomb(file, group, name)
    step = 1 if file.bag_a_row else _BATCH_ROWS
    at = 0
    with damage.named(f"{file.path} is damaged"):
        for batch in file.parquet.iter_batches(step, row_groups=[group], columns=[name], use_threads=False):
            start, end = max(first - at, 0), min(first + num_rows - at, len(batch))
            if start < end:
                yield _matrix(file, name, batch.column(0).slice(start, end - start))
            at += len(batch)
            if at >= first + num_rows:
                return
    raise DataError(
        f"{file.path} is damaged: expected {first + num_rows} rows of {name} in row group {group}, got {at}"
    )


def _matrix(file: _File, name: str, array: pa.Array) -> np.ndarray:
    """Rows of a column as an array: the rows of its one bag, or instances."""
    if array.null_count:
        raise DataError(f"{file.path}: {name} has empty cells")
    rows = array[0].values if file.bag_a_row else array
    flat = rows.flatten() if _is_list(rows.type) else rows
    if rows.null_count or flat.null_count:
        raise DataError(f"{file.path}: {name} has empty cells")
    numbers = flat.to_numpy(zero_copy_only=False)
    if not _is_list(rows.type):
        return numbers
    widths = np.unique(rows.value_lengths().to_numpy(zero_copy_only=False)) if len(rows) else np.zeros(1, int)
    if len(widths) != 1:
        raise DataError(f"{file.path}: {name} has rows of {widths.min()} to {widths.max()} numbers")
    return numbers.reshape(len(rows), int(widths[0]))


def _refuse_bomb(file: _File, group: int, name: str) -> None:
    """Refuse a column that would be far larger in memory than it is stored.

    Features are judged by their own size. The other columns may hold equal values throughout, so they are
    judged by the size of the whole row group.
    """
    for column in _leaves(file, group, name):
        counted = [column] if name == file.features else file.groups[group].columns
        claims = claims_of(file.content, column, str(file.path))
        num_bytes = max(claims.num_bytes, claims.num_values * _ITEM_BYTES)
        stored_bytes = sum(other.stored_bytes for other in counted)
        refuse_inflation(str(file.path), column.path, num_bytes, stored_bytes)


def _leaves(file: _File, group: int, name: str) -> list[Column]:
    """What the footer says of a column in a row group."""
    leaves = [column for column in file.groups[group].columns if column.path.split(".")[0] == name]
    if len(leaves) != 1:
        raise DataError(f"{file.path} is damaged: row group {group} has {len(leaves)} columns {name!r}")
    return leaves


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _leaf(path: Path, name: str, kind: pa.DataType) -> np.dtype:
    while _is_list(kind):
        kind = kind.value_type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise DataError(f"{path}: {name} of type {kind} cannot be used")
    return np.dtype(kind.to_pandas_dtype())
