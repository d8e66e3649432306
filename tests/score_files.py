"""Files of scores as a prediction writes them, slides as OpenSlide reads them, and a slide made of digits."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tifffile

from mhimdist.data.format import escape_key

CLASSES = ("normal", "tumor")


def write_scores(
    folder: Path,
    slide: str,
    *,
    coords_N2: np.ndarray | None,
    attention_N: np.ndarray | None,
    teacher_N: np.ndarray | None = None,
    tumor_N: np.ndarray | None = None,
    labels_N: np.ndarray | None = None,
    **about: Any,
) -> Path:
    """Write `folder/scores/<slide>.parquet`; `about` overrides what its metadata say."""
    given = (coords_N2, attention_N, tumor_N)
    size = next(len(array) for array in given if array is not None)

    def column(values_N: np.ndarray | None, kind: pa.DataType) -> pa.Array:
        return pa.nulls(size, kind) if values_N is None else pa.array(values_N).cast(kind)

    x_N, y_N = (None, None) if coords_N2 is None else coords_N2.T
    columns = {
        "x": column(x_N, pa.int32()),
        "y": column(y_N, pa.int32()),
        "attention": column(attention_N, pa.float32()),
        "instance_normal": column(None if tumor_N is None else 1 - tumor_N, pa.float32()),
        "instance_tumor": column(tumor_N, pa.float32()),
        "teacher_attention": column(teacher_N, pa.float32()),
        "instance_label": column(labels_N, pa.uint8()),
    }
    metadata = {
        "format": 1,
        "slide": slide,
        "case": slide,
        "label": "tumor",
        "predicted": "tumor",
        "probability": {"normal": 0.0625, "tumor": 0.9375},
        "classes": CLASSES,
        "patch_size": 32,
        "level": 0,
        "magnification": None,
        "coords_unit": None,
        "encoder": "digits",
        "models": ["runs/one"],
        "warnings": [],
    } | about
    path = folder / "scores" / f"{escape_key(slide)}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns).replace_schema_metadata({b"mhimdist": json.dumps(metadata).encode()})
    pq.write_table(table, path)
    return path


def write_slide(path: Path, pixels_YX3: np.ndarray, *, levels: int = 2, mpp: float | None = None) -> None:
    """Write a pyramidal tiled TIFF, each level half as long as the one before.

    Args:
        path: the file.
        pixels_YX3: uint8, Y x X x 3.
        levels: number of levels.
        mpp: micrometres per pixel, kept as the TIFF's resolution.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"tile": (128, 128), "photometric": "rgb", "metadata": None}
    if mpp is not None:
        options |= {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as file:
        for level in range(levels):
            step = 2**level
            file.write(pixels_YX3[::step, ::step], subfiletype=int(level > 0), **options)
            if mpp is not None:
                options["resolution"] = (1e4 / mpp / (2 * step), 1e4 / mpp / (2 * step))
