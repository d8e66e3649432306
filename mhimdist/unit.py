"""One unit of a cross-validation: a configuration on one fold with one seed. Nothing here knows Ray."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import torch

from mhimdist import atomic, checkpoint
from mhimdist.config import TrainConfig
from mhimdist.data.bags import BagSource
from mhimdist.data.splits import Split
from mhimdist.evaluation import judge, predict
from mhimdist.first_stage import first_stage, open_trainer
from mhimdist.report.comparison import OUTSIDE_WEIGHTS, Result

RESULT_FILE = "result.json"


def has_outside_weights(config: TrainConfig) -> bool:
    """Whether its teacher starts from a file that was trained nobody knows on what."""
    return config.teacher.is_pretrained and config.teacher.weights is not None


@dataclass(frozen=True)
class Unit:
    """One configuration on one fold with one seed.

    Attributes:
        label: how progress and failures name it.
        config: with its seed.
        split: of its fold.
        fold: counted from 1.
        data_digest: of the data set.
        folder: its own, named by its digest.
    """

    label: str
    config: TrainConfig
    split: Split
    fold: int
    data_digest: str
    folder: Path

    @property
    def is_plain(self) -> bool:
        """Whether it trains what a first stage trains, a network without teacher or mask."""
        return self.config.teacher.kind == "none" and self.config.masking.strategy == "none"

    @property
    def first_stage_digest(self) -> str | None:
        """What tells whether a plain unit makes the first stage that another one needs; None if neither."""
        if not self.is_plain and (not self.config.teacher.is_pretrained or self.config.teacher.weights):
            return None
        return f"{self.config.first_stage().digest()} {self.split.digest()}"

    def result(self) -> Result | None:
        """What it left, if it has finished."""
        file = self.folder / RESULT_FILE
        return Result(**json.loads(file.read_text())) if file.exists() else None


def run_unit(unit: Unit, bags: BagSource, cache: Path, num_threads: int) -> Result:
    """Train, select and test one unit; the place where several workers would share one.

    It leaves config.json, split.json, history.jsonl, best_student/ and result.json in the unit's folder, and
    knows nothing of Ray.

    Args:
        unit: what to run.
        bags: the data set.
        cache: folder of first-stage networks.
        num_threads: compute threads.
    """
    torch.set_num_threads(num_threads)
    if unit.is_plain:
        stage = first_stage(unit.config, bags, unit.split, cache)
        network, best_epoch, history = stage.network, stage.best_epoch, stage.history
        unit.folder.mkdir(parents=True, exist_ok=True)
        atomic.write_text(unit.folder / "config.json", unit.config.model_dump_json(indent=1))
        unit.split.save(unit.folder / "split.json")
        # Another run may have made the stage, which knows nothing of what is tested.
        records = (replace(record, selects_on_test=unit.split.selects_on_test) for record in history)
        lines = (json.dumps(asdict(record), allow_nan=False) + "\n" for record in records)
        atomic.write_text(unit.folder / "history.jsonl", "".join(lines))
    else:
        trainer = open_trainer(unit.config, bags, unit.split, unit.folder, cache)
        for _ in trainer.epochs():
            pass
        network, best_epoch, history = trainer.best_student(), trainer.best.epoch, trainer.history
    validation, test = (predict(network, bags, keys) for keys in (unit.split.validation, unit.split.test))
    judged = judge(validation, test)
    result = Result(
        protocol="paper" if unit.split.selects_on_test else "strict",
        seed=unit.config.seed,
        fold=unit.fold,
        config_digest=unit.config.digest(),
        split_digest=unit.split.digest(),
        data_digest=unit.data_digest,
        num_epochs=len(history),
        best_epoch=best_epoch,
        epoch_s=median(record.epoch_s for record in history),
        num_parameters=sum(parameter.numel() for parameter in network.parameters()),
        validation=judged["validation"],
        test=judged["test"],
        keys=test.keys,
        cases=[bags.cases[row] for row in bags.rows_of(test.keys)],
        labels=test.labels_N.tolist(),
        probabilities=test.probabilities_NC.tolist(),
        note=OUTSIDE_WEIGHTS if has_outside_weights(unit.config) else "",
    )
    checkpoint.discard(unit.folder / "best_student")
    checkpoint.save(unit.folder / "best_student", {"student": dict(network.state_dict())}, {})
    atomic.write_text(unit.folder / RESULT_FILE, json.dumps(asdict(result), allow_nan=False))
    checkpoint.discard(unit.folder / "checkpoints")  # only needed to go on
    return result
