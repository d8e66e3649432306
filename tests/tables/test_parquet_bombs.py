"""Tables in Parquet that would become far larger in memory than they are on disk, by any type of column."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from forked import fork, limit_addresses, status_of

from mhimdist.errors import LabelError
from mhimdist.tables.parquet import lines_of

ROWS, LONG = 20_000, 50_000
REPEATED = pa.array([0] * ROWS, pa.int32())


def written(columns: dict) -> bytes:
    pq.write_table(pa.table(columns), "a.parquet", compression="zstd")
    content = Path("a.parquet").read_bytes()
    assert len(content) < 2**20
    return content


def lines(columns: dict) -> list:
    return lines_of(Path("a.parquet"), written(columns), LabelError)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.faults(44)
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_a_text_that_is_stored_once_and_repeated_is_refused(kind: pa.DataType) -> None:
    column = pa.DictionaryArray.from_arrays(REPEATED, pa.array(["a" * LONG], kind))
    with pytest.raises(LabelError, match=rf"a\.parquet: refused, it repeats its text to {ROWS * LONG} bytes"):
        lines({"slide": column})


def test_columns_of_bytes_of_one_length_are_no_cells() -> None:
    column = pa.DictionaryArray.from_arrays(REPEATED, pa.array([b"a" * LONG], pa.binary(LONG)))
    found = lines({"slide": pa.array(map(str, range(ROWS))), "bytes": column})
    assert found[0] == (0, ["slide"])
    assert len(found) == ROWS + 1


def test_every_kind_of_cell_is_text() -> None:
    found = lines(
        {
            "text": ["a"],
            "word": pa.array(["b"]).dictionary_encode(),
            "flag": [True],
            "count": pa.array([3], pa.uint8()),
            "share": [0.5],
            "day": pa.array([0], pa.date32()),
            "nothing": pa.nulls(1),
        }
    )
    assert found == [
        (0, ["text", "word", "flag", "count", "share", "day", "nothing"]),
        (1, ["a", "b", "True", "3", "0.5", "1970-01-01", ""]),
    ]


@pytest.mark.faults(44)
def test_a_bomb_needs_little_memory() -> None:
    def write() -> None:
        column = pa.DictionaryArray.from_arrays(REPEATED, pa.array([b"a" * LONG], pa.binary(LONG)))
        written({"slide": pa.DictionaryArray.from_arrays(REPEATED, pa.array(["a"])), "bytes": column})

    def read() -> None:
        limit_addresses(400 * 2**20)
        assert len(lines_of(Path("a.parquet"), Path("a.parquet").read_bytes(), LabelError)) == ROWS + 1

    assert status_of(fork(write)) == 0, "writing takes a gigabyte, which this process then never had"
    assert status_of(fork(read)) == 0
