"""Heaps of texts in HDF5 files: damaged ones in which the library would read for ever."""

import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from data_prep.readers import hdf5, hdf5_heaps
from mhimdist.errors import DataError

FEATURES = np.arange(12, dtype=np.float32).reshape(3, 4)


def written(path: Path, features: np.ndarray = FEATURES, **attributes: object) -> bytearray:
    with h5py.File(path, "w") as file:
        file["features"] = features
        file["features"].attrs.update(attributes)
    return bytearray(path.read_bytes())


def endless(content: bytearray) -> bytearray:
    """The content with a heap whose free space, the object after the text, has no length."""
    heap = content.index(b"GCOL")
    free = heap + 32 + (int.from_bytes(content[heap + 24 : heap + 32], "little") + 7) // 8 * 8
    assert content[free : free + 2] == b"\0\0"
    content[free + 8 : free + 16] = bytes(8)
    return content


@pytest.mark.faults(1, 52)
@pytest.mark.parametrize("block_bytes", [2**22, 4096, 7])
def test_a_heap_without_end_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    monkeypatch.setattr(hdf5_heaps, "_BLOCK_BYTES", block_bytes)
    path = tmp_path / "a.h5"
    path.write_bytes(endless(written(path, encoder="uni")))
    with pytest.raises(DataError, match=r"a\.h5: damaged, its heap of texts at byte \d+ has no end"):
        hdf5.read(path, ["features"])


def test_a_used_text_is_read_and_a_file_without_one_is_not_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.h5"
    written(path, encoder="uni", patch_size=256)
    assert hdf5.read(path, ["features"])["encoder"] == "uni"
    monkeypatch.setattr(hdf5, "refuse_endless", lambda *_: pytest.fail("it holds no text"))
    written(path, patch_size=256, extractor=np.bytes_(b"uni"), name="slide", savetodir="there")
    found = hdf5.read(path, ["features"])
    assert (found["patch_size"], found["extractor"], "name" in found) == (256, b"uni", False)


def test_features_that_look_like_a_heap_are_features(tmp_path: Path) -> None:
    lookalike = (
        b"GCOL\1\0\0\0" + (4096).to_bytes(8, "little") + b"\1\0\1\0\0\0\0\0" + (5).to_bytes(8, "little")
    )
    features = np.frombuffer(lookalike + bytes(range(1, 129)) * 40, np.uint8).reshape(1, -1)
    path = tmp_path / "a.h5"
    written(path, features, encoder="uni")
    assert hdf5.read(path, ["features"])["encoder"] == "uni"


def test_heaps_that_overlap_over_and_over_are_named_at_once(tmp_path: Path) -> None:
    # Each heap's only object hides the next heap's head, and then comes that heap's object, and so on.
    heap = b"GCOL\1\0\0\0" + (2**40).to_bytes(8, "little") + b"\1\0\1\0\0\0\0\0" + (16).to_bytes(8, "little")
    features = np.frombuffer(heap * 20_000, np.uint8).reshape(20_000, -1)
    path = tmp_path / "a.h5"
    written(path, features, encoder="uni")
    begun = time.process_time()
    with pytest.raises(DataError, match=r"a\.h5: damaged, its heaps of texts overlap at byte \d+"):
        hdf5.read(path, ["features"])
    assert time.process_time() - begun < 5
