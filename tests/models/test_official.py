import pickle
import re

import golden_values
import pytest
import torch

from mhimdist.config.models import CLAM, DSMIL, AttentionMIL, TransMIL
from mhimdist.errors import CheckpointError, ConfigError
from mhimdist.models import build
from mhimdist.models.official import load_official

pytestmark = pytest.mark.numeric
SETTINGS = {
    "attn": AttentionMIL(),
    "attn_gated": AttentionMIL(gated=True),
    "selfattn": TransMIL(),
    "dsmil": DSMIL(),
}


def _logits(settings, weights):
    network = build(settings, num_features=1024, num_classes=2, seed=3)
    network.load_state_dict(weights)
    with torch.no_grad():
        return network(golden_values.bag(40, seed=40)).logits_BC


@pytest.mark.parametrize("baseline", SETTINGS)
def test_golden_parameters_in_the_authors_file_give_the_golden_logits(baseline, tmp_path):
    path, settings = tmp_path / "fold_0_model_best_auc.pt", SETTINGS[baseline]
    student, teacher = (golden_values.official_weights(baseline, seed) for seed in (1000, 2000))
    torch.save({"model": student, "teacher": teacher}, path)
    name = "logits_bag" if baseline == "dsmil" else "logits"
    golden = torch.from_numpy(golden_values.ARRAYS[f"{baseline}/n40/{name}"])
    logits = _logits(settings, load_official(path, settings))
    torch.testing.assert_close(logits, golden, rtol=1e-4, atol=1e-5)
    assert not torch.equal(logits, _logits(settings, load_official(path, settings, "teacher")))


def test_a_file_of_the_weights_alone_loads_and_has_no_teacher(tmp_path):
    path = tmp_path / "bare.pt"
    torch.save(golden_values.official_weights("attn", 1000), path)
    assert set(load_official(path, AttentionMIL())) == set(
        build(AttentionMIL(), num_features=1, num_classes=2, seed=0).state_dict()
    )
    with pytest.raises(CheckpointError, match=r"bare\.pt: expected the weights of the teacher, found none"):
        load_official(path, AttentionMIL(), "teacher")
    torch.save({"model": golden_values.official_weights("attn", 1000), "teacher": None}, path)
    with pytest.raises(CheckpointError, match=r"bare\.pt: expected the weights of the teacher, found none"):
        load_official(path, AttentionMIL(), "teacher")


def test_denormal_weights_become_zero_and_no_others(tmp_path):
    path, weights = tmp_path / "denormal.pt", golden_values.official_weights("attn", 1000)
    tiny = torch.finfo(torch.float32).tiny
    weights["patch_to_emb.0.weight"][0, :3] = torch.tensor([tiny / 2, -tiny / 4, tiny])
    torch.save(weights, path)
    loaded = load_official(path, AttentionMIL())["projection.linear.weight"]
    assert loaded[0, :3].tolist() == [0, 0, tiny]
    assert torch.equal(loaded[1:], weights["patch_to_emb.0.weight"][1:])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            AttentionMIL(gated=True),
            "do not fit abmil with model.gated, but have the names of abmil without model.gated: "
            "online_encoder.attention.attention.0.weight is unknown; "
            "online_encoder.attention.attention.2.weight is unknown; "
            "attention.branch.weight is missing; attention.gate.weight is missing; attention.score.weight is "
            "missing",
        ),
        (
            AttentionMIL(hidden_dim=256),
            "(their model.hidden_dim is 512): attention.branch.weight: expected shape (128, 256), got "
            "(128, 512); head.weight: ",
        ),
        (TransMIL(), "but have the names of abmil without model.gated: online_encoder"),
        (TransMIL(), "class_token is missing"),
        (TransMIL(), "; and 16 more missing"),
    ],
)
def test_what_does_not_match_is_listed(tmp_path, settings, message):
    path = tmp_path / "abmil.pt"
    torch.save({"model": golden_values.official_weights("attn", 1000)}, path)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        load_official(path, settings)


class _Intruder:
    def __reduce__(self):
        return print, ("intruded",)


@pytest.mark.parametrize("kind", ["absent", "pickle", "truncated", "text", "list", "nested"])
def test_an_unusable_file_is_a_typed_error_and_runs_nothing(tmp_path, kind, capsys):
    path = tmp_path / "broken.pt"
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"model": _Intruder()}))
    elif kind == "truncated":
        torch.save(golden_values.official_weights("attn", 1000), path)
        path.write_bytes(path.read_bytes()[:100_000])
    elif kind == "text":
        path.write_text("not a checkpoint")
    elif kind == "list":
        torch.save([torch.zeros(2)], path)
    elif kind == "nested":
        torch.save({"model": {"weights": {}}}, path)
    with pytest.raises(CheckpointError, match=r"broken\.pt"):
        load_official(path, AttentionMIL())
    assert capsys.readouterr().out == ""


def test_a_model_that_was_not_released_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"\(abmil, transmil or dsmil\), got clam_sb"):
        load_official(tmp_path / "clam.pt", CLAM())
