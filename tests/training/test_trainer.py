import dataclasses
import json
import os

import pytest
import torch
from memory_bags import gaussian_bags
from trained_run import load_run

from mhimdist.config.execution import Saving
from mhimdist.config.train import load_config
from mhimdist.data.bags import PackedBags
from mhimdist.errors import CheckpointError, ConfigError, NonFiniteError, PreemptedError, RunLockedError
from mhimdist.models import build
from mhimdist.training.evaluation import evaluate, predict
from mhimdist.training.run_folder import CheckpointWarning, Position
from mhimdist.training.trainer import Trainer, device_of
from mhimdist.training.validation import Validation

pytestmark = pytest.mark.numeric
SETTINGS = {
    "model": {"name": "abmil", "hidden_dim": 16, "attention_dim": 8},
    "masking": {"high": {"start": 0.1, "kind": "cosine"}, "high_pool_share": 0.5, "random": 0.3, "low": 0.1},
    "teacher": {"kind": "momentum", "momentum": {"start": 0.9}},
    "loss": {"alpha": 0.1, "temperature": 0.1},
    "optimizer": {"learning_rate": 5e-3},
    "epochs": 6,
    "device": "cpu",
}


def _config(**changes):
    return load_config(SETTINGS).override(changes)


def _train(config, bags, folder=None, epochs=None):
    trainer = Trainer(config, bags, bags.holdout(), folder)
    for record, _ in zip(trainer.epochs(), range(epochs or config.epochs), strict=False):
        assert record is trainer.history[-1]
        if len(trainer.history) == epochs:
            break
    return trainer


def _weights(network):
    return torch.cat([value.flatten() for value in network.state_dict().values()])


def test_it_learns(bags):
    trainer = _train(_config(epochs=10), bags)
    assert trainer.history[-1].loss < trainer.history[0].loss
    assert evaluate(trainer.best_student(), bags, bags.holdout())["test"]["auc"] > 0.9


def test_history_says_what_was_masked(bags):
    trainer = _train(_config(epochs=3), bags)
    first = trainer.history[0]
    assert first.masked_high_ratio == pytest.approx(0.1, abs=0.03)
    assert first.masked_random_ratio == pytest.approx(0.3, abs=0.03)
    assert first.masked_low_ratio == pytest.approx(0.1, abs=0.03)
    assert first.kept_ratio == pytest.approx(0.9 * 0.7 * 0.9, abs=0.06)
    assert trainer.history[2].masked_high_ratio < first.masked_high_ratio
    assert all(r.teacher_validation_score is not None for r in trainer.history)
    assert first.loss == pytest.approx(first.classification_loss + 0.1 * first.consistency_loss, rel=1e-5)
    assert [r.learning_rate for r in trainer.history] == pytest.approx([5e-3, 3.75e-3, 1.25e-3])


@pytest.mark.parametrize(
    ("kind", "evaluated"),
    [("student_copy", 3), ("init", 3 + 1), ("momentum", 3 + 3), ("init_momentum", 3 + 3)],
)
def test_validation_is_predicted_once_by_each_network_that_has_changed(bags, monkeypatch, kind, evaluated):
    calls, predict_validation = [], Validation._predict

    def counted(validation, network):
        calls.append(network)
        return predict_validation(validation, network)

    monkeypatch.setattr(Validation, "_predict", counted)
    config = _config(**{"teacher": {"kind": kind}, "epochs": 3})
    pretrained = build(config.model, num_features=8, num_classes=2, seed=5)
    trainer = Trainer(config, bags, bags.holdout(), pretrained=pretrained)
    records = list(trainer.epochs())
    assert len(calls) == evaluated
    of_teacher = predict(trainer.teacher.network, bags, bags.holdout().validation).score
    assert records[-1].teacher_validation_score == of_teacher
    if kind == "init":
        assert {record.teacher_validation_score for record in records} == {of_teacher}
    assert all(0 < record.train_s < record.epoch_s for record in records)


@pytest.mark.faults(25)
@pytest.mark.parametrize("kind", ["momentum", "student_copy"])
@pytest.mark.parametrize("stopped_after", [1, 4])
def test_a_resumed_run_is_bit_identical(bags, tmp_path, kind, stopped_after):
    config = _config(**{"teacher": {"kind": kind}, "bags_per_step": 2})
    whole = _train(config, bags, tmp_path / "whole")
    _train(config, bags, tmp_path / "cut", epochs=stopped_after)
    resumed = _train(config, bags, tmp_path / "cut")
    assert torch.equal(_weights(whole.student), _weights(resumed.student))
    assert torch.equal(_weights(whole.teacher.network), _weights(resumed.teacher.network))
    assert torch.equal(_weights(whole.best_student()), _weights(resumed.best_student()))
    for name in ("whole", "cut"):
        history = [json.loads(line) for line in (tmp_path / name / "history.jsonl").read_text().splitlines()]
        assert [row["epoch"] for row in history] == list(range(6))
    same = [
        {k: v for k, v in vars(r).items() if k not in ("train_s", "epoch_s")}
        for run in (whole, resumed)
        for r in run.history
    ]
    assert same[:6] == same[6:]


def test_a_finished_run_is_only_read(bags, tmp_path):
    first = _train(_config(), bags, tmp_path)
    again = Trainer(_config(), bags, bags.holdout(), tmp_path)
    assert again.is_finished
    assert list(again.epochs()) == []
    assert torch.equal(_weights(first.best_student()), _weights(again.best_student()))
    config, split, history = load_run(tmp_path)
    assert (config, split, history) == (_config(), bags.holdout(), first.history)


def test_a_folder_of_another_run_is_refused(bags, tmp_path):
    _train(_config(), bags, tmp_path, epochs=1)
    with pytest.raises(CheckpointError, match=r"config\.json belongs to another run"):
        Trainer(_config(epochs=7), bags, bags.holdout(), tmp_path)
    with pytest.raises(CheckpointError, match=r"split\.json belongs to another run"):
        Trainer(_config(), bags, bags.holdout(seed=5), tmp_path)


def test_a_history_of_another_release_is_refused_by_name(bags, tmp_path):
    history = tmp_path / "history.jsonl"
    _train(_config(epochs=1), bags, tmp_path)
    record = json.loads(history.read_text())
    history.write_text(json.dumps({"speed": 1} | {k: v for k, v in record.items() if k != "train_s"}) + "\n")
    with pytest.raises(CheckpointError, match=r"its records differ from this release's in speed, train_s"):
        load_run(tmp_path)


def test_the_last_two_and_the_best_ends_of_epochs_are_kept(bags, tmp_path):
    trainer = Trainer(_config(epochs=8), bags, bags.holdout(), tmp_path, saving=Saving(keep_best=2))
    list(trainer.epochs())
    ranked = sorted(trainer.history, key=lambda r: r.rank, reverse=True)
    kept = {folder.name for folder in (tmp_path / "checkpoints").iterdir()}
    assert kept == {Position(done, 0).name for done in (7, 8, *(r.epoch + 1 for r in ranked[:2]))}


class _Stop:
    """Returns true at the n-th call."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.mark.faults(25)
@pytest.mark.parametrize("asked", [0, 1, 3, 4])
def test_a_run_stopped_within_an_epoch_goes_on_bit_identically(tmp_path, asked):
    bags = gaussian_bags(num_bags=130)
    config = _config(epochs=3)
    whole = Trainer(config, bags, bags.holdout(), tmp_path / "whole")
    list(whole.epochs())
    stopped = Trainer(config, bags, bags.holdout(), tmp_path / "cut", stop=_Stop(asked))
    with pytest.raises(PreemptedError, match=r"stopped as asked in epoch \d after step \d+ of \d+"):
        list(stopped.epochs())
    assert not stopped.is_finished
    resumed = Trainer(config, bags, bags.holdout(), tmp_path / "cut")
    list(resumed.epochs())
    for mine, theirs in ((whole.student, resumed.student), (whole.teacher.network, resumed.teacher.network)):
        assert torch.equal(_weights(mine), _weights(theirs))
    for mine, theirs in zip(whole.history, resumed.history, strict=True):
        assert dataclasses.replace(mine, train_s=0, epoch_s=0) == dataclasses.replace(
            theirs, train_s=0, epoch_s=0
        )


def test_checkpoints_within_an_epoch_change_nothing(tmp_path):
    bags = gaussian_bags(num_bags=130)
    config = _config(epochs=2)
    plain = Trainer(config, bags, bags.holdout(), tmp_path / "plain")
    often = Trainer(config, bags, bags.holdout(), tmp_path / "often", saving=Saving(every_s=0.0, keep_last=9))
    list(plain.epochs())
    list(often.epochs())
    assert torch.equal(_weights(plain.student), _weights(often.student))
    steps = {folder.name[-6:] for folder in (tmp_path / "often" / "checkpoints").iterdir()}
    assert {"000016", "000032"} <= steps


@pytest.mark.faults(26)
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(bags, tmp_path):
    config = _config(epochs=4)
    whole = _train(config, bags, tmp_path / "whole")
    _train(config, bags, tmp_path / "cut", epochs=3)
    newest = tmp_path / "cut" / "checkpoints" / Position(3, 0).name / "teacher.safetensors"
    content = bytearray(newest.read_bytes())
    content[-3] ^= 4
    newest.write_bytes(bytes(content))
    with pytest.warns(CheckpointWarning, match=r"teacher\.safetensors is damaged.*skipped for an older"):
        resumed = Trainer(config, bags, bags.holdout(), tmp_path / "cut")
    assert len(resumed.history) == 2
    list(resumed.epochs())
    assert torch.equal(_weights(whole.student), _weights(resumed.student))


@pytest.mark.faults(31)
def test_a_second_run_in_the_same_folder_is_refused(bags, tmp_path):
    first = Trainer(_config(), bags, bags.holdout(), tmp_path)
    next(epochs := first.epochs())
    with pytest.raises(RunLockedError, match=rf"is being trained by process {os.getpid()}"):
        Trainer(_config(), bags, bags.holdout(), tmp_path)
    epochs.close()
    assert len(Trainer(_config(), bags, bags.holdout(), tmp_path).history) == 1


def test_the_best_epoch_has_the_highest_auc_then_the_lowest_loss(bags):
    trainer = _train(_config(epochs=8), bags)
    ranked = sorted(
        trainer.history, key=lambda r: (-r.student_validation_score, r.student_validation_loss, r.epoch)
    )
    assert trainer.best == ranked[0]
    assert trainer.history[-1].best_epoch == ranked[0].epoch
    assert trainer.history[-1].best_validation_score == ranked[0].student_validation_score


def test_early_stopping_waits_for_its_patience(bags):
    config = _config(
        **{"epochs": 50, "early_stopping": {"patience": 3, "from_epoch": 5}, "optimizer.learning_rate": 1e-2}
    )
    trainer = _train(config, bags)
    done = len(trainer.history)
    assert 6 <= done < 50
    assert done == max(6, trainer.best.epoch + 1 + 3)


@pytest.mark.faults(11)
def test_a_nan_feature_stops_before_any_weight_changes_and_names_the_bag(bags):
    trainer = Trainer(_config(), bags, bags.holdout())
    key = bags.holdout().train[3]
    bags.features[bags.keys.index(key)][0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=rf"bag\(s\) {key};"):
        list(trainer.epochs())
    assert torch.isfinite(_weights(trainer.student)).all()
    assert torch.isfinite(_weights(trainer.teacher.network)).all()


@pytest.mark.faults(25)
def test_the_global_generator_plays_no_part(bags):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = _train(_config(epochs=2), bags)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(_weights(first.student), _weights(_train(_config(epochs=2), bags).student))


def test_a_step_of_two_bags_is_the_mean_of_their_gradients(bags):
    """Two bags in one step, against the mean of their losses computed by hand."""
    from mhimdist.ops.draws import Draws

    trainer = Trainer(_config(bags_per_step=2), bags, bags.holdout())
    packed = bags.load([0, 1])
    trainer.train_step.method.loss(packed, Draws(0, 0), 0.2).total_B.mean().backward()
    together = [p.grad.clone() for p in trainer.student.parameters()]
    trainer.student.zero_grad()
    for row in (0, 1):
        single: PackedBags = bags.load([row])
        (trainer.train_step.method.loss(single, Draws(0, 0), 0.2).total_B.sum() / 2).backward()
    for mine, theirs in zip(together, trainer.student.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs.grad)


def test_class_weights_are_one_for_each_class(bags):
    with pytest.raises(ConfigError, match=r"loss\.class_weights: expected 2 weights, .*, got 3"):
        Trainer(_config(**{"loss.class_weights": [1, 2, 3]}), bags, bags.holdout())


@pytest.mark.parametrize(
    ("name", "sees_gpu", "device"),
    [
        ("auto", True, "cuda:3"),  # with its index, or DALI would take GPU 0
        ("cuda", True, "cuda:3"),
        ("cpu", True, "cpu"),
        ("auto", False, "cpu"),
        ("cpu", False, "cpu"),
    ],
)
def test_a_run_takes_the_gpu_that_its_worker_was_given(name, sees_gpu, device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: sees_gpu)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert device_of(name) == torch.device(device)


def test_a_gpu_that_this_process_does_not_see_is_refused(bags, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="device: expected a GPU for cuda, but this process sees none"):
        Trainer(_config(device="cuda"), bags, bags.holdout())


@pytest.mark.parametrize("cache", ["none", "device"])
def test_all_readers_of_a_run_get_the_device_with_its_index(bags, monkeypatch, cache):
    """What asks for the GPU is recorded here; the tensors stay on the CPU."""
    from mhimdist.training import trainer as module

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    asked = []

    def refuse(*args, device, **options):
        asked.append(device)
        raise PreemptedError("stop here")

    monkeypatch.setattr(module, "read_ahead", refuse)
    monkeypatch.setattr(module, "resident", lambda bags, cache, device: asked.append(device) or bags)
    monkeypatch.setattr(torch.nn.Module, "to", lambda network, device: asked.append(device) or network)
    trainer = Trainer(_config(device="auto", **{"loading.cache": cache}), bags, bags.holdout())
    with pytest.raises(PreemptedError, match="stop here"):
        next(trainer.epochs())
    assert len(asked) >= 3
    assert set(asked) == {torch.device("cuda", 3)}
