import json

import pytest
import torch
from memory_bags import gaussian_bags

from mhimdist.config.train import load_config
from mhimdist.training.run_state import RunState, Totals
from mhimdist.training.trainer import Trainer
from mhimdist.training.workers import Workers


def _trainer(epochs=2, seed=1):
    config = load_config(
        {
            "model": {"name": "abmil", "hidden_dim": 16, "attention_dim": 8},
            "masking": {"random": 0.3},
            "teacher": {"kind": "momentum", "momentum": {"start": 0.9}},
            "epochs": epochs,
            "seed": seed,
            "device": "cpu",
        }
    )
    bags = gaussian_bags()
    return Trainer(config, bags, bags.holdout())


def test_files_and_names_of_a_checkpoint_are_those_of_all_releases():
    trainer = _trainer()
    list(trainer.epochs())
    tensors, state = trainer.run.state()
    names = list(trainer.student.state_dict())
    assert list(tensors) == ["student", "best_student", "teacher", "optimizer", "masks"]  # the last is new
    assert [list(tensors[file]) for file in list(tensors)[:3]] == [names] * 3
    assert set(tensors["optimizer"]) == {f"{k}.{n}" for k in ("step", "exp_avg", "exp_avg_sq") for n in names}
    assert list(state) == ["step", "totals", "history"]
    assert json.loads(json.dumps(state)) == state


def test_a_loaded_state_gives_itself(tmp_path):
    trainer, other = _trainer(), _trainer(seed=2)
    list(trainer.epochs())
    trainer.run.step, trainer.run.totals = 7, Totals(torch.arange(9, dtype=torch.float64))
    tensors, state = trainer.run.state()
    other.run.load(tensors, state, folder=tmp_path)
    again, state_again = other.run.state()
    assert state_again == state
    assert other.run.position == (2, 7)
    assert other.run.best == trainer.best
    for file, named in tensors.items():
        assert again[file].keys() == named.keys()
        assert all(torch.equal(again[file][name], value) for name, value in named.items())


@pytest.mark.faults(28)
def test_an_optimizer_file_that_lacks_a_moment_is_refused(tmp_path):
    trainer, other = _trainer(), _trainer(seed=2)
    list(trainer.epochs())
    tensors, state = trainer.run.state()
    name = next(iter(trainer.student.state_dict()))
    del tensors["optimizer"][f"exp_avg.{name}"]
    with pytest.raises(KeyError, match=name):
        other.run.load(tensors, state, folder=tmp_path)


@pytest.mark.parametrize(
    ("rank", "world_size", "expected"), [(0, 2, 1.0), (1, 2, 2.0), (0, 3, 3.0), (1, 3, 0.0), (2, 3, 0.0)]
)
def test_totals_are_each_workers_or_the_firsts_after_a_change_of_their_number(
    tmp_path, rank, world_size, expected
):
    trainer = _trainer()
    list(trainer.epochs())
    tensors, state = trainer.run.state()
    state["totals"] = [[1.0] * len(Totals.NAMES), [2.0] * len(Totals.NAMES)]
    workers = Workers()
    workers.rank, workers.world_size = rank, world_size
    run = RunState(trainer.student, trainer.teacher, trainer.optimizer, workers)
    run.load(tensors, state, folder=tmp_path)
    assert run.totals.values.tolist() == [expected] * len(Totals.NAMES)
