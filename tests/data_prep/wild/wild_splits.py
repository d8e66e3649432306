"""Split files as other projects write them, on one drawn data set of 16 slides of 8 cases.

Each case has a slide of either class, so that any set of whole cases has both.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from wild_inputs import (
    CLASSES,
    Refused,
    Row,
    as_rows,
    as_text,
    columns_of,
    draw_features,
    draw_rows,
    refused,
    refuses,
    write,
)

from data_prep.shard import shard
from mhimdist.data.shards import BagShards
from mhimdist.data.splits import splits_of
from mhimdist.errors import SplitError

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'ab' * 32}\nsize 123456\n"

Sets = Mapping[str, Sequence[str]]
"""The slides of each set; without a validation set, a part of train becomes one."""


@dataclass(frozen=True)
class SplitCase:
    """A split file, or a folder of them, and the folds that it means.

    Attributes:
        kind, name: what it is an example of, and which one.
        files: content by path.
        path: what `--split-file` gives.
        answer: the folds in order, or the refusal.
        paper: whether the protocol is the authors'.
    """

    kind: str
    name: str
    files: Mapping[str, Any]
    path: str
    answer: Sequence[Sets] | Refused
    paper: bool = False

    def __str__(self) -> str:
        if isinstance(self.answer, Refused):
            return str(self.answer)
        return "; ".join(
            ", ".join(f"{name} {len(each)}" for name, each in fold.items()) for fold in self.answer
        )


class SplitData:
    """The drawn data set: 16 slides, two of each of 8 cases."""

    def __init__(self, draw: np.random.Generator):
        drawn = draw_rows(draw, 16)
        self.rows = tuple(Row(row.slide, str(100 + i // 2), CLASSES[i % 2]) for i, row in enumerate(drawn))
        self.slides = [row.slide for row in self.rows]
        self.features = {slide: draw_features(draw) for slide in self.slides}
        order = [str(100 + number) for number in draw.permutation(8)]
        self.one, self.two = self.sets(order), self.sets(order[4:] + order[:4])

    def sets(self, cases: Sequence[str]) -> dict[str, list[str]]:
        """Four cases train, two validate, two test."""
        parts = {"train": cases[:4], "val": cases[4:6], "test": cases[6:]}
        return {name: [row.slide for row in self.rows if row.case in part] for name, part in parts.items()}

    def set_of(self, sets: Sets) -> Callable[[Row], str]:
        """A function that says the set of a row."""
        names = {slide: name for name, slides in sets.items() for slide in slides}
        return lambda row: names[row.slide]

    def make(self, folder: Path) -> BagShards:
        """The shards of the data set."""
        for slide, features_ND in self.features.items():
            write(folder / "features" / f"{slide}.npy", features_ND)
        (folder / "labels.csv").write_text(as_text(columns_of(self.rows)))
        shard(folder / "features", folder / "labels.csv", folder / "shards", workers=1)
        return BagShards(folder / "shards")


def clam(
    sets: Sets, writing: Callable[[str], str] = str, names: Sequence[str] = ("train", "val", "test")
) -> str:
    """CLAM's `splits_0.csv`: an index, and a list of slides per set, each of its own length."""
    longest = max(map(len, sets.values()))
    padded = [[*map(writing, slides), *[""] * (longest - len(slides))] for slides in sets.values()]
    return as_text({"": list(range(longest)), **dict(zip(names, padded, strict=True))})


def boolean(sets: Sets) -> str:
    """CLAM's `splits_0_bool.csv`: a mark for each slide and set."""
    slides = [slide for members in sets.values() for slide in members]
    return as_text(
        {"": slides} | {name: [slide in members for slide in slides] for name, members in sets.items()}
    )


def tables(data: SplitData) -> Iterator[SplitCase]:
    """A slide and its set in each row."""
    one, two, rows = data.one, data.two, data.rows
    set_one, set_two = data.set_of(one), data.set_of(two)

    def by_set(
        name: str = "set",
        slide: str = "slide_id",
        spell: Callable[[str], str] = str,
        writing: Callable[[str], str] = str,
    ) -> dict[str, list[Any]]:
        return columns_of(
            rows, **{slide: lambda row: writing(row.slide), name: lambda row: spell(set_one(row))}
        )

    plain = by_set()
    holdout = {"train": [*one["train"], *one["val"]], "test": one["test"]}
    words = {"train": "Training", "val": "VALID", "test": "Test"}
    both = [
        {"slide": row.slide, "set": kind(row), "fold": i}
        for i, kind in ((1, set_one), (2, set_two))
        for row in rows
    ]
    folds = {name: [each[name] for each in both] for name in both[0]}
    case_sets = as_text(
        {"Patient ID": [row.case for row in rows[::2]], "split": [set_one(row) for row in rows[::2]]}
    )
    patho = columns_of(
        rows,
        case_id=lambda r: r.case,
        slide_id=lambda r: r.slide,
        label=lambda r: 1,
        fold_0=set_one,
        fold_1=set_two,
    )
    numbered = {slide: i for i, members in enumerate(one.values()) for slide in members}
    by_number = columns_of(rows, slide=lambda row: row.slide, fold=lambda row: numbered[row.slide])
    named = columns_of(rows, slide=lambda row: row.slide, fold=lambda row: f"fold_{numbered[row.slide]}")
    rest = [
        {"train": [s for s in data.slides if s not in members], "test": members} for members in one.values()
    ]
    for name, path, content, answer in (
        ("slide_id,set", "split.csv", as_text(plain), [one]),
        ("columns of other names", "split.csv", as_text(by_set("Data Split", "File Name")), [one]),
        ("other words for the sets", "split.csv", as_text(by_set(spell=words.__getitem__)), [one]),
        ("suffixes and folders", "split.csv", as_text(by_set(writing=lambda s: f"D:\\x\\{s}.svs")), [one]),
        ("spaces", "split.csv", as_text(by_set(writing=lambda s: f" {s} ", spell=lambda s: f" {s} ")), [one]),
        ("semicolons and a mark", "split.csv", as_text(plain, ";").encode("utf-8-sig"), [one]),
        ("UTF-16 of Excel", "split.txt", as_text(plain, "\t").encode("utf-16"), [one]),
        ("a workbook", "SPLIT.XLSX", as_rows(plain), [one]),
        ("Parquet", "split.parquet", pa.table(plain), [one]),
        (
            "a label column beside",
            "split.csv",
            as_text(plain | {"label": [row.label for row in rows]}),
            [one],
        ),
        (
            "no validation set",
            "split.csv",
            as_text(by_set(spell=lambda s: "test" if s == "test" else "train")),
            [holdout],
        ),
        ("two folds", "split.csv", as_text(folds), [one, two]),
        ("cases", "split.csv", case_sets, [one]),
        ("cases as decimals", "split.csv", case_sets.replace(",", ".0,").replace("ID.0", "ID"), [one]),
        ("Patho-Bench's", "k=all.tsv", as_text(patho, "\t"), [one, two]),
        (
            "Patho-Bench's of cases",
            "k=all.tsv",
            as_text({k: v[::2] for k, v in patho.items() if k != "slide_id"}, "\t"),
            [one, two],
        ),
        ("the name of the fold that tests", "folds.csv", as_text(named), rest),
        ("the number of the fold that tests", "folds.csv", as_text(by_number), rest),
    ):
        yield SplitCase("split by rows", name, {path: content}, path, answer)


def lists(data: SplitData) -> Iterator[SplitCase]:
    """A list of slides per set: CLAM's, MIL_BASELINE's, folders, and JSON."""
    one, two = data.one, data.two
    paths = [f"{name}_slide_path" for name in ("train", "val", "test")]
    longest = max(map(len, one.values()))
    labels = {name.replace("slide_path", "label"): ["0"] * longest for name in paths}
    padded = {
        name: [*(f"/feat/pt_files/{s}.pt" for s in members), *[""] * (longest - len(members))]
        for name, members in zip(paths, one.values(), strict=True)
    }
    same = {"train": [*one["train"], *one["val"]], "val": one["test"], "test": one["test"]}
    ordered = {
        "task/splits_0.csv": clam(one),
        "task/splits_2.csv": clam(two),
        "task/splits_10.csv": clam(one),
    }
    beside = {
        "task/splits_0_bool.csv": boolean(one),
        "task/splits_0_descriptor.csv": ",train\na,1\n",
        "task/notes.txt": "x",
    }
    listed = {f"sets/{name}.txt": "\n".join(f"{s}.svs" for s in members) for name, members in one.items()}
    nested = {
        f"k/fold{i}/{name}.csv": as_text({"slide_id": members})
        for i, sets in ((1, one), (10, two))
        for name, members in sets.items()
    }
    flat = {slide: name for name, members in one.items() for slide in members}
    keyed = {name: {slide: i % 2 for i, slide in enumerate(members)} for name, members in one.items()}
    slots = {"train": one["train"], "validation": one["val"], "test": one["test"]}
    for name, files, path, answer in (
        ("CLAM's", {"splits_0.csv": clam(one)}, "splits_0.csv", [one]),
        ("CLAM's with suffixes", {"splits_0.csv": clam(one, lambda s: f"{s}.svs")}, "splits_0.csv", [one]),
        ("CLAM's of marks", {"splits_0_bool.csv": boolean(one)}, "splits_0_bool.csv", [one]),
        ("CLAM's in UTF-16", {"splits_0.csv": clam(one).encode("utf-16")}, "splits_0.csv", [one]),
        ("with a column valid", {"s.csv": clam(one, names=("Train", "Valid", "Test"))}, "s.csv", [one]),
        ("CLAM's folder", ordered | beside, "task", [one, two, one]),
        ("MIL_BASELINE's", {"fold.csv": as_text(padded | labels)}, "fold.csv", [one]),
        ("a folder of lists", listed, "sets", [one]),
        ("a folder of folders of lists", nested, "k", [one, two]),
        (
            "TransMIL's",
            {"fold0.csv": as_text(padded | labels).replace("_slide_path", "")},
            "fold0.csv",
            [one],
        ),
        (
            "a folder of JSON",
            {"k/fold_0.json": json.dumps(one), "k/fold_1.json": json.dumps(two)},
            "k",
            [one, two],
        ),
        ("JSON", {"s.json": json.dumps(one)}, "s.json", [one]),
        ("JSON of validation", {"s.JSON": json.dumps(slots)}, "s.JSON", [one]),
        ("JSON of folds", {"s.json": json.dumps([one, two])}, "s.json", [one, two]),
        ("JSON of named folds", {"s.json": json.dumps({"fold_0": one, "fold_1": two})}, "s.json", [one, two]),
        ("JSON by slide", {"s.json": json.dumps(flat)}, "s.json", [one]),
        ("JSON of labels by slide", {"s.json": json.dumps(keyed)}, "s.json", [one]),
        ("JSON of labels by slide, folds", {"s.json": json.dumps([keyed])}, "s.json", [one]),
        ("JSON of labels by slide, named folds", {"s.json": json.dumps({"a": keyed})}, "s.json", [one]),
        ("JSON with a mark", {"s.json": json.dumps(one).encode("utf-8-sig")}, "s.json", [one]),
        (
            "a validation set that tests",
            {"s.csv": clam(same)},
            "s.csv",
            refused("its validation set is its test set", "--protocol paper", error=SplitError),
        ),
    ):
        yield SplitCase("split by lists", name, files, path, answer)
    paper = [{"train": same["train"], "val": one["test"], "test": one["test"]}]
    yield SplitCase(
        "split by lists",
        "a validation set that tests, as the authors do",
        {"s.csv": clam(same)},
        "s.csv",
        paper,
        paper=True,
    )


def faults(data: SplitData) -> Iterator[SplitCase]:
    """Splits that leak, lack something, or are of other slides."""
    one = data.one
    train, val, test = one["train"], one["val"], one["test"]
    leak = {"train": [*train, test[0]], "val": val, "test": test[1:]}
    twice = {"train": [*train, test[0]], "val": val, "test": test}
    starts = sorted({slide.split("-")[0] for slide in data.slides})
    case = next(row.case for row in data.rows if row.slide == test[0])
    of_one_class = {row.slide for row in data.rows if row.label == CLASSES[0]}
    healthy = one | {"test": [slide for slide in test if slide in of_one_class]}
    no_learning = one | {"train": [slide for slide in train if slide in of_one_class]}
    rows = as_text(
        {"slide": [*train, *test], "set": ["train"] * len(train) + ["test"] * (len(test) - 1) + ["holdout"]}
    )
    hole = as_text(
        {"slide": [*train, *test], "set": ["train"] * len(train) + ["test"] * (len(test) - 1) + ["NA"]}
    )
    for name, files, path, words in (
        (
            "a case on two sides",
            {"s.csv": clam(leak)},
            "s.csv",
            (f"case {case!r} is in both the", "train", "test"),
        ),
        (
            "a slide on two sides",
            {"s.json": json.dumps(twice)},
            "s.json",
            (f"case {case!r} is in both the train and the test set",),
        ),
        (
            "a case on two sides of a fold of several",
            {"s.json": json.dumps([one, leak])},
            "s.json",
            ("s.json, fold 2: case", "is in both"),
        ),
        (
            "a slide twice in a set",
            {"s.json": json.dumps(one | {"train": [*train, train[0]]})},
            "s.json",
            ("the train set lists a bag twice",),
        ),
        (
            "a test set of one class",
            {"s.csv": clam(healthy)},
            "s.csv",
            ("all bags of the test set have the same class, normal", "AUC", "case of tumour"),
        ),
        (
            "a training set of one class",
            {"s.csv": clam(no_learning)},
            "s.csv",
            ("train set have the same class, normal", "nothing to learn"),
        ),
        (
            "no test set",
            {"s.json": json.dumps({"train": train, "val": [*val, *test]})},
            "s.json",
            ("the test set is empty", "call the set that tests `test`"),
        ),
        ("no training set", {"s.json": json.dumps({"train": [], "test": test})}, "s.json", ("s.json",)),
        (
            "slides that are not in the data",
            {"s.csv": clam({"train": ["x1", "x2"], "val": ["x3"], "test": ["x4"]})},
            "s.csv",
            ("4 slides are not in the data, the first is 'x1'", repr(min(data.slides))),
        ),
        (
            "names that begin those of slides",
            {"s.json": json.dumps({"train": starts[:2], "test": starts[2:]})},
            "s.json",
            ("these look like cases, as they begin the names of slides", "--case-from tcga"),
        ),
        (
            "slides in lower case",
            {"s.csv": clam(one, str.lower)},
            "s.csv",
            ("16 slides are not in the data", "upper and lower case"),
        ),
        (
            "a set of another name",
            {"s.csv": rows},
            "s.csv",
            (f"line {rows.count(chr(10))}: set is 'holdout', not one of train, validation, test",),
        ),
        ("a set of NA", {"s.csv": hole}, "s.csv", (f"line {hole.count(chr(10))}: set is 'NA'",)),
        (
            "no column of sets",
            {"s.csv": as_text(columns_of(data.rows))},
            "s.csv",
            ("it has no column set", "slide, case, label", "expected the columns slide,set"),
        ),
        (
            "a pickle",
            {"splits.pkl": b"\x80\x04\x95" + bytes(20)},
            "splits.pkl",
            ("splits.pkl is a pickle", "expected the columns slide,set", "JSON"),
        ),
        *(
            (f"a pointer of Git LFS as {name}", {name: POINTER}, name, (f"{name} ", "git lfs pull"))
            for name in ("s.json", "s.csv")
        ),
        (
            "JSON that ends early",
            {"s.json": json.dumps(one)[:-5]},
            "s.json",
            ("s.json does not hold a split",),
        ),
        (
            "JSON of other keys",
            {"s.json": json.dumps({"a": train, "b": test})},
            "s.json",
            ("names none of train, validation, test", "a, b"),
        ),
        ("no file", {}, "s.csv", ("s.csv", "No such file")),
        (
            "a folder of nothing",
            {"k/notes.md": "x"},
            "k",
            ("k: expected files of splits, one per fold, got none",),
        ),
    ):
        yield SplitCase("split refused", name, files, path, refused(*words, error=SplitError))


DATA = SplitData(np.random.default_rng([13, 1]))
SPLITS = [case for kind in (tables, lists, faults) for case in kind(DATA)]


def try_split(case: SplitCase, bags: BagShards) -> None:
    """Read the split in the current folder, and compare its folds with the right answer."""
    for name, content in case.files.items():
        write(Path(name), content)

    def read() -> Any:
        return splits_of(
            bags, validation_share=0.3, seed=0, split_file=Path(case.path), selects_on_test=case.paper
        )

    if isinstance(case.answer, Refused):
        refuses(case.answer, read)
        return
    found = read()
    assert len(found) == len(case.answer)
    slide_of = dict(zip(bags.keys, bags.slides, strict=True))
    for split, expected in zip(found, case.answer, strict=True):
        train, validation, test = ([slide_of[key] for key in keys] for keys in split.sets.values())
        assert sorted(test) == sorted(expected["test"])
        assert validation
        if "val" in expected:
            assert sorted(validation) == sorted(expected["val"])
            assert sorted(train) == sorted(expected["train"])
        else:
            assert sorted(train + validation) == sorted(expected["train"])
