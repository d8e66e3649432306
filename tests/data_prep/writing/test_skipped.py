"""Slides that cannot be used: named all at once, or left out and listed."""

import csv
import os
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from feature_folders import SLIDES, write_features
from forked import fork, status_of

from data_prep.checks.faults import verify
from data_prep.checks.repair import repair
from data_prep.shard import main, shard
from data_prep.writing import plan as plan_module
from data_prep.writing.skipped import BadBag, named, read_skipped, write_skipped
from mhimdist.data.shards import BagShards
from mhimdist.errors import DataError, LabelError
from mhimdist.process import run

EMPTY = np.ones((0, 8), np.float32)
NARROW = np.ones((3, 5), np.float32)
NAN = np.full((9, 8), np.nan, np.float32)
LARGE = np.full((9, 8), 1e9, np.float32)
BAD = {"empty": EMPTY, "narrow": NARROW, "nan": NAN, "large": LARGE}


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_features(tmp_path)
    return tmp_path


def add(folder: Path, **slides: np.ndarray) -> None:
    lines = [(folder / "labels.csv").read_text()]
    for slide, features in slides.items():
        np.save(folder / f"features/{slide}.npy", features)
        lines.append(f"{slide},normal,{slide}")
    (folder / "labels.csv").write_text("\n".join(lines))


def make(folder: Path, name: str = "shards", **options):
    options = {"shard_bytes": 10_000, "name": "x", **options}
    return shard(folder / "features", folder / "labels.csv", folder / name, **options)


def test_all_that_cannot_be_planned_is_named_at_once(folder: Path) -> None:
    add(folder, empty=EMPTY)
    with pytest.raises(DataError, match=r"empty\.npy: the bag is empty.* \(1 of 7 slides; --skip-bad"):
        make(folder)
    add(folder, narrow=NARROW)
    (folder / "features/plain.npy").write_bytes(b"")
    with pytest.raises(DataError, match=r"^3 of 8 slides cannot be used \(--skip-bad leaves") as error_info:
        make(folder)
    for part in ("empty.npy: the bag is empty", "slide 'narrow': its features are 5 wide", "plain.npy: not"):
        assert part in str(error_info.value)
    assert sorted(path.name for path in folder.iterdir()) == ["features", "labels.csv"]
    assert named([BadBag(str(i), f"r{i}") for i in range(12)]).endswith("r8; r9; and 2 more")


@pytest.mark.parametrize("shard_bytes", [1, 4_000, 10_000])  # at 1, shards of one bag are left out whole
def test_what_is_left_out_is_listed_whatever_the_number_of_workers(shard_bytes: int, folder: Path) -> None:
    add(folder, **BAD)
    first = make(folder, skip_bad=True, workers=1, shard_bytes=shard_bytes)
    assert [bag.slide for bag in first.bad] == sorted(BAD)
    assert (first.num_new, first.num_reused) == (6, 0)
    out = folder / "shards"
    assert verify(out) == []
    assert sorted(BagShards(out).slides) == sorted(SLIDES)
    with (out / "skipped.csv").open(encoding="utf-8") as file:
        rows = {row["slide"]: row["reason"] for row in csv.DictReader(file)}
    assert sorted(rows) == sorted(BAD)
    assert "the bag is empty" in rows["empty"]
    assert "72 of its features are NaN or infinite" in rows["nan"]
    assert "a value of 1e+09 does not fit float16" in rows["large"]
    assert "5 wide, most others 8" in rows["narrow"]
    for workers in (2, 5):
        assert make(folder, "again", skip_bad=True, workers=workers, shard_bytes=shard_bytes) == first
        again = files_of(folder / "again")
        assert again == files_of(out)
        for path in (folder / "again").iterdir():
            path.unlink()
        (folder / "again").rmdir()
    for path in out.glob("*.tar"):
        path.unlink()
    repaired, left = repair(out, verify(out), folder / "features")
    assert (len(repaired), left) == (len(list(out.glob("*.tar"))), [])
    assert files_of(out) == again


def test_a_run_that_met_a_bad_slide_goes_on_without_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(folder, nan=NAN)
    make(folder, "expected", skip_bad=True)
    with pytest.raises(DataError, match=r"nan\.npy: 72 of its features are NaN or infinite"):
        make(folder, workers=1)
    finished = len(list((folder / ".shards.sharding/records").iterdir()))
    with monkeypatch.context() as patch:
        patch.setattr(plan_module.ShardWriter, "__init__", lambda *_: (_ for _ in ()).throw(OSError(28, "x")))
        with pytest.raises(OSError, match="x"):
            make(folder, skip_bad=True, workers=1)
    outcome = make(folder, skip_bad=True, workers=1)
    assert outcome.num_reused == finished
    assert finished > 0
    assert files_of(folder / "shards") == files_of(folder / "expected")


def test_a_run_that_was_killed_at_its_end_lists_the_same(folder: Path) -> None:
    add(folder, empty=EMPTY, nan=NAN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_: os._exit(9))
        assert status_of(fork(partial(make, folder, skip_bad=True))) == 9
    again = make(folder, skip_bad=True)
    assert [bag.slide for bag in again.bad] == ["empty", "nan"]
    assert (again.num_new, again.num_reused) == (6, len(list((folder / "shards").glob("*.tar"))))
    assert not list(folder.glob(".*"))


def test_shards_without_bad_slides_do_not_serve_who_wants_all(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(folder, nan=NAN)
    with monkeypatch.context() as patch:
        patch.setattr(
            "data_prep.writing.workplace.Workplace.publish", lambda *_: (_ for _ in ()).throw(OSError(5, "x"))
        )
        with pytest.raises(OSError, match="x"):
            make(folder, skip_bad=True)
    with pytest.raises(DataError, match="72 of its features are NaN"):
        make(folder)
    assert not (folder / "shards").exists()


def test_an_append_tries_again_and_keeps_the_list(folder: Path) -> None:
    add(folder, empty=EMPTY, nan=NAN)
    make(folder, skip_bad=True)
    out = folder / "shards"
    before = files_of(out)
    outcome = make(folder, append=True, skip_bad=True)
    assert (outcome.num_new, [bag.slide for bag in outcome.bad]) == (0, ["empty", "nan"])
    assert files_of(out) == before
    np.save(folder / "features/empty.npy", np.ones((3, 8), np.float32))
    np.save(folder / "features/nan.npy", np.ones((3, 5), np.float32))
    outcome = make(folder, append=True, skip_bad=True)
    assert outcome.num_new == 1
    assert [bag.reason for bag in read_skipped(out)] == [
        "slide 'nan': its features are 5 wide, those of the data set 8"
    ]
    np.save(folder / "features/nan.npy", np.ones((3, 8), np.float32))
    assert make(folder, append=True).num_new == 1
    assert not (out / "skipped.csv").exists()
    assert verify(out) == []
    assert not list(folder.glob(".*"))


def test_a_file_that_cannot_be_read_is_not_left_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = plan_module.read_features

    def failing(source):
        if source.path.name == "plain.npy":
            raise OSError(5, "Input/output error", str(source.path))
        return read(source)

    monkeypatch.setattr(plan_module, "read_features", failing)
    for skip_bad in (False, True):
        with pytest.raises(
            DataError, match=r"1 of 6 slides cannot be read: .*/plain\.npy: Input/output error$"
        ):
            make(folder, skip_bad=skip_bad)


def test_nothing_is_left(folder: Path) -> None:
    (folder / "labels.csv").write_text("slide,label,case")
    for path in (folder / "features").iterdir():
        path.unlink()
    add(folder, empty=EMPTY, nan=NAN)
    with pytest.raises(DataError, match=r"none of the slides can be used: .*empty\.npy.*; .*nan\.npy: 72 of"):
        make(folder, skip_bad=True)
    assert not (folder / "shards").exists()


def test_the_command_counts_what_it_left_out(folder: Path, capsys: pytest.CaptureFixture) -> None:
    add(folder, empty=EMPTY, nan=NAN)
    options = ["--features", folder / "features", "--labels", folder / "labels.csv", "--out", folder / "out"]
    run(partial(main, [*map(str, options), "--skip-bad"]))
    captured = capsys.readouterr()
    assert captured.err == ""
    first, last = captured.out.splitlines()
    assert first.startswith(f"left out, listed in {folder / 'out'}/skipped.csv: 2 (")
    assert first.endswith("nan.npy: 72 of its features are NaN or infinite)")
    assert last.startswith(f"{folder / 'out'}: 6 bags of 3 cases, ")
    with pytest.raises(SystemExit):
        run(partial(main, [*map(str, options[:-1]), str(folder / "other")]))
    assert capsys.readouterr().err.startswith("error: ")
    (folder / "features/empty.npy").unlink()
    with pytest.raises(SystemExit):
        run(partial(main, [*map(str, options[:-1]), str(folder / "other"), "--skip-unmatched"]))
    hint, *_, error = capsys.readouterr().err.splitlines()
    assert hint == "hint: --skip-bad leaves out slides that cannot be used"
    assert error.endswith("nan.npy: 72 of its features are NaN or infinite")


def test_slides_and_patients_without_ground_truth_are_left_out_and_listed(folder: Path) -> None:
    rows = (folder / "labels.csv").read_text()
    add(folder, late=np.ones((3, 8), np.float32), later=np.ones((3, 8), np.float32))
    truth = rows + "\nlate.svs,NA,case 1\nlater,normal,-"
    (folder / "labels.csv").write_text(truth)
    with pytest.raises(
        LabelError, match=r"labels\.csv, line 8: .*\(the label\), and so in 1 more lines; --skip"
    ):
        make(folder)
    outcome = make(folder, skip_unmatched=True)
    assert (outcome.num_new, outcome.passed_over) == (6, ())
    assert read_skipped(folder / "shards") == [
        BadBag("late", "labels.csv, line 8: the label is missing"),
        BadBag("later", "labels.csv, line 9: the case is missing"),
    ]
    (folder / "labels.csv").write_text(truth.replace("NA", "tumour"))
    assert make(folder, append=True, skip_unmatched=True).num_new == 1
    assert [bag.slide for bag in read_skipped(folder / "shards")] == ["later"]


def test_the_list_is_read_as_it_was_written_and_a_changed_one_is_refused(tmp_path: Path) -> None:
    bad = [BadBag(" a", "one, two"), BadBag("b\nc", 'a "quote"; more'), BadBag("ü", "x")]
    write_skipped(tmp_path, bad, [])
    assert read_skipped(tmp_path) == bad
    (tmp_path / "skipped.csv").write_text("name,why\na,b\n")
    with pytest.raises(DataError, match=r"skipped\.csv: expected one column named slide, got the header"):
        read_skipped(tmp_path)


def test_a_table_without_any_ground_truth_leaves_nothing(folder: Path) -> None:
    (folder / "labels.csv").write_text("slide,label\nplain,NA\nlate,-\n")
    with pytest.raises(DataError, match=r"no row of .*labels\.csv says all of slide, label and case"):
        make(folder, skip_unmatched=True)


def test_a_reason_of_several_slides_is_said_once() -> None:
    bad = [BadBag("a", "x"), BadBag("b", "y"), BadBag("c", "x"), BadBag("d", "z"), BadBag("e", "z")]
    assert named(bad) == "x (2 slides); y; z (2 slides)"
    assert named(bad, 1) == "x (2 slides); and 3 more"
