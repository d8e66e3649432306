import json
import os
import signal

import pytest
import torch

from mhimdist.errors import CheckpointError
from mhimdist.training import checkpoint

pytestmark = pytest.mark.numeric
TENSORS = {"student": {"w": torch.arange(6.0).reshape(2, 3)}, "optimizer": {"step.w": torch.tensor(3.0)}}


def test_round_trip(tmp_path):
    checkpoint.save(tmp_path / "c", TENSORS, {"epoch": 3})
    tensors, state = checkpoint.load(tmp_path / "c")
    assert state == {"epoch": 3}
    for name, group in TENSORS.items():
        for key, value in group.items():
            assert torch.equal(tensors[name][key], value)
    assert os.listdir(tmp_path) == ["c"]


@pytest.mark.faults(26)
@pytest.mark.parametrize("name", ["student.safetensors", "optimizer.safetensors"])
def test_a_flipped_bit_is_caught(tmp_path, name):
    checkpoint.save(tmp_path / "c", TENSORS, {})
    file = tmp_path / "c" / name
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=rf"{name} is damaged"):
        checkpoint.load(tmp_path / "c")


@pytest.mark.faults(28)
def test_a_missing_file_or_state_is_named(tmp_path):
    checkpoint.save(tmp_path / "c", TENSORS, {})
    (tmp_path / "c" / "student.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"student\.safetensors cannot be read"):
        checkpoint.load(tmp_path / "c")
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        checkpoint.load(tmp_path / "nothing")


def test_another_schema_version_is_refused(tmp_path):
    checkpoint.save(tmp_path / "c", TENSORS, {})
    state = tmp_path / "c" / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"schema_version": 99}))
    with pytest.raises(CheckpointError, match="expected schema version 1, got 99"):
        checkpoint.load(tmp_path / "c")


def test_a_failed_write_leaves_nothing_and_keeps_the_old(tmp_path):
    checkpoint.save(tmp_path / "old", TENSORS, {})
    with pytest.raises(TypeError):
        checkpoint.save(tmp_path / "new", TENSORS, {"not": object()})
    assert os.listdir(tmp_path) == ["old"]


def test_an_older_schema_is_migrated_step_by_step(tmp_path, monkeypatch):
    checkpoint.save(tmp_path / "c", TENSORS, {"epoch": 3})
    monkeypatch.setattr(checkpoint, "SCHEMA_VERSION", 3)
    monkeypatch.setitem(checkpoint.MIGRATIONS, 1, lambda state: {"done": state["epoch"]})
    monkeypatch.setitem(checkpoint.MIGRATIONS, 2, lambda state: state | {"step": 0})
    assert checkpoint.load(tmp_path / "c")[1] == {"done": 3, "step": 0}


@pytest.mark.faults(19)
@pytest.mark.parametrize(
    ("stage", "is_there"),
    [
        ("before", False),
        ("between_files", False),
        ("before_state", False),
        ("before_rename", False),
        ("after_rename", True),
    ],
)
def test_a_kill_at_any_stage_of_writing_leaves_the_old_or_the_whole_new_one(
    tmp_path, monkeypatch, stage, is_there
):
    checkpoint.save(tmp_path / "old", TENSORS, {})
    monkeypatch.setenv(checkpoint.FAILPOINT, stage)
    child = os.fork()
    if child == 0:
        checkpoint.save(tmp_path / "new", TENSORS, {"epoch": 1})
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    checkpoint.load(tmp_path / "old")
    assert (tmp_path / "new").exists() == is_there
    if is_there:
        assert checkpoint.load(tmp_path / "new")[1] == {"epoch": 1}
