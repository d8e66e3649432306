"""A running sweep in the terminal: a table that follows it, or in a job's log a line per trial."""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mhimdist import terminal
from mhimdist.report import formats

STATUS_EVERY_S = 180.0
"""Seconds between two lines on the running trials in a job's log."""


@dataclass(frozen=True)
class Running:
    """A running trial.

    Attributes:
        number: of the trial.
        started: time of its start, by `time.monotonic`.
        step, num_steps: epochs done over all its folds, and epochs of a complete trial.
        num_folds, all_folds: folds done, and folds of a complete trial.
        value: its mean validation score so far; None before the first epoch.
    """

    number: int
    started: float
    step: int
    num_steps: int
    num_folds: int
    all_folds: int
    value: float | None


class Watch:
    """The display of a sweep; enter it while trials run.

    Attributes:
        best: value and number of the best complete trial so far.
    """

    def __init__(
        self,
        console: Console,
        *,
        num_trials: int,
        clock: Callable[[], float] = time.monotonic,
        score: str = "AUC",
    ) -> None:
        """Begin to watch.

        Args:
            console: a terminal gets a table that is updated, anything else gets lines.
            num_trials: trials of the whole sweep.
            clock: returns the time in seconds.
            score: name of a trial's value.
        """
        self.score = score
        self.num_trials = num_trials
        self.best: tuple[float, int] | None = None
        self._console, self._clock = console, clock
        self._running: dict[int, Running] = {}
        self._counts = {"complete": 0, "pruned": 0, "failed": 0}
        self._num_earlier = 0
        self._started = self._status_printed = clock()
        self._live = (
            Live(self, console=console, refresh_per_second=2, transient=True) if console.is_terminal else None
        )

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def count_ended(self, number: int, state: str, value: float | None) -> None:
        """Count a trial that ended in an earlier start of the sweep.

        Args:
            number: of the trial.
            state: complete, pruned or failed.
            value: mean validation score of its folds; None if there is none.
        """
        self._num_earlier += 1
        self._count(number, state, value)

    def progressed(
        self,
        number: int,
        *,
        step: int = 0,
        num_steps: int,
        num_folds: int = 0,
        all_folds: int,
        value: float | None = None,
    ) -> None:
        """Note that a trial has started, or has done another epoch.

        Args:
            number: of the trial.
            step, num_steps: epochs done over all its folds, and epochs of a complete trial.
            num_folds, all_folds: folds done, and folds of a complete trial.
            value: its mean validation score so far; None before the first epoch.
        """
        before, now = self._running.get(number), self._clock()
        self._running[number] = Running(
            number,
            before.started if before else now,
            step,
            num_steps,
            num_folds,
            all_folds,
            value,
        )

    def ended(self, number: int, state: str, value: float | None, text: str) -> None:
        """Print a line for a trial that ended.

        Args:
            number: of the trial.
            state: complete, pruned or failed.
            value: mean validation score of its folds; only a complete trial's can be the best.
            text: its result or its error.
        """
        self._running.pop(number, None)
        self._count(number, state, value)
        width = len(str(self.num_trials))
        self._console.print(
            f"[{self._num_done:>{width}}/{self.num_trials}] trial {number:>{max(3, width)}} {state:<8} "
            f"{text} | "
            f"{self._summary()}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )

    def set_aside(self, number: int) -> None:
        """Note that a trial no longer runs, and has not ended."""
        self._running.pop(number, None)

    def tick(self, running: Collection[int]) -> None:
        """Print the running trials every few minutes, unless a table shows them.

        Args:
            running: trials that have a process; the others wait for one.
        """
        now = self._clock()
        if self._live or now - self._status_printed < STATUS_EVERY_S:
            return
        self._status_printed = now
        shown = [self._running[number] for number in sorted(running) if number in self._running]
        texts = [
            f"trial {each.number} {each.step}/{each.num_steps} {formats.auc(each.value)}" for each in shown
        ]
        waiting = len(self._running) - len(shown)
        if waiting:
            texts.append(f"{formats.count(waiting, 'trial')} waiting for room")
        self.print_line(
            f"[{self._num_done}/{self.num_trials}] running (epochs, validation {self.score}): "
            f"{', '.join(texts)} | {self._summary()}"
        )

    def print_line(self, text: str) -> None:
        """Print a line of plain text, however long."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    @property
    def _num_done(self) -> int:
        return sum(self._counts.values())

    def _count(self, number: int, state: str, value: float | None) -> None:
        self._counts[state] += 1
        if state == "complete" and value is not None and (self.best is None or value > self.best[0]):
            self.best = (value, number)

    def remaining_s(self) -> float | None:
        """Estimated seconds until all trials are done; None before a trial of this start has ended."""
        new = self._num_done - self._num_earlier
        if not new:
            return None
        per_trial = (self._clock() - self._started) / new
        begun = sum(each.step / each.num_steps for each in self._running.values()) / 2
        return per_trial * max(0.0, self.num_trials - self._num_done - begun)

    def _summary(self) -> str:
        best = f"best {self.best[0]:.3f} (trial {self.best[1]})" if self.best else "none complete"
        remaining_s = self.remaining_s()
        more = f", about {formats.rounded(remaining_s)} left" if remaining_s else ""
        return f"{best} | {formats.rounded(self._clock() - self._started)}{more}"

    def __rich__(self) -> Group:
        """The table of the running trials."""
        table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
        for heading in ("running", "folds", "epochs", f"validation {self.score}", "time"):
            table.add_column(heading, justify="right", no_wrap=True)
        for each in sorted(self._running.values(), key=lambda running: running.number):
            table.add_row(
                f"trial {each.number}",
                f"{each.num_folds}/{each.all_folds}",
                f"{each.step}/{each.num_steps}",
                formats.auc(each.value),
                formats.duration(self._clock() - each.started),
            )
        counts = ", ".join(f"{number} {state}" for state, number in self._counts.items() if number)
        line = f"{self._num_done} of {self.num_trials} done ({counts or 'none yet'}) | {self._summary()}"
        return Group(table, Text(line))


def print_line(text: str) -> None:
    """Print a line of progress as plain text, however long."""
    terminal.progress().print(text, highlight=False, markup=False, soft_wrap=True)


def warn(text: str) -> None:
    """Print a line of plain text that a quiet command shows, too."""
    terminal.console().print(text, highlight=False, markup=False, soft_wrap=True)
