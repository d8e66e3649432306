"""The history of a run: one record per epoch, each a line of `history.jsonl`."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from types import NoneType
from typing import Any, Self, get_args

from mhimdist import files
from mhimdist.errors import CheckpointError

HISTORY = "history.jsonl"

_RENAMED = {f"{name}_validation_auc": f"{name}_validation_score" for name in ("student", "teacher", "best")}
"""Names of earlier releases, which knew no score but the AUC."""


@dataclass(frozen=True)
class MaskFigures:
    """What `mask_telemetry` measures after an epoch; None where a figure does not apply.

    Attributes:
        mask_overlap: mean over the bags of |A and B| / |A or B|, for the instances A that the masks hide in
            this epoch and those B that they hid in the epoch before.
        high_mask_overlap: the same of the high mask alone.
        rank_agreement: mean over the bags of Spearman's correlation between the scores of teacher and
            student.
        positives_hidden, positives_hidden_high, positives_hidden_low, positives_hidden_random: share of the
            positive instances that all masks together, and each of them, hide.
    """

    mask_overlap: float | None = None
    high_mask_overlap: float | None = None
    rank_agreement: float | None = None
    positives_hidden: float | None = None
    positives_hidden_high: float | None = None
    positives_hidden_low: float | None = None
    positives_hidden_random: float | None = None


@dataclass(frozen=True)
class TrainingFigures:
    """What the steps of an epoch, and the validation after them, gave. Ratios are shares of its instances.

    `train_s` is the time of the training steps in seconds; `epoch_s` adds the validation's. For a resumed
    epoch, both count from the resumption. If it `selects_on_test`, the "validation" fields are computed on
    the test bags: the authors' protocol. A score is what the task selects by, such as the AUC; higher is
    better. A run without validation bags, whose number of epochs other runs have chosen, has no score: its
    selected epoch is the last one so far. `classification_loss` is the task's loss; the name is that of
    earlier releases.
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


@dataclass(frozen=True)
class EpochRecord(MaskFigures, TrainingFigures):
    """The record of one epoch, a line of `history.jsonl`: its training figures, then those of its masks.

    Records of releases without figures of masks are read as well.
    """

    @classmethod
    def read(cls, record: Mapping[str, Any], folder: Path) -> Self:
        """Read a record of the history in a run's folder.

        Raises:
            CheckpointError: another release wrote it, with other fields; or it is damaged.
        """
        if not isinstance(record, Mapping):
            raise CheckpointError(
                f"{folder}: the history is damaged: expected records, got {type(record).__name__}"
            )
        record = {_RENAMED.get(name, name): value for name, value in record.items()}
        known = {field.name for field in fields(cls)}
        needed = {field.name for field in fields(cls) if field.default is MISSING}
        if difference := (record.keys() - known) | (needed - record.keys()):
            raise CheckpointError(
                f"{folder}: another release wrote the history; its records differ from this release's in "
                f"{', '.join(sorted(difference))}; give the run another folder"
            )
        read = cls(**record)
        optional = {field.name for field in fields(cls) if NoneType in get_args(field.type)}
        for name, value in record.items():
            if not isinstance(value, int | float) and (value is not None or name not in optional):
                raise CheckpointError(
                    f"{folder}: the history is damaged: expected a number for {name}, got {value!r:.40}"
                )
        return read

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


def read_history(folder: Path) -> list[EpochRecord]:
    """The records in a run's folder; empty before the end of its first epoch.

    Raises:
        CheckpointError: the history is damaged, or another release wrote it.
    """
    file = folder / HISTORY
    try:
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        rows = [files.parse_json(line) for line in lines]
    except ValueError as error:
        raise CheckpointError(
            f"{file} is damaged ({error}); delete the folder {folder} and run the same command again"
        ) from None
    return [EpochRecord.read(row, folder) for row in rows]
