"""Forged files of features, in every format: our errors alone come out of the readers, and nothing runs."""

import io
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import zarr
from fuzzing import CASES, CHANGES, changed, forged, fuzz
from hypothesis import strategies as st

from data_prep.readers.folders import find_features
from data_prep.readers.sources import read_features

FEATURES = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
COORDS = np.arange(12).reshape(6, 2)


class Malicious:
    """Leaves a folder behind wherever it is unpickled."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("../sentinel",)


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def _pt(content: object, **options: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def _h5(**options: str) -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.create_dataset("features", data=FEATURES, **options)
        file.create_dataset("coords", data=COORDS)
        file.attrs["encoder"] = "uni"
    return buffer.getvalue()


def _tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        members = {
            "a.features.npy": _npy(FEATURES),
            "a.coords.npy": _npy(COORDS),
            "b.pth": _pt(torch.ones(3, 4)),
        }
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _parquet(**options: object) -> bytes:
    buffer = pa.BufferOutputStream()
    table = pa.table({"slide": ["a", "a", "b"], "features": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]})
    pq.write_table(table, buffer, **options)
    return buffer.getvalue().to_pybytes()


_BOTH = {"features": torch.from_numpy(FEATURES), "coords": torch.from_numpy(COORDS)}
VALID: dict[str, Callable[[], list[bytes]]] = {
    "npy": lambda: [_npy(FEATURES), _npy(np.asfortranarray(FEATURES.astype(">f8"))), _npy(FEATURES[:0])],
    "npz": lambda: [_npz(features=FEATURES, coords=COORDS)],
    "pt": lambda: [
        *(_pt(_BOTH["features"]), _pt(_BOTH), _pt(_BOTH, _use_new_zipfile_serialization=False)),
        *(_pt({"features": Malicious()}), _pt(Malicious(), _use_new_zipfile_serialization=False)),
    ],
    "h5": lambda: [_h5(), _h5(compression="gzip")],
    "tar": lambda: [_tar()],
    "parquet": lambda: [_parquet(), _parquet(compression="zstd", use_dictionary=False)],
}


def _read_all() -> None:
    for source in find_features(Path("f")).values():
        features = read_features(source).features_ND.numpy()
        assert features.ndim == 2


def _fresh() -> Path:
    shutil.rmtree("f", ignore_errors=True)
    os.mkdir("f")
    return Path("f")


@pytest.mark.faults(1, 3, 6, 9, 10, 44, 52)
@CASES
@pytest.mark.parametrize("suffix", VALID)
def test_forged_features(
    suffix: str, num_cases: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def read(content: bytes) -> None:
        (_fresh() / f"a.{suffix}").write_bytes(content)
        _read_all()

    fuzz(num_cases, forged(VALID[suffix]()), read)
    assert not (tmp_path / "sentinel").exists()


NUMBERS = st.sampled_from([0, 1, 3, -1, 2**31, 2**63 - 1, 2**63, 2**64, 10**30]) | st.integers(-5, 50)
HEADERS = st.fixed_dictionaries(
    {
        "descr": st.sampled_from(
            ["<f4", ">f8", "|O", "|V0", "<U5", "|S0", "<f2", "|b1", "<M8[s]", "nonsense", "<c8"]
        )
        | st.text(max_size=6),
        "fortran_order": st.booleans() | st.text(max_size=3),
        "shape": st.lists(NUMBERS, max_size=5).map(tuple) | st.none() | NUMBERS,
    }
)


@pytest.mark.faults(9, 10, 52)
@CASES
def test_forged_headers_of_npy(num_cases: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def read(case: tuple[dict, bytes]) -> None:
        header, payload = repr(case[0]).encode("utf-8", "replace") + b"\n", case[1]
        start = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little")
        (_fresh() / "a.npy").write_bytes(start + header + payload)
        _read_all()

    fuzz(num_cases, st.tuples(HEADERS, st.binary(max_size=200)), read)


def _store(folder: Path) -> dict[str, bytes]:
    group = zarr.open_group(str(folder), mode="w")
    group.create_array("features", data=FEATURES, chunks=(3, 4))
    group.create_array("coords", data=COORDS)
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.faults(9, 40, 52)
@CASES
def test_forged_zarr_stores(num_cases: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = _store(tmp_path / "valid.zarr")
    names = [name for name in store if name.endswith(".json")] * 3 + list(store)

    def read(case: tuple[str, list]) -> None:
        folder = _fresh() / "a.zarr"
        for name, content in store.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(changed(content, case[1]) if name == case[0] else content)
        _read_all()

    fuzz(num_cases, st.tuples(st.sampled_from(names), CHANGES), read)
