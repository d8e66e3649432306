import dataclasses

import pytest
import torch

from mhimdist import files
from mhimdist.config.train import load_config
from mhimdist.errors import PreemptedError
from mhimdist.training import checkpoint
from mhimdist.training import first_stage as module
from mhimdist.training.first_stage import first_stage, open_trainer
from mhimdist.training.trainer import Trainer

pytestmark = pytest.mark.numeric
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
    """The runs that were trained while a test ran."""
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


def test_a_stop_ends_the_wait_for_a_process_that_trains_it(bags, tmp_path, trainings):
    first_stage(CONFIG, bags, bags.holdout(), tmp_path)
    (lock,) = tmp_path.glob("*.lock")
    answers = iter([False, True])
    with files.Lock(lock), pytest.raises(PreemptedError, match=f"first stage {lock.stem} was there"):
        first_stage(CONFIG, bags, bags.holdout(), tmp_path, stop=lambda: next(answers))
    with pytest.raises(PreemptedError):  # the lock is free, but nobody begins once all are asked to stop
        first_stage(CONFIG, bags, bags.holdout(), tmp_path, stop=lambda: True)
    assert first_stage(CONFIG, bags, bags.holdout(), tmp_path).best_epoch >= 0
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


def test_the_network_of_another_run_under_the_same_name_is_trained_again(bags, tmp_path, trainings):
    made = first_stage(CONFIG, bags, bags.holdout(), tmp_path)
    (state,) = tmp_path.glob("*/state.json")
    folder = state.parent
    tensors, content = checkpoint.load(folder)
    checkpoint.discard(folder)
    checkpoint.save(folder, tensors, content | {"made_of": content["made_of"].replace("2021", "2022")})
    again = first_stage(CONFIG, bags, bags.holdout(), tmp_path)
    assert len(trainings) == 2
    assert torch.equal(_weights(made.network), _weights(again.network))
    assert checkpoint.load(folder)[1]["made_of"] == content["made_of"]


def test_what_auto_means_and_the_version_are_part_of_what_a_network_is_made_with(
    bags, tmp_path, trainings, monkeypatch
):
    auto = CONFIG.override({"device": "auto"})
    on_gpu, on_cpu = (module.made_with(auto, torch.device(name)) for name in ("cuda", "cpu"))
    assert (on_gpu["config"]["device"], on_gpu["config"]["precision"]) == ("cuda", "torch.bfloat16")
    explicit = auto.override({"device": "cpu", "precision": "float32"})
    assert module.made_with(explicit, torch.device("cpu")) == on_cpu != on_gpu
    # A float32 network does not serve a 16-bit configuration, and no network serves another release.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for config in (auto, explicit, explicit.override({"precision": "bf16"})):
        first_stage(config, bags, bags.holdout(), tmp_path)
    assert [config.precision for config in trainings] == ["auto", "bf16"]
    monkeypatch.setattr(module, "RECIPE_VERSION", module.RECIPE_VERSION + 1)
    first_stage(auto, bags, bags.holdout(), tmp_path)
    assert len(trainings) == 3


def test_teacher_and_student_start_from_it(bags, tmp_path):
    pretrained = first_stage(CONFIG, bags, bags.holdout(), tmp_path).network
    for init, same in (
        ("none", set()),
        ("projection", {"projection"}),
        ("all", {"projection", "attention", "head"}),
    ):
        config = CONFIG.override({"student_init": init})
        trainer = open_trainer(config, bags, bags.holdout(), None, tmp_path)
        assert torch.equal(_weights(trainer.teacher.network), _weights(pretrained))
        parts = {
            name
            for name, _ in trainer.student.named_children()
            if torch.equal(_weights(getattr(trainer.student, name)), _weights(getattr(pretrained, name)))
        }
        assert parts == same
