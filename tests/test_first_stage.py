import dataclasses

import pytest
import torch

from mhimdist import first_stage as module
from mhimdist.config import load_config
from mhimdist.engine import Trainer
from mhimdist.first_stage import first_stage, open_trainer

CONFIG = load_config(
    {
        "model": {"name": "abmil", "hidden_dim": 16, "attention_dim": 8},
        "masking": {"high": 0.1, "random": 0.3},
        "teacher": {"kind": "init_momentum", "momentum": {"start": 0.9}},
        "optimizer": {"learning_rate": 5e-3},
        "epochs": 3,
        "device": "cpu",
    }
)


@pytest.fixture
def trainings(monkeypatch):
    """How many runs were trained while a test ran."""
    started = []

    class Counting(Trainer):
        def __init__(self, config, *args, **kwargs):
            started.append(config)
            super().__init__(config, *args, **kwargs)

    monkeypatch.setattr(module, "Trainer", Counting)
    return started


def _weights(network):
    return torch.cat([value.flatten() for value in network.state_dict().values()])


def test_it_is_the_best_epoch_of_the_run_without_masking(bags, tmp_path):
    made = first_stage(CONFIG, bags, bags.holdout(), tmp_path)
    plain = Trainer(CONFIG.first_stage(), bags, bags.holdout())
    list(plain.epochs())
    assert torch.equal(_weights(made.network), _weights(plain.best_student()))
    assert made.best_epoch == plain.best.epoch


def test_it_is_made_once_for_all_that_masks_differently(bags, tmp_path, trainings):
    for changes in ({}, {"masking.high.start": 0.3}, {"loss.alpha": 0.5}, {"teacher.momentum.start": 0.5}):
        first_stage(CONFIG.override(changes), bags, bags.holdout(), tmp_path)
    assert len(trainings) == 1


@pytest.mark.parametrize("changes", [{"seed": 9}, {"model.hidden_dim": 8}, {"epochs": 2}])
def test_another_network_seed_or_length_trains_again(bags, tmp_path, trainings, changes):
    for each in ({}, changes):
        first_stage(CONFIG.override(each), bags, bags.holdout(), tmp_path)
    assert len(trainings) == 2


def test_another_split_or_data_set_trains_again_but_not_another_test_set(bags, tmp_path, trainings):
    split = bags.holdout()
    first_stage(CONFIG, bags, split, tmp_path)
    first_stage(CONFIG, bags, dataclasses.replace(split, test=split.test[:-1]), tmp_path)
    assert len(trainings) == 1
    first_stage(CONFIG, bags, bags.holdout(seed=7), tmp_path)
    bags.digest = "another"
    first_stage(CONFIG, bags, split, tmp_path)
    assert len(trainings) == 3


def test_a_damaged_network_is_trained_again(bags, tmp_path, trainings):
    made = first_stage(CONFIG, bags, bags.holdout(), tmp_path)
    (file,) = tmp_path.glob("*/student.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    again = first_stage(CONFIG, bags, bags.holdout(), tmp_path)
    assert len(trainings) == 2
    assert torch.equal(_weights(made.network), _weights(again.network))


def test_teacher_and_student_start_from_it(bags, tmp_path):
    pretrained = first_stage(CONFIG, bags, bags.holdout(), tmp_path).network
    for init, same in (("projection", {"projection"}), ("all", {"projection", "attention", "head"})):
        config = CONFIG.override({"student_init": init})
        trainer = open_trainer(config, bags, bags.holdout(), None, tmp_path)
        assert torch.equal(_weights(trainer.teacher.network), _weights(pretrained))
        parts = {
            name
            for name, _ in trainer.student.named_children()
            if torch.equal(_weights(getattr(trainer.student, name)), _weights(getattr(pretrained, name)))
        }
        assert parts == same
