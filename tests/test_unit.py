import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from trained_run import load_run

from mhimdist import checkpoint, first_stage
from mhimdist.config import load_config
from mhimdist.data.splits import k_folds
from mhimdist.engine import Trainer
from mhimdist.evaluation import predict
from mhimdist.first_stage import open_trainer
from mhimdist.models import build
from mhimdist.unit import Unit, run_unit

CONFIG = load_config(
    {
        "model": {"name": "abmil", "hidden_dim": 16, "attention_dim": 8},
        "masking": {"high": 0.1, "random": 0.3},
        "teacher": {"kind": "init_momentum", "momentum": {"start": 0.9}},
        "optimizer": {"learning_rate": 5e-3},
        "epochs": 4,
        "device": "cpu",
    }
)


@pytest.fixture
def trained(monkeypatch):
    """The configurations of the first stages that were trained."""
    configs = []

    class Counting(Trainer):
        def __init__(self, config, *args, **kwargs):
            if config.teacher.kind == "none":
                configs.append(config)
            super().__init__(config, *args, **kwargs)

    monkeypatch.setattr(first_stage, "Trainer", Counting)
    return configs


def _split(bags, **options):
    folds = k_folds(
        bags.keys, bags.cases, bags.labels_N, num_folds=2, validation_share=0.3, seed=0, **options
    )
    return folds[0]


def _unit(bags, folder, config=CONFIG, **options):
    return Unit("it", config, _split(bags, **options), 1, bags.digest, folder)


def test_a_unit_leaves_what_it_did_and_its_best_student(bags, tmp_path):
    unit = _unit(bags, tmp_path / "unit")
    assert unit.result() is None
    result = run_unit(unit, bags, tmp_path / "cache", 1)
    assert unit.result() == replace(result, keys=list(result.keys))
    config, split, history = load_run(unit.folder)
    assert {record.selects_on_test for record in history} == {False}
    assert (config, split, len(history)) == (CONFIG, unit.split, result.num_epochs)
    assert not (unit.folder / "checkpoints").exists()

    network = build(CONFIG.model, num_features=8, num_classes=2, seed=0)
    network.load_state_dict(checkpoint.load(unit.folder / "best_student")[0]["student"])
    again = predict(network, bags, unit.split.test)
    assert np.array_equal(again.probabilities_NC, np.array(result.probabilities))
    assert result.test["auc"] == again.auc
    assert result.validation["auc"] == history[result.best_epoch].student_validation_auc
    assert result.num_parameters == sum(p.numel() for p in network.parameters())
    assert list(result.cases) == [bags.cases[bags.keys.index(key)] for key in unit.split.test]


def test_the_network_without_masking_is_trained_once_for_itself_and_as_a_first_stage(bags, tmp_path, trained):
    plain = _unit(bags, tmp_path / "plain", CONFIG.first_stage())
    masked = _unit(bags, tmp_path / "masked")
    assert plain.is_plain
    assert plain.first_stage_digest == masked.first_stage_digest is not None
    result = run_unit(plain, bags, tmp_path / "cache", 1)
    run_unit(masked, bags, tmp_path / "cache", 1)
    assert len(trained) == 1
    assert len(load_run(plain.folder)[2]) == result.num_epochs == 4


@pytest.mark.parametrize("config", [CONFIG, CONFIG.first_stage()], ids=["masked", "plain"])
def test_a_unit_that_was_cut_off_goes_on_after_its_last_checkpoint(bags, tmp_path, monkeypatch, config):
    whole = run_unit(_unit(bags, tmp_path / "whole", config), bags, tmp_path / "whole-cache", 1)
    unit, epochs = _unit(bags, tmp_path / "cut", config), []
    run_epoch = Trainer._run_epoch

    def two_epochs(trainer):
        if trainer.config == config and len(trainer.history) == 2:
            raise KeyboardInterrupt
        return run_epoch(trainer)

    monkeypatch.setattr(Trainer, "_run_epoch", two_epochs)
    with pytest.raises(KeyboardInterrupt):
        run_unit(unit, bags, tmp_path / "cache", 1)

    def counted(trainer):
        record = run_epoch(trainer)
        epochs.append(record.epoch)
        return record

    monkeypatch.setattr(Trainer, "_run_epoch", counted)
    resumed = run_unit(unit, bags, tmp_path / "cache", 1)
    assert epochs == [2, 3]
    assert replace(resumed, epoch_s=0) == replace(whole, epoch_s=0)


def test_the_papers_protocol_is_in_every_file(bags, tmp_path):
    unit = _unit(bags, tmp_path / "unit", CONFIG.first_stage(), selects_on_test=True)
    result = run_unit(unit, bags, tmp_path / "cache", 1)
    assert result.protocol == "paper"
    assert json.loads((unit.folder / "split.json").read_text())["selects_on_test"] is True
    assert json.loads((unit.folder / "result.json").read_text())["protocol"] == "paper"
    rows = [json.loads(line) for line in (unit.folder / "history.jsonl").read_text().splitlines()]
    assert {row["selects_on_test"] for row in rows} == {True}
    assert result.validation == result.test  # the same bags, their own threshold


def test_released_weights_need_no_first_stage(bags, tmp_path, trained):
    settings = CONFIG.model
    source = build(settings, num_features=8, num_classes=2, seed=77)
    theirs = {
        "patch_to_emb.0.weight": "projection.linear.weight",
        "patch_to_emb.0.bias": "projection.linear.bias",
        "predictor.weight": "head.weight",
        "predictor.bias": "head.bias",
        "online_encoder.attention.attention.0.weight": "attention.branch.weight",
        "online_encoder.attention.attention.2.weight": "attention.score.weight",
    }
    weights = source.state_dict()
    path = tmp_path / "released.pt"
    torch.save({"model": {name: weights[ours] for name, ours in theirs.items()}}, path)
    config = CONFIG.override({"teacher.weights": str(path)})
    trainer = open_trainer(config, bags, _split(bags), None, tmp_path / "cache")
    assert all(
        torch.equal(value, weights[name]) for name, value in trainer.teacher.network.state_dict().items()
    )
    assert torch.equal(trainer.student.projection.linear.weight, source.projection.linear.weight)
    assert trained == []
    assert _unit(bags, tmp_path, config).first_stage_digest is None


def test_released_weights_of_another_width_are_refused(bags, tmp_path):
    source = build(CONFIG.model, num_features=9, num_classes=2, seed=0).state_dict()
    path = tmp_path / "released.pt"
    torch.save(
        {
            "patch_to_emb.0.weight": source["projection.linear.weight"],
            "patch_to_emb.0.bias": source["projection.linear.bias"],
            "predictor.weight": source["head.weight"],
            "predictor.bias": source["head.bias"],
            "online_encoder.attention.attention.0.weight": source["attention.branch.weight"],
            "online_encoder.attention.attention.2.weight": source["attention.score.weight"],
        },
        path,
    )
    with pytest.raises(
        first_stage.CheckpointError, match=r"is \(16, 9\); data of 8 features and 2 classes need"
    ):
        open_trainer(CONFIG.override({"teacher.weights": path}), bags, _split(bags), None, tmp_path / "cache")
