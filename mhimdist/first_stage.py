"""The first of two stages: the network trained without masking, from which an "init" teacher starts.

It is made once for a configuration, split, seed and data set, and found again by a hash of all of them.
"""

import fcntl
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
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


def first_stage_network(config: TrainConfig, bags: BagSource, split: Split, cache: Path) -> BagModel:
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
            checkpoint.save(folder, tensors, {"made_of": text})
    network.load_state_dict(tensors["student"])
    return network


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
