"""Drives a sweep's trials under Ray Tune: it asks the study, reports to it, and remembers nothing itself.

If something fails in the driver's own process, such as the study's database or a logger, Ray Tune would end
all trials immediately, or ignore the failure. So Ray calls everything through `Driver.guarded`: after a
failure the sweep stops as if it was asked to, its trials save themselves, and the same command resumes it.
"""

import json
import shutil
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from ray.tune.search import Searcher

from mhimdist import files
from mhimdist.report import formats
from mhimdist.report.formats import last_line
from mhimdist.search.options import COSTS, OBJECTIVE
from mhimdist.search.study import Proposal, SweepStudy
from mhimdist.sweep.folder import PROCESS_FILE, Clock, SweepFolder
from mhimdist.sweep.live_trials import Capacity, FailureStreak, LiveTrial, LiveTrials
from mhimdist.sweep.memory import TrialShares, is_of_a_gpu, is_out_of_memory, smaller_step
from mhimdist.sweep.silence import Silence, Silent
from mhimdist.sweep.trainable import ENDED_FILE
from mhimdist.sweep.watch import Watch
from mhimdist.training.folds import ERROR_FILE

SAVING_S = 60.0
"""Seconds that trials may take to save themselves after they were asked to stop."""

SHARE = "share"
"""In a trial's configuration for Ray, the key of a share that is larger than planned."""


class Driver:
    """The common part of searcher, scheduler and callbacks, in the one process that drives the sweep.

    Attributes:
        capacity: how many trials run at once.
        error: the failure that stops the sweep; None without one.
        is_over: whether Ray Tune is to end the trials that still run.
    """

    def __init__(
        self,
        study: SweepStudy,
        folder: SweepFolder,
        watch: Watch,
        clock: Clock,
        unfinished: list[Proposal],
        *,
        capacity: Capacity,
        shares: TrialShares,
        sizes_N: np.ndarray,
        silence: Silence,
        is_asked_to_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Drive the rest of a sweep.

        Args:
            study, folder, watch, clock: of the sweep.
            unfinished: trials of an earlier start, which run first.
            capacity: how many trials run at once.
            shares: the shares of the cluster that trials are given.
            sizes_N: instances of each bag.
            silence: knows how long trials report nothing.
            is_asked_to_stop: whether a signal has asked the sweep to stop.
        """
        self.study, self.folder, self.watch, self.clock = study, folder, watch, clock
        self.capacity, self._shares, self._is_asked_to_stop = capacity, shares, is_asked_to_stop
        self._trials = LiveTrials(unfinished)
        self._endings = Endings(study, folder, watch, self._trials, shares, sizes_N)
        self._silence = silence
        self._deadline: float | None = None
        self.error: Exception | None = None
        self.is_over = False

    def __reduce__(self) -> Any:
        return _nothing, ()  # Ray writes a copy of its searcher to disk; nothing here reads it

    @property
    def num_live(self) -> int:
        """Trials that the same command resumes if this process ends now."""
        return len(self._trials)

    @property
    def is_stopping(self) -> bool:
        """Whether no further trial begins, and running trials are asked to save themselves."""
        return self.error is not None or self._is_asked_to_stop()

    def guarded(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """The result of a function; None if it fails, and the sweep then stops in order."""
        try:
            return function(*arguments, **named)
        except Exception as error:
            self.error = self.error or error
            return None

    def end_in_order(self) -> None:
        """Note that nothing killed this start, so that no trial is taken for the cause."""
        records = self.study.records
        for trial in self._trials:
            if trial.is_begun and not records[trial.number].has_ended:
                self.study.uncount_start(trial.number)

    def suggest(self, ray_id: str) -> dict[str, Any] | str | None:
        """The next trial's configuration for Ray, None to wait, or `FINISHED` if there is no more."""
        running = self._trials.given_to_ray
        if self.is_stopping:
            return None if running else Searcher.FINISHED
        if len(running) >= self.capacity.at_once:
            return None
        trial = self._next()
        if trial is None:
            return None if running else Searcher.FINISHED  # a running trial may come back, out of memory
        self._begin(trial, ray_id)
        params = self.study.record(trial.number).params
        share = self._shares.enlarged(trial.number)
        return {"number": trial.number, **params} | ({SHARE: asdict(share)} if share else {})

    def decide(self, ray_id: str, result: Mapping[str, Any]) -> str | None:
        """Record a trial's report; returns why the trial is to be stopped, or None."""
        trial = self._trials.find(ray_id)
        if "folds" not in result or trial is None:
            return None
        trial.note_report(result["epoch"], result.get("hostname", ""))
        self._silence.reported(trial.number)
        folds = json.loads(result["folds"])
        self._show(trial, step=result["epoch"], num_folds=len(folds), value=result[OBJECTIVE])
        reason = self.study.report(
            trial.number,
            result["epoch"],
            result[OBJECTIVE],
            folds,
            # The base is never stopped: the other trials are compared with it.
            may_stop=not result["is_finished"] and trial.number > 0,
        )
        if reason is not None:
            trial.stop_reason = reason
        return reason

    def note_error(self, ray_id: str, error: str) -> None:
        """Note why Ray lost a trial's process; `ended` follows."""
        if trial := self._trials.find(ray_id):
            trial.error = trial.silence or error

    def ended(self, ray_id: str, result: Mapping[str, Any] | None, error: bool) -> None:
        """Record how a trial ended, or have it wait for its next process.

        Args:
            ray_id: Ray's name for the trial.
            result: the trial's last report, if it made one.
            error: whether its process was lost.
        """
        trial = self._trials.find(ray_id)
        if trial is None:
            return
        trial.ray_id = None
        self._silence.forget(trial.number)
        if result is not None and "hostname" in result:
            trial.host = result["hostname"]
        if error or result is None:
            self._endings.lost(trial)
        elif result.get("is_saved"):
            self.watch.set_aside(trial.number)
        elif "failed" in result:
            self._endings.failed(trial, result["failed"])
        elif result["is_finished"]:
            self._endings.completed(trial, result)
        else:
            self._endings.pruned(trial, result)
        self.clock.save()

    def tick(self, running: Collection[int]) -> list[int]:
        """Update how many trials fit and what is shown of them, and stop the sweep if it is asked to.

        While it stops, `is_over` says whether every trial has saved itself.

        Args:
            running: numbers of the trials that have a process now.

        Returns:
            Numbers of the trials whose process is to be ended, as it has reported nothing for too long.
        """
        self.watch.tick(running)
        ended = [] if self.is_stopping else [each.number for each in self._silent(running) if each.is_over]
        if self.capacity.recount():
            fitting = formats.count(self.capacity.at_once, "trial")
            self.watch.print_line(f"the cluster's nodes have changed: {fitting} at once")
        if self.is_stopping:
            if self._deadline is None:
                self._deadline = self._ask_to_save(len(running))
            self.is_over = not running or time.monotonic() > self._deadline
        return ended

    def _silent(self, running: Collection[int]) -> list[Silent]:
        """The trials that are newly silent for long, after they have been named."""
        found = self._silence.look(running)
        for each in found:
            host, pid = self.folder.process(each.number)
            what = f"has reported nothing for {formats.rounded(each.silent_s)}"
            where = f"(process {pid} on {host})" if pid else "(its process has not begun)"
            text = f"trial {each.number} {what} {where}; the longest epoch took "
            text += formats.rounded(each.longest_s)
            if each.is_over:
                text += ": its process is ended"
                for trial in self._trials.given_to_ray:
                    if trial.number == each.number:
                        trial.silence, trial.host = f"it {what} {where}", host or trial.host
            elif each.limit_s is not None:
                text += f", and its process is ended after {formats.rounded(each.limit_s)}"
            self.watch.print_line(text)
        return found

    def _ask_to_save(self, num_running: int) -> float:
        """Ask all trials to save themselves; returns the time at which the others are ended."""
        to_save = formats.count(num_running, "running trial")
        why = "asked to stop" if self.error is None else f"the sweep cannot continue ({one_line(self.error)})"
        self.watch.print_line(f"{why}: saving {to_save}; ask again to end them at once")
        deadline = time.monotonic() + SAVING_S
        try:
            self.folder.stop_file.touch()
        except OSError:  # such as a full disk: the trials end where they are, with their checkpoints
            deadline = time.monotonic()
        return deadline

    def _next(self) -> LiveTrial | None:
        """The trial to run next: a waiting one, otherwise a new one; None if the study has no more."""
        trial = self._trials.next_waiting()
        if trial is None and (proposal := self.study.propose()):
            trial = LiveTrial(proposal)
        for news in self.study.take_news():
            self.watch.print_line(news)
            self.watch.num_trials = self.study.num_trials
        return trial

    def _begin(self, trial: LiveTrial, ray_id: str) -> None:
        """Write a trial's configuration for its process, and count it among Ray's trials."""
        folder = self.folder.trial(trial.number)
        folder.mkdir(parents=True, exist_ok=True)
        files.write_text(folder / "config.json", trial.proposal.config.model_dump_json(indent=1))
        if not trial.is_begun:
            trial.is_begun = True
            self.study.count_start(trial.number, self.folder.num_epochs(trial.number))
        (folder / PROCESS_FILE).unlink(missing_ok=True)
        self._silence.begun(trial.number, trial.proposal.config)
        self._trials.give_to_ray(trial, ray_id)
        self._show(trial)

    def _show(self, trial: LiveTrial, **progress: Any) -> None:
        sweep = self.study.sweep
        num_steps = sweep.num_waves * sweep.train.epochs
        self.watch.progressed(trial.number, num_steps=num_steps, all_folds=sweep.folds_per_trial, **progress)


class Endings:
    """Handles the trials that Ray gives back: their end is recorded, or they wait to run again."""

    def __init__(
        self,
        study: SweepStudy,
        folder: SweepFolder,
        watch: Watch,
        trials: LiveTrials,
        shares: TrialShares,
        sizes_N: np.ndarray,
    ) -> None:
        """Handle a sweep's trials.

        Args:
            study, folder, watch: of the sweep.
            trials: the live trials.
            shares: the shares of the cluster that trials are given.
            sizes_N: instances of each bag.
        """
        self.study, self.folder, self.watch = study, folder, watch
        self._trials, self._shares, self._sizes_N = trials, shares, sizes_N
        self._failures = FailureStreak()

    def completed(self, trial: LiveTrial, result: Mapping[str, Any]) -> None:
        """Record the value of a trial that trained all its epochs.

        Args:
            trial: the trial.
            result: its last report.

        Raises:
            SweepError: its value is not finite, and it is the last of too many failures in a row.
        """
        number, study, value = trial.number, self.study, result[OBJECTIVE]
        # Ray does not ask its scheduler about a trial's last report.
        study.report(number, result["epoch"], value, json.loads(result["folds"]), may_stop=False)
        cost = COSTS.get(study.sweep.against)
        study.complete(number, value, result[cost.field] if cost else None)
        text = self._score(result) + (f", {cost.text} {result[cost.field]:.3g}" if cost else "")
        state = study.record(number).state
        self._note_end(trial, state)
        self.watch.ended(number, state, value, text)
        if state == "failed":
            self._failures.add(trial, "its value is not finite", study.sweep.max_failures_in_a_row)

    def pruned(self, trial: LiveTrial, result: Mapping[str, Any]) -> None:
        """Record that a trial was stopped early.

        Args:
            trial: the trial.
            result: its last report.
        """
        self.study.prune(trial.number, trial.stop_reason)
        self._note_end(trial, "pruned")
        self.watch.ended(trial.number, "pruned", result[OBJECTIVE], self._score(result))

    def _score(self, result: Mapping[str, Any]) -> str:
        value, epochs = result[OBJECTIVE], result["num_epochs"]
        return f"validation {self.watch.score} {value:.3f} after {epochs:>3} epochs"

    def failed(self, trial: LiveTrial, reason: str) -> None:
        """Record that a trial failed, unless it ran out of memory and can be given more.

        Raises:
            SweepError: it is the last of too many failures in a row.
        """
        if not (is_out_of_memory(reason) and self._give_memory(trial, "ran out of memory", reason)):
            self._record_failure(trial, reason)

    def lost(self, trial: LiveTrial) -> None:
        """Have a trial resume after its process was lost, unless that happens too often.

        Raises:
            SweepError: it was lost too often, and it is the last of too many failures in a row.
        """
        reason = trial.error
        what = "was killed because its node ran out of memory"
        if is_out_of_memory(reason) and self._give_memory(trial, what, reason):
            return
        trial.num_losses += 1
        if trial.num_losses > self.study.sweep.max_failures:
            times = formats.count(trial.num_losses, "time") + " in a row"
            lost = f"its process was lost {times}"
            if not trial.silence:
                lost += ": killed, out of memory, or its node is gone"
            self._record_failure(trial, f"{lost} ({last_line(reason)})" if reason else lost)
            return
        more = ""
        if trial.num_losses > 1 and "its node" not in reason and not trial.silence:
            # The kernel's out-of-memory killer leaves no message: a second loss is taken for its work.
            more = ", with more memory" if self._shares.enlarge(trial.number, of_a_gpu=False) else ""
        self._trials.wait(trial)
        self.watch.print_line(
            f"trial {trial.number} lost its process; it resumes from its last checkpoint{more}"
        )

    def _give_memory(self, trial: LiveTrial, what: str, reason: str) -> bool:
        """Have a trial that ran out of memory run again, with more memory or smaller steps.

        Args:
            trial: the trial.
            what: what happened to it, for the terminal.
            reason: its error.

        Returns:
            False if it has all the memory already, and its steps cannot be smaller.
        """
        of_a_gpu = is_of_a_gpu(reason)
        is_short = trial.ran_beside_others or (of_a_gpu and self._shares.is_capped(trial.number))
        if is_short and self._shares.enlarge(trial.number, of_a_gpu=of_a_gpu):
            self._trials.wait(trial)
            share = self._shares.enlarged(trial.number)
            assert share is not None, "it was given a larger share"
            given = f"{share.gpus:.3g} GPU" if of_a_gpu and share.gpus else formats.mib(share.memory_bytes)
            self.watch.print_line(f"trial {trial.number} {what}: it runs again with {given} to itself")
            return True
        max_instances = smaller_step(trial.proposal.config, self._sizes_N)
        if max_instances is None:
            return False
        trial.proposal = self.study.change(trial.number, {"max_instances": max_instances})
        self._trials.wait(trial)
        for run in self.folder.trial(trial.number).glob("fold-*"):  # of the earlier configuration
            shutil.rmtree(run)
        self.watch.print_line(
            f"trial {trial.number} {what} with no other trial beside it: it begins again with steps of at "
            f"most {max_instances:,} instances"
        )
        return True

    def _record_failure(self, trial: LiveTrial, reason: str) -> None:
        where = f" (on {trial.host})" if trial.host else ""
        file = self.folder.trial(trial.number) / ERROR_FILE
        details = file.read_text(encoding="utf-8").rstrip() if file.exists() else reason
        self.study.fail(trial.number, details + where)
        self._note_end(trial, "failed")
        self.watch.ended(trial.number, "failed", None, reason + where)
        self._failures.add(trial, reason, self.study.sweep.max_failures_in_a_row)

    def _note_end(self, trial: LiveTrial, state: str) -> None:
        """Tell a trial's process that the study has the trial's end, so that nothing resumes it."""
        self._trials.drop(trial)
        files.write_text(self.folder.trial(trial.number) / ENDED_FILE, f"{state}\n")
        if state != "failed":
            self._failures.end()


def one_line(error: Exception) -> str:
    """Kind and text of an error."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def _nothing() -> None:
    return None
