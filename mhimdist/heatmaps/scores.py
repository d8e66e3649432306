"""The scores of a slide's patches, as a prediction writes them: `scores/<slide>.parquet`.

Dimensions: N patches of a slide, 2 the coordinates x and y.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mhimdist import files
from mhimdist.errors import DataError
from mhimdist.tables.parquet_pages import claims_of, row_groups

FOLDER = "scores"
METADATA_KEY = b"mhimdist"
MAX_BYTES = 2**30
"""Largest file of scores, on disk or in memory: tens of millions of patches."""


class About(BaseModel):
    """What a file of scores says about its slide and its patches.

    Attributes:
        slide, case, label: as in the label table; the label is None if it is unknown.
        predicted, probability: the slide's predicted class, and the probability of each class.
        classes: names of all classes.
        patch_size, level, magnification: how patches were cut, as far as the features say so: edge in pixels
            of the level, the level of the slide's pyramid, and the magnification.
        coords_unit: "um" if coordinates are micrometres; otherwise they are pixels of level 0.
        models: the folders of the ensemble.
        warnings: what the prediction warned of.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal[1]
    slide: str = Field(min_length=1)
    case: str | None = None
    label: str | None = None
    predicted: str | None = None
    probability: dict[str, float] = {}
    classes: tuple[str, ...] = ()
    patch_size: Annotated[int, Field(gt=0)] | None = None
    level: Annotated[int, Field(ge=0)] | None = None
    magnification: Annotated[float, Field(gt=0)] | None = None
    coords_unit: str | None = None
    models: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Scores:
    """The scores of one slide.

    Attributes:
        path: the file.
        about: what it says about the slide.
        num_patches: N.
        coords_N2: float64, N x 2, upper left corner of each patch; None without coordinates.
        attention_N: float64, N, sums to 1; None if the model has none.
        teacher_attention_N: the same of the teacher.
        probability_N: per class, the probability of the patch alone, float64, N; empty if not defined.
        instance_labels_N: uint8, N; None without.
    """

    path: Path
    about: About
    num_patches: int
    coords_N2: np.ndarray | None
    attention_N: np.ndarray | None
    teacher_attention_N: np.ndarray | None
    probability_N: Mapping[str, np.ndarray]
    instance_labels_N: np.ndarray | None

    @classmethod
    def read(cls, path: Path) -> "Scores":
        """Read and check a file.

        Raises:
            DataError: it is no file of scores, is damaged, holds no score, or a score is not finite.
        """
        table = _table(path)
        about = _about(path, table.schema.metadata or {})
        columns = set(table.column_names)
        x_N, y_N = (_column(path, table, name) for name in ("x", "y"))
        if (x_N is None) != (y_N is None):
            raise DataError(f"{path}: expected x and y, got only {'y' if x_N is None else 'x'}")
        probability_N = {
            name: values_N
            for name in about.classes
            if f"instance_{name}" in columns
            and (values_N := _column(path, table, f"instance_{name}")) is not None
        }
        labels_N = _column(path, table, "instance_label")
        scores = cls(
            path=path,
            about=about,
            num_patches=table.num_rows,
            coords_N2=None if x_N is None or y_N is None else np.stack([x_N, y_N], axis=1),
            attention_N=_column(path, table, "attention"),
            teacher_attention_N=_column(path, table, "teacher_attention"),
            probability_N=probability_N,
            instance_labels_N=None if labels_N is None else labels_N.astype(np.uint8),
        )
        if scores.attention_N is None and not probability_N:
            raise DataError(
                f"{path} of slide {about.slide!r} holds neither attention nor probabilities of patches: "
                "the model defines none, so there is nothing to draw"
            )
        return scores


def _table(path: Path) -> pa.Table:
    """All of a Parquet file whose pages claim no more than `MAX_BYTES`."""
    if (size := path.stat().st_size) > MAX_BYTES:
        raise DataError(f"{path} has {size:,} bytes; a file of scores has at most {MAX_BYTES:,}")
    content = path.read_bytes()
    try:
        file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
        metadata = file.metadata
        if not metadata.num_rows:
            raise DataError(f"{path} holds no patches; predict again")
        claims = [
            claims_of(content, column, str(path))
            for group in row_groups(content, metadata, str(path))
            for column in group.columns
        ]
        claimed = sum(max(8 * claim.num_values, claim.num_bytes) for claim in claims)
        if claimed > MAX_BYTES:
            raise DataError(f"{path} claims {claimed:,} bytes in memory, more than {MAX_BYTES:,}")
        table = file.read(use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a whole Parquet file ({error}); predict again") from None
    return table


def _about(path: Path, metadata: Mapping[bytes, bytes]) -> About:
    if METADATA_KEY not in metadata:
        raise DataError(f"{path} is not a file of scores: its schema lacks the metadata 'mhimdist'")
    try:
        return About.model_validate(files.parse_json(metadata[METADATA_KEY]))
    except (ValidationError, ValueError) as error:
        reason = str(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise DataError(f"{path}: the metadata 'mhimdist' cannot be used: {reason}") from None


def _column(path: Path, table: pa.Table, name: str) -> np.ndarray | None:
    """A column of finite numbers, float64; None if it is missing or entirely null."""
    if name not in table.column_names:
        return None
    column: Any = table[name]
    if column.null_count == len(column):
        return None
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise DataError(f"{path}: expected numbers in {name!r}, got {column.type}")
    values_N = column.cast(pa.float64()).to_numpy()  # null becomes NaN
    bad = np.flatnonzero(~np.isfinite(values_N))
    if len(bad):
        value = column[int(bad[0])].as_py()
        raise DataError(
            f"{path}: {name} of patch {bad[0]} is {'null' if value is None else value}, and of "
            f"{len(bad)} of {len(values_N)} patches not finite; predict again, and check the features"
        )
    return values_N
