"""Slides added to a data set: what was there stays as it is, and what does not belong is refused."""

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from feature_folders import SLIDES, shard_folder, write_features
from file_faults import FULL, TOUCHES, disk_full_at, ended_at, files_of

from data_prep.checks.faults import verify
from data_prep.shard import Outcome, shard
from mhimdist.data.manifest import Manifest
from mhimdist.data.shards import BagShards
from mhimdist.errors import DataError, LabelError, ManifestError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_features(tmp_path)
    return tmp_path


def append(folder: Path, **options) -> Outcome:
    return shard(folder / "features", folder / "labels.csv", folder / "shards", append=True, **options)


def test_slides_are_added_and_nothing_is_rewritten(folder: Path) -> None:
    features = folder / "features"
    table = (folder / "labels.csv").read_text()
    late = [path for path in features.iterdir() if path.name.startswith(("plain", "-xxx"))]
    (folder / "late").mkdir()
    for path in late:
        path.rename(folder / "late" / path.name)
    (folder / "labels.csv").write_text("\n".join(table.splitlines()[:5]))
    out = shard_folder(folder, name="x", description="d", dtype="bfloat16")
    before = files_of(out)
    times = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    (folder / "labels.csv").write_text(table)
    for path in (folder / "late").iterdir():
        path.rename(features / path.name)
    assert append(folder).num_new == 2
    assert append(folder).num_new == 0
    after = files_of(out)
    for name in before.keys() - {"manifest.parquet"}:
        assert after[name] == before[name]
        assert (out / name).stat().st_mtime_ns == times[name]
    assert len(after) > len(before)
    assert verify(out) == []
    bags, info = BagShards(out), Manifest.read(out).info
    assert sorted(bags.slides) == sorted(SLIDES)
    assert (info.name, info.description, set(Manifest.read(out).rows["dtype"].to_pylist())) == (
        "x",
        "d",
        {"bfloat16"},
    )
    stored = bags.load([bags.slides.index("plain")]).features_TD.numpy()
    assert np.allclose(stored, np.load(features / "plain.npy"), rtol=2**-8)


@pytest.mark.long
@TOUCHES
def test_an_append_that_was_killed_at_any_touch_of_a_file(every: int, folder: Path) -> None:
    table = (folder / "labels.csv").read_text()
    few = "\n".join(table.splitlines()[:4])
    (folder / "few.csv").write_text(few)
    out = folder / "shards"
    options = {"shard_bytes": 1, "workers": 1}
    shard(folder / "features", folder / "few.csv", out, skip_unmatched=True, name="x", **options)
    before = files_of(out)
    assert append(folder, **options).num_new == 3
    after = files_of(out)
    (folder / "some.csv").write_text("\n".join(table.splitlines()[:5]))
    another = partial(shard, folder / "features", folder / "some.csv", out, skip_unmatched=True, append=True)
    nothing = partial(shard, folder / "features", folder / "few.csv", out, skip_unmatched=True, append=True)

    def begin() -> None:
        shutil.rmtree(out)
        shutil.rmtree(folder / ".shards.sharding", ignore_errors=True)
        out.mkdir()
        for name, content in before.items():
            (out / name).write_bytes(content)

    begin()
    total = ended_at(0, folder, partial(append, folder, **options))
    seen = set()
    for number in range(total, 0, -every):
        begin()
        ended_at(number, folder, partial(append, folder, **options))
        assert len(BagShards(out)) in (3, 6)  # whole before and after, at any moment
        left = sorted(out.glob("*.tar"))[len(Manifest.read(out).info.shards) :]
        seen.add(len(left))
        assert sorted({fault.file for fault in verify(out)}) == [path.name for path in left]
        assert all("an append that has not finished" in fault.what for fault in verify(out))
        if number % 3 == 0:
            nothing()  # an append of nothing cleans up, too
            assert verify(out) == []
            assert set(files_of(out)) in (set(before), set(after))
        elif number % 3 == 1:
            assert another(**options).num_new in (0, 1)
            assert verify(out) == []
        assert append(folder, **options).num_new in (0, 2, 3)
        assert verify(out) == []
        assert sorted(BagShards(out).slides) == sorted(SLIDES)
        if number % 3 != 1:
            assert files_of(out) == after
        assert not list(folder.glob(".*"))
    assert seen == {0, 1, 2, 3} or every > 1


def test_a_stray_shard_is_neither_read_nor_replaced(folder: Path) -> None:
    out = shard_folder(folder)
    (out / "shard-000003.tar").write_bytes(b"mine")
    np.save(folder / "features/more.npy", np.ones((3, 8), np.float32))
    (folder / "labels.csv").write_text((folder / "labels.csv").read_text() + "\nmore,normal,case 9")
    with pytest.raises(ManifestError, match=r"shard-000003\.tar: not in the manifest"):
        append(folder)
    assert (out / "shard-000003.tar").read_bytes() == b"mine"


@pytest.mark.faults(29)
def test_an_append_to_a_full_disk_leaves_what_was_there(folder: Path) -> None:
    table = (folder / "labels.csv").read_text()
    (folder / "few.csv").write_text("\n".join(table.splitlines()[:5]))
    out = folder / "shards"
    shard(folder / "features", folder / "few.csv", out, skip_unmatched=True, name="x", shard_bytes=1)
    before = files_of(out)
    options = {"shard_bytes": 1, "workers": 1}
    with pytest.MonkeyPatch.context() as patch:
        names = disk_full_at(0, folder, patch)
        append(folder, **options)
    after = files_of(out)
    for number in range(1, len(names) + 1):
        for name in after.keys() - before.keys():
            (out / name).unlink(missing_ok=True)
        (out / "manifest.parquet").write_bytes(before["manifest.parquet"])
        with pytest.MonkeyPatch.context() as patch:
            disk_full_at(number, folder, patch)
            with pytest.raises(FULL, match="No space left on device"):
                append(folder, **options)
        assert len(BagShards(out)) in (4, 6)
        assert {
            name: files_of(out)[name] for name in before.keys() - {"manifest.parquet"}
        }.items() <= before.items()
        assert append(folder, **options).num_new in (0, 2)
        assert files_of(out) == after
        assert not list(folder.glob(".*"))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ("relabel", LabelError, "is in the data set as 'normal' of case .*, but in the table as 'tumour'"),
        ("class", LabelError, "has label 'new', expected normal or tumour"),
        ("width", DataError, r"slide 'more': its features are 5 wide, those of the data set 8"),
    ],
)
def test_what_does_not_belong_is_not_added(change: str, error: type, message: str, folder: Path) -> None:
    before = files_of(shard_folder(folder))
    table = (folder / "labels.csv").read_text()
    if change == "relabel":
        table = table.replace('"plain",normal', '"plain",tumour')
    else:
        np.save(folder / "features/more.npy", np.ones((3, 5 if change == "width" else 8), np.float32))
        table += f"\nmore,{'new' if change == 'class' else 'normal'},case 9"
    (folder / "labels.csv").write_text(table)
    with pytest.raises(error, match=message):
        append(folder)
    assert files_of(folder / "shards") == before


def test_features_of_another_encoder_are_not_added(folder: Path) -> None:
    shutil.rmtree(folder / "features")
    (folder / "features").mkdir()
    lines = ["slide,label"]
    for slide, encoder in (("a", None), ("b", "uni"), ("c", "resnet")):
        features = {"features": torch.full((2, 8), float(len(lines))), "encoder": encoder}
        torch.save(features, folder / f"features/{slide}.pt")
        (folder / "labels.csv").write_text("\n".join([*lines, f"{slide},x"]))
        lines.append(f"{slide},x")
        if slide == "a":
            shard_folder(folder)
        elif slide == "b":
            assert append(folder).num_new == 1
        else:
            with pytest.raises(
                DataError, match=r"slide 'c': expected features of 'uni' as in .*, got 'resnet'"
            ):
                append(folder)


def test_a_new_class_can_be_added_behind_the_others(folder: Path) -> None:
    shard_folder(folder)
    np.save(folder / "features/more.npy", np.ones((3, 8), np.float32))
    (folder / "labels.csv").write_text((folder / "labels.csv").read_text() + "\nmore,new,case 9")
    with pytest.raises(LabelError, match="expected classes that begin with those of the data set"):
        append(folder, classes=["new", "normal", "tumour"])
    append(folder, classes=["normal", "tumour", "new"])
    bags = BagShards(folder / "shards")
    assert bags.classes == ("normal", "tumour", "new")
    assert bags.labels_N[bags.slides.index("more")] == 2
