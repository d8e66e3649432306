"""Reads the folder of a trained run, for tests that check it."""

import json
from pathlib import Path

from mhimdist.config.train import TrainConfig
from mhimdist.data.splits import Split
from mhimdist.training.history import EpochRecord
from mhimdist.training.run_folder import HISTORY


def load_run(folder: Path) -> tuple[TrainConfig, Split, list[EpochRecord]]:
    """The configuration, the split and the history in the folder of a run."""
    config = TrainConfig.model_validate_json((folder / "config.json").read_text())
    lines = (folder / HISTORY).read_text().splitlines()
    records = [EpochRecord.read(json.loads(line), folder) for line in lines]
    return config, Split.load(folder / "split.json"), records
