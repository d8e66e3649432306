"""Splits as others write them. The data: 12 slides of 6 cases, each with a slide of either class."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from spreadsheets import write_xlsx

from mhimdist.data.split_files import folds_in
from mhimdist.data.splits import Split, from_file
from mhimdist.errors import SplitError

SLIDES = tuple(f"s{i:02}" for i in range(12))
KEYS = tuple(f"key-{slide}" for slide in SLIDES)
CASES = tuple(f"c{i // 2}" for i in range(12))
LABELS = np.array([i % 2 for i in range(12)])
SETS = {"train": SLIDES[:6], "val": SLIDES[6:8], "test": SLIDES[8:]}
EXPECTED = Split(train=KEYS[:6], validation=KEYS[6:8], test=KEYS[8:])


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def splits(path: str, text: str | bytes | None = None, **options) -> list[Split]:
    if text is not None:
        Path(path).write_bytes(text.encode() if isinstance(text, str) else text)
    defaults = {"validation_share": 0.3, "seed": 0}
    return from_file(Path(path), KEYS, SLIDES, CASES, LABELS, **(defaults | options))


def clam(sets: dict[str, tuple[str, ...]] = SETS, write=str) -> str:
    """A table as CLAM's `splits_0.csv`: an index, then a list of slides a set, of different lengths."""
    longest = max(map(len, sets.values()))
    lines = [[str(i), *(write(s[i]) if i < len(s) else "" for s in sets.values())] for i in range(longest)]
    return "\n".join(map(",".join, [["", *sets], *lines]))


def by_set(write=str, header: str = "slide_id,set", delimiter: str = ",") -> str:
    rows = [f"{write(slide)}{delimiter}{name}" for name, slides in SETS.items() for slide in slides]
    return "\n".join([header, *rows])


@pytest.mark.parametrize(
    "header",
    ["slide_id,set", "Slide,Split", "filename,subset", "image_id,partition", "slide,fold", "slide,phase"],
)
def test_a_table_of_slides_and_sets(header: str) -> None:
    assert splits("s.csv", by_set(header=header)) == [EXPECTED]


@pytest.mark.parametrize(
    "names", [("training", "valid", "testing"), ("TRAIN", "dev", "Test"), ("Train", "Val", "TEST")]
)
def test_other_words_for_the_sets(names: tuple[str, str, str]) -> None:
    text = by_set()
    for ours, theirs in zip(("train", "val", "test"), names, strict=True):
        text = text.replace(f",{ours}", f",{theirs}")
    assert splits("s.csv", text) == [EXPECTED]


@pytest.mark.parametrize(
    "write",
    [
        lambda s: f"{s}.svs",
        lambda s: f" {s} ",
        lambda s: f"C:\\x\\{s}.tiff",
        lambda s: f"/a/b/{s}.pt",
        lambda s: f"key-{s}",
    ],
)
def test_names_follow_the_rules_of_label_tables(write) -> None:
    assert splits("s.csv", by_set(write)) == [EXPECTED]
    assert splits("splits_0.csv", clam(write=write)) == [EXPECTED]
    document = {name: [write(slide) for slide in slides] for name, slides in SETS.items()}
    assert splits("s.json", json.dumps(document)) == [EXPECTED]


def test_formats_of_tables() -> None:
    assert splits("s.TSV", by_set(delimiter="\t", header="slide_id\tset").encode("utf-16")) == [EXPECTED]
    assert splits("s.txt", by_set(delimiter=";", header="slide_id;set").encode("utf-8-sig")) == [EXPECTED]
    rows = [line.split(",") for line in by_set().splitlines()]
    write_xlsx("s.xlsx", Split=rows)
    assert splits("s.xlsx") == [EXPECTED]
    columns = {name: [row[i] for row in rows[1:]] for i, name in enumerate(rows[0])}
    pq.write_table(pa.table(columns), "s.parquet")
    assert splits("s.parquet") == [EXPECTED]


def test_clam() -> None:
    assert splits("splits_0.csv", clam()) == [EXPECTED]
    lines = [
        f"{slide},{slide in SETS['train']},{slide in SETS['val']},{slide in SETS['test']}" for slide in SLIDES
    ]
    assert splits("splits_0_bool.csv", "\n".join([",train,val,test", *lines])) == [EXPECTED]


def test_a_folder_of_clam_is_its_folds() -> None:
    Path("task").mkdir()
    other = {"train": SLIDES[6:], "val": SLIDES[:2], "test": SLIDES[2:6]}
    for number in (0, 2, 10):
        Path(f"task/splits_{number}.csv").write_text(clam(other if number == 2 else SETS))
        Path(f"task/splits_{number}_bool.csv").write_text("x")
        Path(f"task/splits_{number}_descriptor.csv").write_text("x")
    Path("task/notes.txt").write_text("x")
    assert list(folds_in(Path("task"))) == ["splits_0.csv", "splits_2.csv", "splits_10.csv"]
    second = Split(train=KEYS[6:], validation=KEYS[:2], test=KEYS[2:6])
    assert splits("task") == [EXPECTED, second, EXPECTED]


def test_a_folder_of_one_list_per_set() -> None:
    Path("lists").mkdir()
    for name, slides in SETS.items():
        Path(f"lists/{name}.txt").write_text("\n".join(f"{slide}.svs" for slide in slides))
    assert splits("lists") == [EXPECTED]
    Path("lists/val.txt").write_text("label,slide_id\n1,s06\n0,s07\n")
    assert splits("lists") == [EXPECTED]
    Path("lists/val.txt").write_text("a,b\n1,s06\n")
    with pytest.raises(
        SplitError, match=r"lists/val\.txt: expected a column slide, or one slide a line, got"
    ):
        splits("lists")


def test_mil_baseline_and_its_folder() -> None:
    names = [f"{name}_{what}" for name in SETS for what in ("slide_path", "label")]
    lines = []
    for i in range(6):
        members = [
            (f"/feat/pt_files/{s[i]}.pt", f"{i % 2}.0") if i < len(s) else ("", "") for s in SETS.values()
        ]
        lines.append(",".join(cell for member in members for cell in member))
    text = "\n".join([",".join(names), *lines])
    Path("data").mkdir()
    for number in (1, 2):
        assert splits(f"data/Total_2-fold_DATA_{number}fold.csv", text) == [EXPECTED]
    assert splits("data") == [EXPECTED] * 2


def test_a_validation_set_that_is_the_test_set_is_refused_unless_the_protocol_says_so() -> None:
    text = clam({"train": SLIDES[:6], "val": SLIDES[6:], "test": SLIDES[6:]})
    with pytest.raises(SplitError, match=r"^s\.csv: its validation set is its test set.*--protocol paper"):
        splits("s.csv", text)
    expected = Split(KEYS[:6], KEYS[6:], KEYS[6:], selects_on_test=True)
    assert splits("s.csv", text, selects_on_test=True) == [expected]


def patho_bench(*, slides: bool) -> str:
    sets = [["train"] * 6 + ["val"] * 2 + ["test"] * 4, ["test"] * 4 + [""] * 2 + ["train"] * 6]
    if slides:
        rows = [
            [c, s, "1", *(column[i] for column in sets)]
            for i, (c, s) in enumerate(zip(CASES, SLIDES, strict=True))
        ]
    else:
        rows = [[CASES[i], "1", *(column[i] for column in sets)] for i in range(0, 12, 2)]
    header = ["case_id", *(["slide_id"] if slides else []), "grade", "fold_0", "fold_1"]
    return "\n".join(map("\t".join, [header, *rows]))


@pytest.mark.parametrize("slides", [True, False])
def test_patho_bench(slides: bool) -> None:
    first, second = splits("k=all.tsv", patho_bench(slides=slides))
    assert first == EXPECTED
    assert second.test == KEYS[:4]
    assert sorted(second.train + second.validation) == sorted(KEYS[6:])


def test_the_number_of_the_fold_that_tests_a_slide() -> None:
    text = "slide,fold\n" + "\n".join(f"{slide},{i // 4}" for i, slide in enumerate(SLIDES))
    found = splits("s.csv", text)
    assert [split.test for split in found] == [KEYS[:4], KEYS[4:8], KEYS[8:]]
    assert all(len(split.train + split.validation) == 8 for split in found)
    assert splits("t.csv", text.replace("slide,fold", "slide,split")) == found
    with pytest.raises(SplitError, match=r"every slide is of fold 0: expected at least two folds"):
        splits("s.csv", "slide,fold\na,0\nb,0\n")


def test_cases_are_spread_over_their_slides() -> None:
    sets = {"train": ["c0", "c1", "c2"], "val": ["c3"], "test": ["c4", "c5"]}
    assert splits("s.json", json.dumps(sets)) == [EXPECTED]
    rows = [f"{case},{name}" for name, cases in sets.items() for case in cases]
    assert splits("s.csv", "\n".join(["Patient ID,set", *rows])) == [EXPECTED]


def test_forms_of_json() -> None:
    sets = {name: list(slides) for name, slides in SETS.items()}
    for document in (sets, {"Training": sets["train"], "dev": sets["val"], "TEST": sets["test"], "seed": 1}):
        assert splits("s.json", json.dumps(document)) == [EXPECTED]
    for document in (
        [sets, sets],
        {"fold_0": sets, "fold_1": sets},
        {"0": sets, "1": sets},
        {"folds": [sets, sets]},
    ):
        assert splits("s.json", json.dumps(document)) == [EXPECTED] * 2
    assert splits(
        "s", "\ufeff" + json.dumps({s: name for name, members in sets.items() for s in members})
    ) == [EXPECTED]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "s.csv",
            "a,b\n1,2\n",
            r"it has no column set, slide \(its columns: a, b\); expected the columns slide,set",
        ),
        ("s.csv", "a,set\n1,train\n", r"it has no column slide \(its columns: a, set\)"),
        (
            "s.csv",
            "slide,set\ns00,held out\n",
            "line 2: set is 'held out', not one of train, validation, test",
        ),
        ("s.csv", "slide,set\ns00,train\ns01,\n", "line 3: set is '', not one of"),
        ("s.csv", "slide,set\n,train\n", "line 2: the slide is missing"),
        (
            "s.csv",
            "train,val,valid\ns00,s01,s02\n",
            r"two columns are the validation set: \['val', 'valid'\]",
        ),
        ("s.json", '{"train": "s00", "test": ["s01"]}', "expected a list of slides as 'train', got s00"),
        ("s.json", '{"a": [1]}', r"it names none of train, validation, test \(its keys: a\)"),
        ("s.json", '{"val": [], "valid": []}', "two of its lists are the validation set"),
        ("s.json", "{", "does not hold a split into train, validation and test: Expecting property name"),
        ("s.json", "3", "does not hold a split into train, validation and test"),
        ("s.json", "[]", "it holds no folds"),
        (
            "s.pkl",
            b"\x80\x04\x95" + bytes(9),
            r"s\.pkl is a pickle, not a table.*; expected the columns slide,set",
        ),
        ("s.csv", "slide,set\ns00\n", r"s\.csv, line 2: expected 2 cells, got 1; expected the columns"),
        (
            "s.json",
            '{"train": ["s00", "s02"], "val": ["s04", "s05"]}',
            "the test set is empty: call the set that",
        ),
    ],
)
def test_what_is_no_split_is_refused_with_the_way_to_convert(
    name: str, content: str | bytes, message: str
) -> None:
    with pytest.raises(SplitError, match=message):
        splits(name, content)


def test_names_that_are_not_in_the_data_are_shown_beside_those_that_are() -> None:
    text = by_set(str.upper)
    message = (
        r"^s\.csv: 12 slides are not .* first is 'S00' \(in the data are 's00', 's01'\); .* upper and lower"
    )
    with pytest.raises(SplitError, match=message):
        splits("s.csv", text)
    Path("t.csv").write_text("slide,set\na,train\n")
    slides, labels_N = ("a.svs", "a.tif"), np.array([0, 1])
    with pytest.raises(SplitError, match=r"'a' could be any of the slides \['a\.svs', 'a\.tif'\]"):
        from_file(Path("t.csv"), slides, slides, slides, labels_N, validation_share=0.2, seed=0)


def test_a_folder_must_hold_one_split_a_file() -> None:
    Path("empty").mkdir()
    with pytest.raises(SplitError, match="empty: expected files of splits, one per fold, got none"):
        splits("empty")
    Path("empty/a.json").write_text(json.dumps([{"train": ["s00"]}] * 2))
    with pytest.raises(
        SplitError, match=r"empty/a\.json holds 2 splits; in a folder, each file must be one fold"
    ):
        splits("empty")
    with pytest.raises(SplitError, match=r"nowhere\.csv does not hold a split.*No such file"):
        splits("nowhere.csv")


def test_the_split_of_a_file_of_ours_does_not_change() -> None:
    rows = [f"{slide},{'test' if i < 4 else 'train'},1" for i, slide in enumerate(SLIDES)]
    (drawn,) = splits("s.csv", "\n".join(["slide,set,fold", *rows]))
    assert drawn.digest() == "1d1318a90c356f7e"


def test_folds_are_ordered_by_their_number() -> None:
    header = ["slide", "fold_0", "fold_1", "fold_10", "fold_2"]
    rows = [[slide, *("test" if i % 4 == n else "train" for n in range(4))] for i, slide in enumerate(SLIDES)]
    Path("s.tsv").write_text("\n".join("\t".join(row) for row in [header, *rows]))
    folds = folds_in(Path("s.tsv"))
    assert list(folds) == ["fold 0", "fold 1", "fold 2", "fold 10"]
    assert folds["fold 2"]["test"] == list(SLIDES[3::4])
    assert folds["fold 10"]["test"] == list(SLIDES[2::4])


@pytest.mark.parametrize(
    ("written", "names"),
    [
        (["10", "2.0", "1", "2"], ["fold 1", "fold 2", "fold 10"]),
        (["b", "a", "c", "a"], ["fold a", "fold b", "fold c"]),
    ],
)
def test_folds_of_a_column_are_ordered(written: list[str], names: list[str]) -> None:
    Path("s.csv").write_text(
        "\n".join(["slide,set,fold", *(f"s{i},train,{x}" for i, x in enumerate(written))])
    )
    assert list(folds_in(Path("s.csv"))) == names
    assert folds_in(Path("s.csv"))[names[1] if "2" in names[1] else names[0]]["train"] == ["s1", "s3"]
    Path("s.csv").write_text("slide,set,fold\na,train,1\nb,test,\n")
    with pytest.raises(SplitError, match="line 3: the fold is missing"):
        folds_in(Path("s.csv"))


def test_folds_of_json_and_numbers_with_a_decimal_comma() -> None:
    sets = {"train": ["a"], "test": ["b"]}
    Path("s.json").write_text(json.dumps({"10": sets, "9": sets}))
    assert list(folds_in(Path("s.json"))) == ["fold 9", "fold 10"]
    Path("s.csv").write_text("#slide;fold\na;1,0\nb;0,0\n")
    assert folds_in(Path("s.csv"))["fold 0"]["test"] == ["b"]
