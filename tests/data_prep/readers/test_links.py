"""No link within a store of features leads to another file of the machine."""

import os
from pathlib import Path

import numpy as np
import pytest
import zarr

from data_prep.readers.folders import find_features
from data_prep.readers.sources import read_features
from data_prep.readers.stated import Stated
from mhimdist.errors import DataError

FEATURES = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.fixture(autouse=True)
def _private_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "received").mkdir()
    monkeypatch.chdir(tmp_path / "received")
    zarr.open_group("../private.zarr", mode="w", zarr_format=2).create_array("features", data=FEATURES)


def read(key: str | None = None) -> np.ndarray:
    (source,) = find_features(Path(), stated=Stated(feature_key=key)).values()
    return read_features(source).features_ND.numpy()


def test_a_store_that_is_itself_a_link_is_read() -> None:
    Path("a.zarr").symlink_to("../private.zarr")
    assert np.array_equal(read(), FEATURES)


@pytest.mark.faults(8)
@pytest.mark.parametrize(
    ("link", "target", "key"),
    [
        ("g", "../../private.zarr", "g/features"),
        ("features", "../../private.zarr/features", None),
        ("features", "../../private.zarr/features", "features"),
    ],
)
def test_a_link_on_the_way_to_an_array_of_a_zarr_store_is_refused(link, target, key) -> None:
    zarr.open_group("a.zarr", mode="w", zarr_format=2)
    Path("a.zarr", link).symlink_to(target)
    with pytest.raises(DataError, match=rf"a\.zarr: refused, {link} is a link to '{target}'"):
        read(key)


@pytest.mark.faults(8)
@pytest.mark.parametrize("version", [2, 3])
def test_a_chunk_that_is_a_link_is_refused(version: int) -> None:
    array = zarr.open_group("a.zarr", mode="w", zarr_format=version).create_array("features", data=FEATURES)
    chunk = Path("a.zarr/features", array.metadata.encode_chunk_key((0, 0)))
    os.remove(chunk)
    chunk.symlink_to(Path("../private.zarr/features/0.0").absolute())
    with pytest.raises(DataError, match=r"a\.zarr: refused, features/.* is a link to '/"):
        read()


@pytest.mark.faults(40)
@pytest.mark.parametrize("key", ["../private.zarr/features", "a/../features"])
def test_a_key_leads_not_out_of_a_zarr_store(key: str) -> None:
    zarr.open_group("a.zarr", mode="w", zarr_format=2)
    with pytest.raises(DataError, match=r"an array's name is .*: expected a name that stays below a\.zarr"):
        read(key)
