import json
import struct

import exported
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mhimdist.errors import CheckpointError
from mhimdist.export import weights_file


@pytest.mark.parametrize("name", exported.SETTINGS)
def test_a_network_comes_back_as_it_went(name, tmp_path):
    network, (again, header) = exported.network_of(name), weights_file.read(exported.write(tmp_path, name))
    assert header == exported.header_of(name)
    assert not again.training
    assert again.state_dict().keys() == network.state_dict().keys()
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in network.state_dict().items())


def test_safetensors_alone_reads_the_header(tmp_path):
    path = exported.write(tmp_path, "abmil", threshold=0.25)
    with safe_open(path, "pt") as opened:
        said = json.loads(opened.metadata()["mhimdist"])
    assert said["threshold"] == 0.25
    assert said["classes"] == ["class-0", "class-1"]


def _change_weight(content):
    return content[:-2] + bytes([content[-2] ^ 1]) + content[-1:]


def _change_threshold(content):
    return content.replace(rb"\"threshold\": 0.25", rb"\"threshold\": 0.95")


def _rename_weight(content):
    return content.replace(b"score.weight", b"Score.weight")


@pytest.mark.parametrize("change", [_change_weight, _change_threshold, _rename_weight])
def test_a_changed_file_is_refused_by_its_name(change, tmp_path):
    path = exported.write(tmp_path, "abmil", threshold=0.25)
    content = path.read_bytes()
    changed = change(content)
    assert changed != content
    assert len(changed) == len(content)
    path.write_bytes(changed)
    with pytest.raises(CheckpointError, match=r"abmil\.safetensors was changed or damaged: expected sha256"):
        weights_file.read(path)


def test_a_file_that_was_cut_off_or_written_again_is_refused(tmp_path):
    path = exported.write(tmp_path, "abmil")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert weights_file.is_export(path)
    with pytest.raises(CheckpointError, match=r"abmil\.safetensors was changed or damaged"):
        weights_file.read(path)
    path.write_bytes(struct.pack("<Q", 10**12) + content[8:])
    with pytest.raises(CheckpointError, match="expected an export of mhimdist, cannot read one"):
        weights_file.read(path)
    path.write_bytes(content)
    save_file(load_file(path), path)  # the weights without a header
    with pytest.raises(CheckpointError, match="got a file without its header"):
        weights_file.read(path)
    assert not weights_file.is_export(path)


def test_a_header_of_another_model_is_refused(tmp_path):
    path = tmp_path / "mixed.safetensors"
    weights_file.write(path, exported.network_of("abmil").state_dict(), exported.header_of("dsmil"))
    with pytest.raises(CheckpointError, match="the weights do not fit dsmil"):
        weights_file.read(path)
    header = exported.header_of("abmil")
    header["model"]["hidden"] = 3
    weights_file.write(path, exported.network_of("abmil").state_dict(), header)
    with pytest.raises(CheckpointError, match="another release wrote it; its model is unknown here"):
        weights_file.read(path)
