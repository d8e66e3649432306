"""The effect of `loading` and `sampling` on a run: `loading` changes no bit, `sampling` the bags it sees."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from feature_folders import SLIDES, shard_folder, write_features
from memory_bags import MemoryBags

from mhimdist.config.train import ConfigWarning, TrainConfig, load_config
from mhimdist.data import resident as resident_module
from mhimdist.data.bags import PackedBags
from mhimdist.data.read_ahead import read_ahead
from mhimdist.data.resident import resident
from mhimdist.data.shards import BagShards
from mhimdist.data.splits import Split
from mhimdist.errors import PreemptedError
from mhimdist.method.mhim import StepLoss
from mhimdist.training.trainer import Trainer

SMALL = {
    "model.name": "abmil",
    "model.hidden_dim": 8,
    "model.attention_dim": 4,
    "teacher.kind": "momentum",
    "student_init": "none",
    "masking.random.start": 0.2,
    "epochs": 2,
    "device": "cpu",
}


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shared = tmp_path / "shm"
    shared.mkdir()
    monkeypatch.setattr(resident_module, "SHARED_MEMORY", shared)
    monkeypatch.setattr(resident_module, "_last", None)
    write_features(tmp_path)
    return shard_folder(tmp_path)


def split_of(bags: BagShards) -> Split:
    """One case trains, one validates and one tests; each has two slides."""
    by_case = sorted(range(len(SLIDES)), key=lambda row: bags.cases[row])
    keys = [bags.keys[row] for row in by_case]
    return Split(tuple(keys[:2]), tuple(keys[2:4]), tuple(keys[4:]))


def weights_of(config: TrainConfig, shards: Path, folder: Path | None = None) -> torch.Tensor:
    bags = BagShards(shards)
    trainer = Trainer(config, bags, split_of(bags), folder)
    for _ in trainer.epochs():
        pass
    return torch.cat([value.flatten() for value in trainer.student.state_dict().values()])


@pytest.mark.parametrize(
    "loading",
    [
        {"loading.read_ahead": False},
        {"loading.reader": "dali"},
        {"loading.cache": "ram"},
        {"loading.cache": "device"},
        {"loading.cache": "device", "loading.read_ahead": False, "loading.verify": "never"},
    ],
    ids=str,
)
def test_every_way_to_load_trains_the_same_bits(loading: dict, shards: Path) -> None:
    config = TrainConfig().override(SMALL | {"bags_per_step": 2})
    expected = weights_of(config, shards)
    changed = config.override(loading)
    assert changed.digest() == config.digest()
    assert torch.equal(weights_of(changed, shards), expected)


def test_a_run_goes_on_within_an_epoch_with_another_reader(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mhimdist.training.trainer.AGREE_EVERY_STEPS", 1)
    config = TrainConfig().override(SMALL)
    expected = weights_of(config, shards)
    bags = BagShards(shards)
    stopped = Trainer(config, bags, split_of(bags), tmp_path / "run", stop=lambda: True)
    with pytest.raises(PreemptedError, match="after step 1 of 2"):
        list(stopped.epochs())
    other = config.override({"loading.reader": "dali"})
    assert torch.equal(weights_of(other, shards, tmp_path / "run"), expected)


def test_bags_above_the_limit_of_a_step_are_said_before_training(shards: Path) -> None:
    bags = BagShards(shards)
    with pytest.warns(ConfigWarning, match="max_instances=2: 2 of 2 bags have more"):
        Trainer(TrainConfig().override(SMALL | {"max_instances": 2}), bags, split_of(bags))


def test_a_class_balanced_run_sees_the_rare_class_as_often(bags: MemoryBags) -> None:
    config = TrainConfig().override(SMALL | {"sampling": "class_balanced", "bags_per_step": 3})
    # Cases have 4 bags, and every second case is of class 1: 10 bags of class 0 train and 2 of class 1.
    train = [row for row in range(20) if row % 2 == 0 or row < 4]
    sets = [tuple(bags.keys[row] for row in rows) for rows in (train, range(20, 32), range(32, 40))]
    trainer = Trainer(config, bags, Split(*sets))
    seen: list[str] = []
    method = trainer.train_step.method
    loss = method.loss

    def noted(packed: PackedBags, *rest: Any) -> StepLoss:
        seen.extend(packed.keys)
        return loss(packed, *rest)

    method.loss = noted  # type: ignore[method-assign]
    for _ in trainer.epochs():
        pass
    assert len(seen) == 2 * 12
    times = Counter(seen)
    assert [times[bags.keys[row]] for row in (1, 3)] == [6, 6]
    assert sorted(times[bags.keys[row]] for row in range(0, 20, 2)) == 8 * [1] + 2 * [2]


@pytest.mark.parametrize("cache", ["ram", "device"])
def test_a_reader_without_effect_is_told(cache: str, shards: Path) -> None:
    with pytest.warns(ConfigWarning, match=rf"loading\.reader: loading\.cache is {cache}"):
        config = load_config({"loading": {"reader": "dali", "cache": cache}})
    bags = BagShards(shards)
    with read_ahead(resident(bags, cache), [[1]], loading=config.loading) as batches:
        assert torch.equal(next(batches).features_TD, bags.load([1]).features_TD)
