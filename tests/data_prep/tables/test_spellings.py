"""Labels and cases that tables write in several ways, and tables with unusual headers."""

from pathlib import Path

import numpy as np
import pytest
from spreadsheets import write_xlsx

from data_prep.shard import shard
from data_prep.tables.labels import Columns, SlideLabel, read_labels, without_suffixes
from mhimdist.data.shards import BagShards
from mhimdist.errors import LabelError

LABELS = Path("labels.csv")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def make(text: str, out: str = "out", **options) -> BagShards:
    """Shards of slides a, b, c and d with a table of labels."""
    LABELS.write_text(text)
    Path("features").mkdir(exist_ok=True)
    for slide in "abcd":
        np.save(f"features/{slide}.npy", np.ones((3, 4), np.float32))
    shard(Path("features"), LABELS, Path(out), **options)
    return BagShards(Path(out))


def test_numbers_with_a_decimal_comma_are_numbers() -> None:
    bags = make("slide;label\na;0,0\nb;10,0\nc;2\nd;10\n")
    assert bags.classes == ("0", "2", "10")
    assert {slide: bags.classes[n] for slide, n in zip(bags.slides, bags.labels_N, strict=True)} == {
        **{"a": "0", "b": "10"},
        **{"c": "2", "d": "10"},
    }
    with pytest.raises(LabelError, match=r"4 classes of 4 slides, .* is this survival or regression"):
        make("slide;label\na;10,3\nb;13,01\nc;15,72\nd;18,4\n", "other")
    LABELS.write_text('slide,label\na,"0,0"\nb,"1,50"\n')  # a comma divides the cells
    assert [row.label for row in read_labels(LABELS).rows] == ["0,0", "1,50"]
    LABELS.write_text("slide;label;case\na;1,50;21.10\nb;1.5;21.1\nc;x;7,0\n")
    assert [(row.label, row.case) for row in read_labels(LABELS).rows] == [
        ("1.5", "21.10"),
        ("1.5", "21.1"),
        ("x", "7"),
    ]


def test_accents_that_are_stored_apart_are_the_same() -> None:
    text = "slide,label,case\na,b\u00f6se,M\u00fcller\nb,gut,X\nc,bo\u0308se,Mu\u0308ller\nd,gut,X\n"
    bags = make(text)
    assert bags.classes == ("b\u00f6se", "gut")
    assert sorted(bags.cases) == ["M\u00fcller", "M\u00fcller", "X", "X"]
    renamed = make(text, "other", class_map={"bo\u0308se": "t"}, classes=("t", "gut"))
    assert sorted(renamed.labels_N.tolist()) == [0, 0, 1, 1]


@pytest.mark.parametrize("other", ["p1", "P 1", "p1 "])
def test_cases_that_differ_only_in_case_or_spaces_are_refused(other: str) -> None:
    text = f"slide,label,case\na,x,P1\nb,y,P2\nc,x,{other}\nd,y,P2\n"
    with pytest.raises(
        LabelError, match="differ only in case or spaces: write them alike in the table"
    ) as caught:
        make(text)
    for said in ("'P1' (labels.csv, line 2)", f"'{other.strip()}' (labels.csv, line 4)"):
        assert said in str(caught.value)
    assert not Path("out").exists()


def test_spellings_of_cases_are_found_in_every_table() -> None:
    make("slide,label,case\na,x,P1\nb,y,P2\n", skip_unmatched=True)
    with pytest.raises(LabelError, match=r"'P1' \(in the data set\) and 'p1' \(labels\.csv, line 2\)"):
        make("slide,label,case\nc,x,p1\nd,y,P3\n", append=True, skip_unmatched=True)
    LABELS.write_text("case,label\nP1,x\np1,y\n")
    Path("slides.csv").write_text("slide,case\na,P1\n")
    with pytest.raises(LabelError, match=r"'P1' \(labels\.csv, line 2\) and 'p1' \(labels\.csv, line 3\)"):
        read_labels(LABELS, slides=Path("slides.csv"))
    LABELS.write_text("slide,label\nS1,x\ns1,y\n")  # slides, and nobody says that they are patients
    assert len(read_labels(LABELS).rows) == 2


def test_survival_counts_patients_and_not_their_slides() -> None:
    LABELS.write_text("case,months\nP,5.1\nQ,8.8\nR,12.5\n")
    Path("slides.csv").write_text(
        "slide,case\n" + "".join(f"{s}{n},{c}\n" for s, c in zip("abc", "PQR", strict=True) for n in "123")
    )
    Path("many").mkdir()
    for name in (f"{s}{n}" for s in "abc" for n in "123"):
        np.save(f"many/{name}.npy", np.ones((3, 4), np.float32))
    options = {"slides": Path("slides.csv"), "label_column": "months"}
    with pytest.raises(LabelError, match="3 classes of 3 cases, 3 of them with one case each"):
        shard(Path("many"), LABELS, Path("out"), **options)
    shard(Path("many"), LABELS, Path("out"), **options, classes=("5.1", "8.8", "12.5"))


def test_a_slide_that_is_there_with_and_without_a_suffix_is_named_with_its_lines() -> None:
    LABELS.write_text("slide,label\na,normal\nb,tumor\na.svs,tumor\n")
    message = (
        r"^slide 'a' is in the table twice, once as 'a\.svs': labels\.csv, line 2 \('a', label 'normal'\) "
        r"and labels\.csv, line 4 \('a\.svs', label 'tumor'\); remove one of them"
    )
    with pytest.raises(LabelError, match=message):
        without_suffixes(read_labels(LABELS).rows, {"a", "b"})


def test_columns_by_number_under_a_header_of_unusual_names() -> None:
    columns, known = Columns("2", "3", "1"), {"a", "b", "c"}
    LABELS.write_text("Fall Nr.;Schnitt;Befund\n12/3;a;n\n12/3;b;t\n")
    expected = [SlideLabel("a", "12/3", "n"), SlideLabel("b", "12/3", "t")]
    assert read_labels(LABELS, columns=columns, known=known).rows == expected
    LABELS.write_text("12/3;a;n\n12/3;b;t\n")
    assert read_labels(LABELS, columns=columns, known=known).rows == expected
    LABELS.write_text("9;late;n\n12/3;a;n\n")  # a slide without features, of a class that is there
    assert [row.slide for row in read_labels(LABELS, columns=columns, known=known).rows] == ["late", "a"]
    LABELS.write_text("Fall;Befund\nP;x\n")
    Path("slides.csv").write_text("Fall;Schnitt\nP;a\n")
    by_number = Columns("2", "2", "1")
    rows = read_labels(LABELS, columns=by_number, slides=Path("slides.csv"), known=known).rows
    assert rows == [SlideLabel("a", "P", "x")]


def test_names_that_are_not_in_the_header_are_told_with_the_columns_that_are() -> None:
    LABELS.write_text("Schnitt,Befund\na,x\nb,y\n")
    message = r"no column 'Schnit' \(columns: \['Schnitt', 'Befund'\]\); the nearest is 'Schnitt'"
    with pytest.raises(LabelError, match=message):
        read_labels(LABELS, columns=Columns("Schnit", "Befunde"), known={"a", "b"})


def test_a_title_above_the_header_is_refused_with_the_line_of_the_header() -> None:
    rows = [["Study, 3.5.2023"], [], ["slide", "label"], ["a", "n"], ["b", "t"]]
    write_xlsx("labels.xlsx", s=rows)
    message = r"line 3: \['slide', 'label'\] is like a header, but a header must be the first line"
    for columns in (None, Columns("slide", "label")):
        with pytest.raises(LabelError, match=message):
            read_labels(Path("labels.xlsx"), columns=columns, known={"a", "b"})


def test_comments_above_the_header_of_labels() -> None:
    text = "#Patient Identifier\tSample\tCode\n#id\tid\tcode\nPATIENT_ID\tSAMPLE\tCODE\nP\ta\tx\n"
    LABELS.write_text(text)
    columns = Columns(slide="sample", label="code")
    assert read_labels(LABELS, columns=columns).rows == [SlideLabel("a", "P", "x")]
    LABELS.write_text("#slide\tlabel\na\tx\n")
    assert read_labels(LABELS).rows == [SlideLabel("a", "a", "x")]
    LABELS.write_text("#1,x\n2,y\n")  # slides can be called so
    assert [row.slide for row in read_labels(LABELS).rows] == ["#1", "2"]


def test_names_of_rows_are_no_slides() -> None:
    LABELS.write_text('"slide" "label"\n"1" "a" "x"\n"2" "b" "y z"\n')
    assert read_labels(LABELS).rows == [SlideLabel("a", "a", "x"), SlideLabel("b", "b", "y z")]
