"""Layouts of public feature sets: DSMIL's CSV files, torchmil's folders, embeddings beside patches."""

from pathlib import Path

import numpy as np
import pytest
from public_sets import NAMES, NUM_POSITIVE, write_dsmil, write_kaczmarj, write_torchmil
from tool_folders import drawn_slides

from data_prep.readers.folders import find_features
from data_prep.readers.sources import read_features
from mhimdist.errors import DataError


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("place", [".", "datasets", "datasets/Camelyon16"])
def test_dsmil_is_read_and_its_tables_are_not(place: str, tmp_path: Path) -> None:
    write_dsmil(tmp_path)
    found = find_features(Path(place))
    assert set(found) == set(NAMES.values())
    for slide, _, features_ND, _ in drawn_slides():
        read = read_features(found[NAMES[slide]])
        # float32 of the text with four digits, as numpy reads it.
        expected = np.array([[np.float32(f"{x:.4f}") for x in row] for row in features_ND])
        assert np.array_equal(read.features_ND.numpy(), expected)
        assert not read.has_coords


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0,1,2,3\n1,2,3,4\n1,2,3\n", "damaged, or not a table of numbers: .*Expected 4 columns, got 3"),
        ("0,1,2,3\n1,2,x,4\n", "damaged, or not a table of numbers: .*'x'"),
        ("0,1,2,3\n1,2,,4\n", "damaged, or not a table of numbers"),
        ("0,1,2,4\n1,2,3,4\n", r"expected a first line that numbers the features, .* got '0,1,2,4'"),
        ("0,1,2,label\n1,2,3,4\n", r"expected a first line that numbers the features"),
        ('0,1,2,3\n"1",2,3,4\n', "damaged, or not a table of numbers"),
    ],
)
def test_damaged_csv_is_refused_by_name(text: str, said: str) -> None:
    Path("a.csv").write_text(text)
    (source,) = find_features(Path()).values()
    with pytest.raises(DataError, match=rf"^a\.csv: {said}"):
        read_features(source)


@pytest.mark.parametrize("text", ["0,1,2,3\n", "0,1,2,3"])
def test_csv_without_a_line_is_refused(text: str) -> None:
    Path("a.csv").write_text(text)
    (source,) = find_features(Path()).values()
    with pytest.raises(DataError, match=r"^a\.csv: "):
        read_features(source)


def test_other_csv_files_beside_features_are_passed_over() -> None:
    np.save("a.npy", np.ones((3, 4), np.float32))
    Path("labels.csv").write_text("slide,label\na,x\n")
    Path("0.csv").write_text("0,label\n0,1\n")
    assert list(find_features(Path())) == ["a"]


@pytest.mark.parametrize(
    "place",
    [
        "torchmil",
        "torchmil/patches_512",
        "torchmil/patches_512/features",
        "torchmil/patches_512/features/features_UNI",
    ],
)
def test_torchmil_from_any_of_its_folders(place: str, tmp_path: Path) -> None:
    write_torchmil(tmp_path)
    found = find_features(Path(place))
    assert set(found) == set(NAMES.values())
    for slide, label, features_ND, coords_N2 in drawn_slides():
        source = found[NAMES[slide]]
        read = read_features(source)
        assert np.array_equal(read.features_ND.numpy(), features_ND)
        assert np.array_equal(read.coords_N2, coords_N2)
        assert read.instance_labels_N.sum() == NUM_POSITIVE * (label == "tumor")
        assert source.details["label"] == str(int(label == "tumor"))
        assert read.encoder == "UNI"
        assert len(source.files()) == 3


@pytest.mark.parametrize("label", [np.array(1), np.array([[1.0]]), np.array([True])])
def test_a_label_of_torchmil_may_have_any_shape_of_one_number(label: np.ndarray, tmp_path: Path) -> None:
    write_torchmil(tmp_path)
    np.save("torchmil/patches_512/labels/tumor_001.npy", label)
    assert find_features(Path("torchmil"))["tumor_001"].details["label"] == "1"


@pytest.mark.parametrize("label", [np.array([0.5]), np.array([0, 1]), np.array(["x"])])
def test_a_label_of_torchmil_that_is_no_number_is_refused(label: np.ndarray, tmp_path: Path) -> None:
    write_torchmil(tmp_path)
    np.save("torchmil/patches_512/labels/tumor_001.npy", label)
    with pytest.raises(DataError, match=r"labels/tumor_001\.npy: expected the label of the slide, one whole"):
        find_features(Path("torchmil"))


def test_patch_labels_of_another_length_are_refused(tmp_path: Path) -> None:
    write_torchmil(tmp_path)
    np.save("torchmil/patches_512/patch_labels/tumor_001.npy", np.zeros(3, int))
    with pytest.raises(DataError, match="expected instance_labels of shape"):
        read_features(find_features(Path("torchmil"))["tumor_001"])


def test_two_encoders_of_torchmil_are_refused_by_name(tmp_path: Path) -> None:
    write_torchmil(tmp_path)
    place = tmp_path / "torchmil" / "patches_512" / "features"
    (place / "features_resnet50").mkdir()
    np.save(place / "features_resnet50" / "tumor_001.npy", np.ones((3, 4), np.float32))
    with pytest.raises(DataError, match="holds 2 sets of features; give one of 'features_UNI'"):
        find_features(Path("torchmil"))


def test_embeddings_take_their_coordinates_from_patches(tmp_path: Path) -> None:
    write_kaczmarj(tmp_path)
    found = find_features(Path("camelyon16-uni"))
    assert set(found) == set(NAMES.values())
    for slide, _, features_ND, coords_N2 in drawn_slides():
        read = read_features(found[NAMES[slide]])
        assert np.array_equal(read.features_ND.numpy(), features_ND)
        assert np.array_equal(read.coords_N2, coords_N2)
        assert read.patch_size == 512
