"""The tables of a prediction, as Parquet and as CSV that a spreadsheet may open."""

import os
import threading
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mhimdist import files
from mhimdist.foreign_text import csv_text
from mhimdist.prediction.verdicts import How, Threshold, Verdicts


def slide_table(verdicts: Verdicts, classes: Sequence[str], threshold: Threshold) -> pa.Table:
    """A row per slide.

    Args:
        verdicts: the predictions.
        classes: class names in the order of their indices.
        threshold: the decision threshold.
    """
    names = {"slide": pa.array(verdicts.names, pa.string()), "case": pa.array(verdicts.cases, pa.string())}
    return pa.table(names | _columns(verdicts, classes, threshold))


def case_table(verdicts: Verdicts, classes: Sequence[str], threshold: Threshold, how: How) -> pa.Table:
    """A row per case.

    Args:
        verdicts, classes, threshold: as in `slide_table`.
        how: how a case follows from its slides.
    """
    names = {
        "case": pa.array(verdicts.cases, pa.string()),
        "slides": pa.array(verdicts.slides_N, pa.int64()),
        "how": pa.array([how] * len(verdicts), pa.string()),
    }
    return pa.table(names | _columns(verdicts, classes, threshold))


def _columns(verdicts: Verdicts, classes: Sequence[str], threshold: Threshold) -> dict[str, pa.Array]:
    columns = {"label": pa.array(verdicts.labels, pa.string())}
    for c, name in enumerate(classes):
        columns[f"probability_{name}"] = pa.array(verdicts.probabilities_NC[:, c], pa.float64())
    columns["predicted"] = pa.array([classes[c] for c in verdicts.predicted_N], pa.string())
    columns["threshold"] = pa.array([threshold.value] * len(verdicts), pa.float64())
    columns["threshold_from"] = pa.array([threshold.source] * len(verdicts), pa.string())
    for c, name in enumerate(classes):
        columns[f"spread_{name}"] = pa.array(verdicts.spread_NC[:, c], pa.float64())
    return columns


def write_table(table: pa.Table, stem: Path) -> None:
    """Write `<stem>.parquet` and `<stem>.csv`, each whole or not at all.

    Raises:
        DiskFullError: a file does not fit on the disk.
    """
    write_parquet(table, stem.with_name(f"{stem.name}.parquet"))
    rows = zip(*(column.to_pylist() for column in table.columns), strict=True)
    files.write_text(stem.with_name(f"{stem.name}.csv"), csv_text(table.column_names, rows))


def write_parquet(table: pa.Table, path: Path) -> None:
    """Write a Parquet file in one step.

    Raises:
        DiskFullError: it does not fit on the disk.
    """
    # Short, because the file's own name may be as long as a name can be.
    part = path.with_name(f".{os.getpid()}-{threading.get_ident()}.part")
    try:
        with files.full_disk(path):
            with part.open("wb") as file:
                pq.write_table(table, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)
