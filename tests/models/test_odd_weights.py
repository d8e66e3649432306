"""Weights in files of others that are no plain numbers, or would become far larger than their file."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from forked import fork, limit_addresses, status_of
from torch import Tensor

from mhimdist.config.models import AttentionMIL
from mhimdist.errors import CheckpointError
from mhimdist.models.official import load_official, recognise

SETTINGS = AttentionMIL(hidden_dim=8, attention_dim=4)
WEIGHTS = {
    "patch_to_emb.0.weight": torch.ones(8, 3),
    "patch_to_emb.0.bias": torch.ones(8),
    "predictor.weight": torch.ones(2, 8),
    "predictor.bias": torch.ones(2),
    "online_encoder.attention.attention.0.weight": torch.ones(4, 8),
    "online_encoder.attention.attention.2.weight": torch.ones(1, 4),
}
ODD: dict[str, Callable[[Tensor], Tensor]] = {
    "nested": lambda t: torch.nested.nested_tensor([t]),
    "jagged": lambda t: torch.nested.nested_tensor([t], layout=torch.jagged),
    "sparse": lambda t: t.to_sparse(),
    "compressed sparse": lambda t: t.to_sparse_csr(),
    "quantised": lambda t: torch.quantize_per_tensor(t, 1.0, 0, torch.qint8),
    "complex": lambda t: t + 1j,
    "meta": lambda t: t.to("meta"),
    "expanded": lambda t: torch.ones(1).expand(10**9, 3),
}
pytestmark = pytest.mark.filterwarnings("ignore")  # torch calls these kinds of tensors prototypes


@pytest.mark.faults(44)
@pytest.mark.parametrize("kind", ODD)
def test_weights_that_are_no_plain_numbers_are_named(tmp_path: Path, kind: str) -> None:
    name = "patch_to_emb.0.weight"
    torch.save(WEIGHTS | {name: ODD[kind](WEIGHTS[name])}, tmp_path / "w.pt")
    for read in (recognise, lambda path: load_official(path, SETTINGS)):
        with pytest.raises(CheckpointError, match=rf"{name}: expected a dense tensor of real numbers, got"):
            read(tmp_path / "w.pt")


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_number_in_the_place_of_a_matrix_is_named(tmp_path: Path, name: str) -> None:
    torch.save(WEIGHTS | {name: torch.tensor(1.0)}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="do not fit abmil"):
        load_official(tmp_path / "w.pt", SETTINGS)


def test_compressed_records_are_refused_within_little_memory(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(2**26)}, tmp_path / "w.pt")
    with (
        zipfile.ZipFile(tmp_path / "w.pt") as plain,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for record in plain.infolist():
            bomb.writestr(record.filename, plain.read(record))
    assert (tmp_path / "bomb.pt").stat().st_size < 2**20

    def attempt() -> None:
        limit_addresses(2**27)
        with pytest.raises(CheckpointError, match="refused, it holds compressed records"):
            recognise(tmp_path / "bomb.pt")

    assert status_of(fork(attempt)) == 0


@pytest.mark.faults(44)
def test_a_pickle_that_states_a_long_name_is_refused_within_little_memory(tmp_path: Path) -> None:
    """As torch.save wrote before 1.6; read from a file, the name of 4 GiB would be allocated."""
    torch.save({"w": torch.ones(3)}, tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    content = (tmp_path / "w.pt").read_bytes()
    assert content.count(b"X\x01\x00\x00\x00w") == 1
    (tmp_path / "w.pt").write_bytes(content.replace(b"X\x01\x00\x00\x00w", b"X\xff\xff\xff\xffw"))

    def attempt() -> None:
        limit_addresses(2**27)
        with pytest.raises(CheckpointError, match="a damaged file"):
            recognise(tmp_path / "w.pt")

    assert status_of(fork(attempt)) == 0
