"""Finds the trials that have reported nothing for long: they are named, and later their process is ended.

A stopped or hanging process fails in no way that Ray notices. How long a report may take follows from the
epochs that were seen: those of all trials, and the calibration's before any trial has reported.
"""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal

from mhimdist.config.train import TrainConfig

NAMED_EPOCHS, NAMED_S = 10, 60.0
"""A trial is named after this many of its longest epochs and this many seconds without a report."""

ENDED_EPOCHS, ENDED_S = 30, 600.0
"""Its process is ended after this many of any trial's longest epochs and this many seconds."""

ENDED_STAGES = 3
"""A trial that needs a first stage has this many times its length more, as it may train it or wait for it."""

AWAY_S = 30.0
"""Seconds between two looks from which on the driver itself was stopped, so that no trial could report."""


@dataclass(frozen=True)
class Silent:
    """A trial that has reported nothing for long.

    Attributes:
        number: of the trial.
        silent_s: seconds since its last report, or since its process was there.
        longest_s: the longest epoch: of the trial itself, or before its second report of any.
        limit_s: seconds after which its process is ended; None: never.
        is_over: whether they have passed.
    """

    number: int
    silent_s: float
    longest_s: float
    limit_s: float | None
    is_over: bool


@dataclass
class _Seen:
    """What was seen of a trial: its first stage's length in epochs, its reports, and when it last gave one.

    `since` is None while the trial waits for a process, `longest_s` before the second report.
    """

    stage_epochs: int
    num_reports: int = 0
    since: float | None = None
    longest_s: float | None = None
    is_named: bool = False
    is_ended: bool = False


class Silence:
    """The time since each running trial's last report."""

    def __init__(
        self,
        epoch_s: float,
        limit: float | Literal["auto", "off"] = "auto",
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin with no trial.

        Args:
            epoch_s: seconds of an epoch, as calibrated for trials that run beside each other.
            limit: seconds after which a silent trial's process is ended; "auto" derives them from the epochs.
            clock: returns the time in seconds.
        """
        self._longest_s, self._limit, self._clock = epoch_s, limit, clock
        self._looked = clock()
        self._trials: dict[int, _Seen] = {}

    def begun(self, number: int, config: TrainConfig) -> None:
        """Note that a trial is given to Ray, and may wait for room."""
        teacher = config.teacher
        needs_stage = teacher.is_pretrained and not teacher.has_outside_weights
        self._trials[number] = _Seen(config.first_stage().epochs if needs_stage else 0)

    def reported(self, number: int) -> None:
        """Note a trial's report."""
        trial, now = self._trials[number], self._clock()
        if trial.num_reports and trial.since is not None:
            trial.longest_s = max(trial.longest_s or 0.0, now - trial.since)
            self._longest_s = max(self._longest_s, trial.longest_s)
        trial.num_reports += 1
        trial.since, trial.is_named = now, False

    def look(self, running: Collection[int]) -> list[Silent]:
        """The trials to name, each once per silence, and those whose process is to be ended, once.

        Args:
            running: trials that have a process; the others wait for one.
        """
        now = self._clock()
        away_s, self._looked = now - self._looked, now
        found = []
        for number, trial in self._trials.items():
            if number not in running:
                trial.since = None
                continue
            if trial.since is None:
                trial.since = now
            elif away_s > AWAY_S:
                trial.since += away_s
            if (silent := self._judge(number, trial, now - trial.since)) is not None:
                found.append(silent)
        return found

    def forget(self, number: int) -> None:
        """Note that Ray has given a trial back."""
        self._trials.pop(number, None)

    def _judge(self, number: int, trial: _Seen, silent_s: float) -> Silent | None:
        limit_s = self._limit_s(trial)
        is_over = limit_s is not None and silent_s > limit_s and not trial.is_ended
        name_s = max(NAMED_EPOCHS * (trial.longest_s or self._longest_s), NAMED_S)
        if trial.longest_s is None:
            name_s += trial.stage_epochs * self._longest_s
        if not is_over and (trial.is_named or silent_s <= name_s):
            return None
        trial.is_named, trial.is_ended = True, trial.is_ended or is_over
        return Silent(number, silent_s, trial.longest_s or self._longest_s, limit_s, is_over)

    def _limit_s(self, trial: _Seen) -> float | None:
        if self._limit == "off":
            return None
        if self._limit != "auto":
            return self._limit
        longest_s = self._longest_s
        return max(ENDED_EPOCHS * longest_s, ENDED_S) + ENDED_STAGES * trial.stage_epochs * longest_s
