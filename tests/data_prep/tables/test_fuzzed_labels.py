"""Forged tables of labels, in every format: our errors alone come out of the reader."""

import io
import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzzing import CASES, forged, fuzz
from spreadsheets import write_xlsx

from data_prep.tables.labels import read_labels

LINES = [["slide", "label", "case"], ["a", "tumour", "p1"], ["b", "normal", "p1"], ["c", "1.0", "p2"]]


def _text(delimiter: str, encoding: str) -> bytes:
    return "\r\n".join(delimiter.join(line) for line in LINES).encode(encoding)


def _parquet() -> bytes:
    buffer = io.BytesIO()
    columns = {name: [line[i] for line in LINES[1:]] for i, name in enumerate(LINES[0])}
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def _workbook() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write_xlsx(Path(folder, "t.xlsx"), labels=[list(line) for line in LINES])
        return Path(folder, "t.xlsx").read_bytes()


VALID: dict[str, Callable[[], list[bytes]]] = {
    "csv": lambda: [
        _text(",", "utf-8"),
        _text(";", "utf-16"),
        _text("\t", "utf-8-sig"),
        _text("|", "latin-1"),
    ],
    "parquet": lambda: [_parquet()],
    "xlsx": lambda: [_workbook()],
}


@pytest.mark.faults(9, 16, 44)
@CASES
@pytest.mark.parametrize("suffix", VALID)
def test_forged_tables_of_labels(
    suffix: str, num_cases: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def read(content: bytes) -> None:
        path = Path(f"t.{suffix}")
        path.write_bytes(content)
        read_labels(path)

    fuzz(num_cases, forged(VALID[suffix]()), read)
