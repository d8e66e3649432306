"""A case of input as people have it: the files, the options, and the right answer; and how both are tried.

Files are written by the type of their content: text and bytes as they are, an array by the suffix of its
path, a dictionary of arrays as .h5, .npz or .pt, a list of rows as a workbook, a table of pyarrow as Parquet.

Dimensions: N instances of a bag, D features.
"""

import os
import shlex
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from spreadsheets import write_xlsx

from data_prep.shard import make_shards
from data_prep.shard_options import ShardOptions
from data_prep.writing.skipped import read_skipped
from mhimdist.data.shards import BagShards
from mhimdist.errors import DataError, LabelError, MhimdistError
from mhimdist.tables.text import TableWarning

NUM_FEATURES = 6
CLASSES = ("normal", "tumour")


@dataclass(frozen=True)
class Link:
    """A symbolic link to a path relative to the link's folder."""

    target: str


@dataclass(frozen=True)
class Row:
    """What is true of a slide."""

    slide: str
    case: str
    label: str


@dataclass(frozen=True)
class Refused:
    """The right answer is an error of exactly this type, whose message holds these words."""

    error: type[MhimdistError]
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.error.__name__}: {' ... '.join(self.words)}"


@dataclass(frozen=True)
class Holds:
    """The right answer is a data set of exactly these slides.

    Attributes:
        rows: its slides.
        classes: in the order of their indices; None: sorted by name.
        left_out: the slides in skipped.csv, each with words of the reason.
        passed_over: the slides without features or label.
        warns: words of the warning that is due.
    """

    rows: tuple[Row, ...]
    classes: tuple[str, ...] | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)
    passed_over: frozenset[str] = frozenset()
    warns: str = ""

    def __str__(self) -> str:
        classes = self.classes or sorted({row.label for row in self.rows})
        more = f", {len(self.left_out)} left out" if self.left_out else ""
        more += f", {len(self.passed_over)} passed over" if self.passed_over else ""
        return f"{len(self.rows)} slides of {' < '.join(classes)}{more}{', a warning' if self.warns else ''}"


@dataclass(frozen=True)
class Case:
    """An input of `data_prep.shard` and the right answer.

    Attributes:
        kind, name: what it is an example of, and which one.
        files: content by path; "labels.csv" or alike, and all that is not in `features/`.
        answer: the right answer.
        options: further options of the command.
        features: features by slide that the answer's shards must hold, N x D float32; they are written to
            `features/<slide>.npy` unless `files` holds paths in `features/`.
        coords: coordinates by slide that the answer's shards must hold; other slides must have none.
        labels: the path of the label table.
    """

    kind: str
    name: str
    files: Mapping[str, Any]
    answer: Holds | Refused
    options: str = ""
    features: Mapping[str, np.ndarray] = field(default_factory=dict)
    coords: Mapping[str, np.ndarray] = field(default_factory=dict)
    labels: str = "labels.csv"

    def __str__(self) -> str:
        return str(self.answer)


def draw_features(
    draw: np.random.Generator, rows: int | None = None, width: int = NUM_FEATURES
) -> np.ndarray:
    """Features of a slide, N x D float32, that float16 holds exactly; by default 2 to 5 patches."""
    size = int(draw.integers(2, 6)) if rows is None else rows
    return (draw.integers(-99, 99, (size, width)) / 16).astype(np.float32)


def draw_rows(
    draw: np.random.Generator, slides: int | Sequence[str] = 6, classes: Sequence[str] = CLASSES
) -> tuple[Row, ...]:
    """Slides with names as scanners give them, of about half as many cases, and of every class."""
    if isinstance(slides, int):
        numbers = draw.choice(9000, slides, replace=False) + 1000
        slides = [
            f"S{year}-{number}" for year, number in zip(draw.integers(10, 25, slides), numbers, strict=True)
        ]
    labels = [classes[i % len(classes)] for i in draw.permutation(len(slides))]
    return tuple(
        Row(slide, f"P{i // 2 + 10}", label)
        for i, (slide, label) in enumerate(zip(slides, labels, strict=True))
    )


def own_cases(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The rows, each slide its own case."""
    return tuple(Row(row.slide, row.slide, row.label) for row in rows)


def columns_of(rows: Sequence[Row], **columns: Callable[[Row], object]) -> dict[str, list[Any]]:
    """A table's columns by name: by default slide, case and label."""
    wanted: Mapping[str, Callable[[Row], object]] = columns or {
        "slide": lambda row: row.slide,
        "case": lambda row: row.case,
        "label": lambda row: row.label,
    }
    return {name: [value(row) for row in rows] for name, value in wanted.items()}


def as_rows(columns: Mapping[str, Sequence[Any]]) -> list[list[Any]]:
    """The header and the rows of a table of columns."""
    return [list(columns), *map(list, zip(*columns.values(), strict=True))]


def as_text(columns: Mapping[str, Sequence[Any]], delimiter: str = ",", end: str = "\n") -> str:
    """A table as delimited text, without quotes."""
    return "".join(delimiter.join(map(str, row)) + end for row in as_rows(columns))


def refused(*words: str, error: type[MhimdistError] = LabelError) -> Refused:
    """The answer to a table that is refused, or, with `error`, to other input."""
    return Refused(error, words)


def no_features(*words: str) -> Refused:
    """The answer to features that cannot be used."""
    return Refused(DataError, words)


def write(path: Path, content: Any) -> None:
    """Write one file of a case."""
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = path.suffix.lower()
    match content:
        case str():
            path.write_bytes(content.encode())
        case bytes():
            path.write_bytes(content)
        case Link():
            path.symlink_to(content.target)
        case pa.Table():
            pq.write_table(content, path)
        case list():
            write_xlsx(path, Sheet1=content)
        case dict() if suffix == ".h5":
            with h5py.File(path, "w") as file:
                for name, array in content.items():
                    file[name] = array
        case dict() if suffix == ".npz":
            np.savez(path, **content)
        case dict() if suffix == ".xlsx":
            write_xlsx(path, **content)
        case np.ndarray() if suffix == ".npy":
            np.save(path, content)
        case np.ndarray() if suffix == ".npz":
            np.savez(path, content)
        case dict() | torch.Tensor():
            torch.save(content, path)
        case np.ndarray():
            torch.save(torch.from_numpy(content), path)
        case _:
            raise TypeError(f"{path}: no way to write {type(content)}")


def write_files(case: Case) -> None:
    """Write all files of a case into the current folder."""
    for name, content in case.files.items():
        write(Path(name), content)
    if not any(name.startswith("features/") for name in case.files):
        for slide, features_ND in case.features.items():
            write(Path(f"features/{slide}.npy"), features_ND)


def try_case(case: Case) -> None:
    """Shard the input in the current folder, and compare what comes out with the right answer."""
    write_files(case)
    paths = ["--features", "features", "--labels", case.labels, "--out", "shards", "--workers", "1"]
    options = ShardOptions.from_command_line([*paths, *shlex.split(case.options)])
    if isinstance(case.answer, Refused):
        refuses(case.answer, lambda: make_shards(options))
        assert not os.path.lexists("shards")
        return
    warns = case.answer.warns
    with pytest.warns(TableWarning, match=warns) if warns else nullcontext():
        outcome = make_shards(options)
    assert set(outcome.passed_over) == case.answer.passed_over
    _compare(case, case.answer)


def refuses(answer: Refused, act: Callable[[], object]) -> None:
    """Check that an act is refused with the right error and words."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TableWarning)
        with pytest.raises(answer.error) as caught:
            act()
    message = str(caught.value)
    assert type(caught.value) is answer.error, message
    assert [word for word in answer.words if word not in message] == [], message


def _compare(case: Case, answer: Holds) -> None:
    bags = BagShards(Path("shards"))
    got = {
        Row(slide, patient, bags.classes[label])
        for slide, patient, label in zip(bags.slides, bags.cases, bags.labels_N, strict=True)
    }
    assert got == set(answer.rows)
    assert len(bags) == len(answer.rows)
    assert bags.classes == (answer.classes or tuple(sorted({row.label for row in answer.rows})))
    skipped = {bag.slide: bag.reason for bag in read_skipped(Path("shards"))}
    assert skipped.keys() == answer.left_out.keys()
    assert [slide for slide, words in answer.left_out.items() if words not in skipped[slide]] == [], skipped
    for row, slide in enumerate(bags.slides):
        features_ND = bags.load([row], torch.float32).features_TD.numpy()
        assert np.array_equal(features_ND, case.features[slide]), slide
        expected, coords_N2 = case.coords.get(slide), bags.coords(row)
        assert (coords_N2 is None) == (expected is None), slide
        assert expected is None or np.array_equal(coords_N2, expected), slide
