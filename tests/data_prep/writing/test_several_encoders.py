import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from encoder_folders import ENCODED, folders_of, shard_encoders, size_of, write_encoder, write_encoders

from data_prep.checks.faults import verify
from data_prep.checks.repair import repair
from data_prep.inspect import main as inspect_main
from data_prep.merge import merge
from data_prep.readers.folders import find_features
from data_prep.shard import main, shard
from data_prep.verify import main as verify_main
from mhimdist.data.manifest import ROWS_SCHEMA, Manifest
from mhimdist.data.shards import BagShards
from mhimdist.errors import ConfigError, DataError, LabelError, ManifestError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_encoders(tmp_path, "uni", "virchow2", "gigapath")
    return tmp_path


def test_every_set_holds_its_own_features_of_the_same_slides(folder: Path) -> None:
    features = write_encoders(folder, "uni", "virchow2", "gigapath")
    outcome = shard_encoders(folder, "uni", "virchow2", "gigapath")
    assert outcome.num_new == 3 * len(ENCODED)
    manifest = Manifest.open(folder / "shards")
    assert manifest.feature_sets == ("uni", "virchow2", "gigapath")
    assert verify(folder / "shards") == []
    for name, of_slides in features.items():
        bags = BagShards(folder / "shards", features=name)
        assert sorted(bags.slides) == sorted(ENCODED)
        assert bags.details(0)["encoder"] == name  # as no file names one
        for row, slide in enumerate(bags.slides):
            assert bags.sizes_N[row] == size_of(slide, name)
            np.testing.assert_array_equal(bags.load([row]).features_TD.numpy(), of_slides[slide])


def test_members_carry_the_name_of_their_set(folder: Path) -> None:
    shard_encoders(folder, "uni", "virchow2")
    extensions = {}
    for path in sorted((folder / "shards").glob("*.tar")):
        with tarfile.open(path) as tar:
            for name in tar.getnames():
                key, _, extension = name.partition(".")
                extensions.setdefault(key, set()).add(extension)
    assert all({"features.uni.npy", "features.virchow2.npy"} <= found for found in extensions.values())
    assert len(extensions) == len(ENCODED)


def test_a_set_is_the_same_bytes_whatever_others_there_are(folder: Path) -> None:
    shard_encoders(folder, "uni")
    alone = BagShards(folder / "shards")
    shutil.rmtree(folder / "shards")
    shard_encoders(folder, "uni", "virchow2")
    assert BagShards(folder / "shards", features="uni").digest == alone.digest
    assert alone.feature_set == "uni"


def test_one_set_without_a_name_has_the_columns_of_earlier_releases(folder: Path) -> None:
    shard(folder / "uni", folder / "labels.csv", folder / "shards")
    manifest = Manifest.open(folder / "shards")
    assert manifest.rows.schema.equals(ROWS_SCHEMA)
    assert "standardized" not in manifest.info.model_dump()
    assert manifest.feature_sets == ()
    with pytest.raises(ConfigError, match=r"whose features have no name, got 'uni'"):
        BagShards(folder / "shards", features="uni")


def test_a_wrong_name_is_answered_by_the_nearest(folder: Path) -> None:
    shard_encoders(folder, "uni", "virchow2")
    with pytest.raises(ConfigError, match=r"has no feature set 'virchow'; .*did you mean virchow2\?"):
        BagShards(folder / "shards", features="virchow")
    with pytest.raises(ConfigError, match=r"expected one of the feature sets of .*, uni, virchow2, got none"):
        BagShards(folder / "shards")


def test_slides_that_a_set_lacks_are_named_or_passed_over(folder: Path) -> None:
    (folder / "virchow2" / "slide-3.npy").unlink()
    (folder / "virchow2" / "slide-3.coords.npy").unlink()
    with pytest.raises(DataError, match=r"no features in .*virchow2 for 1 of 6 slides .*'slide-3'"):
        shard_encoders(folder, "uni", "virchow2")
    outcome = shard_encoders(folder, "uni", "virchow2", skip_unmatched=True)
    assert outcome.passed_over == ("slide-3",)
    for name in ("uni", "virchow2"):
        assert "slide-3" not in BagShards(folder / "shards", features=name).slides


@pytest.mark.parametrize("shard_bytes", [1, 10_000])
def test_a_slide_that_is_bad_in_one_set_is_left_out_of_all(shard_bytes: int, folder: Path) -> None:
    values = np.load(folder / "virchow2" / "slide-2.npy")
    values[1, 1] = np.nan  # found only while it is written
    np.save(folder / "virchow2" / "slide-2.npy", values)
    np.save(folder / "uni" / "slide-4.npy", np.zeros((0, 8), np.float32))  # found from its header
    with pytest.raises(DataError, match="slide-4"):
        shard_encoders(folder, "uni", "virchow2")
    outcome = shard_encoders(folder, "uni", "virchow2", skip_bad=True, shard_bytes=shard_bytes)
    assert {bag.slide for bag in outcome.bad} == {"slide-2", "slide-4"}
    assert verify(folder / "shards") == []
    for name in ("uni", "virchow2"):
        slides = BagShards(folder / "shards", features=name).slides
        assert sorted(slides) == ["slide-0", "slide-1", "slide-3", "slide-5"]


def test_a_set_or_slides_can_be_added_and_neither_rewrites_anything(folder: Path) -> None:
    for name in ("uni", "virchow2"):
        for path in (folder / name).glob("slide-5*"):
            path.rename(path.with_suffix(".later"))
    shard_encoders(folder, "uni", skip_unmatched=True)
    before = {path.name: path.read_bytes() for path in (folder / "shards").glob("*.tar")}
    digest = BagShards(folder / "shards").digest
    shard_encoders(folder, "virchow2", append=True, skip_unmatched=True)
    assert BagShards(folder / "shards", features="uni").digest == digest
    for path in folder.glob("*/slide-5*.later"):
        path.rename(path.with_suffix(".npy"))
    with pytest.raises(DataError, match=r"feature set 'virchow2' lacks 1 slides .*give virchow2=PATH, too"):
        shard_encoders(folder, "uni", append=True)
    assert shard_encoders(folder, "uni", "virchow2", append=True).num_new == 2
    assert {name: (folder / "shards" / name).read_bytes() for name in before} == before
    assert verify(folder / "shards") == []
    assert len(BagShards(folder / "shards", features="virchow2")) == len(ENCODED)


def test_a_new_set_must_have_all_slides_and_the_same_labels(folder: Path) -> None:
    shard_encoders(folder, "uni")
    for path in (folder / "virchow2").glob("slide-1*"):
        path.unlink()
    with pytest.raises(DataError, match=r"'virchow2' lacks 1 slides that others have: 'slide-1'"):
        shard_encoders(folder, "virchow2", append=True, skip_unmatched=True)
    text = (folder / "labels.csv").read_text().replace("slide-1,tumour", "slide-1,normal")
    (folder / "labels.csv").write_text(text)
    with pytest.raises(LabelError, match="'slide-1' is in the data set as 'tumour'"):
        shard_encoders(folder, "gigapath", append=True)
    with pytest.raises(ConfigError, match=r"has named feature sets: give --features uni=PATH"):
        shard(folder / "uni", folder / "labels.csv", folder / "shards", append=True)


def test_repair_needs_the_features_of_the_damaged_set_only(folder: Path) -> None:
    shard_encoders(folder, "uni", "virchow2", shard_bytes=10**9)
    shards = folder / "shards"
    expected = {path.name: path.read_bytes() for path in shards.iterdir()}
    damaged = shards / "shard-000001.tar"
    damaged.write_bytes(damaged.read_bytes()[:1500] + b"x" + damaged.read_bytes()[1501:])
    faults = verify(shards)
    assert {fault.member for fault in faults if fault.member} == {
        f"{BagShards(shards, features='virchow2').keys[0]}.features.virchow2.npy"
    }
    _, left = repair(shards, faults, folders_of(folder, "uni"))
    assert "it holds the feature set 'virchow2'; give --repair virchow2=FEATURES" in str(left[0])
    repaired, left = repair(shards, faults, folders_of(folder, "virchow2"))
    assert (repaired, left) == (["shard-000001.tar"], [])
    assert {path.name: path.read_bytes() for path in shards.iterdir()} == expected


def test_the_command_repairs_each_set_from_its_features(folder: Path, capsys: pytest.CaptureFixture) -> None:
    shard_encoders(folder, "uni", "virchow2", shard_bytes=10**9)
    for number in range(2):
        (folder / "shards" / f"shard-00000{number}.tar").unlink()
    named = [word for name in ("uni", "virchow2") for word in ("--repair", f"{name}={folder / name}")]
    verify_main([*named, str(folder / "shards")])
    assert "repaired: shard-000000.tar, shard-000001.tar" in capsys.readouterr().out
    assert verify(folder / "shards") == []
    (folder / "shards" / "shard-000000.tar").unlink()
    with pytest.raises(ConfigError, match=r"--repair: expected a path, or several as NAME=PATH"):
        verify_main([str(folder / "shards"), "--repair", "a", "--repair", "b"])


def test_data_sets_of_the_same_sets_are_merged(folder: Path, tmp_path: Path) -> None:
    shard_encoders(folder, "uni", "virchow2")
    for name in ("uni", "virchow2"):
        (folder / "second" / name).mkdir(parents=True)
        np.save(folder / "second" / name / "new.npy", np.load(folder / name / "slide-0.npy"))
    (folder / "second" / "labels.csv").write_text("slide,label\nnew,tumour\n")
    shard_encoders(folder / "second", "uni", "virchow2")
    merge([folder / "shards", folder / "second" / "shards"], folder / "both")
    for name in ("uni", "virchow2"):
        assert set(BagShards(folder / "both", features=name).slides) == {*ENCODED, "new"}
    shard_encoders(write_alone(folder / "third"), "uni")
    with pytest.raises(DataError, match="feature sets of the other data sets, uni, virchow2, got uni"):
        merge([folder / "shards", folder / "third" / "shards"], folder / "none")


def write_alone(folder: Path) -> Path:
    (folder / "uni").mkdir(parents=True)
    np.save(folder / "uni" / "other.npy", np.ones((3, 8), np.float32))
    (folder / "labels.csv").write_text("slide,label\nother,tumour\n")
    return folder


def test_the_commands_know_the_sets(folder: Path, capsys: pytest.CaptureFixture) -> None:
    named = [f"{name}={folder / name}" for name in ("uni", "virchow2", "gigapath")]
    labels, out = str(folder / "labels.csv"), str(folder / "shards")
    main(["--features", *named, "--labels", labels, "--out", out])
    assert "6 bags in each of 3 feature sets, uni, virchow2, gigapath, of 6 cases" in capsys.readouterr().out
    verify_main([out])
    assert "6 bags in each of 3 feature sets, uni, virchow2, gigapath" in capsys.readouterr().out
    inspect_main([out, "--picture", str(folder / "picture.png"), "--features", "virchow2"])
    shown = capsys.readouterr().out
    assert "12 wide" in shown
    lines = [line.split() for line in shown.splitlines() if line.split()[:1] in (["uni"], ["gigapath"])]
    assert [line[-1] for line in lines] == ["virchow2", "none"]  # gigapath has patches of its own
    with pytest.raises(DataError, match="holds the feature sets uni, virchow2, gigapath"):
        find_features(folder / "shards")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["a=x", "b"], "expected a path, or several as NAME=PATH"),
        (["a=x", "a=y"], "expected each feature set once"),
        (["a.b=x", "c=y"], "letters, digits, _ and -, got 'a.b'"),
    ],
)
def test_names_of_sets_that_cannot_be(given: list[str], message: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        main(["--features", *given, "--labels", "t.csv", "--out", str(folder / "out")])


def test_a_folder_with_an_equals_sign_is_a_folder(folder: Path) -> None:
    (folder / "uni").rename(folder / "kind=uni")
    shard(folder / "kind=uni", folder / "labels.csv", folder / "shards")
    assert Manifest.read(folder / "shards").feature_sets == ()


def test_an_encoder_cannot_be_stated_for_all(folder: Path) -> None:
    with pytest.raises(ConfigError, match="the name of each feature set stands for its encoder"):
        shard_encoders(folder, "uni", "virchow2", stated={"encoder": "x"})


def test_a_forged_manifest_whose_sets_differ_is_refused(folder: Path) -> None:
    shard_encoders(folder, "uni", "virchow2", shard_bytes=1)
    manifest = Manifest.open(folder / "shards")
    info = manifest.info
    shards = tuple(shard for shard in info.shards[:-1])
    cut = Manifest(info.model_copy(update={"shards": shards}), manifest.rows.slice(0, len(manifest.rows) - 1))
    with pytest.raises(ManifestError, match="'uni' and 'virchow2' have different slides: slide 'slide-"):
        cut.write(folder)
    idle = Manifest(info, manifest.rows.slice(0, len(manifest.rows) - 1))
    with pytest.raises(ManifestError, match="is listed, but no bag is in it"):
        idle.write(folder)


def test_an_interrupted_run_keeps_the_shards_of_the_first_set(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.load(folder / "virchow2" / "slide-2.npy")
    np.save(folder / "virchow2" / "slide-2.npy", values * np.nan)
    with pytest.raises(DataError, match="NaN"):
        shard_encoders(folder, "uni", "virchow2", shard_bytes=10**9, workers=1)
    np.save(folder / "virchow2" / "slide-2.npy", values)
    assert shard_encoders(folder, "uni", "virchow2", shard_bytes=10**9, workers=1).num_reused == 1


def test_a_file_that_names_its_encoder_keeps_it(tmp_path: Path) -> None:
    import torch

    (tmp_path / "uni").mkdir()
    torch.save({"features": torch.ones(3, 8), "encoder": "uni_v1"}, tmp_path / "uni" / "a.pt")
    (tmp_path / "labels.csv").write_text("slide,label\na,x\n")
    shard_encoders(tmp_path, "uni")
    assert BagShards(tmp_path / "shards").details(0)["encoder"] == "uni_v1"
    row = Manifest.read(tmp_path / "shards").rows.to_pylist()[0]
    with (tmp_path / "shards" / row["shard"]).open("rb") as file:
        file.seek(row["json_offset"])
        assert json.loads(file.read(row["json_bytes"]))["encoder"] == "uni_v1"


def test_more_slides_of_one_set_are_of_its_width(folder: Path) -> None:
    write_encoder(folder / "less", "uni", ENCODED[:2])
    shard_encoders(folder / "less", "uni", skip_unmatched=True)
    (folder / "less" / "labels.csv").write_text((folder / "labels.csv").read_text())
    np.save(folder / "less" / "uni" / "slide-2.npy", np.ones((3, 9), np.float32))
    with pytest.raises(DataError, match="9 wide, those of the data set 8"):
        shard_encoders(folder / "less", "uni", append=True, skip_unmatched=True)
