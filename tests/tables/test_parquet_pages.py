from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mhimdist.errors import DataError
from mhimdist.tables.parquet_pages import claims_of, row_groups

NUM_ROWS = 3000


def table() -> pa.Table:
    generator = np.random.default_rng(0)
    numbers = generator.standard_normal((NUM_ROWS, 8)).astype(np.float32)
    names = [f"slide {i // 100}" for i in range(NUM_ROWS)]
    whole = pa.array([None if i % 7 == 0 else i for i in range(NUM_ROWS)])
    return pa.table({"slide": names, "features": pa.array(list(numbers)), "n": whole})


def all_claims(path: Path) -> list[tuple[str, int, int, int]]:
    """Per column chunk: its name, values and bytes by the claims, and bytes with headers by the footer."""
    content, metadata = path.read_bytes(), pq.read_metadata(path)
    theirs = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    ours = row_groups(content, metadata, "x")
    assert [group.num_rows for group in ours] == [group.num_rows for group in theirs]
    found = []
    for number, group in enumerate(ours):
        for index, column in enumerate(group.columns):
            known = theirs[number].column(index)
            assert column.path == known.path_in_schema
            assert column.is_text == (known.physical_type == "BYTE_ARRAY")
            assert column.stored_bytes == known.total_compressed_size
            assert column.num_values == known.num_values
            claims = claims_of(content, column, "x")
            found.append((column.path, claims.num_values, claims.num_bytes, known.total_uncompressed_size))
    return found


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd", "brotli"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_dictionary": False},
        {"data_page_version": "2.0"},
        {"data_page_size": 1000, "write_batch_size": 64},
        {"row_group_size": 700, "write_page_index": True, "write_page_checksum": True},
        {"use_dictionary": ["slide"], "column_encoding": {"n": "DELTA_BINARY_PACKED"}},
        {"use_dictionary": False, "use_byte_stream_split": ["features.list.element"]},
    ],
)
def test_honest_files_claim_what_their_footer_says(compression: str, options: dict, tmp_path: Path) -> None:
    pq.write_table(table(), tmp_path / "a", compression=compression, **options)
    claims = all_claims(tmp_path / "a")
    for name, expected in (("slide", 1), ("features.list.element", 8), ("n", 1)):
        assert sum(values for other, values, *_ in claims if other == name) == expected * NUM_ROWS
    for _, _, num_bytes, with_headers in claims:
        assert 0.4 * with_headers < num_bytes < with_headers


def varint(number: int, num_bytes: int) -> bytes:
    """A number in Thrift's zigzag encoding, in `num_bytes` bytes."""
    number *= 2
    parts = [(number >> 7 * i) & 127 | 128 for i in range(num_bytes)]
    return bytes([*parts[:-1], parts[-1] & 127])


@pytest.mark.parametrize("said", [8, 10**6])
def test_a_footer_that_says_another_number_is_refused(said: int, tmp_path: Path) -> None:
    pq.write_table(table(), tmp_path / "a", write_statistics=False)
    content = (tmp_path / "a").read_bytes()
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    at = content.index(varint(8 * NUM_ROWS, 3), footer)
    (tmp_path / "a").write_bytes(content[:at] + varint(said, 3) + content[at + 3 :])
    message = f"^x: damaged: features.list.element has 24000 values, but the footer says {said}$"
    with pytest.raises(DataError, match=message):
        all_claims(tmp_path / "a")


def test_text_that_repeats_its_beginning_is_refused(tmp_path: Path) -> None:
    pq.write_table(
        table(), tmp_path / "a", use_dictionary=False, column_encoding={"slide": "DELTA_BYTE_ARRAY"}
    )
    with pytest.raises(DataError, match="refused, slide is in DELTA_BYTE_ARRAY; expected plain or"):
        all_claims(tmp_path / "a")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_headers_are_no_other_error(data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "a"
    if not path.exists():
        pq.write_table(table(), path)
    content, metadata = bytearray(path.read_bytes()), pq.read_metadata(path)
    column = row_groups(bytes(content), metadata, "x")[0].columns[1]
    for _ in range(data.draw(st.integers(1, 4))):
        content[column.first_page + data.draw(st.integers(0, 60))] = data.draw(st.integers(0, 255))
    try:
        assert claims_of(bytes(content), column, "x").num_values == 8 * NUM_ROWS
    except DataError as error:
        assert str(error).startswith("x: damaged: ")  # noqa: PT017


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_footer_is_no_other_error(data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "a"
    if not path.exists():
        pq.write_table(table(), path)
    content, metadata = bytearray(path.read_bytes()), pq.read_metadata(path)
    length = int.from_bytes(content[-8:-4], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        content[-9 - data.draw(st.integers(0, length - 1))] = data.draw(st.integers(0, 255))
    try:
        found = row_groups(bytes(content), metadata, "x")
    except DataError as error:
        assert str(error) == "x: damaged: its footer cannot be followed"  # noqa: PT017
    else:
        assert [len(group.columns) for group in found] == [3]
