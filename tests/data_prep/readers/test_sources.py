import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.readers import sources
from data_prep.readers.sources import SUFFIXES, SlideFeatures, Source, family_of, some
from mhimdist.errors import DataError

FEATURES = np.arange(12, dtype=np.float32).reshape(3, 4)


class Calls:
    """Calls a function wherever it is unpickled."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple:
        return self._call


class Malicious:
    """Leaves a file behind wherever it is unpickled."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("executed",)


@pytest.fixture(autouse=True)
def _nothing_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not Path("executed").exists()


def read_features(path: Path) -> SlideFeatures:
    return sources.read_features(Source(path, family_of(path) or SUFFIXES[path.suffix]))


def npy(value: object) -> Path:
    np.save("s.npy", value)
    return Path("s.npy")


def pt(value: object, **options: object) -> Path:
    torch.save(value, "s.pt", **options)
    return Path("s.pt")


def raw(content: bytes, name: str) -> Path:
    Path(name).write_bytes(content)
    return Path(name)


def forged_npy(descr: str, shape: str) -> Path:
    header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return raw(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(64), "s.npy")


@pytest.mark.faults(15)
@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f2", ">f4", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_in_any_float_byte_order_and_layout(dtype: str, order: str) -> None:
    source = read_features(npy(np.asarray(FEATURES, dtype, order=order)))
    assert source.features_ND.double().tolist() == FEATURES.tolist()
    assert (source.coords_N2, source.instance_labels_N, source.encoder, source.patch_size) == (None,) * 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda tensor: tensor,
        lambda tensor: torch.nn.Parameter(tensor),
        lambda tensor: tensor.T.contiguous().T,
        lambda tensor: torch.cat([tensor, tensor])[::2][:3],
        lambda tensor: {"features": tensor, "label": "ignored"},
        lambda tensor: {"feats": tensor},
    ],
)
def test_pt_in_any_float_and_layout(dtype: torch.dtype, wrap: Callable[[torch.Tensor], object]) -> None:
    tensor = torch.from_numpy(FEATURES).to(dtype)
    wrapped = wrap(tensor)
    expected = next(iter(wrapped.values())) if isinstance(wrapped, dict) else wrapped
    source = read_features(pt(wrapped))
    assert source.features_ND.dtype == dtype
    assert not source.features_ND.requires_grad
    assert torch.equal(source.features_ND, expected.detach())


def test_pt_of_old_torch() -> None:
    path = pt(torch.from_numpy(FEATURES), _use_new_zipfile_serialization=False)
    assert read_features(path).features_ND.tolist() == FEATURES.tolist()


def test_pt_with_all_that_belongs_to_a_bag() -> None:
    coords = torch.tensor([[0, 0], [256, 0], [0, 2**31 - 1]])
    source = read_features(
        pt(
            {
                "features": torch.from_numpy(FEATURES),
                "coords": coords.double(),
                "instance_labels": torch.tensor([0, 1, 255]),
                "encoder": "uni",
                "patch_size": 256,
            }
        )
    )
    assert source.coords_N2.dtype == np.int32
    assert source.coords_N2.tolist() == coords.tolist()
    assert source.instance_labels_N.dtype == np.uint8
    assert source.instance_labels_N.tolist() == [0, 1, 255]
    assert (source.encoder, source.patch_size) == ("uni", 256)


@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.float16, np.float32, ">i4"])
def test_npy_with_sidecars(dtype: object) -> None:
    np.save("s.coords.npy", np.array([[1, 2], [3, 4], [5, 6]], dtype))
    np.save("s.instance_labels.npy", np.array([True, False, True]))
    source = read_features(npy(FEATURES))
    assert source.coords_N2.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert source.instance_labels_N.tolist() == [1, 0, 1]


@pytest.mark.faults(15)
@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda: npy(np.float32(4)), r"expected features of shape N x D, got \(\)"),
        (lambda: npy(np.ones((2, 3, 4), np.float32)), r"expected features of shape N x D, got \(2, 3, 4\)"),
        (lambda: npy(np.ones((0, 4), np.float32)), "the bag is empty: its features are 0 x 4"),
        (lambda: pt(torch.ones(3, 0)), "the bag is empty: its features are 3 x 0"),
        (lambda: npy(np.ones((3, 4), np.uint8)), "expected features to be floats, got torch.uint8"),
        (lambda: npy(np.ones((3, 4), complex)), "expected features to be floats, got torch.complex128"),
        (lambda: npy(np.ones((3, 4), np.longdouble)), "features of type float128 cannot be used"),
        (lambda: npy(np.full((3, 4), "x")), "features of type <U1 cannot be used"),
        (lambda: pt(torch.ones(3, 4, dtype=torch.int64)), "expected features to be floats, got torch.int64"),
        (lambda: pt(torch.ones(3, 4).to_sparse()), "to be a dense tensor, got torch.sparse_coo on cpu"),
        (lambda: pt(torch.ones(3, 4, device="meta")), "to be a dense tensor, got torch.strided on meta"),
        (lambda: pt([torch.ones(3, 4)]), "expected a tensor or a dict of tensors, got list"),
        (lambda: pt({"features": [1.0]}), "expected features to be a tensor, got list"),
        (lambda: pt({"x": torch.ones(3, 4)}), r"expected one of the keys .*, got 'x'"),
        (
            lambda: pt({"features": torch.ones(3, 4), "feats": torch.ones(3, 4)}),
            "holds features under 'features', 'feats'; give --feature-key with one of them",
        ),
    ],
)
def test_what_is_no_bag_of_features_is_refused(write: Callable[[], Path], message: str) -> None:
    path = write()
    with pytest.raises(DataError, match=rf"^{path}: .*{message}"):
        read_features(path)


@pytest.mark.faults(10)
@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda: pt(Malicious()), "refused, it holds posix.mkdir"),
        (lambda: pt({"features": torch.ones(3, 4), "x": Malicious()}), "refused, it holds posix.mkdir"),
        (
            lambda: pt(Malicious(), _use_new_zipfile_serialization=False),
            "refused, it holds posix.mkdir",
        ),
        (lambda: pt(np.full((3, 4), "x")), "refused, it holds an array of type 'U1'; expected numbers"),
        (lambda: pt(np.full((3, 4), None)), "refused, it holds an array of type 'O8'; expected numbers"),
        (lambda: pt(np.ma.array(FEATURES)), "refused, it holds numpy.ma.core._mareconstruct"),
        (
            lambda: pt(Calls(np._core.multiarray._reconstruct, np.ndarray, (10**13,), b"b")),
            r"refused, it holds an array of ndarray, of shape .* that numpy would not write",
        ),
        (lambda: pt(Calls(bytes, 10**13)), "refused, it holds bytes that numpy would not write"),
        (lambda: pt(Calls(np.ones, 10**13)), "refused, it holds numpy.ones"),
        (lambda: raw(pickle.dumps(Malicious()), "s.pt"), "damaged, or not a file that torch.save wrote"),
        (lambda: raw(pickle.dumps(Malicious()), "s.npy"), "not a .npy file"),
        (lambda: npy(np.full((3, 4), Malicious())), "refused, it holds Python objects"),
        (lambda: raw(b"", "s.pt"), "damaged, or not a file that torch.save wrote"),
        (lambda: raw(b"", "s.npy"), "not a .npy file"),
        (lambda: raw(bytes(1000), "s.pt"), "damaged, or not a file that torch.save wrote"),
        (lambda: raw(pt(torch.ones(99, 9)).read_bytes()[:-700], "s.pt"), "damaged, or not a file"),
        (
            lambda: raw(npy(FEATURES).read_bytes()[:-1], "s.npy"),
            "float32, 176 bytes, but it has 175",
        ),
        (lambda: raw(npy(FEATURES).read_bytes() + b"\0", "s.npy"), "176 bytes, but it has 177"),
        (lambda: forged_npy("<f4", 30 * "("), "not a .npy file"),
        (
            lambda: forged_npy("<f4", "(-4, -4)"),
            "its header says",
        ),
        (
            lambda: forged_npy("O", "(2, 4)"),
            "it holds Python objects",
        ),
    ],
)
def test_hostile_and_damaged_files_are_refused(write: Callable[[], Path], message: str) -> None:
    path = write()
    with pytest.raises(DataError, match=rf"^{path}: .*{message}"):
        read_features(path)


@pytest.mark.faults(9)
def test_a_forged_npy_header_allocates_nothing() -> None:
    path = forged_npy("<f4", "(1000000000000, 1024)")
    message = r"its header says \(1000000000000, 1024\) float32, 4096000000000128 bytes, but it has 192"
    with pytest.raises(DataError, match=message):
        read_features(path)


def test_an_expanded_tensor_allocates_nothing() -> None:
    path = pt(torch.zeros(1).expand(10**12, 1024))
    with pytest.raises(DataError, match="claims 1000000000000 x 1024 features, more than it stores"):
        read_features(path)


@pytest.mark.faults(9)
def test_compressed_records_are_not_inflated() -> None:
    path = pt(torch.zeros(1000, 100))
    with zipfile.ZipFile(path) as stored, zipfile.ZipFile("deflated", "w", zipfile.ZIP_DEFLATED) as deflated:
        for record in stored.infolist():
            deflated.writestr(record.filename, stored.read(record))
    Path("deflated").rename(path)
    with pytest.raises(DataError, match="holds compressed records"):
        read_features(path)


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("coords", np.ones((5, 2), int), r"expected coords of shape \(3, 2\), got \(5, 2\)"),
        ("coords", np.full((3, 2), 0.5), "expected coords to be whole numbers"),
        ("coords", np.full((3, 2), np.nan), "expected coords from -2147483648 to 2147483647"),
        ("coords", np.full((3, 2), 2**31), "expected coords from -2147483648 to 2147483647"),
        ("coords", np.full((3, 2), 2**63, np.uint64), "expected coords from -2147483648 to 2147483647"),
        ("coords", np.full((3, 2), 1j), "expected coords to be whole numbers, got torch.complex128"),
        ("coords", np.full((3, 2), "x"), "coords of type <U1 cannot be used"),
        ("instance_labels", np.full(3, -1), "expected instance_labels from 0 to 255"),
        ("instance_labels", np.ones((3, 1), int), r"expected instance_labels of shape \(3,\), got \(3, 1\)"),
    ],
)
def test_side_arrays_that_do_not_fit_are_refused(kind: str, value: np.ndarray, message: str) -> None:
    np.save(f"s.{kind}.npy", value)
    with pytest.raises(DataError, match=message):
        getattr(read_features(npy(FEATURES)), {"coords": "coords_N2"}.get(kind, "instance_labels_N"))


def test_long_lists_are_cut() -> None:
    assert some(["a", "b"]) == "'a', 'b'"
    assert some(map(str, range(9))) == "'0', '1', '2', '3', '4' and 4 more"
