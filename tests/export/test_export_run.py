"""Runs are exported: a fold alone, the best or all of a cross-validation, with a card that says so."""

import json
import re
import shutil

import exported
import pytest
import torch
from memory_bags import gaussian_bags

from mhimdist.config.train import load_config
from mhimdist.data.splits import k_folds
from mhimdist.errors import CheckpointError, ConfigError
from mhimdist.export.load_model import load
from mhimdist.export.loading import load_student
from mhimdist.export.run import export_model
from mhimdist.training.fold import run_fold
from mhimdist.training.folds import Fold, fold_folder

CONFIG = load_config(
    {
        "model": {"name": "abmil", "hidden_dim": 16, "attention_dim": 8},
        "masking": {"high": 0.1, "random": 0.3},
        "teacher": {"kind": "init_momentum", "momentum": {"start": 0.9}},
        "optimizer": {"learning_rate": 5e-3},
        "epochs": 2,
        "device": "cpu",
    }
)
FOLD_1, FOLD_2 = "fold-1-seed-2021-masked", "fold-2-seed-2021-masked"


@pytest.fixture(scope="module")
def bags():
    return gaussian_bags()


@pytest.fixture(scope="module")
def trained(tmp_path_factory, bags):
    """A cross-validation's folder, with and without masking on two folds."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    splits = k_folds(bags.keys, bags.cases, bags.labels_N, num_folds=2, validation_share=0.3, seed=0)
    for number, split in enumerate(splits, 1):
        for name, config in (("plain", CONFIG.first_stage()), ("masked", CONFIG)):
            place = fold_folder(folder / "folds", number, 2021, name)
            run_fold(
                Fold(name, config, split, number, place, is_tested=True), bags, folder.parent / "cache", 1
            )
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(trained, tmp_path / "small")


def test_a_fold_alone_leaves_a_folder_that_is_enough(run, bags):
    fold = run / "folds" / FOLD_1
    out = export_model(fold)
    assert sorted(path.name for path in out.iterdir()) == [
        *("load_model.py", "model.safetensors", "model_card.md")
    ]
    network, model = load_student(fold), load(out)
    for row in range(3):
        (features_ND, key) = bags.features[row], bags.keys[row]
        wanted = exported.expected(network, features_ND, key)
        torch.testing.assert_close(model(features_ND, key)[0], wanted, rtol=0, atol=1e-6)
    result = json.loads((fold / "result.json").read_text())
    said = model.header
    assert said["classes"] == ["class-0", "class-1"]
    assert said["training"] == CONFIG.recipe()
    assert said["metrics"]["test"] == result["test"]
    assert said["threshold"] == result["validation"]["threshold"]
    assert said["threshold_from"] == "Youden's J on the validation bags"
    assert said["data"]["digest"] == "memory"
    assert said["data"]["num_cases"] == 10
    assert said["protocol"]["name"] == "strict"
    interval = said["metrics"]["test_auc_interval"]
    assert 0 <= interval["low"] <= result["test"]["auc"] <= interval["high"] <= 1
    intervals = said["metrics"]["test_intervals"]
    assert list(intervals) == ["auc", "accuracy", "f1", "precision", "recall"]
    assert intervals["auc"] == interval
    for name, each in intervals.items():
        assert 0 <= each["low"] <= result["test"][name] <= each["high"] <= 1
    assert said["versions"]["torch"] == torch.__version__
    assert "No licence of the weights is stated" in said["licence"]


def test_all_networks_of_a_cross_validation_become_an_ensemble(run, bags):
    out = export_model(run)
    assert sorted(path.name for path in out.glob("*.safetensors")) == [
        f"{FOLD_1}.safetensors",
        f"{FOLD_2}.safetensors",
    ]
    networks = [load_student(run / "folds" / name) for name in (FOLD_1, FOLD_2)]
    features_ND, key = bags.features[1], bags.keys[1]
    wanted = torch.stack([exported.expected(each, features_ND, key) for each in networks]).mean(0)
    torch.testing.assert_close(load(out)(features_ND, key)[0], wanted, rtol=0, atol=1e-6)
    card = (out / "model_card.md").read_text()
    assert card == (run / "model_card.md").read_text()
    assert "ensemble of 2 networks" in card
    assert "The ensemble was not tested" in card
    with pytest.raises(CheckpointError, match=rf"expected one network, got 2: give one of {FOLD_1}\.safe"):
        load_student(out)
    with pytest.raises(CheckpointError, match=rf"expected one network, got 4: give one of folds/{FOLD_1}, "):
        load_student(run)


def test_the_best_network_is_that_of_the_highest_validation_auc(run):
    result = run / "folds" / FOLD_2 / "result.json"
    content = json.loads(result.read_text())
    content["validation"]["auc"] = 2.0  # above any
    result.write_text(json.dumps(content))
    said = load(export_model(run, member="best")).header
    assert said["name"] == FOLD_2
    assert not (run / "export" / f"{FOLD_2}.safetensors").exists()
    assert load(export_model(run, run / "first", member=FOLD_1)).header["name"] == FOLD_1
    with pytest.raises(ConfigError, match=rf"member: expected all, best or one of {FOLD_1}, .*, got 'worst'"):
        export_model(run, member="worst")


def test_a_configuration_is_chosen_by_its_name(run):
    said = load(export_model(run, member="best", candidate="abmil")).header
    assert said["training"]["teacher"]["kind"] == "none"
    with pytest.raises(ConfigError, match="no configuration is called 'clam'"):
        export_model(run, candidate="clam")


def test_an_export_is_not_mixed_with_another(run):
    out = export_model(run)
    with pytest.raises(CheckpointError, match=rf"networks of another export \({FOLD_1}\.safetensors, "):
        export_model(run, member="best")
    assert export_model(run) == out  # the same one is written again


def test_an_export_with_onnx_has_the_same_header(run):
    onnxruntime = pytest.importorskip("onnxruntime")
    out = export_model(run / "folds" / FOLD_1, onnx=True)
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    said = json.loads(session.get_modelmeta().custom_metadata_map["mhimdist"])
    assert said == load(out).header


def test_what_is_no_run_is_refused(tmp_path, run):
    with pytest.raises(CheckpointError, match="expected the folder of a run, found none"):
        export_model(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="holds no trained model"):
        export_model(tmp_path / "empty")
    state = run / "folds" / FOLD_1 / "best_student" / "student.safetensors"
    state.write_bytes(state.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"student\.safetensors is damaged"):
        export_model(run)


def test_a_run_of_an_earlier_release_is_exported_with_gaps(run):
    fold = run / "folds" / FOLD_1
    file = fold / "best_student" / "state.json"
    body = json.loads(file.read_text())
    for name in ("features", "data", "versions", "threshold", "threshold_from"):
        del body["state"][name]
    del body["state_sha256"]
    file.write_text(json.dumps(body))
    said = load(export_model(fold)).header
    assert said["encoder"] is None
    assert said["data"] == {"digest": "memory"}
    assert said["threshold"] == json.loads((fold / "result.json").read_text())["validation"]["threshold"]
    assert "encoder of the features: not recorded" in (fold / "model_card.md").read_text()


def test_every_fold_leaves_its_card(trained):
    cards = sorted(trained.glob("folds/*/model_card.md"))
    assert len(cards) == 4
    for path in cards:
        assert re.search(r"^# Model card: fold", path.read_text(), re.MULTILINE)
