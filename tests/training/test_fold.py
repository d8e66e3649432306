import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from memory_bags import gaussian_bags
from trained_run import load_run

from mhimdist.config.execution import Saving
from mhimdist.config.train import load_config
from mhimdist.data.splits import k_folds
from mhimdist.errors import CheckpointError, PreemptedError
from mhimdist.models import build
from mhimdist.statistics.metrics import auc
from mhimdist.training import checkpoint, first_stage
from mhimdist.training.evaluation import predict
from mhimdist.training.first_stage import open_trainer
from mhimdist.training.fold import run_fold
from mhimdist.training.folds import Fold
from mhimdist.training.student import load_student
from mhimdist.training.trainer import Trainer

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


def _fold(bags, folder, config=CONFIG, **options):
    return Fold("it", config, _split(bags, **options), 1, folder, is_tested=True)


def _run(fold, bags, cache):
    run_fold(fold, bags, cache, 1)
    return fold.result()


def test_a_fold_leaves_what_it_did_and_its_best_student(bags, tmp_path):
    fold = _fold(bags, tmp_path / "fold")
    assert fold.result() is None
    result = _run(fold, bags, tmp_path / "cache")
    config, split, history = load_run(fold.folder)
    assert {record.selects_on_test for record in history} == {False}
    assert (config, split, len(history)) == (CONFIG, fold.split, result.num_epochs)
    assert not (fold.folder / "checkpoints").exists()

    network = load_student(fold.folder)
    again = predict(network, bags, fold.split.test)
    assert np.array_equal(again.predictions_NP, np.array(result.probabilities))
    assert result.test["auc"] == again.score
    assert result.validation["auc"] == history[result.best_epoch].student_validation_score
    validation = result.validation_scores
    assert validation.probabilities_NC.shape == (len(fold.split.validation), 2)
    assert auc(validation.labels_N, validation.probabilities_NC) == result.validation["auc"]
    assert tuple(result.validation_keys) == fold.split.validation
    assert validation.cases == [bags.cases[bags.keys.index(key)] for key in fold.split.validation]
    assert replace(result, validation_keys=()).validation_scores is None
    assert result.num_parameters == sum(p.numel() for p in network.parameters())
    assert list(result.cases) == [bags.cases[bags.keys.index(key)] for key in fold.split.test]


def test_the_network_without_masking_is_trained_once_for_itself_and_as_a_first_stage(bags, tmp_path, trained):
    plain = _fold(bags, tmp_path / "plain", CONFIG.first_stage())
    masked = _fold(bags, tmp_path / "masked")
    assert plain.is_plain
    assert plain.first_stage_digest == masked.first_stage_digest is not None
    result = _run(plain, bags, tmp_path / "cache")
    _run(masked, bags, tmp_path / "cache")
    assert len(trained) == 1
    assert len(load_run(plain.folder)[2]) == result.num_epochs == 4


@pytest.mark.parametrize("config", [CONFIG, CONFIG.first_stage()], ids=["masked", "plain"])
def test_a_fold_that_was_cut_off_goes_on_after_its_last_checkpoint(bags, tmp_path, monkeypatch, config):
    whole = _run(_fold(bags, tmp_path / "whole", config), bags, tmp_path / "whole-cache")
    fold, epochs = _fold(bags, tmp_path / "cut", config), []
    run_epoch = Trainer._run_epoch

    def two_epochs(trainer):
        if trainer.config == config and len(trainer.history) == 2:
            raise KeyboardInterrupt
        return run_epoch(trainer)

    monkeypatch.setattr(Trainer, "_run_epoch", two_epochs)
    with pytest.raises(KeyboardInterrupt):
        _run(fold, bags, tmp_path / "cache")

    def counted(trainer):
        record = run_epoch(trainer)
        epochs.append(record.epoch)
        return record

    monkeypatch.setattr(Trainer, "_run_epoch", counted)
    resumed = _run(fold, bags, tmp_path / "cache")
    assert epochs == [2, 3]
    assert replace(resumed, epoch_s=0) == replace(whole, epoch_s=0)


def test_the_papers_protocol_is_in_every_file(bags, tmp_path):
    fold = _fold(bags, tmp_path / "fold", CONFIG.first_stage(), selects_on_test=True)
    result = _run(fold, bags, tmp_path / "cache")
    assert result.protocol == "paper"
    assert json.loads((fold.folder / "split.json").read_text())["selects_on_test"] is True
    assert json.loads((fold.folder / "result.json").read_text())["protocol"] == "paper"
    rows = [json.loads(line) for line in (fold.folder / "history.jsonl").read_text().splitlines()]
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
    assert _fold(bags, tmp_path, config).first_stage_digest is None


@pytest.mark.faults(28)
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
    with pytest.raises(first_stage.CheckpointError, match=r"expected shape \(16, 8\), .*, got \(16, 9\)"):
        open_trainer(CONFIG.override({"teacher.weights": path}), bags, _split(bags), None, tmp_path / "cache")


def test_a_student_is_loaded_from_a_whole_folder_of_this_release_only(bags, tmp_path):
    with pytest.raises(CheckpointError, match="holds no best_student/: give the folder of a finished fold"):
        load_student(tmp_path)
    checkpoint.save(tmp_path / "best_student", {"student": {"weight": torch.zeros(1)}}, {})
    with pytest.raises(CheckpointError, match="an earlier release wrote it"):
        load_student(tmp_path)


@pytest.mark.parametrize("number", [1, 2])
def test_a_stop_is_seen_within_16_steps_of_a_fold_and_of_its_first_stage(bags, tmp_path, number):
    """The first agreement on a stop says yes: in the first stage (1) or in the fold itself (2)."""
    many = gaussian_bags(num_bags=134)
    config = CONFIG.override({"epochs": 1})
    whole = _run(_fold(many, tmp_path / "whole", config), many, tmp_path / "whole-cache")
    fold, asked = _fold(many, tmp_path / "cut", config), []
    stages = sum(len(_split(many).train) // 16 for _ in range(number - 1))

    def stop():
        asked.append(True)
        return len(asked) > 2 + stages

    with pytest.raises(PreemptedError):
        run_fold(fold, many, tmp_path / "cache", 1, stop=stop)
    (cut,) = [path.name for path in tmp_path.glob("c*/**/checkpoints/epoch-*")]
    assert cut.startswith("epoch-00000-step-0000")
    assert not cut.endswith("step-000000")
    assert replace(_run(fold, many, tmp_path / "cache"), epoch_s=0) == replace(whole, epoch_s=0)


def test_a_result_of_another_release_is_named(bags, tmp_path):
    fold = _fold(bags, tmp_path / "fold", CONFIG.first_stage())
    _run(fold, bags, tmp_path / "cache")
    (fold.folder / "result.json").write_text('{"protocol": "strict"}')
    with pytest.raises(CheckpointError, match=r"result\.json is not a result of this release"):
        fold.result()


def test_a_fold_of_a_search_is_judged_without_its_test_bags(bags, tmp_path, monkeypatch):
    tested = _fold(bags, tmp_path / "tested")
    searched = replace(tested, folder=tmp_path / "searched", is_tested=False)
    with_test = _run(tested, bags, tmp_path / "cache")
    load, read = bags.load, []
    monkeypatch.setattr(
        bags, "load", lambda rows, *a, **k: read.extend(bags.keys[row] for row in rows) or load(rows, *a, **k)
    )
    result = _run(searched, bags, tmp_path / "cache")
    assert read
    assert not set(read) & set(tested.split.test)
    assert (result.test, result.keys, result.probabilities) == ({}, [], [])
    assert result.validation == with_test.validation


def test_a_result_that_has_disappeared_is_named(bags, tmp_path):
    fold = _fold(bags, tmp_path / "fold", CONFIG.first_stage())
    result = _run(fold, bags, tmp_path / "cache")
    assert fold.ended_result() == result
    (fold.folder / "result.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"result\.json: expected the result of it, which has ended, found"
    ):
        fold.ended_result()


def test_a_damaged_history_is_named(bags, tmp_path):
    fold = _fold(bags, tmp_path / "fold", CONFIG.first_stage())
    _run(fold, bags, tmp_path / "cache")
    assert len(fold.records()) == CONFIG.epochs
    file = fold.folder / "history.jsonl"
    file.write_text(file.read_text()[:-40])
    with pytest.raises(CheckpointError, match=r"history\.jsonl is damaged .*; delete the folder"):
        fold.records()


@pytest.mark.parametrize("keep_best", [0, 1])
def test_the_files_of_a_fold_do_not_depend_on_the_moments_of_its_checkpoints(tmp_path, keep_best):
    bags = gaussian_bags()
    config = CONFIG.model_copy(update={"epochs": 6})
    found = []
    for every_s in (None, 0.0):  # at the end of each epoch, and after each step
        folder = tmp_path / str(every_s)
        fold = _fold(bags, folder, config)
        run_fold(fold, bags, tmp_path / "cache", 1, saving=Saving(2, keep_best, every_s))
        found.append({path.name: path.read_bytes() for path in (folder / "best_student").iterdir()})
    assert found[0] == found[1]
    assert ("teacher.safetensors" in found[0]) == bool(keep_best)
