"""Which runs take their steps by CUDA graphs, and that they train as the others do."""

import dataclasses
import functools
import json

import pytest
import torch
from as_on_a_gpu import Recorder
from memory_bags import gaussian_bags
from test_graphed_step import _config

from mhimdist.config.execution import Saving
from mhimdist.config.train import TrainConfig
from mhimdist.errors import ConfigError, PreemptedError
from mhimdist.models import build
from mhimdist.training import launching
from mhimdist.training.graphed_step import GraphedStep
from mhimdist.training.step import TrainingStep
from mhimdist.training.trainer import AGREE_EVERY_STEPS, LAUNCHING, Trainer
from mhimdist.training.workers import Workers

NEVER, SEVERAL, ALWAYS = (lambda _: False), (lambda num_bags: num_bags > 1), (lambda _: True)


@pytest.fixture
def recorded(device, monkeypatch):
    """The device, with stand-ins for what only a GPU can do."""
    if device == "cpu":
        monkeypatch.setattr(launching, "GraphedStep", functools.partial(GraphedStep, recorder=Recorder))
        monkeypatch.setattr(TrainingStep, "_read_later", lambda self, found_2, place: None)
    return device


@pytest.mark.parametrize(
    ("waits", "bags_per_step", "world_size", "reason"),
    [
        (NEVER, 1, 1, None),
        (NEVER, 8, 1, None),
        (NEVER, 8, 4, None),
        (SEVERAL, 1, 1, None),
        (SEVERAL, 1, 2, None),
        (SEVERAL, 2, 2, None),  # each worker has one
        (SEVERAL, 2, 1, "abmil reads the sizes of 2 bag(s) on the host, and a worker has up to 2 in a step"),
        (SEVERAL, 4, 2, "and a worker has up to 3 in a step (bags_per_step 4, 2 worker(s))"),
        (ALWAYS, 1, 1, "abmil reads the sizes of 1 bag(s) on the host, and a worker has up to 1 in a step"),
        (ALWAYS, 1, 4, "abmil reads the sizes of 1 bag(s) on the host"),
    ],
)
def test_auto_means_graphs_where_no_step_reads_sizes(
    recorded, monkeypatch, waits, bags_per_step, world_size, reason
):
    auto = _config(**{"teacher.kind": "none", "masking": {}, "bags_per_step": bags_per_step})
    student = build(auto.model, num_features=8, num_classes=2, seed=0).to(recorded)
    monkeypatch.setattr(student, "waits_for_sizes", waits)
    monkeypatch.setattr(Workers, "world_size", world_size)

    def made(setting):
        config = auto.override({"cuda_graphs": setting})
        return isinstance(
            launching.make_step(config, student, None, Workers(), most_rows=1), GraphedStep
        ), launching.why_not_recorded(config, student, Workers())

    assert auto.cuda_graphs == "auto"
    assert made("off") == (False, "cuda_graphs is off")
    if reason is None:
        assert made("auto") == made("on") == (True, None)
        return
    is_graphed, found = made("auto")
    assert not is_graphed
    assert reason in found
    with pytest.raises(ConfigError) as error:
        made("on")
    assert str(error.value) == f"cuda_graphs is on, but {found}; set cuda_graphs to auto or off"


def test_without_a_gpu_auto_means_no_graphs_and_on_is_refused_before_training():
    bags = gaussian_bags()
    config = _config(device="cpu")
    assert type(Trainer(config, bags, bags.holdout()).train_step) is TrainingStep
    with pytest.raises(ConfigError, match="cuda_graphs needs a CUDA device, but device is cpu"):
        config.override({"cuda_graphs": "on"})
    on = _config(cuda_graphs="on")  # device: auto
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="cuda_graphs is on, but this needs a CUDA device, and the run"):
            Trainer(on, bags, bags.holdout())


@pytest.mark.parametrize(("written", "meant"), [(True, "on"), (False, "off"), ("auto", "auto"), ("on", "on")])
def test_files_of_earlier_releases_have_a_switch(written, meant):
    assert TrainConfig.model_validate({"cuda_graphs": written}).cuda_graphs == meant
    with pytest.raises(ConfigError, match=r"cuda_graphs: .*'auto', 'on' or 'off', got 'yes'"):
        TrainConfig().override({"cuda_graphs": "yes"})


def test_how_a_step_is_launched_is_no_part_of_a_runs_identity():
    assert TrainConfig().override({"cuda_graphs": "on"}).digest() == TrainConfig().digest()


def _records(trainer):
    found = [dataclasses.asdict(record) for record in trainer.epochs()]
    for record in found:
        del record["train_s"], record["epoch_s"]
    return found


def test_a_run_by_graphs_is_the_run_without(recorded):
    """A whole run, with its evaluation and its epochs' averages."""
    bags = gaussian_bags()
    config = _config(**{"epochs": 3, "bags_per_step": 2, "optimizer.learning_rate": 5e-3})
    histories = []
    for setting in ("off", "auto"):
        trainer = Trainer(config.override({"cuda_graphs": setting}), bags, bags.holdout())
        assert isinstance(trainer.train_step, GraphedStep) == (setting == "auto")
        histories.append(_records(trainer))
    for ours, theirs in zip(*histories, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert histories[0][0]["learning_rate"] != histories[0][2]["learning_rate"]


def test_a_run_by_graphs_resumes_within_an_epoch_as_if_it_had_never_stopped(recorded, tmp_path):
    """Graphs are recorded after the checkpoint is loaded: they must read its weights, moments and counts."""
    bags = gaussian_bags(num_bags=134)
    config = _config(**{"epochs": 2, "optimizer.learning_rate": 5e-3})
    whole = Trainer(config, bags, bags.holdout())
    expected = _records(whole)

    stopped = Trainer(config, bags, bags.holdout(), tmp_path, saving=Saving(), stop=lambda: True)
    with pytest.raises(PreemptedError, match=f"in epoch 0 after step {AGREE_EVERY_STEPS} of"):
        list(stopped.epochs())
    resumed = Trainer(config, bags, bags.holdout(), tmp_path)
    assert resumed.run.step == AGREE_EVERY_STEPS
    assert isinstance(resumed.train_step, GraphedStep)
    for ours, theirs in zip(_records(resumed), expected, strict=True):
        assert ours == (theirs if recorded == "cpu" else pytest.approx(theirs, rel=1e-4))
    for ours, theirs in (
        (resumed.student, whole.student),
        (resumed.teacher.network, whole.teacher.network),
    ):
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    assert not resumed.train_step._graphs, "they would keep NCCL's process group from ending"
    assert resumed.train_step._recorded_update is None
    said = json.loads((tmp_path / LAUNCHING).read_text())
    assert said == {
        "device": "cuda:0",
        "dtype": "float32",
        "workers": 1,
        "selects by": "AUC",
        "CUDA graphs": "used",
    }


def test_the_folder_says_why_a_run_has_no_graphs(tmp_path):
    bags = gaussian_bags()
    Trainer(_config(device="cpu"), bags, bags.holdout(), tmp_path)
    assert json.loads((tmp_path / LAUNCHING).read_text()) == {
        "device": "cpu",
        "dtype": "float32",
        "workers": 1,
        "selects by": "AUC",
        "CUDA graphs": "not used: this needs a CUDA device, and the run is on cpu",
    }
