"""Bags in Parquet files: a row a bag (`features`: list of lists) or a row an instance (`features`: a list).

Dimensions: N instances of a bag, D features.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.arrays import refuse_inflation
from mhimdist.errors import DataError

FEATURE_COLUMNS = ("features", "feats")
SLIDE_COLUMNS = ("slide", "slide_id", "slide_name")
DETAIL_COLUMNS = ("label", "case", "encoder", "patch_size", "level", "magnification", "coords_unit")

Place = tuple[tuple[int, int, int], ...]
"""Where a bag lies: row group, first row in it and number of rows; a bag may cross groups."""


def bags_in(path: Path) -> Iterator[tuple[str, Place, dict[str, Any]]]:
    """The bags of a file: slide, place and what the columns of `DETAIL_COLUMNS` say of it.

    Raises:
        DataError: damaged, no such columns, or the instances of a slide are not together.
    """
    file = _open(path)
    names = file.schema_arrow.names
    slide_column = _one(path, names, SLIDE_COLUMNS)
    details = [name for name in DETAIL_COLUMNS if name in names]
    places: dict[str, list[tuple[int, int, int]]] = {}
    said: dict[str, dict[str, Any]] = {}
    previous = None
    for group in range(file.num_row_groups):
        table = _read(path, file, group, [slide_column, *details])
        slides = table[slide_column].to_pylist()
        starts = [i for i, slide in enumerate(slides) if not i or slide != slides[i - 1]]
        for start, end in zip(starts, [*starts[1:], len(slides)], strict=True):
            slide = slides[start]
            if not isinstance(slide, str) or not slide:
                raise DataError(f"{path}: expected the names of slides in {slide_column!r}, got {slide!r}")
            if slide in places and (slide != previous or _is_bag_a_row(path, file)):
                raise DataError(f"{path}: the rows of slide {slide!r} are not together")
            if end - start > 1 and _is_bag_a_row(path, file):
                raise DataError(f"{path}: slide {slide!r} stands in it twice")
            places.setdefault(slide, []).append((group, start, end - start))
            said.setdefault(slide, {name: table[name][start].as_py() for name in details})
            previous = slide
    for slide, place in places.items():
        yield slide, tuple(place), said[slide]


def read(path: Path, place: Place) -> dict[Any, Any]:
    """The arrays of a bag by name. A row of a Parquet file cannot be read in part: a bag is in memory."""
    file = _open(path)
    names = file.schema_arrow.names
    wanted = [name for name in (*FEATURE_COLUMNS, "coords", "instance_labels") if name in names]
    found: dict[Any, Any] = {}
    for name in wanted:
        parts = [
            _numbers(path, name, _read(path, file, group, [name])[name].slice(start, count))
            for group, start, count in place
        ]
        if _is_bag_a_row(path, file):
            (part,) = parts
            found[name] = np.array(part[0])  # a copy, because torch warns of arrays it could not write to
        else:
            found[name] = np.concatenate(parts)
    return found


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, memory_map=True, page_checksum_verification=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from error


def _read(path: Path, file: pq.ParquetFile, group: int, columns: list[str]) -> pa.Table:
    metadata = file.metadata.row_group(group)
    for index in range(metadata.num_columns):
        column = metadata.column(index)
        if column.path_in_schema.split(".")[0] in columns:
            claimed, stored = column.total_uncompressed_size, column.total_compressed_size
            refuse_inflation(str(path), column.path_in_schema, claimed, stored)
    try:
        return file.read_row_group(group, columns=columns, use_threads=False)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path} is damaged: {error}") from error


def _one(path: Path, names: list[str], wanted: tuple[str, ...]) -> str:
    found = [name for name in wanted if name in names]
    if len(found) != 1:
        raise DataError(f"{path}: expected one column named {' or '.join(wanted)}, got {names}")
    return found[0]


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _is_bag_a_row(path: Path, file: pq.ParquetFile) -> bool:
    kind = file.schema_arrow.field(_one(path, file.schema_arrow.names, FEATURE_COLUMNS)).type
    if not _is_list(kind):
        raise DataError(f"{path}: expected features as lists of numbers, got {kind}")
    return _is_list(kind.value_type)


def _numbers(path: Path, name: str, column: pa.ChunkedArray) -> np.ndarray | list[np.ndarray]:
    """The rows of a column as one array, or as a list of arrays where each row is a bag."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    if array.null_count:
        raise DataError(f"{path}: {name} has empty cells")
    if not _is_list(array.type):
        return array.to_numpy(zero_copy_only=False)
    if name == "instance_labels" or _is_list(array.type.value_type):
        return [_matrix(path, name, row.values) for row in array]
    return _matrix(path, name, array)


def _matrix(path: Path, name: str, array: pa.Array) -> np.ndarray:
    """A list array whose rows are of one length as N x D; an array of numbers as it is."""
    if not _is_list(array.type):
        return array.to_numpy(zero_copy_only=False)
    flat = array.flatten()
    if array.null_count or flat.null_count:
        raise DataError(f"{path}: {name} has empty cells")
    widths = (
        np.unique(array.value_lengths().to_numpy(zero_copy_only=False)) if len(array) else np.zeros(1, int)
    )
    if len(widths) != 1:
        raise DataError(f"{path}: {name} has rows of {widths.min()} to {widths.max()} numbers")
    return flat.to_numpy(zero_copy_only=False).reshape(len(array), int(widths[0]))
