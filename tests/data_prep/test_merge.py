import os
from functools import partial
from pathlib import Path

import pytest
import torch
from feature_folders import CLASSES, SLIDES, shard_folder, write_features

from data_prep import merge as merge_module
from data_prep.checks.faults import verify
from data_prep.checks.repair import repair
from data_prep.merge import main, merge
from data_prep.shard import shard
from mhimdist.data.manifest import Manifest
from mhimdist.data.shards import BagShards
from mhimdist.errors import DataError, LabelError, ManifestError
from mhimdist.process import run


def make(
    folder: Path,
    name: str,
    *,
    width: int = 8,
    label: str = "other",
    encoder: str | None = None,
    dtype: str | None = None,
) -> Path:
    """A data set of one bag of ones."""
    (folder / name / "features").mkdir(parents=True)
    torch.save({"features": torch.ones(3, width), "encoder": encoder}, folder / name / f"features/{name}.pt")
    (folder / name / "labels.csv").write_text(f"slide,label\n{name},{label}\n")
    shard(
        folder / name / "features",
        folder / name / "labels.csv",
        folder / name / "shards",
        description=name,
        dtype=dtype,
    )
    return folder / name / "shards"


@pytest.fixture
def first(tmp_path: Path) -> Path:
    write_features(tmp_path)
    return shard_folder(tmp_path, description="first")


@pytest.mark.parametrize("how", ["link", "copy", "no links"])
def test_shards_are_taken_as_they_are(
    how: str, first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = make(tmp_path, "second", label=CLASSES[0])
    third = make(tmp_path, "third", label="a new class")
    if how == "no links":
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(18, "Cross-device link")))
    with pytest.raises(LabelError, match=r"expected at least one class of .*, got \['a new class'\]"):
        merge([first, third], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    merged = merge([second, first], tmp_path / "out", copy=how == "copy")
    assert merged.info.classes == CLASSES
    assert merged.info.description == "second; first"
    assert [item.name for item in merged.info.shards] == [f"shard-{i:06d}.tar" for i in range(4)]
    assert verify(tmp_path / "out") == []
    names = ("shard-000001.tar", "shard-000000.tar")
    ours, theirs = (tmp_path / "out" / names[0], first / names[1])
    assert ours.read_bytes() == theirs.read_bytes()
    assert os.path.samefile(ours, theirs) == (how == "link")
    bags, old = BagShards(tmp_path / "out"), BagShards(first)
    assert sorted(bags.slides) == sorted((*SLIDES, "second"))
    for row, slide in enumerate(bags.slides):
        if slide != "second":
            other = old.slides.index(slide)
            assert bags.classes[bags.labels_N[row]] == old.classes[old.labels_N[other]]
            assert torch.equal(bags.load([row]).features_TD, old.load([other]).features_TD)


def test_classes_keep_their_names_under_other_numbers(first: Path, tmp_path: Path) -> None:
    second = make(tmp_path, "second", label=CLASSES[1])
    merge([second, first], tmp_path / "out")
    bags, old = BagShards(tmp_path / "out"), BagShards(first)
    assert bags.classes == (CLASSES[1], CLASSES[0])
    named = {slide: bags.classes[label] for slide, label in zip(bags.slides, bags.labels_N, strict=True)}
    expected = {slide: old.classes[label] for slide, label in zip(old.slides, old.labels_N, strict=True)}
    assert named == expected | {"second": CLASSES[1]}
    assert verify(tmp_path / "out") == []


def test_features_of_several_dtypes_stay_what_they_are(tmp_path: Path) -> None:
    dtypes = ("bfloat16", "float16", "float32")
    folders = [make(tmp_path, dtype, label="same", dtype=dtype) for dtype in dtypes]
    merge(folders, tmp_path / "out")
    bags = BagShards(tmp_path / "out")
    assert bags.stored_dtypes == dtypes
    assert bags.dtype == torch.float32
    for rows in ([0], [1], [2], [0, 1, 2]):
        for dtype in (torch.float32, torch.bfloat16):
            features_TD = bags.load(rows, dtype).features_TD
            assert torch.equal(features_TD, torch.ones(3 * len(rows), 8, dtype=dtype))
    assert not verify(tmp_path / "out")


def test_a_merged_shard_can_be_repaired(first: Path, tmp_path: Path) -> None:
    merge([make(tmp_path, "second", label=CLASSES[1]), first], tmp_path / "out", copy=True)
    (tmp_path / "out/shard-000002.tar").unlink()
    repaired, left = repair(tmp_path / "out", verify(tmp_path / "out"), tmp_path / "features")
    assert (repaired, left) == (["shard-000002.tar"], [])
    assert verify(tmp_path / "out") == []


def test_what_does_not_belong_together(first: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="6 slides are in more than one of the data sets"):
        merge([first, first], tmp_path / "out")
    with pytest.raises(DataError, match="expected features of width 8 as in the other data sets, got 9"):
        merge([first, make(tmp_path, "wide", width=9, label=CLASSES[0])], tmp_path / "out")
    uni, other = (make(tmp_path, name, encoder=name) for name in ("uni", "resnet"))
    with pytest.raises(DataError, match=r"expected features of encoder 'uni' as .*, got 'resnet'"):
        merge([uni, other], tmp_path / "out")
    (first / "shard-000000.tar").unlink()
    with pytest.raises(ManifestError, match=r"not hold the shards of its manifest: shard-000000\.tar: mi"):
        merge([uni, first], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command(first: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    second = make(tmp_path, "second", label=CLASSES[1])
    out = tmp_path / "out"
    run(partial(main, [str(first), str(second), "--out", str(out), "--name", "both"]))
    assert capsys.readouterr().out.startswith(f"{out}: 7 bags, ")
    assert Manifest.read(out).info.name == "both"
    with pytest.raises(SystemExit) as exit_info:
        run(partial(main, [str(first), str(second), "--out", str(out)]))
    assert exit_info.value.code == 1
    assert "already exists" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(partial(main, [str(first), "--out", str(out)]))
    assert "expected at least two folders, got one" in capsys.readouterr().err


def test_an_interrupted_merge_leaves_nothing(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second, put = make(tmp_path, "second", label=CLASSES[1]), []

    def interrupted(*arguments: object, **options: object) -> None:
        put.append(arguments)
        if len(put) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(merge_module, "_put", interrupted)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        merge([first, second], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert verify(first) == []
