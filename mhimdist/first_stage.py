"""The first of two stages: the network trained without masking, from which an "init" teacher starts.

It is made once for a configuration, split, seed and data set, and found again by a hash of all of them.
"""

import fcntl
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mhimdist import checkpoint
from mhimdist.config import TrainConfig
from mhimdist.data.bags import BagSource
from mhimdist.data.splits import Split
from mhimdist.engine import Trainer
from mhimdist.errors import CheckpointError
from mhimdist.models import BagModel, build

RECIPE_VERSION = 1
"""Raised when training itself changes, so that networks of an older release are not taken for today's."""


@dataclass(frozen=True)
class FirstStage:
    """A network trained without masking.

    Attributes:
        network: the student of the selected epoch.
        best_epoch: that epoch, counted from 0.
    """

    network: BagModel
    best_epoch: int


def open_trainer(
    config: TrainConfig, bags: BagSource, split: Split, folder: Path | None, cache: Path
) -> Trainer:
    """A trainer whose first stage, where the configuration needs one, has been made or found.

    Args:
        config: of the run.
        bags: the data set.
        split: what trains, selects and tests.
        folder: the run's own, as in `Trainer`.
        cache: as in `first_stage`.
    """
    pretrained = first_stage(config, bags, split, cache).network if config.teacher.is_pretrained else None
    return Trainer(config, bags, split, folder, pretrained=pretrained)


def first_stage(config: TrainConfig, bags: BagSource, split: Split, cache: Path) -> FirstStage:
    """The network of the selected epoch of `config.first_stage()`, from the cache or trained now.

    A second process that asks for the same network waits for the first one. A cached network that is
    damaged is trained again.

    Args:
        config: the second stage's configuration, or that of a run without one.
        bags: the data set.
        split: its train and validation sets count; the test set does not enter.
        cache: folder of first-stage networks, shared by all runs.
    """
    stage = config.first_stage()
    made_of = {
        "recipe_version": RECIPE_VERSION,
        "config": stage.model_dump(mode="json"),
        "data": bags.digest,
        "train": split.train,
        "validation": split.validation,
    }
    text = json.dumps(made_of, sort_keys=True)
    folder = cache / hashlib.blake2b(text.encode(), digest_size=10).hexdigest()
    network = build(
        stage.model, num_features=bags.num_features, num_classes=len(bags.classes), seed=stage.seed
    )
    with _locked(folder):
        try:
            tensors, state = checkpoint.load(folder)
            if state["made_of"] != text:
                raise CheckpointError(f"{folder} holds the network of another run")
        except CheckpointError:
            checkpoint.discard(folder)
            trainer = Trainer(stage, bags, split)
            for _ in trainer.epochs():
                pass
            tensors = {"student": dict(trainer.best_student().state_dict())}
            state = {"made_of": text, "best_epoch": trainer.best.epoch}
            checkpoint.save(folder, tensors, state)
    network.load_state_dict(tensors["student"])
    return FirstStage(network, state["best_epoch"])


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
