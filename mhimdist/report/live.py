"""A sweep in the terminal while it runs: a table that follows it, or in a job's log a line a trial."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich import get_console
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mhimdist.report import formats


@dataclass(frozen=True)
class Running:
    """A trial that runs.

    Attributes:
        number: of the trial.
        started: when, by `time.monotonic`.
        step, num_steps: epochs done over all its folds, and of a complete trial.
        num_folds, all_folds: folds done, and of a complete trial.
        value: its mean validation AUC so far; None before the first epoch.
    """

    number: int
    started: float
    step: int
    num_steps: int
    num_folds: int
    all_folds: int
    value: float | None


class Watch:
    """What is shown of a sweep; enter it while trials run.

    Attributes:
        best: value and number of the best complete trial so far.
    """

    def __init__(
        self, console: Console, *, num_trials: int, at_once: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin to watch.

        Args:
            console: a terminal gets a table that follows, anything else lines.
            num_trials: of the whole sweep.
            at_once: trials that run at the same time.
            clock: seconds.
        """
        self.num_trials, self.at_once = num_trials, at_once
        self.best: tuple[float, int] | None = None
        self._console, self._clock = console, clock
        self._running: dict[int, Running] = {}
        self._counts = {"complete": 0, "pruned": 0, "failed": 0}
        self._num_found = 0
        self._started = clock()
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

    def found(self, number: int, state: str, value: float | None) -> None:
        """Count a trial that an earlier start of the sweep has ended."""
        self._num_found += 1
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
        """Note that a trial has started, or done another epoch."""
        before = self._running.get(number)
        started = before.started if before else self._clock()
        self._running[number] = Running(number, started, step, num_steps, num_folds, all_folds, value)

    def ended(self, number: int, state: str, value: float | None, text: str) -> None:
        """Print a line for a trial that ended.

        Args:
            number: of the trial.
            state: complete, pruned or failed.
            value: mean validation AUC of its folds; only a complete trial's can be the best.
            text: what there is to say of it.
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

    def left(self, number: int) -> None:
        """Note that a trial no longer runs, and has not ended."""
        self._running.pop(number, None)

    def say(self, text: str) -> None:
        """Print a line of its own."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    @property
    def _num_done(self) -> int:
        return sum(self._counts.values())

    def _count(self, number: int, state: str, value: float | None) -> None:
        self._counts[state] += 1
        if state == "complete" and value is not None and (self.best is None or value > self.best[0]):
            self.best = (value, number)

    def left_s(self) -> float | None:
        """Seconds until all trials are done, by how long they took so far; None before the first ended."""
        new = self._num_done - self._num_found
        if not new:
            return None
        per_trial = (self._clock() - self._started) / new
        begun = sum(each.step / each.num_steps for each in self._running.values()) / 2
        return per_trial * max(0.0, self.num_trials - self._num_done - begun)

    def _summary(self) -> str:
        best = f"best {self.best[0]:.3f} (trial {self.best[1]})" if self.best else "none complete"
        left = self.left_s()
        more = f", about {formats.rounded(left)} left" if left else ""
        return f"{best} | {formats.rounded(self._clock() - self._started)}{more}"

    def __rich__(self) -> Group:
        """The table of the trials that run."""
        table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
        for heading in ("running", "folds", "epochs", "validation AUC", "time"):
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


def say(text: str) -> None:
    """Print a line of plain text, however long."""
    get_console().print(text, highlight=False, markup=False, soft_wrap=True)
