"""What drives a sweep's trials under Ray Tune: it asks the study, tells it, and remembers nothing itself.

Where something fails in the driver's own process, such as the study's database or a logger, Ray Tune would
end all trials at once, or go on without the failure. So `Driver.guarded` stands between Ray and what it
calls: the sweep then stops as if it was asked to, its trials save themselves, and the same command goes on.
"""

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from ray.tune.search import Searcher

from mhimdist import atomic
from mhimdist.errors import SweepError
from mhimdist.fold import ERROR_FILE
from mhimdist.report import formats
from mhimdist.report.live import Watch
from mhimdist.report.sweep import last_line
from mhimdist.room import Room, is_of_a_gpu, is_out_of_memory, smaller_step
from mhimdist.study import Proposal, SweepStudy
from mhimdist.sweep import COSTS, OBJECTIVE
from mhimdist.sweep_folder import Clock, SweepFolder
from mhimdist.tune_trial import ENDED_FILE

SAVING_S = 60.0
"""How long trials that were asked to stop may take to save themselves."""

LOOK_S = 10.0
"""How often the cluster is looked at, whose nodes come and go."""

SHARE = "share"
"""Names what a trial is given in its configuration for Ray, where that is more than planned."""


class Driver:
    """What searcher, scheduler and callbacks share: it lives in the one process that drives the sweep.

    Attributes:
        error: what stops the sweep, if something does.
        is_over: whether Ray Tune is to end what still runs.
    """

    def __init__(
        self,
        study: SweepStudy,
        folder: SweepFolder,
        watch: Watch,
        clock: Clock,
        unfinished: list[Proposal],
        room: Room,
        *,
        sizes_N: np.ndarray,
        is_asked_to_stop: Callable[[], bool] = lambda: False,
        fitting: Callable[[], int] | None = None,
    ) -> None:
        """Drive what is left of a sweep.

        Args:
            study, folder, watch, clock: of the sweep.
            unfinished: trials of an earlier start, which come first.
            room: what trials are given.
            sizes_N: instances of each bag.
            is_asked_to_stop: by a signal.
            fitting: how many trials fit on the cluster as it is now; None: as many as at the start.
        """
        self.study, self.folder, self.watch, self.clock = study, folder, watch, clock
        self._waiting = unfinished
        self._sizes_N, self._is_asked_to_stop = sizes_N, is_asked_to_stop
        self._room, self._fitting, self._looked = room, fitting, time.monotonic()
        self._live: dict[str, Proposal] = {}
        self._accompanied: set[str] = set()
        self._started: set[int] = set()
        self._reasons: dict[str, str] = {}
        self._errors: dict[str, str] = {}
        self._losses: Counter[int] = Counter()
        self._steps: dict[int, int] = {}
        self._hosts: dict[int, str] = {}
        self._failures: list[str] = []
        self._num_saved = 0
        self._deadline: float | None = None
        self.error: Exception | None = None
        self.is_over = False

    def __reduce__(self) -> Any:
        return _nothing, ()  # Ray keeps a copy of its searcher on disk, which nothing here reads

    @property
    def num_live(self) -> int:
        """Trials that were started and have not ended."""
        return len(self._live) + len(self._waiting) + self._num_saved

    @property
    def is_stopping(self) -> bool:
        """Whether no trial is begun any more, and those that run are to save themselves."""
        return self.error is not None or self._is_asked_to_stop()

    def guarded(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """What a function gives; None where it fails, and the sweep stops in order."""
        try:
            return function(*arguments, **named)
        except Exception as error:
            self.error = self.error or error
            return None

    def left(self) -> None:
        """Note that this start ends in order, so that no trial is taken for what has ended it."""
        trials = self.study.trials
        for number in self._started:
            if not trials[number].state.is_finished():
                self.study.outlived(number)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial's configuration for Ray, None to wait, or that there is no more."""
        if self.is_stopping:
            return None if self._live else Searcher.FINISHED
        if len(self._live) >= self._room.at_once:
            return None
        proposal = self._waiting.pop(0) if self._waiting else self.study.propose()
        for news in self.study.take_news():
            self.watch.say(news)
            self.watch.num_trials = self.study.num_trials
        if proposal is None:
            return None if self._live else Searcher.FINISHED  # one may come back, out of memory
        trial = self.folder.trial(proposal.number)
        trial.mkdir(parents=True, exist_ok=True)
        atomic.write_text(trial / "config.json", proposal.config.model_dump_json(indent=1))
        if proposal.number not in self._started:
            self._started.add(proposal.number)
            self.study.started(proposal.number, self.folder.num_epochs(proposal.number))
        self._live[trial_id] = proposal
        if len(self._live) > 1:
            self._accompanied |= self._live.keys()
        sweep = self.study.sweep
        self.watch.progressed(
            proposal.number, num_steps=sweep.num_waves * sweep.train.epochs, all_folds=sweep.num_units
        )
        params = self.study.trials[proposal.number].params
        share = self._room.share(proposal.number)
        return {"number": proposal.number, **params} | ({SHARE: asdict(share)} if share else {})

    def decide(self, trial_id: str, result: Mapping[str, Any]) -> str | None:
        """Record what a trial reports; returns why it is to be stopped, or None."""
        if "units" not in result or trial_id not in self._live:
            return None
        sweep, proposal = self.study.sweep, self._live[trial_id]
        self._got_to(proposal.number, result)
        units = json.loads(result["units"])
        self.watch.progressed(
            proposal.number,
            step=result["epoch"],
            num_steps=sweep.num_waves * sweep.train.epochs,
            num_folds=len(units),
            all_folds=sweep.num_units,
            value=result[OBJECTIVE],
        )
        reason = self.study.report(
            proposal.number,
            result["epoch"],
            result[OBJECTIVE],
            units,
            # The base is what the others are compared with.
            may_stop=not result["is_finished"] and proposal.number > 0,
        )
        if reason is not None:
            self._reasons[trial_id] = reason
        return reason

    def ended(self, trial_id: str, result: Mapping[str, Any] | None, error: bool) -> None:
        """Record how a trial ended."""
        proposal = self._live.pop(trial_id, None)
        if proposal is None:
            return
        number, study, sweep = proposal.number, self.study, self.study.sweep
        is_alone = trial_id not in self._accompanied
        if result is not None and "hostname" in result:
            self._hosts[number] = result["hostname"]
        if error or result is None:
            self._lost(proposal, self._errors.pop(trial_id, ""), is_alone=is_alone)
        elif result.get("is_saved"):
            self._num_saved += 1
            self.watch.left(number)
        elif "failed" in result:
            reason = result["failed"]
            is_full = is_out_of_memory(reason)
            if not (is_full and self._make_room(proposal, "ran out of memory", reason, is_alone=is_alone)):
                self._failed(number, reason)
        elif result["is_finished"]:
            # Ray does not ask its scheduler about a trial's last report.
            units = json.loads(result["units"])
            study.report(number, result["epoch"], result[OBJECTIVE], units, may_stop=False)
            cost = COSTS.get(sweep.against)
            study.complete(number, result[OBJECTIVE], result[cost.field] if cost else None)
            text = f"validation AUC {result[OBJECTIVE]:.3f} after {result['num_epochs']:>3} epochs"
            if cost:
                text += f", {cost.text} {result[cost.field]:.3g}"
            state = "complete" if study.trials[number].state.name == "COMPLETE" else "failed"
            self._note_end(number, state)
            self.watch.ended(number, state, result[OBJECTIVE], text)
            if state == "failed":
                self._check_failures(number, "its value is not finite")
        else:
            study.prune(number, self._reasons.get(trial_id, "stopped"))
            self._note_end(number, "pruned")
            value = result[OBJECTIVE]
            text = f"validation AUC {value:.3f} after {result['num_epochs']:>3} epochs"
            self.watch.ended(number, "pruned", value, text)
        self.clock.save()

    def broke(self, trial_id: str, error: str) -> None:
        """Note why Ray lost a trial, before `ended` says that it did."""
        self._errors[trial_id] = error

    def stepped(self, running: Collection[int]) -> None:
        """Look how many trials fit, what they do, and whether all is to stop.

        `is_over` then says when every trial has saved itself.

        Args:
            running: trials in processes of theirs now.
        """
        self.watch.beat(running)
        if self._fitting and time.monotonic() - self._looked > LOOK_S:
            self._looked, before = time.monotonic(), self._room.at_once
            self._room.at_once = self._fitting()
            if self._room.at_once != before:
                fitting = formats.count(self._room.at_once, "trial")
                self.watch.say(f"the cluster's nodes have changed: {fitting} at once")
        if not self.is_stopping:
            return
        if self._deadline is None:
            self._deadline = time.monotonic() + SAVING_S
            to_save = formats.count(len(running), "running trial")
            why = "asked to stop" if self.error is None else f"it cannot go on ({one_line(self.error)})"
            self.watch.say(f"{why}: {to_save} to save; asked again, it ends at once")
            try:
                self.folder.stop_file.touch()
            except OSError:  # on a full disk, say: then they end where they are, with their checkpoints
                self._deadline = time.monotonic()
        self.is_over = not running or time.monotonic() > self._deadline

    def _lost(self, proposal: Proposal, reason: str, *, is_alone: bool) -> None:
        """Have a trial whose process was lost go on, unless it happens too often."""
        number = proposal.number
        what = "was killed because its node ran out of memory"
        if is_out_of_memory(reason) and self._make_room(proposal, what, reason, is_alone=is_alone):
            return
        self._losses[number] += 1
        if self._losses[number] > self.study.sweep.max_failures:
            times = formats.count(self._losses[number], "time") + " in a row"
            lost = f"its process was lost {times}: killed, out of memory, or its node gone"
            self._failed(number, f"{lost} ({last_line(reason)})" if reason else lost)
            return
        more = ""
        if self._losses[number] > 1 and "its node" not in reason:
            # The kernel's killer leaves no word: what loses its process twice is taken for its victim.
            more = ", with more memory" if self._room.give_more(number, of_a_gpu=False) else ""
        self._waiting.insert(0, proposal)
        self.watch.say(f"trial {number}: its process was lost; it goes on from its last checkpoint{more}")

    def _make_room(self, proposal: Proposal, what: str, reason: str, *, is_alone: bool) -> bool:
        """Have a trial that ran out of memory run again with more of it; false where there is none."""
        number = proposal.number
        of_a_gpu = is_of_a_gpu(reason)
        if not is_alone and self._room.give_more(number, of_a_gpu=of_a_gpu):
            self._waiting.insert(0, proposal)
            share = self._room.share(number)
            assert share is not None, "it was given more"
            given = f"{share.gpus:.3g} GPU" if of_a_gpu and share.gpus else formats.mib(share.memory_bytes)
            self.watch.say(f"trial {number} {what}: it runs again with {given} to itself")
            return True
        max_instances = smaller_step(proposal.config, self._sizes_N)
        if max_instances is None:
            return False
        self._waiting.insert(0, self.study.change(number, {"max_instances": max_instances}))
        for run in self.folder.trial(number).glob("fold-*"):  # of another configuration now
            shutil.rmtree(run)
        self.watch.say(
            f"trial {number} {what} with no other beside it: it begins again with steps of at most "
            f"{max_instances:,} instances"
        )
        return True

    def _failed(self, number: int, reason: str) -> None:
        where = f" (on {self._hosts[number]})" if self._hosts.get(number) else ""
        file = self.folder.trial(number) / ERROR_FILE
        details = file.read_text(encoding="utf-8").rstrip() if file.exists() else reason
        self.study.fail(number, details + where)
        self._note_end(number, "failed")
        self.watch.ended(number, "failed", None, reason + where)
        self._check_failures(number, reason)

    def _check_failures(self, number: int, reason: str) -> None:
        """Count a trial that failed.

        Raises:
            SweepError: so many in a row have that it is no fault of theirs.
        """
        self._failures.append(self._hosts.get(number) or "an unknown node")
        if len(self._failures) == self.study.sweep.max_failures_in_a_row:
            by_node = ", ".join(f"{times} on {node}" for node, times in Counter(self._failures).most_common())
            raise SweepError(
                f"{formats.count(len(self._failures), 'trial')} in a row failed ({by_node}), trial {number} "
                f"as the last: {reason}; mend it and add --retry-failed to the same command, or allow more "
                "with --max-failures-in-a-row"
            )

    def _note_end(self, number: int, state: str) -> None:
        """Let a trial's process know that the study has its end, so that nobody will go on with it."""
        atomic.write_text(self.folder.trial(number) / ENDED_FILE, f"{state}\n")
        if state != "failed":
            self._failures.clear()

    def _got_to(self, number: int, result: Mapping[str, Any]) -> None:
        """Note a report: a trial that has got on since it lost its process begins to be counted anew."""
        self._hosts[number] = result.get("hostname", "")
        if result["epoch"] > self._steps.get(number, 0):
            self._steps[number] = result["epoch"]
            self._losses.pop(number, None)


def one_line(error: Exception) -> str:
    """Kind and text of an error."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def _nothing() -> None:
    return None
