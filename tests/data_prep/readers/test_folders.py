import json
import os
import pickle
import tarfile
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import zarr

from data_prep.readers.folders import find_features
from data_prep.readers.sources import Source, read_features
from mhimdist.errors import DataError


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not Path("executed").exists()


def test_features_are_found_by_slide() -> None:
    for name in ("a.pt", "b.c.npy", "b.c.coords.npy", "b.c.instance_labels.npy", "notes.txt", ".hidden"):
        Path(name).touch()
    Path("folder.pt").mkdir()
    assert find_features(Path()) == {
        "a": Source(Path("a.pt"), "torch"),
        "b.c": Source(Path("b.c.npy"), "npy"),
    }


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), r"no features in \.: expected files that end in \.pt, .*, got nothing"),
        (("x.csv", "y.txt"), r"no features in \.: .*, got 'x.csv', 'y.txt'"),
        (("a.pt", "a.npy"), r"slide 'a' has two files of features: a\.npy and a\.pt"),
        (("a.npy", "b.coords.npy"), r"b\.coords\.npy: expected b\.npy next to it"),
        (("a.pt", "a.coords.npy"), r"a\.coords\.npy: expected a\.npy next to it"),
    ],
)
def test_a_folder_that_is_ambiguous_is_refused(names: tuple[str, ...], message: str) -> None:
    for name in names:
        Path(name).touch()
    with pytest.raises(DataError, match=message):
        find_features(Path())


def test_a_missing_folder_is_named() -> None:
    with pytest.raises(DataError, match="no folder of features at nowhere"):
        find_features(Path("nowhere"))


FEATURES = np.random.default_rng(0).standard_normal((300, 4)).astype(np.float32)
COORDS = np.arange(600).reshape(300, 2) * 256


def check(source: Source, expected: np.ndarray = FEATURES, coords: np.ndarray | None = COORDS) -> None:
    """The features of a source, read whole and in blocks of rows."""
    read = read_features(source)
    assert np.array_equal(read.features_ND.float().numpy(), expected)
    for block_bytes in (1, 100, 10**6):
        assert np.array_equal(torch.cat(list(read.blocks(block_bytes))).float().numpy(), expected)
    if coords is None:
        assert read.coords_N2 is None
    else:
        assert read.coords_N2.dtype == np.int32
        assert np.array_equal(read.coords_N2, coords)


def clam_h5(path: Path, *, interleaved: bool = False) -> None:
    """As CLAM writes it: chunks of one row, appended to batch by batch."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        batch = 100 if interleaved else len(FEATURES)
        for start in range(0, len(FEATURES), batch):
            for name, array in (("features", FEATURES), ("coords", COORDS)):
                part = array[start : start + batch]
                if name not in file:
                    rows = (None, part.shape[1])
                    file.create_dataset(name, data=part, maxshape=rows, chunks=(1, part.shape[1]))
                else:
                    file[name].resize(start + len(part), axis=0)
                    file[name][start:] = part


@pytest.mark.parametrize("interleaved", [False, True])
def test_h5_of_clam(interleaved: bool) -> None:
    clam_h5(Path("h5_files/a.h5"), interleaved=interleaved)
    (found,) = find_features(Path()).items()
    assert found == ("a", Source(Path("h5_files/a.h5"), "hdf5"))
    check(found[1])


def test_pt_of_clam_with_the_coordinates_of_its_h5() -> None:
    for slide in "ab":
        clam_h5(Path(f"h5_files/{slide}.h5"))
    Path("pt_files").mkdir()
    for slide in "bc":
        torch.save(torch.from_numpy(FEATURES), f"pt_files/{slide}.pt")
    found = find_features(Path())
    assert found == {
        "b": Source(Path("pt_files/b.pt"), "torch", coords=Path("h5_files/b.h5")),
        "c": Source(Path("pt_files/c.pt"), "torch"),
    }
    check(found["b"])
    check(found["c"], coords=None)


def test_h5_of_trident() -> None:
    folder = Path("20x_256px_0px_overlap/features_uni_v1")
    folder.mkdir(parents=True)
    Path("20x_256px_0px_overlap/patches").mkdir()
    clam_h5(Path("20x_256px_0px_overlap/patches/a_patches.h5"))
    with h5py.File(folder / "a.h5", "w") as file:
        features = file.create_dataset("features", data=FEATURES, chunks=(64, 4), compression="gzip")
        features.attrs.update({"name": "a", "encoder": "uni_v1"})
        coords = file.create_dataset("coords", data=COORDS)
        coords.attrs.update({"patch_size": 256, "level0_magnification": 40, "target_magnification": 20})
    found = find_features(Path())
    assert list(found) == ["a"]
    check(found["a"])
    assert read_features(found["a"]).details == {
        "encoder": "uni_v1",
        "patch_size": 256,
        "magnification": 20.0,
    }
    (folder.parent / "features_conch").mkdir()
    (folder.parent / "features_conch/a.h5").touch()
    with pytest.raises(DataError, match=r"holds 2 sets of features; give one of '20x.*features_conch'"):
        find_features(Path())


def test_h5_with_a_batch_axis() -> None:
    with h5py.File("a.h5", "w") as file:
        file["features"] = FEATURES[None]
    check(find_features(Path())["a"], coords=None)


def test_h5_of_stamp() -> None:
    Path("virchow2-abc").mkdir()
    with h5py.File("virchow2-abc/a.h5", "w") as file:
        file["feats"] = FEATURES.astype(np.float16)
        file["coords"] = COORDS + np.float32(0.4)
        file.attrs.update({"extractor": "virchow2", "unit": "um", "tile_size_um": 256.0, "tile_size_px": 224})
    source = find_features(Path())["a"]
    check(source, FEATURES.astype(np.float16).astype(np.float32))
    assert read_features(source).details == {"encoder": "virchow2", "patch_size": 224, "coords_unit": "um"}


@pytest.mark.parametrize("version", [2, 3])
def test_zarr(version: int) -> None:
    group = zarr.open_group("a.zarr", mode="w", zarr_format=version)
    for name, array in (("features", FEATURES), ("coords", COORDS)):
        group.create_array(name, data=array, chunks=(70, array.shape[1]))
    group.attrs["encoder"] = "uni"
    (found,) = find_features(Path()).items()
    assert found == ("a", Source(Path("a.zarr"), "zarr"))
    check(found[1])
    assert read_features(found[1]).encoder == "uni"
    zarr.save_array("b.zarr", FEATURES, zarr_format=version)
    check(find_features(Path("b.zarr"))["b"], coords=None)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(save) -> None:
    save("a.npz", features=FEATURES.astype(">f4"), coords=COORDS, encoder="uni", patch_size=256)
    source = find_features(Path())["a"]
    check(source)
    assert read_features(source).details == {"encoder": "uni", "patch_size": 256}


def test_content_decides_and_not_the_ending() -> None:
    np.save("a.npy", FEATURES)
    Path("a.npy").rename("a.pt")
    torch.save({"feats": torch.from_numpy(FEATURES)}, "b.h5")
    found = find_features(Path())
    assert {slide: source.family for slide, source in found.items()} == {"a": "npy", "b": "torch"}
    for source in found.values():
        check(source, coords=None)


def tar_of(path: str, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members.items():
            Path("member").write_bytes(content)
            tar.add("member", name)
    Path("member").unlink()


def npy_bytes(array: np.ndarray) -> bytes:
    np.save("member.npy", array)
    content = Path("member.npy").read_bytes()
    Path("member.npy").unlink()
    return content


def test_webdataset_of_others() -> None:
    torch.save(torch.from_numpy(FEATURES), "member.pt")
    pt = Path("member.pt").read_bytes()
    Path("member.pt").unlink()
    said = json.dumps({"slide": "a.1", "label": 1, "case": "p", "encoder": "uni"}).encode()
    tar_of(
        "x-000.tar",
        {
            "s1.features.npy": npy_bytes(FEATURES),
            "s1.coords.npy": npy_bytes(COORDS),
            "s1.json": said,
            "s2.pth": pt,
            "s2.cls": b"0\n",
        },
    )
    found = find_features(Path())
    assert {slide: source.details for slide, source in found.items()} == {
        "a.1": {"slide": "a.1", "label": 1, "case": "p", "encoder": "uni"},
        "s2": {"slide": "s2", "label": "0"},
    }
    check(found["a.1"])
    assert read_features(found["a.1"]).encoder == "uni"
    check(found["s2"], coords=None)


@pytest.mark.parametrize("group", [1, 100, 301, 10_000])
def test_parquet_with_a_row_an_instance(group: int) -> None:
    lists = pa.FixedSizeListArray.from_arrays(FEATURES.ravel(), 4)
    slides = ["a"] * 299 + ["b"]
    coords = pa.array(COORDS.tolist())
    table = pa.table({"slide": slides, "label": ["x"] * 299 + ["y"], "features": lists, "coords": coords})
    pq.write_table(table, "bags.parquet", row_group_size=group)
    found = find_features(Path("bags.parquet"))
    assert {slide: source.details["label"] for slide, source in found.items()} == {"a": "x", "b": "y"}
    check(found["a"], FEATURES[:299], COORDS[:299])
    check(found["b"], FEATURES[299:], COORDS[299:])


def test_parquet_with_a_row_a_bag() -> None:
    bags = {"a": (FEATURES, COORDS), "b": (FEATURES[:7], COORDS[:7])}
    features = [bag.tolist() for bag, _ in bags.values()]
    columns = {
        "slide": list(bags),
        "label": [0, 1],
        "features": pa.array(features, pa.list_(pa.list_(pa.float32()))),
    }
    table = pa.table(columns | {"coords": [coords.tolist() for _, coords in bags.values()]})
    pq.write_table(table, "bags.parquet")
    found = find_features(Path())
    for slide, (expected, coords) in bags.items():
        check(found[slide], expected, coords)


class Malicious:
    """Leaves a file behind wherever it is unpickled."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("executed",)


def h5(**options: object) -> Path:
    with h5py.File("a.h5", "w") as file:
        file.create_dataset("features", **options)
    return Path("a.h5")


def linked_h5(link: object) -> None:
    h5(data=FEATURES)
    with h5py.File("a.h5", "a") as file:
        del file["features"]
        file["features"] = link


def hostile_parquet(**columns: list) -> None:
    pq.write_table(pa.table(columns), "a.parquet")


def hostile_tar(info: tarfile.TarInfo) -> None:
    with tarfile.open("a.tar", "w") as tar:
        tar.addfile(info)


def member(name: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (
            lambda: h5(shape=(10**12, 1024), dtype="f4", chunks=(1, 1024)),
            "claims .* bytes of features, but stores 0",
        ),
        (
            lambda: h5(
                shape=(10**7, 8),
                dtype="f4",
                chunks=(10**6, 8),
                compression="gzip",
                data=np.zeros((10**7, 8), "f4"),
            ),
            "claims 320000000 bytes of features, but stores",
        ),
        (
            lambda: h5(shape=(8, 8), dtype="f4", external=[("/etc/passwd", 0, 256)]),
            "the data of 'features' are in",
        ),
        (
            lambda: h5(data=np.array([[b"x"]], object), dtype=h5py.string_dtype()),
            "of type object cannot be used",
        ),
        (lambda: linked_h5(h5py.ExternalLink("/etc/passwd", "x")), "refused, 'features' is a link to 'x'"),
        (lambda: linked_h5(h5py.SoftLink("/nowhere")), "refused, 'features' is a link to '/nowhere'"),
        (lambda: Path("a.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(500)), "damaged, or not an HDF5 file"),
        (lambda: np.savez("a.npz", features=np.full((3, 4), Malicious())), "holds Python objects"),
        (
            lambda: np.savez_compressed("a.npz", features=np.zeros((10**6, 8), "f4")),
            "claims 32000128 bytes of features.npy, but stores",
        ),
        (lambda: Path("a.npz").write_bytes(b"PK\x03\x04" + bytes(99)), "damaged, or not a .npz file"),
        (
            lambda: hostile_tar(member("../../x.json", tarfile.SYMTYPE)),
            "refused, '../../x.json' is not a plain file",
        ),
        (lambda: hostile_tar(member("x.json", tarfile.LNKTYPE)), "refused, 'x.json' is not a plain file"),
        (lambda: hostile_tar(member("x", tarfile.CHRTYPE)), "refused, 'x' is not a plain file"),
        (
            lambda: tar_of("a.tar", {"a.pth": pickle.dumps(Malicious())}),
            "damaged, or not a file that torch.save",
        ),
        (lambda: tar_of("a.tar", {"a.json": b"[1]"}), "a.json: expected an object, got list"),
        (lambda: tar_of("a.tar", {"a.json": b"{"}), "a.json cannot be read"),
        (lambda: hostile_parquet(slide=["a"], features=[[[1.0, 2.0], [3.0]]]), "rows of 1 to 2 numbers"),
        (
            lambda: hostile_parquet(slide=["a"], features=[1.0]),
            "expected features as lists of numbers, got double",
        ),
        (
            lambda: hostile_parquet(slide=["a", "b", "a"], features=[[1.0]] * 3),
            "rows of slide 'a' are not together",
        ),
        (lambda: hostile_parquet(slide=["a"], features=[[1.0, None]]), "features has empty cells"),
        (
            lambda: hostile_parquet(slide=[None], features=[[1.0]]),
            "expected the names of slides in 'slide', got None",
        ),
        (lambda: hostile_parquet(name=["a"], features=[[1.0]]), "expected one column named slide or"),
        (lambda: Path("a.parquet").write_bytes(b"PAR1" + bytes(99)), "cannot be read as Parquet"),
    ],
)
def test_hostile_and_damaged_files_are_refused(write, message: str) -> None:
    write()
    with pytest.raises(DataError, match=message):
        [read_features(source).features_ND for source in find_features(Path()).values()]


def test_a_damaged_header_does_not_end_a_tar() -> None:
    tar_of("a.tar", {"a.npy": npy_bytes(FEATURES), "b.npy": npy_bytes(FEATURES)})
    content = bytearray(Path("a.tar").read_bytes())
    second = content.index(b"b.npy")
    content[second] ^= 1
    Path("a.tar").write_bytes(content)
    with pytest.raises(DataError, match=f"damaged at byte {second}: expected the header of a member"):
        find_features(Path())
    content[second : second + 512] = bytes(512)
    Path("a.tar").write_bytes(content)
    with pytest.raises(DataError, match=f"damaged at byte {second}: expected the header of a member"):
        find_features(Path())
    Path("a.tar").write_bytes(content[:second] + content[second + 1000 :][:700])
    with pytest.raises(DataError, match=r"damaged|cut off"):
        find_features(Path())


def test_a_zarr_bomb_is_refused() -> None:
    zarr.create_array("a.zarr", shape=(10**12, 1024), chunks=(1000, 1024), dtype="f4")
    with pytest.raises(DataError, match=r"claims \d+ bytes of features, but stores"):
        read_features(find_features(Path())["a"])
