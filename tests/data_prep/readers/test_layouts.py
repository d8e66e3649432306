"""Folders and files as CLAM, TRIDENT, STAMP and scripts write them: found, and read correctly."""

import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import zarr

from data_prep import shard as shard_module
from data_prep import verify as verify_module
from data_prep.readers.folders import find_features
from data_prep.readers.members import describe_bag
from data_prep.readers.sources import Source, read_features
from data_prep.readers.stated import NOTHING_STATED, Stated
from data_prep.tables.labels import SlideLabel
from data_prep.writing.plan import plan_bags, plan_shards
from mhimdist.data.manifest import Manifest
from mhimdist.data.shards import BagShards
from mhimdist.errors import CorruptShard, DataError

FEATURES = np.random.default_rng(0).standard_normal((30, 4)).astype(np.float32)
COORDS = np.arange(60).reshape(30, 2) * 256


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def h5(path: str, features: np.ndarray = FEATURES, **attributes: object) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["features"] = features
        file["features"].attrs.update(attributes)


def only(path: Path = Path(), stated: Stated = NOTHING_STATED) -> Source:
    (source,) = find_features(path, stated).values()
    return source


def test_a_tree_of_folders_as_stamp_repeats_it() -> None:
    for slide in ("virchow-1/a", "virchow-1/site 1/b", "virchow-1/site 1/2024/c", "virchow-1/site 2/d.e"):
        h5(f"{slide}.h5")
    Path("virchow-1/site 2/d.e.jpg").touch()
    Path("virchow-1/.cache").mkdir()
    Path("virchow-1/.cache/x.h5").touch()
    Path("virchow-1/site 2/._d.e.h5").touch()
    Path("virchow-1/loop").symlink_to(".")
    found = find_features(Path())
    assert {slide: str(source.path) for slide, source in found.items()} == {
        "a": "virchow-1/a.h5",
        "b": "virchow-1/site 1/b.h5",
        "c": "virchow-1/site 1/2024/c.h5",
        "d.e": "virchow-1/site 2/d.e.h5",
    }


def test_a_name_that_stands_twice_in_a_tree_is_refused_by_name() -> None:
    for folder in ("uni-1/x", "virchow-2/x"):
        h5(f"{folder}/a.h5")
    with pytest.raises(
        DataError,
        match=r"slide 'a' has two files of features: uni-1/x/a\.h5 and virchow-2/x/a\.h5 in \.; give the",
    ):
        find_features(Path())


def test_stores_and_sidecars_in_a_tree() -> None:
    zarr.save_array("x/a.zarr", FEATURES)
    zarr.save_array("x/b", FEATURES)
    np.save("x/c.npy", FEATURES)
    np.save("x/c.coords.npy", COORDS)
    found = find_features(Path())
    assert {slide: source.family for slide, source in found.items()} == {"a": "zarr", "b": "zarr", "c": "npy"}
    assert np.array_equal(read_features(found["c"]).coords_N2, COORDS)
    Path("x/c.npy").rename("c.npy")
    with pytest.raises(DataError, match=r"c\.coords\.npy: expected c\.npy next to it in x"):
        find_features(Path())


def test_files_beside_the_folders_of_clam_and_trident_are_not_passed_over() -> None:
    for folder in ("pt_files", "features_uni"):
        Path(folder).mkdir()
        np.save(f"{folder}/{folder}.npy", FEATURES)
    assert list(find_features(Path())) == ["pt_files"]
    np.save("a.npy", FEATURES)
    assert list(find_features(Path())) == ["a", "features_uni", "pt_files"]


def test_pt_of_trident_is_an_array_of_numpy() -> None:
    folder = Path("20x_256px_0px_overlap/features_uni_v2")
    folder.mkdir(parents=True)
    torch.save(FEATURES, folder / "a.pt")
    read = read_features(only())
    assert read.features_ND.dtype == torch.float32
    assert np.array_equal(read.features_ND.numpy(), FEATURES)
    assert read.encoder == "uni_v2"


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_any_float_in_pt(dtype: str, order: str) -> None:
    array = np.asarray(FEATURES.astype(dtype), order=order)
    torch.save({"features": array, "coords": COORDS, "encoder": "uni"}, "a.pt")
    read = read_features(only())
    assert np.array_equal(read.features_ND.numpy(), array)
    assert np.array_equal(read.coords_N2, COORDS)
    assert read.encoder == "uni"


def test_arrays_that_numpy_1_wrote_in_pt() -> None:
    torch.save(FEATURES, "a.pt", _use_new_zipfile_serialization=False)
    content = Path("a.pt").read_bytes()
    assert b"numpy._core.multiarray" in content
    Path("a.pt").write_bytes(content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert np.array_equal(read_features(only()).features_ND.numpy(), FEATURES)


def test_reading_arrays_leaves_torchs_list_as_it_was() -> None:
    before = set(torch.serialization.get_safe_globals())
    torch.save(FEATURES, "a.pt")
    read_features(only())
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize("attributes", [{}, {"encoder": "None"}, {"encoder": ""}])
def test_the_encoder_by_the_folder_of_trident(attributes: dict) -> None:
    h5("x/features_conch_v15/a.h5", **attributes)
    for path in (Path(), Path("x"), Path("x/features_conch_v15"), Path("x/features_conch_v15/a.h5")):
        assert read_features(only(path)).encoder == "conch_v15"
    h5("x/features_conch_v15/a.h5", encoder="conch")
    assert read_features(only()).encoder == "conch"
    h5("x/features_conch_v15/a.h5", encoder="None")
    Path("x/features_conch_v15").rename("plain")
    assert read_features(only(Path("plain"))).encoder is None


@pytest.mark.parametrize(("shape", "said"), [((0, 1024), "0 x 1024"), ((0,), "0")])
@pytest.mark.parametrize("write", [h5, lambda path, array: torch.save(array, "a.pt")])
def test_a_slide_without_tissue_is_an_empty_bag(write, shape: tuple[int, ...], said: str) -> None:
    write("a.h5", np.empty(shape, np.float32))
    with pytest.raises(DataError, match=rf"^a\.\w+: the bag is empty: its features are {said}$"):
        read_features(only())


@pytest.mark.parametrize(
    "write",
    [
        lambda: torch.save(torch.from_numpy(FEATURES[None]), "a.pt"),
        lambda: torch.save({"features": FEATURES[None], "coords": COORDS[None]}, "a.pt"),
        lambda: np.save("a.npy", FEATURES[None]),
        lambda: np.save("a.npy", np.asfortranarray(FEATURES[None].astype(">f4"))),
        lambda: np.savez("a.npz", features=FEATURES[None]),
        lambda: h5("a.h5", FEATURES[None]),
        lambda: zarr.create_array("a.zarr", data=FEATURES[None], chunks=(1, 7, 4)),
    ],
)
def test_a_batch_axis_is_passed_over(write) -> None:
    write()
    read = read_features(only())
    assert (read.num_instances, read.num_features) == FEATURES.shape
    assert np.array_equal(read.features_ND.numpy(), FEATURES)
    assert np.array_equal(torch.cat(list(read.blocks(100))).numpy(), FEATURES)
    assert read.coords_N2 is None or np.array_equal(read.coords_N2, COORDS)


def test_an_array_without_a_name_in_npz() -> None:
    np.savez("a.npz", FEATURES)
    assert np.array_equal(read_features(only()).features_ND.numpy(), FEATURES)
    np.savez("a.npz", FEATURES, COORDS)
    with pytest.raises(DataError, match=r"a\.npz: expected one of the keys .*, got 'arr_0', 'arr_1'"):
        read_features(only())


def test_the_usual_names_of_features() -> None:
    for name in ("features", "feats", "embeddings"):
        np.savez("a.npz", **{name: FEATURES, "tsne": COORDS})
        assert np.array_equal(read_features(only()).features_ND.numpy(), FEATURES)


def test_a_name_that_is_given() -> None:
    h5("a.h5", FEATURES + 1)
    with h5py.File("a.h5", "a") as file:
        file["x/deep"] = FEATURES
        file["coords"] = COORDS
    read = read_features(only(stated=Stated(feature_key="x/deep")))
    assert np.array_equal(read.features_ND.numpy(), FEATURES)
    assert np.array_equal(read.coords_N2, COORDS)
    with pytest.raises(
        DataError, match=r"a\.h5: expected one of the keys \('y',\), got 'coords', 'features', 'x/deep'"
    ):
        read_features(only(stated=Stated(feature_key="y")))


@pytest.mark.faults(40)
@pytest.mark.parametrize(
    "link", [h5py.ExternalLink("b.h5", "/"), h5py.SoftLink("/there")], ids=["other", "own"]
)
def test_no_link_on_the_way_to_an_array_is_followed(link: object) -> None:
    for name in ("b.h5", "a.h5"):
        with h5py.File(name, "w") as file:
            file["uni"] = FEATURES
            file["there/uni"] = FEATURES
    Path("b.h5").rename("b")
    with h5py.File("a.h5", "a") as file:
        file["here"] = link
    with pytest.raises(DataError, match=r"a\.h5: refused, 'here/uni' is a link to"):
        read_features(only(stated=Stated(feature_key="here/uni")))


def test_arrays_in_groups_of_a_zarr_store_are_named_by_path() -> None:
    store = zarr.open_group("a.zarr", mode="w")
    store.create_array("patches/uni", data=FEATURES)
    store.create_array("patches/coords", data=COORDS)
    for stated in (NOTHING_STATED, Stated(feature_key="patches")):
        with pytest.raises(
            DataError, match=r"got 'patches/coords', 'patches/uni'; give .*--feature-key patches/uni$"
        ):
            read_features(only(stated=stated))
    read = read_features(only(stated=Stated(feature_key="patches/uni")))
    assert np.array_equal(read.features_ND.numpy(), FEATURES)


def test_coordinates_with_width_and_height() -> None:
    np.save("a.npy", FEATURES)
    np.save("a.coords.npy", np.hstack([COORDS, np.full_like(COORDS, 256)]))
    assert np.array_equal(read_features(only()).coords_N2, COORDS)


def test_suffixes_in_capitals() -> None:
    for name, array in (("a.NPY", FEATURES), ("a.coords.NPY", COORDS)):
        with Path(name).open("wb") as file:
            np.save(file, array)
    assert np.array_equal(read_features(only()).coords_N2, COORDS)


def test_a_file_without_features_is_named() -> None:
    Path("a.txt").touch()
    with pytest.raises(DataError, match=r"^a\.txt: no features \(expected a file that ends in \.pt"):
        find_features(Path("a.txt"))


STATED = Stated(encoder="uni", patch_size=256, level=1)


def test_what_files_do_not_say_can_be_stated() -> None:
    np.save("a.npy", FEATURES)
    read = read_features(only(stated=STATED))
    assert read.details == {"encoder": "uni", "patch_size": 256, "level": 1}


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"encoder": "conch"}, "its encoder is 'conch', but --encoder says 'uni'"),
        ({"patch_size": 512}, "its patch_size is 512, but --patch-size says 256"),
        ({"patch_level": 0}, "its level is 0, but --level says 1"),
    ],
)
def test_what_contradicts_the_files_is_refused(attributes: dict, message: str) -> None:
    h5("features_x/a.h5", encoder="uni", patch_size=256)
    assert read_features(only(stated=STATED)).details == STATED.details
    h5("features_x/a.h5", **attributes)
    with pytest.raises(DataError, match=rf"^features_x/a\.h5: {message}$"):
        read_features(only(stated=STATED))


def test_threads_do_not_disturb_each_other_over_arrays_in_pt() -> None:
    from concurrent.futures import ThreadPoolExecutor

    for i in range(16):
        torch.save(FEATURES + i if i % 2 else torch.from_numpy(FEATURES + i), f"{i:02}.pt")
    sources = list(find_features(Path()).values()) * 8
    with ThreadPoolExecutor(8) as threads, warnings.catch_warnings():
        read = list(threads.map(lambda source: read_features(source).features_ND.numpy(), sources))
    for i, features in enumerate(read):
        assert np.array_equal(features, FEATURES + i % 16)


def test_what_is_stated_is_kept_and_repaired(capsys: pytest.CaptureFixture) -> None:
    Path("features").mkdir()
    for slide in "ab":
        np.savez(f"features/{slide}.npz", emb=FEATURES, features=FEATURES + 1)
    Path("labels.csv").write_text("slide,label,case\nx/a.svs,x,p\nx/b.svs,y,q\n")
    options = ["--feature-key", "emb", "--encoder", "uni", "--patch-size", "256", "--level", "0"]
    shard_module.main(["--features", "features", "--labels", "labels.csv", "--out", "shards", *options])
    manifest = Manifest.read(Path("shards"))
    row = manifest.rows.to_pylist()[0]
    described = describe_bag(Path("shards"), row)
    assert {name: described[name] for name in ("slide", "encoder", "patch_size", "level")} == {
        "slide": row["slide"],
        "encoder": "uni",
        "patch_size": 256,
        "level": 0,
    }
    stored = BagShards(Path("shards")).load([0]).features_TD
    assert np.array_equal(stored, FEATURES.astype(np.float16).astype(np.float32))
    content = Path("shards/shard-000000.tar").read_bytes()
    Path("shards/shard-000000.tar").unlink()
    with pytest.raises(CorruptShard):
        verify_module.main(["shards", "--repair", "features"])
    assert "expected one of the keys" not in capsys.readouterr().out
    verify_module.main(["shards", "--repair", "features", *options])
    assert Path("shards/shard-000000.tar").read_bytes() == content


def test_other_features_of_the_same_files_are_not_taken_over() -> None:
    np.savez("a.npz", emb=FEATURES, features=FEATURES + 1)
    row = [SlideLabel("a", "a", "x")]
    digests = set()
    for stated in (NOTHING_STATED, Stated(feature_key="emb")):
        bags, _ = plan_bags(row, find_features(Path(), stated), ["x"], "float16", seed=0)
        (plan,) = plan_shards(bags, 2**30)
        digests.add(plan.digest())
    assert len(digests) == 2


def test_the_folders_of_clam_in_a_tree() -> None:
    for folder, suffix in (("pt_files", "pt"), ("h5_files", "h5")):
        Path(f"{folder}/batch 1").mkdir(parents=True)
        if suffix == "pt":
            torch.save(torch.from_numpy(FEATURES), f"{folder}/batch 1/a.pt")
        else:
            h5(f"{folder}/batch 1/a.h5")
            with h5py.File(f"{folder}/batch 1/a.h5", "a") as file:
                file["coords"] = COORDS
    source = only()
    assert (str(source.path), str(source.coords)) == ("pt_files/batch 1/a.pt", "h5_files/batch 1/a.h5")
    assert np.array_equal(read_features(source).coords_N2, COORDS)
