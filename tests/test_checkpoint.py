import json
import os

import pytest
import torch

from mhimdist import checkpoint
from mhimdist.errors import CheckpointError

TENSORS = {"student": {"w": torch.arange(6.0).reshape(2, 3)}, "optimizer": {"step.w": torch.tensor(3.0)}}


def test_round_trip(tmp_path):
    checkpoint.save(tmp_path / "c", TENSORS, {"epoch": 3})
    tensors, state = checkpoint.load(tmp_path / "c")
    assert state == {"epoch": 3}
    for name, group in TENSORS.items():
        for key, value in group.items():
            assert torch.equal(tensors[name][key], value)
    assert os.listdir(tmp_path) == ["c"]


@pytest.mark.parametrize("name", ["student.safetensors", "optimizer.safetensors"])
def test_a_flipped_bit_is_caught(tmp_path, name):
    checkpoint.save(tmp_path / "c", TENSORS, {})
    file = tmp_path / "c" / name
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=rf"{name} is damaged"):
        checkpoint.load(tmp_path / "c")


def test_a_missing_file_or_state_is_named(tmp_path):
    checkpoint.save(tmp_path / "c", TENSORS, {})
    (tmp_path / "c" / "student.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"student\.safetensors cannot be read"):
        checkpoint.load(tmp_path / "c")
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        checkpoint.load(tmp_path / "nothing")


def test_another_schema_version_is_refused(tmp_path):
    checkpoint.save(tmp_path / "c", TENSORS, {})
    state = tmp_path / "c" / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"schema_version": 99}))
    with pytest.raises(CheckpointError, match="has schema version 99, this release reads 1"):
        checkpoint.load(tmp_path / "c")


def test_a_failed_write_leaves_nothing_and_keeps_the_old(tmp_path):
    checkpoint.save(tmp_path / "epoch-00001", TENSORS, {})
    with pytest.raises(TypeError):
        checkpoint.save(tmp_path / "epoch-00002", TENSORS, {"not": object()})
    assert checkpoint.saved_epochs(tmp_path) == [1]
    assert os.listdir(tmp_path) == ["epoch-00001"]


def test_remove_keeps_what_it_is_told(tmp_path):
    for epoch in (1, 2, 3, 4):
        checkpoint.save(checkpoint.epoch_folder(tmp_path, epoch), TENSORS, {})
    checkpoint.remove(tmp_path, keep={2, 4})
    assert checkpoint.saved_epochs(tmp_path) == [2, 4]
