from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from spreadsheets import write_xlsx

from data_prep.tables.labels import Columns, SlideLabel, read_labels, without_suffixes
from mhimdist.errors import LabelError


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("slide,label\na,x\nb,y\n", [("a", "a", "x"), ("b", "b", "y")]),
        ("label,case,slide\nx,p,a\ny,p,b", [("a", "p", "x"), ("b", "p", "y")]),
        (
            "\ufeffSlide_ID , LABEL,Patient\r\n\r\na, 1 ,p\r\n,,\r\nb,0,q\r\n",
            [("a", "p", "1"), ("b", "q", "0")],
        ),
        ("a\tx\nb\ty\n", [("a", "a", "x"), ("b", "b", "y")]),
        (
            "\ufeffnormal_001,0\r\ntumor_001,1\r\n\r\n",
            [("normal_001",) * 2 + ("0",), ("tumor_001",) * 2 + ("1",)],
        ),
        ("slide_id\tpatient\tlabel\na,b\tp\tx\n", [("a,b", "p", "x")]),
        ("slide;label\na;x\n", [("a", "a", "x")]),
        ('slide,label,stain\n"a, b","x ""y""",HE\n', [("a, b", "a, b", 'x "y"')]),
    ],
)
def test_tables_of_labels(table: str, expected: list[tuple[str, str, str]]) -> None:
    Path("labels.csv").write_bytes(table.encode())
    assert read_labels(Path("labels.csv")).rows == [SlideLabel(*row) for row in expected]


@pytest.mark.faults(16)
@pytest.mark.parametrize(
    ("table", "message"),
    [
        (b"", "expected a header and at least one slide, got 0 lines"),
        (b"slide,label\n", "expected a header and at least one slide, got 1 lines"),
        (
            b"a,x,p\nb,y,q\n",
            "expected a header with known names, or two columns, slide and label; got 3 columns",
        ),
        (b"name,label\na,x\n", r"expected one column named slide or .*, got the header \['name', 'label'\]"),
        (b"slide,slide_id,label\na,a,x\n", "expected one column named slide or slide_id"),
        (b"slide,score\na,1\n", "expected one column named label or"),
        (b"slide,label\na,x\nb\n", "line 3: expected 2 cells, got 1"),
        (b"slide,label\na,\n", "line 2: a cell is empty: "),
        (b"slide,label,case\na,x,\n", "line 2: a cell is empty: "),
        (b"slide,label\na,x\nb,NaN\n", r"line 3: 'NaN' says that a value is missing: \['b', 'NaN'\]"),
        (b"slide,label,case\na,x,<NA>\n", "line 2: '<NA>' says that a value is missing"),
        (b"slide,label\na,x\n\nb,y\na,y\n", "slide 'a' is in line 2 and again in line 5"),
        (b'slide,label\n"a,x\n', "cannot be read as CSV or TSV: unexpected end of data"),
    ],
)
def test_tables_that_say_too_little_or_too_much_are_refused(table: bytes, message: str) -> None:
    Path("labels.csv").write_bytes(table)
    with pytest.raises(LabelError, match=rf"^labels\.csv.*{message}"):
        read_labels(Path("labels.csv"))


def test_a_slide_may_be_called_nan() -> None:
    Path("labels.csv").write_text("slide,label\nnan,x\n")
    assert read_labels(Path("labels.csv")).rows == [SlideLabel("nan", "nan", "x")]


def test_a_missing_table_is_named() -> None:
    with pytest.raises(LabelError, match=r"no label table at nowhere\.csv"):
        read_labels(Path("nowhere.csv"))


@pytest.mark.parametrize(
    ("table", "columns"),
    [
        ("name,grade,who\na,x,p\n", Columns("name", "GRADE", "who")),
        ("a,7,x,p\n", Columns("1", "3", "4")),
        ("name,slide,who,label\na,zzz,p,x\n", Columns(slide="name", case="who")),
    ],
)
def test_columns_under_other_names(table: str, columns: Columns) -> None:
    Path("labels.csv").write_text(table)
    assert read_labels(Path("labels.csv"), columns=columns).rows == [SlideLabel("a", "p", "x")]


def test_a_column_that_is_not_there() -> None:
    Path("labels.csv").write_text("slide,label\na,x\n")
    with pytest.raises(LabelError, match=r"no column 'grade' \(columns: \['slide', 'label'\]\)"):
        read_labels(Path("labels.csv"), columns=Columns(label="grade"))


def test_a_table_in_parquet() -> None:
    pq.write_table(pa.table({"Slide": ["a", "b"], "label": [0, 1], "patient": ["p", "p"]}), "labels.parquet")
    expected = [SlideLabel("a", "p", "0"), SlideLabel("b", "p", "1")]
    assert read_labels(Path("labels.parquet")).rows == expected
    pq.write_table(pa.table({"slide": ["a", None], "label": [0, 1]}), "labels.parquet")
    with pytest.raises(LabelError, match="line 2: a cell is empty: "):
        read_labels(Path("labels.parquet"))
    pq.write_table(pa.table({"slide": ["a", "b"], "label": [1.0, float("nan")]}), "labels.parquet")
    with pytest.raises(LabelError, match=r"line 2: 'nan' says that a value is missing: \['b', 'nan'\]"):
        read_labels(Path("labels.parquet"))
    Path("labels.parquet").write_bytes(b"PAR1" + bytes(50))
    with pytest.raises(LabelError, match="cannot be read as Parquet"):
        read_labels(Path("labels.parquet"))


def test_labels_of_cases_with_several_slides() -> None:
    Path("cases.csv").write_text("PATIENT,label\np,x\nq,y\nunused,x\n")
    Path("slides.csv").write_text("PATIENT,FILENAME\np,a.svs\np,b.svs\nq,c.svs\n")
    rows = read_labels(Path("cases.csv"), slides=Path("slides.csv"), class_map={"x": "tumour"}).rows
    assert rows == [
        SlideLabel("a.svs", "p", "tumour"),
        SlideLabel("b.svs", "p", "tumour"),
        SlideLabel("c.svs", "q", "y"),
    ]
    assert [row.slide for row in without_suffixes(rows, {"a", "b", "c.svs", "c"})] == ["a", "b", "c.svs"]
    Path("slides.csv").write_text("PATIENT,FILENAME\nr,a\n")
    with pytest.raises(LabelError, match=r"no label in cases\.csv for cases of this table \(1\): \['r'\]"):
        read_labels(Path("cases.csv"), slides=Path("slides.csv"))


def test_a_class_that_is_renamed_must_be_there() -> None:
    Path("labels.csv").write_text("slide,label\na,x\n")
    with pytest.raises(LabelError, match="no slide has the label 'z', which --class-map renames"):
        read_labels(Path("labels.csv"), class_map={"z": "y"})


@pytest.mark.parametrize(
    ("row", "known", "expected"),
    [
        ("a", {"a.svs", "b"}, "a.svs"),
        ("a.svs", {"a", "b"}, "a"),
        ("a.SVS", {"a.svs"}, "a.svs"),
        ("batch 1/a.h5", {"a", "b"}, "a"),
        ("a.svs.h5", {"a"}, "a"),
        ("a", {"train/a"}, "train/a"),
        ("a", {"a", "a.svs"}, "a"),
        ("a.b", {"a"}, "a.b"),
        ("TCGA-A1.B34C.svs", {"TCGA-A1.B34C"}, "TCGA-A1.B34C"),
    ],
)
def test_folders_and_suffixes_make_no_difference(row: str, known: set[str], expected: str) -> None:
    assert without_suffixes([SlideLabel(row, row, "x")], known) == [SlideLabel(expected, expected, "x")]
    assert without_suffixes([SlideLabel(row, "p", "x")], known) == [SlideLabel(expected, "p", "x")]


def test_a_slide_that_could_be_several_is_refused() -> None:
    with pytest.raises(LabelError, match=r"slide 'a' of the table could be any of \['a\.svs', 'a\.tif'\]"):
        without_suffixes([SlideLabel("a", "a", "x")], {"a.svs", "a.tif"})


def test_a_suffix_may_not_make_two_slides_one() -> None:
    rows = [SlideLabel("a.svs", "a.svs", "x"), SlideLabel("a.tif", "a.tif", "x")]
    assert without_suffixes(rows[:1], {"a"}) == [SlideLabel("a", "a", "x")]
    with pytest.raises(LabelError, match=r"slide 'a' is in the table twice, once as 'a\.tif'"):
        without_suffixes(rows, {"a"})


@pytest.mark.parametrize("cell", ["", "NA", "n/a", "#N/A", "NaN", "None", "NULL", "-"])
def test_what_is_missing_is_no_class_no_case_and_no_slide(cell: str) -> None:
    for column, row in (("label", f"b,{cell},p"), ("case", f"b,x,{cell}"), ("slide", f"{cell},x,p")):
        Path("labels.csv").write_text(f"slide,label,case\na,x,p\n{row}\nc,y,q\n{row.replace('b,', 'd,')}")
        message = (
            rf"^labels\.csv, line 3: .*\(the {column}\), and so in 1 more lines; --skip-unmatched leaves"
        )
        with pytest.raises(LabelError, match=message):
            read_labels(Path("labels.csv"), known={"a", "b", "c", "d"})
        read = read_labels(Path("labels.csv"), known={"a", "b", "c", "d"}, skip_missing=True)
        assert read.rows == [SlideLabel("a", "p", "x"), SlideLabel("c", "q", "y")]
        names = ("line 3 of labels.csv", "line 5 of labels.csv") if column == "slide" else ("b", "d")
        assert read.left_out == {
            name: f"labels.csv, line {line}: the {column} is missing"
            for name, line in zip(names, (3, 5), strict=True)
        }


def test_a_class_may_be_called_none_if_it_is_renamed() -> None:
    Path("labels.csv").write_text("slide,label\na,None\nb,x\n")
    rows = read_labels(Path("labels.csv"), class_map={"None": "negative"}).rows
    assert [row.label for row in rows] == ["negative", "x"]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("0,0.0,1,1.", "0011"),
        ("0.0,1.0,0.00,1", "0101"),
        ("0.5,0.50,2,2.0", ["0.5", "0.5", "2", "2"]),
        ("01,v1.0,1.0a,10", ["01", "v1.0", "1.0a", "10"]),
    ],
)
def test_equal_numbers_are_one_class(labels: str, expected: Sequence[str]) -> None:
    lines = [f"s{i},{label}" for i, label in enumerate(labels.split(","))]
    Path("labels.csv").write_text("\n".join(["slide,label", *lines]))
    assert [row.label for row in read_labels(Path("labels.csv")).rows] == list(expected)


def test_a_renamed_number_may_be_written_either_way() -> None:
    Path("labels.csv").write_text("slide,label\na,0.0\nb,1\n")
    rows = read_labels(Path("labels.csv"), class_map={"0": "normal", "1.0": "tumour"}).rows
    assert [row.label for row in rows] == ["normal", "tumour"]


def test_cases_without_a_label_and_slides_without_a_case() -> None:
    Path("cases.csv").write_text("case,label\np,x\nq,NA\nu,y\np,x\n")
    Path("slides.csv").write_text("slide,case\na,p\nb,q\nc,r\nd,\n")
    call = partial(read_labels, Path("cases.csv"), slides=Path("slides.csv"))
    with pytest.raises(
        LabelError, match=r"cases\.csv, line 3: .*\['q', 'NA'\] \(the label\), and so in 1 more"
    ):
        call()
    read = call(skip_missing=True)
    assert read.rows == [SlideLabel("a", "p", "x")]
    assert read.left_out == {
        "b": "cases.csv, line 3: the label is missing",
        "c": "cases.csv: no label for case 'r'",
        "d": "slides.csv, line 5: the case is missing",
    }
    Path("cases.csv").write_text("case,label\np,x\np,y\n")
    with pytest.raises(
        LabelError, match="case 'p' is in line 2 and again in line 3, with another label: 'x' and"
    ):
        call()


def test_a_table_of_cases_alone_needs_slides() -> None:
    Path("labels.csv").write_text("patient,label\np,x\nq,y\n")
    with pytest.raises(
        LabelError, match=r"names cases and no slides .*: give --slides, .*; or --case-from tcga"
    ):
        read_labels(Path("labels.csv"))
    with pytest.raises(LabelError, match="names cases and no slides"):
        read_labels(Path("labels.csv"), known={"p", "q_1"})
    rows = read_labels(Path("labels.csv"), cases_alone=True).rows
    assert read_labels(Path("labels.csv"), known={"p", "q", "r"}).rows == rows
    assert rows == [SlideLabel("p", "p", "x"), SlideLabel("q", "q", "y")]


def test_a_table_from_excel_with_lost_zeros_and_decimals() -> None:
    write_xlsx("labels.xlsx", Sheet1=[["Slide ID", "Label"], [101, 0], ["102", 1.0], [103.0, "1"]])
    rows = read_labels(Path("labels.xlsx")).rows
    assert [(row.slide, row.label) for row in rows] == [("101", "0"), ("102", "1"), ("103", "1")]


@pytest.mark.parametrize("row", ["C:\\slides\\a.svs", "batch\\a", " a ", "a.csv", "a.ome.tiff", "x/a.SVS"])
def test_windows_folders_and_more_suffixes_make_no_difference(row: str) -> None:
    assert without_suffixes([SlideLabel(row, row, "x")], {"a", "b"}) == [SlideLabel("a", "a", "x")]


def test_a_number_with_decimals_is_the_number_if_no_slide_is_called_so() -> None:
    row = SlideLabel("101.0", "p", "x")
    assert without_suffixes([row], {"101"}) == [SlideLabel("101", "p", "x")]
    assert without_suffixes([row], {"101", "101.0"}) == [row]
    assert without_suffixes([row], {"102"}) == [row]


def test_a_header_of_unknown_names_is_no_slide() -> None:
    Path("labels.csv").write_text("sample,grade\na,x\nb,y\n")
    message = r"line 1: \['sample', 'grade'\] is no slide .* --slide-column and --label-column"
    with pytest.raises(LabelError, match=message):
        read_labels(Path("labels.csv"), known={"a", "b"})
    Path("labels.csv").write_text("late,x\na,x\nb,y\n")
    assert len(read_labels(Path("labels.csv"), known={"a", "b"}).rows) == 3


def test_a_case_that_a_spreadsheet_wrote_as_a_decimal_is_one_patient() -> None:
    Path("labels.csv").write_text("slide,label,case\na,x,101\nb,x,101.0\n")
    assert {row.case for row in read_labels(Path("labels.csv")).rows} == {"101"}
    Path("cases.csv").write_text("case,label\n101.0,x\n7,y\n")
    Path("slides.csv").write_text("slide,case\na,101\nb,007\n")
    message = (
        r"\(1\): \['007'\] \(.*; cases with a label: '101', '7'\); they differ .* zeros in front of numbers"
    )
    with pytest.raises(LabelError, match=message):
        read_labels(Path("cases.csv"), slides=Path("slides.csv"))
