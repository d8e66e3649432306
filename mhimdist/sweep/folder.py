"""The folder of one sweep: its identity, its clock, and the folders and summaries of its trials."""

import json
import shutil
import time
import uuid
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

from mhimdist import files
from mhimdist.config.train import TrainConfig
from mhimdist.data.remote import shown
from mhimdist.data.splits import Split
from mhimdist.errors import SweepError
from mhimdist.report import summary as report
from mhimdist.search import storage
from mhimdist.search.options import Sweep
from mhimdist.search.proposals import Params
from mhimdist.search.trial_record import TrialRecord
from mhimdist.training.folds import STOP_FILE, Fold, folds_of_trial
from mhimdist.training.history import EpochRecord
from mhimdist.training.run_folder import HISTORY

IDENTITY_FILE = "sweep.json"
PROCESS_FILE = "process.json"
"""In a trial's folder: the process that runs the trial."""
_CLOCK_FILE = "clock.json"
LAYOUT = 2
"""Increased when the folders of trials and final runs change, so that older ones are refused."""
_OWN_KEYS = ("layout", "id", "url", "first", "data")
"""Keys of the identity file that describe the folder; all other keys make the sweep."""
CHANGEABLE = frozenset(
    {
        *("home", "data", "num_trials", "at_once", "cpus_per_run", "gpus_per_run", "workers", "min_workers"),
        *("max_failures", "worker_timeout_s", "save_every_s", "keep_last", "keep_best", "track"),
        *(
            "max_failures_in_a_row",
            "trial_timeout_s",
            "retry_failed",
            "final_seeds",
            "final_top",
            "fresh",
            "insecure",
        ),
    }
)
"""Options that do not change a trial's value: a sweep may be resumed with others."""


class ClockWarning(UserWarning):
    """The seconds of a sweep's earlier starts are lost."""


class SweepFolder:
    """The folder of one sweep, for the process that drives it.

    Attributes:
        path: `<home>/runs/<name>`.
        finals: folder that holds the folders of the final runs.
    """

    def __init__(self, sweep: Sweep, finals: Path | None = None) -> None:
        self.sweep, self.path = sweep, sweep.folder
        self.finals = finals or self.path / "final"

    @property
    def url(self) -> str:
        """URL of the study's database."""
        return self.sweep.storage or storage.sqlite_url(self.path / "study.db")

    @property
    def first_params(self) -> list[Params] | None:
        """The parameters of the first trials, from an earlier start; None if this start begins the sweep."""
        file = self.path / IDENTITY_FILE
        if self.sweep.fresh or not file.exists():
            return None
        return self._read().get("first")

    @property
    def owner(self) -> storage.Owner:
        """The owner that this folder's study must name; `claim` comes first.

        Raises:
            SweepError: the folder's identity file is damaged.
        """
        found = self._read().get("id")
        if not isinstance(found, str):
            raise SweepError(f"{self.path / IDENTITY_FILE} is damaged: it does not say the sweep's id")
        return storage.Owner(found, str(self.path), is_alone=self.sweep.storage is None)

    def _read(self) -> dict[str, Any]:
        return files.json_object(self.path / IDENTITY_FILE, SweepError)

    def claim(self, made_of: Mapping[str, Any], first: Sequence[Params]) -> bool:
        """Begin the sweep's folder, or check that it holds this sweep.

        Args:
            made_of: the rest of the sweep's identity, such as digests of its data and its space.
            first: parameters of the first trials; the folder keeps them, so resuming does not need their
                source.

        Returns:
            Whether the folder already held this sweep.

        Raises:
            SweepError: the folder holds something else.
        """
        file = self.path / IDENTITY_FILE
        options = self.sweep.model_dump(mode="json")
        if self.sweep.protocol == "strict":  # the only one of earlier releases, which do not name it
            options = {key: value for key, value in options.items() if key != "protocol"}
        if self.sweep.protocol != "nested":
            options.pop("outer_folds", None)
        identity = {key: value for key, value in options.items() if key not in CHANGEABLE} | dict(made_of)
        if self.sweep.bag_of == "slide":  # sweeps of earlier releases have no such option
            del identity["bag_of"]
        if self.sweep.storage is not None:
            identity["storage"] = storage.hidden(self.sweep.storage)
        others = [each for each in self.path.iterdir() if each.name != ".lock"]
        if self.sweep.fresh and others:
            if not file.exists():
                raise SweepError(
                    f"{self.path} is not a sweep's folder (it has no {IDENTITY_FILE}): "
                    "--fresh does not delete it"
                )
            if self.sweep.storage is not None:  # first, as only this folder says that it owns the study
                storage.delete(self.url, self.sweep.name, self._read().get("id", ""))
            for each in others:
                shutil.rmtree(each) if each.is_dir() and not each.is_symlink() else each.unlink()
            others = []
        if not others:
            own = {
                "layout": LAYOUT,
                "id": uuid.uuid4().hex,
                "url": storage.hidden(self.url),
                "first": list(first),
                "data": shown(self.sweep.data),
            }
            files.write_text(file, json.dumps(own | identity, indent=1))
            return False
        if not file.exists():
            raise SweepError(f"{self.path} holds something other than a sweep: give another --name")
        before = self._read()
        if before.get("layout") != LAYOUT:
            raise SweepError(
                f"{self.path} was written by an earlier release, with another layout of folders: give "
                "another --name, or --fresh to delete it"
            )
        before = {key: value for key, value in before.items() if key not in _OWN_KEYS}
        old, new = dict(report.leaves(before)), dict(report.leaves(identity))
        differing = [key for key in dict.fromkeys([*old, *new]) if old.get(key) != new.get(key)]
        if differing:
            listing = "; ".join(f"{key} {old.get(key)!r}, now {new.get(key)!r}" for key in differing[:5])
            raise SweepError(
                f"{self.path} holds another sweep ({listing}): give another --name, that sweep's "
                "options to resume it, or --fresh to delete it"
            )
        return True

    def check_study(self, num_trials: int) -> None:
        """Refuse a study that has lost trials whose folders are here: their numbers would be given again.

        Args:
            num_trials: number of trials that the study knows.

        Raises:
            SweepError: the study was emptied, or an older copy was put in its place.
        """
        numbers = [int(each.name) for each in (self.path / "trials").glob("[0-9]*") if each.name.isdigit()]
        if num_trials <= max(numbers, default=-1):
            raise SweepError(
                f"{storage.hidden(self.url)} has {num_trials} trials, but {self.path / 'trials'} holds those "
                f"up to number {max(numbers)}: the study was emptied or replaced. Put the right one back, "
                "give another --name, or --fresh to delete the sweep"
            )

    @property
    def stop_file(self) -> Path:
        """A file that asks all trials, on whichever node, to save themselves and end."""
        return self.path / STOP_FILE

    def trial(self, number: int) -> Path:
        """Folder of trial `number`: its configuration, environment, histories and weights."""
        return self.path / "trials" / f"{number:04d}"

    def process(self, number: int) -> tuple[str, int]:
        """Host and id of the process that runs trial `number`; "" and 0 if it has not begun."""
        try:
            found = files.json_object(self.trial(number) / PROCESS_FILE, SweepError)
            return str(found["host"]), int(found["pid"])
        except (SweepError, OSError, KeyError, TypeError, ValueError):
            return "", 0

    def num_epochs(self, number: int) -> int:
        """Epochs that a trial has done so far, over all its folds."""
        histories = self.trial(number).glob(f"fold-*/{HISTORY}")
        return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in histories)

    def folds(self, number: int, config: TrainConfig, splits: Sequence[Split]) -> list[Fold]:
        """The runs of a trial.

        Args:
            number: of the trial.
            config: of the trial.
            splits: of the sweep's folds.
        """
        return folds_of_trial(config, splits, self.sweep.run_seeds, self.trial(number))

    def elapsed_s(self) -> float:
        """Wall-clock seconds of all starts of the sweep together, without its final runs."""
        file = self.path / _CLOCK_FILE
        if not file.exists():
            return 0.0
        try:
            return float(files.json_object(file, SweepError)["elapsed_s"])
        except (SweepError, KeyError, TypeError, ValueError):
            warnings.warn(
                f"{file} is damaged: the seconds of the sweep's earlier starts are not counted",
                ClockWarning,
                stacklevel=2,
            )
            return 0.0

    def clock(self) -> "Clock":
        """A clock that adds this start to `elapsed_s`."""
        return Clock(self.path / _CLOCK_FILE, self.elapsed_s())

    def summarise(self, trial: TrialRecord, config: TrainConfig, splits: Sequence[Split]) -> report.Trial:
        """A trial for the report, from the study and the trial's folder.

        Args:
            trial: the study's record of it.
            config: of the trial.
            splits: of the sweep's folds.
        """
        runs = [(fold, fold.records()) for fold in self.folds(trial.number, config, splits)]
        seen = [records for _, records in runs if records]
        in_training = [records for fold, records in runs if records and not fold.is_finished] or seen[-1:]
        state = "failed" if trial.state == "unfinished" else trial.state
        return report.Trial(
            number=trial.number,
            state=state,
            value=trial.value,
            params=trial.params,
            history=mean_history(seen),
            duration_s=sum(record.epoch_s for records in seen for record in records),
            reason=trial.reason,
            num_epochs=sum(map(len, seen)),
            folds=trial.folds,
            cost=trial.cost,
            last_epoch=max(map(len, in_training), default=0) - 1 if state == "pruned" and seen else None,
        )


class Clock:
    """Counts the seconds of a sweep over its starts."""

    def __init__(self, file: Path, before_s: float) -> None:
        self._file, self._before_s, self._started = file, before_s, time.monotonic()

    def save(self) -> float:
        """Write the seconds down, so that a killed sweep loses few of them; returns them."""
        elapsed_s = self._before_s + time.monotonic() - self._started
        files.write_text(self._file, json.dumps({"elapsed_s": elapsed_s}))
        return elapsed_s


def mean_history(histories: Sequence[Sequence[EpochRecord]]) -> list[dict[str, float | None]]:
    """A row per epoch: the means over the folds that trained that epoch."""
    rows = []
    for epoch in range(max(map(len, histories), default=0)):
        at = [asdict(records[epoch]) for records in histories if epoch < len(records)]
        row: dict[str, float | None] = {}
        for key in at[0]:
            values = [each[key] for each in at if each[key] is not None]
            row[key] = mean(values) if values else None
        rows.append(row | {"epoch": epoch})
    return rows
