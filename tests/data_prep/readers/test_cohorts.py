"""Cohorts under one root, slideflow's bags, single patches, transposed features, unusable coordinates."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from data_prep.readers.folders import find_features
from data_prep.readers.sources import Source, read_features
from data_prep.readers.stated import Stated
from data_prep.shard import shard
from mhimdist.data.shards import BagShards
from mhimdist.errors import DataError

FEATURES = np.random.default_rng(0).standard_normal((30, 4)).astype(np.float32)
COORDS = np.arange(60).reshape(30, 2) * 256


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)


def h5(path: str, **arrays: np.ndarray) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array


def pt(path: str, array: np.ndarray = FEATURES) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    torch.save(torch.from_numpy(array), path)


def found() -> dict[str, str]:
    """Slide to the file of its features."""
    return {slide: str(source.path) for slide, source in find_features(Path()).items()}


def only(stated: Stated | None = None) -> Source:
    (source,) = find_features(Path(), stated or Stated()).values()
    return source


def test_cohorts_of_clam_keep_their_coordinates_and_patches_are_no_slides() -> None:
    for cohort, slides in {"BRCA": "ab", "LUAD": "cd"}.items():
        for slide in slides:
            pt(f"{cohort}/pt_files/{slide}.pt")
            h5(f"{cohort}/h5_files/{slide}.h5", features=FEATURES, coords=COORDS)
            h5(f"{cohort}/patches/{slide}.h5", coords=COORDS)
    h5("patches/a.h5", coords=COORDS)
    sources = find_features(Path())
    assert {slide: (str(source.path), str(source.coords)) for slide, source in sources.items()} == {
        slide: (f"{cohort}/pt_files/{slide}.pt", f"{cohort}/h5_files/{slide}.h5")
        for cohort, slides in {"BRCA": "ab", "LUAD": "cd"}.items()
        for slide in slides
    }
    assert np.array_equal(read_features(sources["d"]).coords_N2, COORDS)


def test_cohorts_of_trident() -> None:
    for cohort, slide in (("BRCA", "a"), ("LUAD", "b")):
        folder = f"{cohort}/20x_256px_0px_overlap"
        h5(f"{folder}/features_uni_v1/{slide}.h5", features=FEATURES, coords=COORDS)
        h5(f"{folder}/patches/{slide}_patches.h5", coords=COORDS)
    assert found() == {
        "a": "BRCA/20x_256px_0px_overlap/features_uni_v1/a.h5",
        "b": "LUAD/20x_256px_0px_overlap/features_uni_v1/b.h5",
    }
    assert read_features(find_features(Path())["a"]).encoder == "uni_v1"


@pytest.mark.parametrize("layout", ["{}/features", "TCGA/{}", "a/b/{}/c"])
def test_cohorts_at_any_depth(layout: str) -> None:
    for cohort, slide in (("BRCA", "a"), ("LUAD", "b")):
        pt(f"{layout.format(cohort)}/pt_files/{slide}.pt")
        h5(f"{layout.format(cohort)}/h5_files/{slide}.h5", features=FEATURES, coords=COORDS)
        h5(f"{layout.format(cohort)}/patches/{slide}.h5", coords=COORDS)
    assert found() == {
        slide: f"{layout.format(cohort)}/pt_files/{slide}.pt"
        for cohort, slide in (("BRCA", "a"), ("LUAD", "b"))
    }
    assert all(source.coords for source in find_features(Path()).values())


def test_a_link_to_a_folder_above_ends_no_search() -> None:
    pt("BRCA/deep/pt_files/a.pt")
    pt("LUAD/deep/pt_files/b.pt")
    Path("LUAD/deep/again").symlink_to(Path().resolve(), target_is_directory=True)
    Path("LUAD/again").symlink_to(Path().resolve(), target_is_directory=True)
    assert found() == {"a": "BRCA/deep/pt_files/a.pt", "b": "LUAD/deep/pt_files/b.pt"}


def test_a_cohort_of_clam_next_to_a_plain_folder() -> None:
    pt("BRCA/pt_files/a.pt")
    pt("own/deeper/b.pt")
    (Path("notes")).mkdir()
    assert found() == {"a": "BRCA/pt_files/a.pt", "b": "own/deeper/b.pt"}


def test_a_slide_in_two_cohorts_is_named() -> None:
    pt("BRCA/pt_files/a.pt")
    pt("LUAD/pt_files/a.pt")
    with pytest.raises(
        DataError, match=r"slide 'a' has two files.*BRCA/pt_files/a\.pt and LUAD/pt_files/a\.pt"
    ):
        find_features(Path())


def test_two_encoders_in_one_cohort_are_two_sets() -> None:
    for encoder in ("uni", "virchow"):
        h5(f"BRCA/20x_256px_0px_overlap/features_{encoder}/a.h5", features=FEATURES)
    h5("LUAD/20x_256px_0px_overlap/features_uni/b.h5", features=FEATURES)
    with pytest.raises(DataError, match=r"BRCA holds 2 sets of features; give one of .*features_uni'"):
        find_features(Path())


def test_coordinates_of_slideflow() -> None:
    pt("bags/slide.1.pt")
    np.savez("bags/slide.1.index.npz", COORDS)
    pt("bags/b.pt")
    sources = find_features(Path())
    assert list(sources) == ["b", "slide.1"]
    assert np.array_equal(read_features(sources["slide.1"]).coords_N2, COORDS)
    assert read_features(sources["b"]).coords_N2 is None
    assert sources["slide.1"].files() == [Path("bags/slide.1.pt"), Path("bags/slide.1.index.npz")]


@pytest.mark.parametrize("kind", ["pt", "npy", "h5"])
def test_a_single_patch_is_a_bag_of_one(kind: str) -> None:
    patch_D = FEATURES[0]
    if kind == "pt":
        pt("a.pt", patch_D)
    elif kind == "npy":
        np.save("a.npy", patch_D)
    else:
        h5("a.h5", features=patch_D)
    read = read_features(only())
    assert (read.num_instances, read.num_features) == (1, 4)
    assert np.array_equal(read.features_ND.numpy(), patch_D[None])
    assert np.array_equal(torch.cat(list(read.blocks(1))).numpy(), patch_D[None])


def test_features_that_the_coordinates_show_to_be_transposed_are_named() -> None:
    h5("a.h5", features=FEATURES.T, coords=COORDS)
    with pytest.raises(DataError, match=r"features are 4 x 30, its coordinates 30 x 2: .* transposed"):
        read_features(only())


def _shard(features: dict[str, np.ndarray], **options: object) -> None:
    Path("features").mkdir()
    for slide, array in features.items():
        np.save(f"features/{slide}.npy", array)
    rows = [f"{slide},{'ab'[i % 2]}" for i, slide in enumerate(features)]
    Path("labels.csv").write_text("\n".join(["slide,label", *rows]))
    shard(Path("features"), Path("labels.csv"), Path("shards"), **options)


def test_features_that_are_all_transposed_are_named() -> None:
    with pytest.raises(DataError, match=r"all 4 slides have 4 rows and differ in their width.*transposed"):
        _shard({f"s{i}": FEATURES[: 10 + i].T.copy() for i in range(4)})


def test_one_transposed_slide_is_hinted_at() -> None:
    slides = {f"s{i}": FEATURES[: 10 + i] for i in range(4)} | {"odd": FEATURES.T.copy()}
    with pytest.raises(DataError, match=r"'odd': its features are 30 wide, most others 4; they may be tr"):
        _shard(slides)


def test_slides_of_equal_size_are_not_taken_for_transposed() -> None:
    _shard({f"s{i}": FEATURES for i in range(4)})
    assert list(BagShards(Path("shards")).sizes_N) == [30] * 4


@pytest.mark.parametrize("coords", [COORDS[:-1], COORDS + 0.5, COORDS.astype(float) * np.nan, COORDS * 10**9])
def test_coordinates_that_do_not_fit_can_be_left_out(coords: np.ndarray) -> None:
    h5("features/a.h5", features=FEATURES, coords=coords)
    h5("features/b.h5", features=FEATURES, coords=COORDS)
    Path("labels.csv").write_text("slide,label\na,x\nb,y")
    with pytest.raises(
        DataError, match=r"a\.h5: expected coords.*; --drop-coords leaves the coordinates out"
    ):
        shard(Path("features"), Path("labels.csv"), Path("shards"))
    shard(Path("features"), Path("labels.csv"), Path("shards"), stated=Stated(drop_coords=True))
    bags = BagShards(Path("shards"))
    assert bags.coords(0) is None
    assert np.allclose(bags.load([0], torch.float32).features_TD.numpy(), FEATURES, atol=1e-2)


def test_two_keys_of_features_ask_for_one() -> None:
    h5("a.h5", features=FEATURES, feats=FEATURES + 1)
    with pytest.raises(DataError, match=r"features under 'features', 'feats'; give --feature-key with one"):
        read_features(only())
    assert np.array_equal(read_features(only(Stated(feature_key="feats"))).features_ND.numpy(), FEATURES + 1)


def test_an_unusual_key_is_suggested() -> None:
    h5("a.h5", feature=FEATURES, coords=COORDS)
    with pytest.raises(
        DataError, match=r"got 'coords', 'feature'; give --feature-key, such as --feature-key feat"
    ):
        read_features(only())
