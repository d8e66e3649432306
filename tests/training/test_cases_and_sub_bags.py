"""Training on bags of cases and on samples of bags: the same bits wherever they should be."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from case_shards import case_shards
from memory_bags import MemoryBags, gaussian_bags

from mhimdist.config.train import TrainConfig, load_config
from mhimdist.data.bags import BagSource
from mhimdist.data.cases import CaseBags
from mhimdist.data.shards import BagShards
from mhimdist.data.splits import Split, holdout
from mhimdist.data.sub_bags import SampleSize, SubBags
from mhimdist.errors import ConfigError, NonFiniteError, PreemptedError
from mhimdist.ops.draws import Draws
from mhimdist.training.evaluation import Sampling, predict
from mhimdist.training.first_stage import open_trainer
from mhimdist.training.fold import run_fold
from mhimdist.training.folds import Fold
from mhimdist.training.trainer import Trainer

MHIM = {
    "model": {"name": "abmil", "hidden_dim": 16, "attention_dim": 8},
    "masking": {"high": {"start": 0.1, "kind": "cosine"}, "high_pool_share": 0.5, "random": 0.3},
    "teacher": {"kind": "init_momentum", "momentum": {"start": 0.9}},
    "optimizer": {"learning_rate": 5e-3},
    "epochs": 3,
    "device": "cpu",
}
SUB_BAGS = {"instances_per_bag": 12, "evaluation_samples": 3}


def config_of(**changes: object) -> TrainConfig:
    return load_config(MHIM | changes)


def split_of(bags: BagSource) -> Split:
    return holdout(bags.keys, bags.cases, bags.labels_N, test_share=0.35, validation_share=0.3, seed=1)


def trace(config: TrainConfig, bags: BagSource, folder: Path) -> tuple[list[dict], dict]:
    """The epochs of a fold without their times, and its result without what names the data."""
    fold = Fold("it", config, split_of(bags), 1, folder / "fold", is_tested=True)
    run_fold(fold, bags, folder / "cache", 1)
    records = [
        {name: value for name, value in asdict(record).items() if not name.endswith("_s")}
        for record in fold.records()
    ]
    result = asdict(fold.ended_result())
    return records, {name: result[name] for name in result if name not in ("data_digest", "epoch_s", "note")}


@pytest.mark.parametrize(
    "changes", [{}, {"bags_per_step": 3, "sampling": "class_balanced"}, SUB_BAGS], ids=["whole", "3", "sub"]
)
def test_bags_of_cases_train_as_united_slides(tmp_path: Path, changes: dict) -> None:
    slides, united = case_shards(tmp_path)
    config = config_of(**changes)
    one = trace(config, CaseBags(BagShards(slides)), tmp_path / "one")
    two = trace(config, BagShards(united), tmp_path / "two")
    assert one == two
    noted = [
        json.loads((tmp_path / name / "fold" / "result.json").read_text())["note"] for name in ("one", "two")
    ]
    assert "a bag is all slides of a case" in noted[0]
    assert "all slides" not in noted[1]
    card = (tmp_path / "one" / "fold" / "model_card.md").read_text()
    assert "a bag is all slides of a case" in card
    state = json.loads((tmp_path / "one" / "fold" / "best_student" / "state.json").read_text())["state"]
    assert state["data"]["bag_of"] == "case"


def test_the_recipe_of_whole_bags_is_that_of_earlier_releases() -> None:
    names = {"instances_per_bag", "instances_share", "evaluation_samples"}
    whole, sub = config_of(), config_of(**SUB_BAGS)
    assert not names & whole.recipe().keys()
    assert {name: sub.recipe()[name] for name in SUB_BAGS} == SUB_BAGS
    assert whole.digest() != sub.digest()
    assert TrainConfig.model_validate(sub.recipe()).digest() == sub.digest()
    assert sub.first_stage().instances_per_bag == 12
    with pytest.raises(ConfigError, match="evaluation_samples needs the size of a sample"):
        config_of(evaluation_samples=2)


def steps_of(config: TrainConfig, bags: BagSource, monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """What each bag trains on, by epoch: its features, as bytes."""
    seen: list[dict] = []
    take, train_on = Trainer._take_steps, Trainer._train_on

    def steps(trainer: Trainer, epoch: int) -> None:
        seen.append({})
        take(trainer, epoch)

    def step(trainer: Trainer, packed, num_bags, draws, progress) -> None:
        parts = packed.features_TD.split(packed.sizes())
        seen[-1] |= {key: part.numpy().tobytes() for key, part in zip(packed.keys, parts, strict=True)}
        train_on(trainer, packed, num_bags, draws, progress)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_take_steps", steps)
        patched.setattr(Trainer, "_train_on", step)
        for _ in Trainer(config, bags, bags.holdout()).epochs():
            pass
    return seen


def test_every_epoch_sees_another_sample_whatever_a_step_holds(
    bags: MemoryBags, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = {"teacher": {"kind": "momentum"}, **SUB_BAGS}
    single = steps_of(config_of(**plain), bags, monkeypatch)
    batched = steps_of(config_of(**plain, bags_per_step=4, max_instances=40), bags, monkeypatch)
    assert single == batched
    assert len(single) == 3
    for key in bags.holdout().train:
        samples = {seen[key] for seen in single}
        assert len(samples) == 3
        assert {len(sample) for sample in samples} == {12 * bags.num_features * 4}
    row = bags.keys.index(bags.holdout().train[0])
    sub = SubBags(bags, SampleSize(12), Draws(2021, 1))
    assert single[1][bags.keys[row]] == bags.features[row][sub.instances(row)].numpy().tobytes()


def test_counts_and_sizes_are_those_of_the_samples(bags: MemoryBags) -> None:
    config = config_of(teacher={"kind": "momentum"}, instances_per_bag=10, bags_per_step=2, epochs=1)
    trainer = Trainer(config, bags, bags.holdout())
    (record,) = trainer.epochs()
    # 3 of 10 at random and 1 of 10 at the top, which overlap: never of the whole bags.
    assert record.masked_random_ratio == pytest.approx(0.3)
    assert 0.6 <= record.kept_ratio <= 0.7
    whole = config.model_copy(update={"instances_per_bag": None})
    (other,) = Trainer(whole, bags, bags.holdout()).epochs()
    assert record.loss != other.loss


def test_a_run_that_is_stopped_within_an_epoch_draws_the_same_samples(tmp_path: Path) -> None:
    bags = gaussian_bags(num_bags=60)
    config = config_of(teacher={"kind": "momentum"}, **SUB_BAGS)
    straight = Trainer(config, bags, bags.holdout())
    expected = [record.loss for record in straight.epochs()]
    calls = iter([False, True])
    stopped = Trainer(config, bags, bags.holdout(), tmp_path, stop=lambda: next(calls, True))
    with pytest.raises(PreemptedError, match="stopped as asked in epoch 1"):
        for _ in stopped.epochs():
            pass
    again = Trainer(config, bags, bags.holdout(), tmp_path)
    list(again.epochs())
    assert [record.loss for record in again.history] == expected
    for name, value in straight.student.state_dict().items():
        assert torch.equal(value, again.student.state_dict()[name])


def test_evaluation_is_of_whole_bags_or_the_mean_of_samples(bags: MemoryBags) -> None:
    config = config_of(teacher={"kind": "momentum"}, epochs=1, **SUB_BAGS)
    trainer = Trainer(config, bags, bags.holdout())
    (record,) = trainer.epochs()
    keys, network = bags.holdout().validation, trainer.student
    sampling = Sampling.of(config)
    assert sampling == Sampling(SampleSize(12), 3, 2021)
    found = predict(network, bags, keys, sampling)
    assert record.student_validation_loss == found.loss
    rows = bags.rows_of(keys).tolist()
    network.eval()
    each = []
    for number in range(3):
        sub = SubBags(bags, SampleSize(12), Draws(2021, number), "evaluated_sub_bags")
        outputs = [network.predictions(network(sub.load([row]))) for row in rows]
        each.append(torch.cat(outputs).detach().double().numpy())
    assert len({one.tobytes() for one in each}) == 3
    # Products depend on the alignment of their memory, in the last bit.
    np.testing.assert_allclose(found.predictions_NP, np.mean(each, axis=0), rtol=0, atol=2e-7)
    whole = config.model_copy(update={"evaluation_samples": None})
    (other,) = Trainer(whole, bags, bags.holdout()).epochs()
    assert (record.loss, Sampling.of(whole)) == (other.loss, None)
    assert record.student_validation_loss != other.student_validation_loss


def test_the_result_says_how_it_was_made(tmp_path: Path) -> None:
    bags = gaussian_bags()
    bags.cases = tuple(f"case-{i % 20}" for i in range(40))  # the two bags of a case have one label
    config = config_of(**SUB_BAGS, epochs=1)
    fold = Fold("it", config, bags.holdout(), 1, tmp_path / "fold", is_tested=True)
    run_fold(fold, bags, tmp_path / "cache", 1)
    text = "trained on 12 instances a bag, drawn anew in each epoch; evaluated by the mean of 3 samples"
    result = fold.ended_result()
    assert result.note == text
    assert text in (fold.folder / "model_card.md").read_text()
    assert set(result.by_case) == {"mean", "max"}
    stage = open_trainer(config, bags, bags.holdout(), tmp_path / "run", tmp_path / "cache")
    assert stage.config.first_stage().evaluation_samples == 3


def test_a_nan_feature_that_only_a_later_sample_has_stops_the_run(bags: MemoryBags) -> None:
    # All instances but one are hidden by the mask, so the loss alone would not see it.
    config = config_of(
        teacher={"kind": "momentum"},
        masking={"random": 0.9},
        epochs=30,
        optimizer={"learning_rate": 1e-5},
        instances_per_bag=12,
    )
    keys = bags.holdout().train
    row = bags.keys.index(keys[0])
    drawn = [
        set(SubBags(bags, SampleSize(12), Draws(config.seed, n)).instances(row).tolist()) for n in range(9)
    ]
    late = next(iter(set(range(len(bags.features[row]))) - drawn[0] - drawn[1] & drawn[2]))
    bags.features[row][late, 0] = float("nan")
    first = next(n for n, each in enumerate(drawn) if late in each)
    trainer = Trainer(config, bags, bags.holdout())
    with pytest.raises(NonFiniteError, match=rf"in epoch {first} at bag\(s\) {keys[0]};"):
        list(trainer.epochs())
    assert len(trainer.history) == first > 0
