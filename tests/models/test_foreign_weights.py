"""Checkpoints as other people save them: wrapped, prefixed, in other formats, of other networks."""

import golden_values
import pytest
import torch
from safetensors.torch import save_file

from mhimdist.config.models import DSMIL, AttentionMIL, TransMIL
from mhimdist.errors import CheckpointError
from mhimdist.models import build
from mhimdist.models.foreign_weights import MAX_NAMED, differences, read_tensors, without_prefix
from mhimdist.models.official import load_official

STUDENT, TEACHER = (golden_values.official_weights("attn", seed) for seed in (1000, 2000))


def _prefixed(prefix, weights):
    return {f"{prefix}{name}": value for name, value in weights.items()}


def _is(loaded, weights):
    expected = weights["patch_to_emb.0.weight"]
    return set(loaded) == set(build(AttentionMIL(), num_features=1, num_classes=2, seed=0).state_dict()) and (
        torch.equal(loaded["projection.linear.weight"], expected)
    )


@pytest.mark.parametrize(
    "prefix", ["module.", "model.", "student.", "net.", "module.encoder.mil.", "_orig_mod."]
)
@pytest.mark.parametrize("wrap", [None, "model", "state_dict", "model_state_dict"])
def test_prefixes_and_wrappings_are_recognised(tmp_path, prefix, wrap):
    weights = _prefixed(prefix, STUDENT)
    torch.save(
        weights if wrap is None else {"epoch": 3, wrap: weights, "optimizer": {"lr": 0.1}}, tmp_path / "a.pt"
    )
    assert _is(load_official(tmp_path / "a.pt", AttentionMIL()), STUDENT)


@pytest.mark.parametrize(
    "content",
    [
        {"student": STUDENT, "teacher": TEACHER},
        {"state_dict": {"student": STUDENT, "teacher": TEACHER}},
        {"state_dict": _prefixed("student.", STUDENT) | _prefixed("teacher.", TEACHER)},
        {"model": _prefixed("module.student.", STUDENT) | _prefixed("module.teacher.", TEACHER)},
        _prefixed("teacher.", TEACHER) | STUDENT,
        {"net": _prefixed("module.", STUDENT), "model_ema": _prefixed("module.", TEACHER)},
    ],
)
def test_student_and_teacher_are_told_apart(tmp_path, content):
    torch.save(content, tmp_path / "both.pt")
    assert _is(load_official(tmp_path / "both.pt", AttentionMIL()), STUDENT)
    assert _is(load_official(tmp_path / "both.pt", AttentionMIL(), "teacher"), TEACHER)


def test_a_file_without_the_weights_of_a_role_says_what_it_has(tmp_path):
    torch.save({"teacher": TEACHER}, tmp_path / "a.pt")
    with pytest.raises(
        CheckpointError, match=r"a\.pt: expected the weights of the model, found none \(got named t"
    ):
        load_official(tmp_path / "a.pt", AttentionMIL())
    torch.save({"model": STUDENT, "epoch": 3}, tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match=r"b\.pt: expected the weights of the teacher, found none"):
        load_official(tmp_path / "b.pt", AttentionMIL(), "teacher")


@pytest.mark.parametrize("settings", [AttentionMIL(), AttentionMIL(gated=True), TransMIL(), DSMIL()])
def test_safetensors_by_our_names_load_with_and_without_a_prefix(tmp_path, settings):
    weights = build(settings, num_features=24, num_classes=3, seed=1).state_dict()
    for name, prefix in (("bare", ""), ("wrapped", "module.student.")):
        file = tmp_path / f"{name}.safetensors"
        save_file(_prefixed(prefix, weights), file)
        loaded = load_official(file, settings)
        assert loaded.keys() == weights.keys()
        assert all(torch.equal(loaded[key], weights[key].float()) for key in weights)


def test_a_damaged_safetensors_file_is_a_typed_error(tmp_path):
    file = tmp_path / "cut.safetensors"
    save_file(STUDENT, file)
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"cut\.safetensors: expected a checkpoint, cannot read one"):
        read_tensors(file, "model")


def test_a_whole_pickled_network_is_refused_with_what_to_do(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pt")
    with pytest.raises(CheckpointError, match=r"save its state_dict\(\)"):
        read_tensors(tmp_path / "whole.pt", "model")


def test_the_network_that_fits_is_named(tmp_path):
    torch.save(_prefixed("module.", golden_values.official_weights("dsmil", 1000)), tmp_path / "d.pt")
    with pytest.raises(CheckpointError, match="do not fit transmil, but have the names of dsmil: "):
        load_official(tmp_path / "d.pt", TransMIL())


def test_the_prefix_that_leaves_most_names_is_removed():
    one = torch.zeros(1)
    tensors = {"net.layer1.norm.weight": one, "net.norm.weight": one, "criterion.weight": one}
    bare, count = without_prefix(tensors, {"layer1.norm.weight", "norm.weight"})
    assert (set(bare), count) == ({"layer1.norm.weight", "norm.weight", "criterion.weight"}, 2)
    assert without_prefix({"x": one}, {"y"}) == ({"x": one}, 0)


def test_differences_list_the_smallest_kind_first_and_at_most_a_handful():
    expected = {f"e{i}": torch.zeros(2) for i in range(MAX_NAMED + 2)} | {"both": torch.zeros(2, 3)}
    found = differences({"u1": torch.zeros(1), "u2": torch.zeros(1), "both": torch.zeros(3, 2)}, expected)
    assert found == [
        "both: expected shape (2, 3), got (3, 2)",
        "u1 is unknown; u2 is unknown",
        "e0 is missing; e1 is missing; e2 is missing; e3 is missing; e4 is missing; and 2 more missing",
    ]
    assert differences(expected, expected) == []
