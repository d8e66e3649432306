from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from spreadsheets import write_xlsx

from mhimdist.errors import DataError, LabelError
from mhimdist.tables import sheets
from mhimdist.tables.columns import headed
from mhimdist.tables.reading import Table, read_table
from mhimdist.tables.text import TableWarning

TEXT = "slide,label\nä 1,x\nb,y\n"
ROWS = [(2, ["ä 1", "x"]), (3, ["b", "y"])]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def read(content: bytes, name: str = "t.csv", **options) -> Table:
    Path(name).write_bytes(content)
    return read_table(Path(name), **options)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encodings_delimiters_and_line_ends(encoding: str, delimiter: str, end: str) -> None:
    table = read(TEXT.replace(",", delimiter).replace("\n", end).encode(encoding), "T.CSV")
    assert (table.columns, table.rows, table.header_line) == (["slide", "label"], ROWS, 1)


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_latin_1_is_read_and_said(encoding: str) -> None:
    with pytest.warns(TableWarning, match=r"^t\.csv is not in UTF-8 and was read as Latin-1"):
        assert read(TEXT.encode(encoding)).rows == ROWS
    with pytest.warns(TableWarning, match="Latin-1"):  # bytes that Windows-1252 does not have
        assert read(b"slide,label\n\xe9\x81,x\n").rows == [(2, ["é\x81", "x"])]


@pytest.mark.parametrize(
    ("text", "columns", "rows"),
    [
        ("sep=;\nslide;label\na,b;x\n", ["slide", "label"], [(3, ["a,b", "x"])]),
        ("sep=|\r\nslide|label\r\na|x\r\n", ["slide", "label"], [(3, ["a", "x"])]),
        ('"Slide ID" , " label "\n"a" ,x\n', ["Slide ID", "label"], [(2, ["a ", "x"])]),
        ('slide, "label"\na,x\n', ["slide", "label"], [(2, ["a", "x"])]),
        ("slide,label\nC:\\data\\a.svs,x\n", ["slide", "label"], [(2, ["C:\\data\\a.svs", "x"])]),
        ('"slide, name";label\na;x\n', ["slide, name", "label"], [(2, ["a", "x"])]),
        (
            "slide;label;score\na;x;0,5\nb;y;0,7\n",
            ["slide", "label", "score"],
            [(2, ["a", "x", "0,5"]), (3, ["b", "y", "0,7"])],
        ),
        ("slide,note;label\na,b;x\n", ["slide", "note;label"], [(2, ["a", "b;x"])]),
        ("\n , \nslide,label\n\n,\na,x\n\n", ["slide", "label"], [(6, ["a", "x"])]),
        ('slide,label\n"a\nb",x\nc,y\n', ["slide", "label"], [(3, ["a\nb", "x"]), (4, ["c", "y"])]),
        ("slide,label\na,x,\nb,y, \n", ["slide", "label"], [(2, ["a", "x"]), (3, ["b", "y"])]),
        (",slide\n0,a\n", ["", "slide"], [(2, ["0", "a"])]),
        ("slide\na\n", ["slide"], [(2, ["a"])]),
        ("slide|label\na b|x\n", ["slide", "label"], [(2, ["a b", "x"])]),
        ("slide  label\na      x \n", ["slide", "label"], [(2, ["a", "x"])]),
        ("my slide id,label\na b c,x\n", ["my slide id", "label"], [(2, ["a b c", "x"])]),
        ('slide,label\na,5" biopsy\n', ["slide", "label"], [(2, ["a", '5" biopsy'])]),
    ],
)
def test_texts(text: str, columns: list[str], rows: list) -> None:
    table = read(text.encode())
    assert (table.columns, table.rows) == (columns, rows)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"t\.csv: expected a header and at least one row, got 0 lines"),
        (b"\n\n", "got 0 lines"),
        (b"slide,label\n", "got 1 lines"),
        (b"slide,label\na,x\nb\n", r"t\.csv, line 3: expected 2 cells, got 1"),
        (b"slide,label\na,x\n\nb,y,z\n", "line 4: expected 2 cells, got 3"),
        (b"sep=,\nslide,label\na\n", "line 3: expected 2 cells, got 1"),
        (b'slide,label\n"a,x\n', "cannot be read as CSV or TSV: unexpected end of data"),
        (b"slide,label\na,x\nb\0,y\n", "line 3: holds NUL bytes"),
        (TEXT.encode("utf-16-le"), "line 1: .*UTF-16 without a byte-order mark"),
        (b"\xff\xfea\0\0", "cannot be read as UTF-16: truncated data"),
        (b"PAR1" + bytes(50), "cannot be read as Parquet"),
        (b"PK\x03\x04" + bytes(50), "cannot be read as a spreadsheet"),
        (b"\xd0\xcf\x11\xe0" + bytes(600), "cannot be read as a spreadsheet"),
        (b"\x1f\x8b\x08" + bytes(50), "is gzip, not a table; save it as CSV"),
        (b"\x80\x04\x95" + bytes(50), "is a pickle, not a table"),
        (b"\xef\xbb\xbf\n<html><table>", "is HTML or XML, not a table"),
    ],
)
def test_what_is_no_table_is_refused_by_file_and_line(content: bytes, message: str) -> None:
    with pytest.raises(LabelError, match=message):
        read(content, error=LabelError)


def test_a_header_alone_can_be_allowed_and_a_missing_file_is_named() -> None:
    assert read(b"slide,label\n", header_alone=True).rows == []
    with pytest.raises(DataError, match=r"nowhere\.csv cannot be read: No such file"):
        read_table(Path("nowhere.csv"))


def test_a_table_without_a_header() -> None:
    table = read(b"\na,x\nb,y\n").without_header()
    assert (table.columns, table.rows, table.width) == ([], [(2, ["a", "x"]), (3, ["b", "y"])], 2)


def test_a_spreadsheet() -> None:
    cells = [["slide", "label", "score"], [101, 0, 0.5], None or [], ["007", 1.0, 2], ["b", None, 3]]
    write_xlsx("T.XLSX", Notes=[], Sheet1=cells)
    table = read_table(Path("T.XLSX"))
    assert table.columns == ["slide", "label", "score"]
    assert table.rows == [(2, ["101", "0", "0.5"]), (4, ["007", "1", "2"]), (5, ["b", "", "3"])]
    Path("T.XLSX").rename("mislabelled.csv")
    assert read_table(Path("mislabelled.csv")).rows == table.rows


def test_missing_marks_stay_text_in_a_spreadsheet() -> None:
    write_xlsx("t.xlsx", s=[["slide", "label"], ["NA", "None"], ["TRUE", "N/A"]])
    assert read_table(Path("t.xlsx")).rows == [(2, ["NA", "None"]), (3, ["TRUE", "N/A"])]


def test_a_table_that_does_not_begin_at_the_first_cell() -> None:
    write_xlsx("t.xlsx", s=[[], [None, "slide", "label"], [None, "a", "x"]])
    table = read_table(Path("t.xlsx"))
    assert (table.columns, table.rows, table.header_line) == (["slide", "label"], [(3, ["a", "x"])], 2)


def test_of_several_sheets_one_must_hold_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    write_xlsx("t.xlsx", train=[["slide"], ["a"]], test=[["slide"], ["b"]], empty=[])
    with pytest.raises(DataError, match=r"t\.xlsx: expected one sheet .* got 2: 'train', 'test'; save"):
        read_table(Path("t.xlsx"))
    write_xlsx("t.xlsx", a=[], b=[])
    with pytest.raises(DataError, match="got 0 lines"):
        read_table(Path("t.xlsx"))
    write_xlsx("t.xlsx", a=[["slide"], ["a"]])
    monkeypatch.setattr(sheets, "MAX_CELLS", 1)
    with pytest.raises(DataError, match=r"sheet1\.xml reaches to row 2 and column 1, more than 1 cells"):
        read_table(Path("t.xlsx"))
    monkeypatch.setattr(sheets, "MAX_UNPACKED_BYTES", 100)
    with pytest.raises(DataError, match=r"refused, it claims \d+ bytes unpacked, more than 100"):
        read_table(Path("t.xlsx"))


def test_parquet_as_text() -> None:
    columns = {
        "Slide": ["a", None],
        "label": pa.array([1, None]),
        "case": pa.array(["p", "p"]).dictionary_encode(),
        "score": [0.5, float("nan")],
        "features": [[1.0], [2.0]],
    }
    pq.write_table(pa.table(columns), "t.parquet")
    table = read_table(Path("t.parquet"))
    assert table.columns == ["Slide", "label", "case", "score"]
    assert table.rows == [(1, ["a", "1", "p", "0.5"]), (2, ["", "", "p", "nan"])]


@pytest.mark.parametrize("column", [["x" * 2**16] * 2**13, np.zeros(2**24, np.int8)])
def test_a_parquet_bomb_is_refused(column: object) -> None:
    pq.write_table(pa.table({"slide": column}), "t.parquet", compression="zstd")
    assert Path("t.parquet").stat().st_size < 100_000
    with pytest.raises(DataError, match=r"t\.parquet: refused, it (claims|repeats)"):
        read_table(Path("t.parquet"))


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ('"slide" "label"\n"1" "a" "x"\n"2" "b" "y z"\n', ["", "slide", "label"]),
        ("slide label\n1 a x\n2 b y\n", ["", "slide", "label"]),
        ("slide\tlabel\n7\ta\tx\n9\tb\ty\n", ["", "slide", "label"]),
        ("slide;label\n1;a;x\n2;b;y\n", ["", "slide", "label"]),
        (",slide,label\n0,a,x\n1,b,y\n", ["", "slide", "label"]),
        (" slide label\n0 a x\n1 b y\n", ["", "slide", "label"]),
        ("slide,label\n1,x,\n2,y,\n", ["slide", "label"]),
    ],
)
def test_names_of_rows_are_a_column_of_their_own(text: str, columns: list[str]) -> None:
    table = read(text.encode())
    assert table.columns == columns
    assert table.rows[0][1][-2:] == (["a", "x"] if len(columns) > 2 else ["1", "x"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '"label" "case"\n"a" "x" "p"\n"b" "y" "p"\n',
            "line 2: expected 2 cells, got 3, .* names of rows, as R",
        ),
        ("slide,label\na,x,n\nb,y,n\n", "line 2: expected 2 cells, got 3, as in all lines below the header"),
        (
            "Study 7\nslide,label\na,x\n",
            "line 2: expected 1 cells, got 2, .* below line 1: the header must be",
        ),
        ("slide,label\na,x\nb,y,n\n", "line 3: expected 2 cells, got 3$"),
    ],
)
def test_a_header_that_does_not_fit_its_rows_is_told(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(text.encode())


def test_comments_above_the_header() -> None:
    table = read(b"# exported; by me\n#Slide;Class\n\nslide;label\na;x\n#b;y\n")
    assert (table.columns, table.rows) == (["slide", "label"], [(5, ["a", "x"]), (6, ["#b", "y"])])
    assert table.comments == [(1, ["# exported", " by me"]), (2, ["#Slide", "Class"])]
    assert headed(table, frozenset({"slide"})) is table
    table = headed(read(b"# by me\n#slide,label\na,x\n", header_alone=True), frozenset({"slide"}))
    assert (table.columns, table.rows, table.header_line) == (["slide", "label"], [(3, ["a", "x"])], 2)
    assert read(b"#1,x\n2,y\n", header_alone=True).without_header().rows == [
        (1, ["#1", "x"]),
        (2, ["2", "y"]),
    ]
    assert read(b"#slide,label\n#1,x\n").rows == [(2, ["#1", "x"])]
