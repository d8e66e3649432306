"""Features that became NaN after they were sharded, with a manifest that agrees: found in training."""

import hashlib
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from feature_folders import forge_manifest, shards_of
from memory_bags import gaussian_bags

from mhimdist.config.train import load_config
from mhimdist.data.manifest import Manifest
from mhimdist.data.shards import BagShards
from mhimdist.data.splits import holdout
from mhimdist.errors import NonFiniteError
from mhimdist.training.trainer import Trainer


def _poison(shards: Path, key: str, value: float) -> None:
    """Put a number into a bag's features as somebody does who may change shard and manifest."""
    (row,) = (row for row in Manifest.read(shards).rows.to_pylist() if row["key"] == key)
    path = shards / row["shard"]
    content = bytearray(path.read_bytes())
    at, start = row["features_data_offset"], row["features_offset"]
    content[at : at + 4] = np.float32(value).tobytes()
    payload = bytes(content[start : start + row["features_bytes"]])
    path.write_bytes(content)

    def rows(found: list[dict]) -> None:
        next(each for each in found if each["key"] == key)["features_crc32"] = zlib.crc32(payload)

    def info(found: dict) -> None:
        next(each for each in found["shards"] if each["name"] == row["shard"])["sha256"] = hashlib.sha256(
            content
        ).hexdigest()

    forge_manifest(shards, rows=rows, info=info)


@pytest.mark.faults(11, 43)
@pytest.mark.parametrize("model", ["abmil", "dsmil"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bag_that_was_poisoned_in_its_shard_is_named_and_changes_no_weight(tmp_path, model, value):
    shards = shards_of(gaussian_bags(num_bags=40), tmp_path)
    bags = BagShards(shards)
    split = holdout(bags.keys, bags.cases, bags.labels_N, test_share=0.3, validation_share=0.3, seed=0)
    for key in split.train:
        _poison(shards, key, value)
    sizes = {"abmil": {"hidden_dim": 8, "attention_dim": 4}, "dsmil": {"hidden_dim": 8}}[model]
    config = load_config(
        {
            "model": {"name": model, **sizes},
            "masking": {"random": 0.9},  # most often, the instance is behind the mask
            "teacher": {"kind": "momentum", "momentum": {"start": 0.9}},
            "loss": {"alpha": 0.0},
            "epochs": 1,
            "device": "cpu",
        }
    )
    trainer = Trainer(config, BagShards(shards), split)
    before = {name: value.clone() for name, value in trainer.student.state_dict().items()}
    with pytest.raises(NonFiniteError, match=r"bag\(s\) slide-\d+"):
        list(trainer.epochs())
    assert all(torch.equal(value, before[name]) for name, value in trainer.student.state_dict().items())
