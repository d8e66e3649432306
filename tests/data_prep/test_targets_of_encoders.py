"""Shards of targets in several feature sets: made, grown, merged, repaired, read as cases, and in samples."""

from pathlib import Path

import numpy as np
import pytest
import torch
from encoder_folders import ENCODED, folders_of, write_encoders

from data_prep.checks.faults import verify
from data_prep.checks.inspection import inspect
from data_prep.checks.repair import repair
from data_prep.inspect import main as inspect_main
from data_prep.merge import merge
from data_prep.shard import shard
from data_prep.tables.target_checks import summary
from mhimdist.data.cases import CaseBags
from mhimdist.data.manifest import Manifest
from mhimdist.data.opening import open_bags, with_features
from mhimdist.data.shards import BagShards
from mhimdist.data.sub_bags import SampleSize, SubBags
from mhimdist.errors import LabelError, ManifestError
from mhimdist.ops.draws import Draws

SETS = ("uni", "virchow2")
OPTIONS = {"task": "regression", "target_column": ("til",), "unit": "%", "case_column": "patient"}


def til(slide: str) -> float:
    return 1 + (ENCODED.index(slide) // 2) ** 2 / 7


def make(folder: Path, out: Path, slides: tuple[str, ...] = ENCODED, **options: object) -> Path:
    """Shard slides of both encoders, two of a patient, with a number as their target."""
    write_encoders(folder, *SETS)
    for path in [path for name in SETS for path in (folder / name).iterdir()]:
        if path.name.split(".")[0] not in slides:
            path.unlink()
    lines = [f"{slide},P{ENCODED.index(slide) // 2},{til(slide)!r}" for slide in slides]
    (folder / "labels.csv").write_text("\n".join(["slide,patient,til", *lines]))
    shard(folders_of(folder, *SETS), folder / "labels.csv", out, **OPTIONS, **options)
    return out


@pytest.mark.parametrize("scale", [{}, {"standardize": True}], ids=["plain", "standardised"])
def test_every_set_has_the_targets_and_the_bytes_of_its_own_data_set(tmp_path: Path, scale: dict) -> None:
    both = make(tmp_path / "both", tmp_path / "shards", **scale)
    manifest = Manifest.read(both)
    assert manifest.info.task is not None
    assert set(manifest.info.standardized) == (set(SETS) if scale else set())
    assert list(verify(both)) == []
    assert "til" in summary(manifest)
    for name in SETS:
        alone = tmp_path / name
        shard(
            tmp_path / "both" / name,
            tmp_path / "both" / "labels.csv",
            alone,
            **OPTIONS,
            **scale,
        )
        one, own = BagShards(both, features=name), BagShards(alone)
        assert one.classes == own.classes
        assert one.keys == own.keys
        assert one.labels_N.tolist() == own.labels_N.tolist()
        assert one.targets_NK.tolist() == own.targets_NK.tolist() == [[til(slide)] for slide in one.slides]
        assert torch.equal(one.load(range(6)).features_TD, own.load(range(6)).features_TD)


def test_a_data_set_grows_and_merges_with_its_targets(tmp_path: Path) -> None:
    whole = make(tmp_path / "a", tmp_path / "whole")
    grown = make(tmp_path / "b", tmp_path / "grown", ENCODED[:3])
    make(tmp_path / "c", grown, ENCODED[3:], append=True)
    first = make(tmp_path / "d", tmp_path / "first", ENCODED[:3])
    second = make(tmp_path / "e", tmp_path / "second", ENCODED[3:])
    merged = tmp_path / "merged"
    merge([first, second], merged)
    expected = BagShards(whole, features="uni")
    for folder in (grown, merged):
        assert list(verify(folder)) == []
        assert set(Manifest.read(folder).feature_sets) == set(SETS)
        for name in SETS:
            bags = BagShards(folder, features=name)
            assert bags.classes == expected.classes
            found = dict(
                zip(bags.slides, zip(bags.labels_N, bags.targets_NK[:, 0], strict=True), strict=True)
            )
            assert found == dict(
                zip(
                    expected.slides,
                    zip(expected.labels_N, expected.targets_NK[:, 0], strict=True),
                    strict=True,
                )
            )
    rows = (tmp_path / "c" / "labels.csv").read_text().replace(repr(til(ENCODED[5])), "0.5")
    (tmp_path / "c" / "labels.csv").write_text(rows)
    with pytest.raises(LabelError, match="is in the data set as"):
        shard(folders_of(tmp_path / "c", *SETS), tmp_path / "c" / "labels.csv", grown, append=True, **OPTIONS)


def test_a_damaged_shard_of_one_set_is_written_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(tmp_path / "both", tmp_path / "shards", standardize=True)
    manifest = Manifest.read(folder)
    broken = manifest.of("virchow2").info.shards[0]
    before = (folder / broken.name).read_bytes()
    (folder / broken.name).write_bytes(before[:700] + b"\x01" + before[701:])
    faults = list(verify(folder))
    assert {fault.file for fault in faults} == {broken.name}
    repaired, left = repair(folder, faults, folders_of(tmp_path / "both", *SETS))
    assert (repaired, left) == ([broken.name], [])
    assert (folder / broken.name).read_bytes() == before
    assert inspect(folder).manifest.info.task == manifest.info.task
    inspect_main([str(folder), "--picture", str(tmp_path / "picture.png")])
    shown = capsys.readouterr().out
    assert "regression" in shown
    assert "virchow2" in shown


def test_cases_and_samples_of_sets_side_by_side(tmp_path: Path) -> None:
    folder = make(tmp_path / "both", tmp_path / "shards")
    cases = open_bags(folder, None, "uni+virchow2", bag_of="case")
    assert isinstance(cases, CaseBags)
    assert (len(cases), cases.num_features, cases.features) == (3, 20, "uni+virchow2")
    assert cases.targets_NK[:, 0].tolist() == [til(members[0]) for members in cases.members]
    parts = [open_bags(folder, None, name, bag_of="case") for name in SETS]
    whole = [part.load([part.cases.index(cases.cases[1])]).features_TD for part in parts]
    assert torch.equal(cases.load([1]).features_TD, torch.cat(whole, 1))
    sub = SubBags(cases, SampleSize(5), Draws(1, 0))
    taken = sub.load([1, 2, 0])
    for place, row in enumerate((1, 2, 0)):
        start, end = taken.offsets_B1[place : place + 2].tolist()
        expected = cases.load([row]).features_TD[torch.from_numpy(sub.instances(row))]
        assert end - start == 5
        assert torch.equal(taken.features_TD[start:end], expected)
    narrow = with_features(cases, "uni")
    assert isinstance(narrow, CaseBags)
    assert narrow.digest == parts[0].digest != cases.digest
    assert with_features(cases, "uni") is narrow
    assert open_bags(folder, None, "uni", bag_of="case", digest=narrow.digest).digest == narrow.digest
    with pytest.raises(ManifestError, match="has changed since this command opened it"):
        open_bags(folder, None, "virchow2", bag_of="case", digest=narrow.digest)
    assert np.array_equal(narrow.targets_NK, cases.targets_NK)
