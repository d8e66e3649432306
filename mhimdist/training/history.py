"""The history of a run: one record per epoch, each a line of `history.jsonl`."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from mhimdist.errors import CheckpointError

_RENAMED = {f"{name}_validation_auc": f"{name}_validation_score" for name in ("student", "teacher", "best")}
"""Names of earlier releases, which knew no score but the AUC."""


@dataclass(frozen=True)
class EpochRecord:
    """The record of one epoch: a line of `history.jsonl`. Ratios are shares of the epoch's instances.

    `train_s` is the time of the training steps in seconds; `epoch_s` adds the validation's. For a resumed
    epoch, both count from the resumption. If it `selects_on_test`, the "validation" fields are computed on
    the test bags: the authors' protocol. A score is the AUC, or what else the task
    selects by; higher is better. A run without validation bags, whose number of epochs other runs have
    chosen, has no score: its selected epoch is the last one so far.
    """

    epoch: int
    loss: float
    classification_loss: float
    consistency_loss: float
    learning_rate: float
    momentum: float | None
    kept_ratio: float
    masked_high_ratio: float
    masked_low_ratio: float
    masked_random_ratio: float
    student_validation_score: float | None
    student_validation_loss: float | None
    teacher_validation_score: float | None
    selects_on_test: bool
    best_epoch: int
    best_validation_score: float | None
    train_s: float
    epoch_s: float

    @classmethod
    def read(cls, record: Mapping[str, Any], folder: Path) -> Self:
        """Read a record of the history in a run's folder.

        Raises:
            CheckpointError: another release wrote it, with other fields.
        """
        record = {_RENAMED.get(name, name): value for name, value in record.items()}
        expected = {field.name for field in fields(cls)}
        if difference := expected ^ record.keys():
            raise CheckpointError(
                f"{folder}: another release wrote the history; its records differ from this release's in "
                f"{', '.join(sorted(difference))}; give the run another folder"
            )
        return cls(**record)

    @property
    def rank(self) -> tuple[float, float]:
        """The selection criterion: the highest student validation score, then the lowest loss.

        Without validation bags, the latest epoch.
        """
        return rank(self.epoch, self.student_validation_score, self.student_validation_loss)


def rank(epoch: int, score: float | None, loss: float | None) -> tuple[float, float]:
    """The rank of an epoch with this validation score and loss, see `EpochRecord.rank`."""
    if score is None or loss is None:
        return float(epoch), 0.0
    return score, -loss
