"""Checkpoints and weights that would run code if they were unpickled: refused by name, and nothing runs."""

import io
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from memory_bags import gaussian_bags

from mhimdist.config.execution import Saving
from mhimdist.config.models import AttentionMIL
from mhimdist.config.train import load_config
from mhimdist.errors import CheckpointError
from mhimdist.models.official import load_official
from mhimdist.training.run_folder import CheckpointWarning
from mhimdist.training.trainer import Trainer


class Malicious:
    """Leaves a folder behind wherever it is unpickled."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("sentinel",)


def _saved(content: object, **options: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


HOSTILE: dict[str, Callable[[], bytes]] = {
    "pickle": lambda: pickle.dumps(Malicious()),
    "torch": lambda: _saved({"model": {"w": torch.ones(2)}, "args": Malicious()}),
    "torch, old": lambda: _saved({"w": Malicious()}, _use_new_zipfile_serialization=False),
}


@pytest.fixture(autouse=True)
def _nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / "sentinel").exists()


@pytest.mark.faults(27)
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors", ""])
@pytest.mark.parametrize("kind", HOSTILE)
def test_weights_that_would_run_code_are_refused(tmp_path: Path, kind: str, suffix: str) -> None:
    file = tmp_path / f"weights{suffix}"
    file.write_bytes(HOSTILE[kind]())
    with pytest.raises(CheckpointError, match=rf"weights{suffix}"):
        load_official(file, AttentionMIL())


CONFIG = load_config(
    {
        "model": {"name": "abmil", "hidden_dim": 8, "attention_dim": 4},
        "masking": {"random": 0.3},
        "teacher": {"kind": "momentum", "momentum": {"start": 0.9}},
        "epochs": 2,
        "device": "cpu",
    }
)


def _train(folder: Path) -> Trainer:
    bags = gaussian_bags()
    trainer = Trainer(CONFIG, bags, bags.holdout(), folder, saving=Saving(3, 0))
    list(trainer.epochs())
    trainer.folder.unlock()
    return trainer


@pytest.mark.faults(27, 28)
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_checkpoint_whose_files_would_run_code_is_skipped(tmp_path: Path, kind: str) -> None:
    whole = _train(tmp_path / "run").student.state_dict()
    newest = max((tmp_path / "run" / "checkpoints").iterdir())
    for name in ("student.safetensors", ".metadata", "__0_0.distcp", "student.pt"):
        (newest / name).write_bytes(HOSTILE[kind]())
    with pytest.warns(CheckpointWarning, match=r"student\.safetensors is damaged"):
        again = _train(tmp_path / "run").student.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


@pytest.mark.faults(28)
def test_a_folder_of_another_trainers_checkpoint_is_none_of_ours(tmp_path: Path) -> None:
    whole = _train(tmp_path / "run")
    newest = max((tmp_path / "run" / "checkpoints").iterdir())
    shutil.rmtree(newest)
    newest.mkdir()
    (newest / ".metadata").write_bytes(HOSTILE["pickle"]())
    (newest / "__0_0.distcp").write_bytes(b"")
    with pytest.warns(CheckpointWarning, match="is not a checkpoint"):
        again = _train(tmp_path / "run")
    assert [row.loss for row in again.history] == [row.loss for row in whole.history]
