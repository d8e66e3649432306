"""Arrays of odd shapes and types, and small files of very many parts."""

import re
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from forked import fork, limit_addresses, status_of

from data_prep.readers.folders import find_features
from data_prep.readers.sources import read_features
from mhimdist.errors import DataError

FEATURES = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def read() -> np.ndarray:
    (source,) = find_features(Path()).values()
    return read_features(source).features_ND.numpy()


def forged_npy(shape: str, dtype: str) -> None:
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (117 - len(header)) + b"\n"
    Path("a.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)


@pytest.mark.faults(52)
@pytest.mark.parametrize("dtype", ["<f4", "|V0", "|S0"])
@pytest.mark.parametrize(
    "shape", [f"({2**63}, 0)", f"(0, {2**63})", f"({2**63}, 4)", f"({2**200}, 4)", "(-1, 4)"]
)
def test_a_npy_of_a_shape_beyond_all_memory_is_named(shape: str, dtype: str) -> None:
    forged_npy(shape, dtype)
    with pytest.raises(DataError, match=r"a\.npy: its header says .*expected numbers, and lengths from 0 to"):
        read()


@pytest.mark.faults(52)
@pytest.mark.parametrize("dtype", ["|V0", "|S0", "<U0"])
def test_a_npy_of_numbers_without_bytes_is_named(dtype: str) -> None:
    forged_npy("(4, 4)", dtype)
    with pytest.raises(DataError, match=r"a\.npy: its header says"):
        read()


@pytest.mark.faults(52)
@pytest.mark.filterwarnings("ignore")  # torch calls nested tensors a prototype
@pytest.mark.parametrize("name", ["features", "coords"])
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_a_nested_tensor_is_named(name: str, layout: torch.layout) -> None:
    features = torch.from_numpy(FEATURES)
    torch.save({"features": features, name: torch.nested.nested_tensor([features], layout=layout)}, "a.pt")
    with pytest.raises(DataError, match=rf"a\.pt: expected {name} to be a dense tensor, got"):
        read()


@pytest.mark.faults(44)
def test_a_npz_of_thousands_of_records_ends_at_once() -> None:
    np.savez("a.npz", features=FEATURES, **{f"x{number}": np.float32(1) for number in range(5000)})
    started = time.process_time()
    with pytest.raises(DataError, match=r"a\.npz: refused, it holds 5001 arrays; expected at most 1000"):
        read()
    assert time.process_time() - started < 5


def test_a_npz_of_many_scalars_opens_its_file_once(monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez("a.npz", features=FEATURES, **{f"x{number}": np.float32(number) for number in range(900)})
    opened: list[object] = []
    real = zipfile.ZipFile.__init__
    monkeypatch.setattr(
        zipfile.ZipFile, "__init__", lambda self, *a, **n: opened.append(a) or real(self, *a, **n)
    )
    assert np.array_equal(read(), FEATURES)
    assert len(opened) < 20


def of_one_list() -> None:
    """An attribute of many references to one long text."""
    with h5py.File("a.h5", "w") as file:
        file["features"] = FEATURES
        kind = h5py.string_dtype()
        space = h5py.h5s.create_simple((2000,))
        attribute = h5py.h5a.create(file.id, b"names", h5py.h5t.py_create(kind, logical=True), space)
        attribute.write(np.array(["a" * 2**20] + [""] * 1999, dtype=object))
    content = bytearray(Path("a.h5").read_bytes())
    # A reference: the text's length, the address of its heap, and its number there. All become the first.
    pattern = re.escape((2**20).to_bytes(4, "little")) + b".{8}" + re.escape((1).to_bytes(4, "little"))
    (first,) = re.finditer(pattern, bytes(content), re.DOTALL)
    content[first.start() : first.start() + 16 * 2000] = first[0] * 2000
    Path("a.h5").write_bytes(content)


def of_many_attributes() -> None:
    with h5py.File("a.h5", "w") as file:
        file["features"] = FEATURES
        for number in range(900):
            file.attrs[f"name{number}"] = np.bytes_(b"a" * 60_000)


@pytest.mark.long
@pytest.mark.faults(44)
@pytest.mark.parametrize(
    ("write", "message"), [(of_one_list, None), (of_many_attributes, "refused, its attributes have more")]
)
def test_long_text_in_attributes_needs_little_memory(write: Callable[[], None], message: str | None) -> None:
    write()

    def attempt() -> None:
        limit_addresses(2**28)
        if message is None:
            assert np.array_equal(read(), FEATURES)
            return
        with pytest.raises(DataError, match=message):
            read()

    assert status_of(fork(attempt)) == 0
