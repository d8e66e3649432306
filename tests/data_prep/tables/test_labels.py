from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.tables.labels import Columns, SlideLabel, class_order, read_labels, without_suffixes
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
    assert read_labels(Path("labels.csv")) == [SlideLabel(*row) for row in expected]


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
        (b"slide,label\na,\n", "line 2: a slide, case or label is empty"),
        (b"slide,label,case\na,x,\n", "line 2: a slide, case or label is empty"),
        (b"slide,label\na,x\nb,NaN\n", r"line 3: a slide, case or label is empty or NaN: \['b', 'NaN'\]"),
        (b"slide,label,case\na,x,<NA>\n", "line 2: a slide, case or label is empty or NaN"),
        (b"slide,label\na,x\n\nb,y\na,y\n", "slide 'a' is in line 2 and again in line 5"),
        (b'slide,label\n"a,x\n', "cannot be read as CSV or TSV in UTF-8"),
        ("slide,label\nä,x\n".encode("latin-1"), "cannot be read as CSV or TSV in UTF-8"),
    ],
)
def test_tables_that_say_too_little_or_too_much_are_refused(table: bytes, message: str) -> None:
    Path("labels.csv").write_bytes(table)
    with pytest.raises(LabelError, match=rf"^labels\.csv.*{message}"):
        read_labels(Path("labels.csv"))


def test_a_slide_may_be_called_nan() -> None:
    Path("labels.csv").write_text("slide,label\nnan,x\n")
    assert read_labels(Path("labels.csv")) == [SlideLabel("nan", "nan", "x")]


def test_a_missing_table_is_named() -> None:
    with pytest.raises(LabelError, match=r"no label table at nowhere\.csv"):
        read_labels(Path("nowhere.csv"))


@pytest.mark.parametrize(
    ("labels", "classes", "expected"),
    [
        (["tumour", "normal", "tumour"], None, ("normal", "tumour")),
        (["10", "2", "-1"], None, ("-1", "2", "10")),
        (["10", "2", "b"], None, ("10", "2", "b")),
        (["0.0", "1.0"], None, ("0.0", "1.0")),
        (["a", "b"], ["b", "c", "a"], ("b", "c", "a")),
    ],
)
def test_order_of_classes(labels: list[str], classes: list[str] | None, expected: tuple[str, ...]) -> None:
    rows = [SlideLabel(str(i), str(i), label) for i, label in enumerate(labels)]
    assert class_order(rows, classes) == expected


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        (["a", "b"], ["a", "c"], "slide '1' has label 'b', expected a or c"),
        (["a"], ["a", "a"], r"expected class names that differ and are not empty, got \['a', 'a'\]"),
        (["a"], [""], r"expected class names that differ and are not empty, got \[''\]"),
        (["1", "01"], None, "labels that are the same number are written in different ways"),
    ],
)
def test_classes_that_do_not_fit_are_refused(
    labels: list[str], classes: list[str] | None, message: str
) -> None:
    rows = [SlideLabel(str(i), str(i), label) for i, label in enumerate(labels)]
    with pytest.raises(LabelError, match=message):
        class_order(rows, classes)


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
    assert read_labels(Path("labels.csv"), columns=columns) == [SlideLabel("a", "p", "x")]


def test_a_column_that_is_not_there() -> None:
    Path("labels.csv").write_text("slide,label\na,x\n")
    with pytest.raises(LabelError, match=r"no column 'grade' \(columns: \['slide', 'label'\]\)"):
        read_labels(Path("labels.csv"), columns=Columns(label="grade"))


def test_a_table_in_parquet() -> None:
    pq.write_table(pa.table({"Slide": ["a", "b"], "label": [0, 1], "patient": ["p", "p"]}), "labels.parquet")
    expected = [SlideLabel("a", "p", "0"), SlideLabel("b", "p", "1")]
    assert read_labels(Path("labels.parquet")) == expected
    pq.write_table(pa.table({"slide": ["a", None], "label": [0, 1]}), "labels.parquet")
    with pytest.raises(LabelError, match="line 2: a slide, case or label is empty"):
        read_labels(Path("labels.parquet"))
    pq.write_table(pa.table({"slide": ["a", "b"], "label": [1.0, float("nan")]}), "labels.parquet")
    with pytest.raises(LabelError, match=r"line 2: a slide, case or label is empty or NaN: \['b', 'nan'\]"):
        read_labels(Path("labels.parquet"))
    Path("labels.parquet").write_bytes(b"PAR1" + bytes(50))
    with pytest.raises(LabelError, match="cannot be read as Parquet"):
        read_labels(Path("labels.parquet"))


def test_labels_of_cases_with_several_slides() -> None:
    Path("cases.csv").write_text("PATIENT,label\np,x\nq,y\nunused,x\n")
    Path("slides.csv").write_text("PATIENT,FILENAME\np,a.svs\np,b.svs\nq,c.svs\n")
    rows = read_labels(Path("cases.csv"), slides=Path("slides.csv"), class_map={"x": "tumour"})
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
