"""The trials of a sweep that have not ended for the study, and how many of them run at once."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from mhimdist.errors import SweepError
from mhimdist.report import formats
from mhimdist.search.study import Proposal

RECOUNT_S = 10.0
"""Seconds between two counts of the cluster's nodes, which come and go."""


@dataclass
class LiveTrial:
    """A trial that has not ended for the study: it runs, waits for a process, or has saved itself.

    Attributes:
        proposal: its number and its configuration.
        is_begun: whether this start of the sweep has given it to Ray.
        ray_id: Ray's name for it; None unless Ray has it now.
        ran_beside_others: whether Ray had another trial at the same time, since it was given this one.
        stop_reason: why the study stops it early.
        error: Ray's error for the loss of its process.
        silence: why this process of it was ended, if it reported nothing for too long.
        num_losses: processes that it lost since it last made progress.
        last_step: the largest number of epochs that it has reported, over all its folds.
        host: the node from which it last reported.
    """

    proposal: Proposal
    is_begun: bool = False
    ray_id: str | None = None
    ran_beside_others: bool = False
    stop_reason: str = "stopped"
    error: str = ""
    silence: str = ""
    num_losses: int = 0
    last_step: int = 0
    host: str = ""

    @property
    def number(self) -> int:
        """Its number in the study."""
        return self.proposal.number

    def note_report(self, step: int, host: str) -> None:
        """Note a report; after progress its lost processes are counted from 0 again."""
        self.host = host
        if step > self.last_step:
            self.last_step, self.num_losses = step, 0


class LiveTrials:
    """The live trials, by number, and the queue of those that wait to run."""

    def __init__(self, unfinished: Iterable[Proposal]) -> None:
        """Begin with the unfinished trials of an earlier start of the sweep; they wait."""
        self._waiting = [LiveTrial(proposal) for proposal in unfinished]
        self._trials = {trial.number: trial for trial in self._waiting}

    def __len__(self) -> int:
        return len(self._trials)

    def __iter__(self) -> Iterator[LiveTrial]:
        return iter(self._trials.values())

    @property
    def given_to_ray(self) -> list[LiveTrial]:
        """The trials that Ray has now."""
        return [trial for trial in self if trial.ray_id is not None]

    def find(self, ray_id: str) -> LiveTrial | None:
        """The trial of this name, if Ray has it now."""
        return next((trial for trial in self if trial.ray_id == ray_id), None)

    def next_waiting(self) -> LiveTrial | None:
        """Take the first trial that waits, if one does."""
        return self._waiting.pop(0) if self._waiting else None

    def wait(self, trial: LiveTrial) -> None:
        """Queue a trial that Ray gave back, before all others."""
        self._waiting.insert(0, trial)

    def give_to_ray(self, trial: LiveTrial, ray_id: str) -> None:
        """Count a trial among those that Ray has.

        Args:
            trial: a waiting trial, or a new one.
            ray_id: Ray's name for it, new for each time that Ray is given it.
        """
        self._trials[trial.number] = trial
        trial.ray_id, trial.ran_beside_others, trial.stop_reason, trial.error = ray_id, False, "stopped", ""
        trial.silence = ""
        given_to_ray = self.given_to_ray
        for each in given_to_ray:
            each.ran_beside_others = each.ran_beside_others or len(given_to_ray) > 1

    def drop(self, trial: LiveTrial) -> None:
        """Forget a trial that has ended for the study."""
        del self._trials[trial.number]


class Capacity:
    """How many trials run at once on a cluster whose nodes come and go.

    Attributes:
        at_once: trials that fit, as last counted.
    """

    def __init__(self, count: Callable[[], int]) -> None:
        """Count; `count` returns how many trials fit on the cluster as it is now."""
        self.count = count
        self.at_once, self._counted = count(), time.monotonic()

    def recount(self) -> bool:
        """Count again if it is time; returns whether the number has changed."""
        if time.monotonic() - self._counted <= RECOUNT_S:
            return False
        self._counted, before = time.monotonic(), self.at_once
        self.at_once = self.count()
        return self.at_once != before


class FailureStreak:
    """The trials that failed in a row, by their nodes."""

    def __init__(self) -> None:
        self._hosts: list[str] = []

    def end(self) -> None:
        """End the streak: a trial did not fail."""
        self._hosts.clear()

    def add(self, trial: LiveTrial, reason: str, limit: int) -> None:
        """Count a trial that failed.

        Args:
            trial: the trial.
            reason: why it failed.
            limit: the number in a row that stops the sweep.

        Raises:
            SweepError: `limit` trials in a row have failed, so the cause is not in them.
        """
        self._hosts.append(trial.host or "an unknown node")
        if len(self._hosts) == limit:
            by_node = ", ".join(f"{times} on {node}" for node, times in Counter(self._hosts).most_common())
            raise SweepError(
                f"{formats.count(limit, 'trial')} in a row failed ({by_node}), the last is "
                f"trial {trial.number}: {reason}; fix the cause and add --retry-failed to the same command, "
                "or allow more failures with --max-failures-in-a-row"
            )
