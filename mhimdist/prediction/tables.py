"""The tables of a prediction, as Parquet and as CSV that a spreadsheet may open."""

import os
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mhimdist import files
from mhimdist.foreign_text import csv_text
from mhimdist.prediction.verdicts import How, Threshold, Verdicts
from mhimdist.tasks import Task


def slide_table(verdicts: Verdicts, task: Task, threshold: Threshold) -> pa.Table:
    """A row per slide.

    Args:
        verdicts: the predictions.
        task: what the networks predict.
        threshold: the decision threshold.
    """
    names = {"slide": pa.array(verdicts.names, pa.string()), "case": pa.array(verdicts.cases, pa.string())}
    return pa.table(names | _columns(verdicts, task, threshold))


def case_table(verdicts: Verdicts, task: Task, threshold: Threshold, how: How) -> pa.Table:
    """A row per case.

    Args:
        verdicts, task, threshold: as in `slide_table`.
        how: how a case follows from its slides.
    """
    names = {
        "case": pa.array(verdicts.cases, pa.string()),
        "slides": pa.array(verdicts.slides_N, pa.int64()),
        "how": pa.array([how] * len(verdicts), pa.string()),
    }
    return pa.table(names | _columns(verdicts, task, threshold))


def _columns(verdicts: Verdicts, task: Task, threshold: Threshold) -> dict[str, pa.Array]:
    columns = {}
    if task.has_classes:
        columns["label"] = pa.array(verdicts.labels, pa.string())
    for name, target_N in zip(task.info.columns, verdicts.targets_NK.T, strict=False):
        columns[f"true_{name}"] = pa.array(target_N, pa.float64(), from_pandas=True)  # NaN is an empty cell
    for name, value_N in zip(task.columns, verdicts.probabilities_NC.T, strict=True):
        columns[name] = pa.array(value_N, pa.float64())
    if verdicts.decided is not None:
        columns["predicted"] = pa.array(verdicts.decided, pa.string())
    if task.has_classes:
        columns["threshold"] = pa.array([threshold.value] * len(verdicts), pa.float64())
        columns["threshold_from"] = pa.array([threshold.source] * len(verdicts), pa.string())
    for name, spread_N in zip(task.columns, verdicts.spread_NC.T, strict=True):
        columns[f"spread_{name.removeprefix('probability_')}"] = pa.array(spread_N, pa.float64())
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
