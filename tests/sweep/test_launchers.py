"""The actor that trains a trial's other folds, in this process."""

from contextlib import contextmanager
from types import SimpleNamespace

from memory_bags import MemoryBags

from mhimdist.config.train import TrainConfig
from mhimdist.sweep import launchers
from mhimdist.sweep.launchers import FoldServer
from mhimdist.training.folds import Fold


def test_an_actor_trains_each_fold_within_its_share_of_a_gpu(bags: MemoryBags, tmp_path, monkeypatch):
    said = []

    @contextmanager
    def within_share(config):
        said.append(config)
        yield
        said.append("left")

    monkeypatch.setattr(launchers, "within_share", within_share)
    run = SimpleNamespace(next_epoch=lambda: said.append("trained"))
    server = FoldServer(SimpleNamespace(launcher=lambda: SimpleNamespace(launch=lambda folds: [run])))
    config = TrainConfig(seed=7)
    server.open(Fold("it", config, bags.holdout(), 1, tmp_path, is_tested=False))
    server.next_epoch()
    assert said == [config, "trained", "left"]
