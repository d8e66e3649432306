"""The places of chunks past the library: those that it tells, and nothing where a file is not as expected."""

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from data_prep.readers import hdf5, hdf5_tree
from data_prep.readers.sources import Source, read_features
from mhimdist.errors import DataError

SIZE, WIDTH = 5000, 6


def made(path: Path, libver: Any = None, *, rows: int = SIZE, userblock_size: int = 0, **how: Any) -> Path:
    """Chunks of one row that are written in any order, among attributes that need blocks of their own."""
    values = np.arange(rows * WIDTH, dtype="<f4").reshape(rows, WIDTH)
    with h5py.File(path, "w", libver=libver, userblock_size=userblock_size) as file:
        features = file.create_dataset(
            "features", values.shape, "<f4", chunks=(1, WIDTH), maxshape=(None, WIDTH), **how
        )
        for number in range(20):
            features.attrs[f"attribute {number}"] = "of some length " * 20
        for row in np.random.default_rng(0).permutation(rows):
            features[row] = values[row]
    return path


def places(path: Path, num_chunks: int = SIZE) -> np.ndarray | None:
    """What the file says about the chunks of its features."""
    with h5py.File(path, "r") as file:
        return hdf5_tree.places(file["features"], str(path), num_chunks)


def nodes(content: bytes | bytearray) -> list[int]:
    """Where the nodes of the trees of chunks are."""
    return [at for at in range(0, len(content) - 8, 8) if content[at : at + 5] == b"TREE\x01"]


@pytest.mark.parametrize("libver", [("earliest", "v108"), ("v108", "v108")])
@pytest.mark.parametrize("how", [{}, {"compression": "gzip"}, {"track_times": True}])
def test_the_places_are_those_that_the_library_tells(
    libver: Any, how: dict[str, Any], tmp_path: Path
) -> None:
    path = made(tmp_path / "bag.h5", libver, **how)
    told: list[Any] = []
    with h5py.File(path, "r") as file:
        file["features"].id.chunk_iter(told.append)
    found = places(path)
    assert found is not None
    assert found["offsets"].tolist() == [[*chunk.chunk_offset, 0] for chunk in told]
    for name, attribute in (("start", "byte_offset"), ("size", "size"), ("mask", "filter_mask")):
        assert found[name].tolist() == [getattr(chunk, attribute) for chunk in told]


def test_a_newer_format_is_left_to_the_library(tmp_path: Path) -> None:
    path = made(tmp_path / "bag.h5", "latest", rows=9)
    assert places(path) is None
    assert hdf5.read(path, ("features",))["features"].read(0, 9)[8].tolist() == [*range(48, 54)]


def test_more_chunks_than_there_may_be_are_not_read(tmp_path: Path) -> None:
    path = made(tmp_path / "bag.h5", rows=9)
    found = places(path, 9)
    assert found is not None
    assert len(found) == 9
    with pytest.raises(DataError, match="damaged: expected at most 8 chunks in its tree, got more"):
        places(path, 8)


def test_an_array_without_chunks_has_no_tree(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "bag.h5", "w") as file:
        file.create_dataset("features", (9, 4), "<f4", chunks=(1, 4))
    found = places(tmp_path / "bag.h5")
    assert found is not None
    assert not len(found)
    with pytest.raises(DataError, match="has 9 chunks, but only 0 were written"):
        hdf5.read(tmp_path / "bag.h5", ("features",))


@pytest.mark.faults(52)
@pytest.mark.parametrize("userblock", [0, 512])
@pytest.mark.parametrize("to", ["root", "one leaf"])
def test_a_tree_that_leads_back_or_to_one_leaf_ends(to: str, userblock: int, tmp_path: Path) -> None:
    """The library follows a circle until the process dies."""
    path = made(tmp_path / "bag.h5", userblock_size=userblock)
    content = bytearray(path.read_bytes())
    by_level = sorted(nodes(content), key=lambda at: content[at + 5])
    leaf, root = by_level[0], by_level[-1]
    assert content[root + 5] == 2, "the tree of the example has three levels"
    inner = [at for at in by_level if content[at + 5] == 1]
    key_bytes = 8 + 8 * 3
    for node in [root] if to == "root" else inner:
        for number in range(int.from_bytes(content[node + 6 : node + 8], "little")):
            at = node + 24 + number * (key_bytes + 8) + key_bytes
            content[at : at + 8] = ((root if to == "root" else leaf) - userblock).to_bytes(8, "little")
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"features( is|:) damaged"):
        hdf5.read(path, ("features",))["features"].read(0, SIZE)


@pytest.mark.parametrize("seed", range(4))
def test_damage_is_named_or_moves_a_chunk(seed: int, tmp_path: Path) -> None:
    path = made(tmp_path / "bag.h5", rows=200)
    whole = path.read_bytes()
    generator, named = np.random.default_rng(seed), list[str]()
    for _ in range(40):
        content = bytearray(whole)
        for start in nodes(whole):
            content[start + generator.integers(400)] = generator.integers(256)
        path.write_bytes(content)
        try:
            # Nothing there has a checksum, so a wrong place within the file looks like a right one.
            assert read_features(Source(path, "hdf5")).features_ND.shape[1] == WIDTH
        except DataError as error:
            named.append(str(error))
    assert named
    assert all("bag.h5" in message for message in named)


def test_a_file_that_ends_within_its_tree(tmp_path: Path) -> None:
    path = made(tmp_path / "bag.h5", rows=200)
    with h5py.File(path, "r") as file:
        os.truncate(path, nodes(path.read_bytes())[-1] + 100)
        with pytest.raises(DataError, match=r"features is damaged: expected \d+ bytes at \d+, got the end"):
            hdf5_tree.places(file["features"], f"{path}: features", 200)
