"""What a fold is: a configuration on a split with a seed, its place on the disk and how its files are read.

`training/fold.py` trains it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mhimdist.config.protocols import Protocol
from mhimdist.config.train import TrainConfig
from mhimdist.data.splits import Split
from mhimdist.errors import CheckpointError
from mhimdist.training.history import EpochRecord, read_history
from mhimdist.training.result import Result, read_result

RESULT_FILE = "result.json"
ERROR_FILE = "error.txt"
"""In the folder of a fold, a trial or a sweep: the traceback of its failure."""
STOP_FILE = "stop"
"""In the folder of a fold, a cross-validation or a sweep: asks the runs there to save themselves and end."""


@dataclass(frozen=True)
class Fold:
    """A configuration on one fold with one seed.

    Attributes:
        name: its name in progress lines, failures and a trial's values.
        config: the configuration, with the fold's seed.
        split: the bags that train, select and test.
        fold: the fold's number, counted from 1.
        folder: receives its files.
        is_tested: whether its student is judged on the test bags at the end; a search must not do that.
        data_digest: digest of the data set that the split is of, which every process that trains the fold
            compares with what it finds; None compares nothing.
        inner: folds inside its training bags, which choose its number of epochs and its threshold; its own
            split then has no validation bags. Empty: its validation bags choose.
        is_inner: whether it is such a fold, and no search follows its epochs.
        is_searched: whether a search on its inner folds has chosen its configuration.
    """

    name: str
    config: TrainConfig
    split: Split
    fold: int
    folder: Path
    is_tested: bool
    data_digest: str | None = None
    inner: tuple["Fold", ...] = ()
    is_inner: bool = False
    is_searched: bool = False

    @property
    def protocol(self) -> Protocol:
        """How its epoch, its threshold and its configuration are chosen."""
        if self.split.selects_on_test:
            return "paper"
        if self.inner:
            return "nested" if self.is_searched else "refit"
        return "strict"

    @property
    def is_plain(self) -> bool:
        """Whether it trains the same as a first stage: a network without teacher or mask."""
        return self.config.teacher.kind == "none" and self.config.masking.strategy == "none"

    @property
    def first_stage_digest(self) -> str | None:
        """Digest of the first stage that it makes, if plain, or needs; None if it does neither."""
        if not self.is_plain and (not self.config.teacher.is_pretrained or self.config.teacher.weights):
            return None
        return f"{self.config.first_stage().digest()} {self.split.digest()}"

    @property
    def is_finished(self) -> bool:
        """Whether its training has ended well and its result is on disk."""
        return (self.folder / RESULT_FILE).exists()

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints that an unfinished fold resumes from."""
        return self.folder / "checkpoints"

    def result(self) -> Result | None:
        """Read its result; None if it is not finished.

        Raises:
            CheckpointError: the file is damaged, or another release wrote it.
        """
        if not self.is_finished:
            return None
        return read_result(self.folder / RESULT_FILE)

    def ended_result(self) -> Result:
        """Read the result of a fold that has been trained, here or elsewhere.

        Raises:
            CheckpointError: the file is not there, or another release wrote it.
        """
        result = self.result()
        if result is None:
            raise CheckpointError(
                f"{self.folder / RESULT_FILE}: expected the result of {self.name}, which has ended, found no "
                "file: was it deleted, or does this machine see the folder late? Run the same command again"
            )
        return result

    def records(self) -> list[EpochRecord]:
        """Read its history file; empty before the end of its first epoch.

        Raises:
            CheckpointError: the history is damaged, or another release wrote it.
        """
        return read_history(self.folder)


def fold_folder(parent: Path, fold: int, seed: int, digest: str = "") -> Path:
    """The folder of a fold.

    Args:
        parent: folder of the trial or of all folds.
        fold: the fold's number, counted from 1.
        seed: the fold's seed.
        digest: tells the folds of several configurations in one parent apart.
    """
    return parent / "-".join(filter(None, (f"fold-{fold}-seed-{seed}", digest)))


def folds_of_trial(
    config: TrainConfig,
    splits: Sequence[Split],
    seeds: Sequence[int],
    folder: Path,
    data_digest: str | None = None,
) -> list[Fold]:
    """The folds of a trial: all with the first seed, then all with the next. None of them is tested.

    Args:
        config: the trial's configuration.
        splits: one split per fold, in order.
        seeds: the seeds that every fold runs with.
        folder: the trial's folder.
        data_digest: as in `Fold`.
    """
    return [
        Fold(
            f"fold {number}, seed {seed}",
            config.model_copy(update={"seed": seed}),
            split,
            number,
            fold_folder(folder, number, seed),
            is_tested=False,
            data_digest=data_digest,
        )
        for seed in seeds
        for number, split in enumerate(splits, 1)
    ]
