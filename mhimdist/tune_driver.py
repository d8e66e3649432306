"""What drives a sweep's trials under Ray Tune: it asks the study, tells it, and remembers nothing itself."""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from mhimdist import atomic
from mhimdist.report import formats
from mhimdist.report.live import Watch
from mhimdist.study import Proposal, SweepStudy
from mhimdist.sweep import COSTS, OBJECTIVE
from mhimdist.sweep_folder import Clock, SweepFolder
from mhimdist.tune_trial import ERROR_FILE


class Driver:
    """What searcher, scheduler and callback share: it lives in the one process that drives the sweep."""

    def __init__(
        self,
        study: SweepStudy,
        folder: SweepFolder,
        watch: Watch,
        clock: Clock,
        unfinished: list[Proposal],
        at_once: int,
    ) -> None:
        self.study, self.folder, self.watch, self.clock = study, folder, watch, clock
        self._waiting = unfinished
        self._limit = at_once
        self._live: dict[str, Proposal] = {}
        self._reasons: dict[str, str] = {}
        self._losses: Counter[int] = Counter()
        self._out_of_memory: set[int] = set()

    def __reduce__(self) -> Any:
        return _nothing, ()  # Ray keeps a copy of its searcher on disk, which nothing here reads

    @property
    def num_live(self) -> int:
        """Trials that were started and have not ended."""
        return len(self._live) + len(self._waiting)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial's configuration for Ray, None to wait, or that there is no more."""
        if len(self._live) >= self._limit:
            return None
        proposal = self._waiting.pop(0) if self._waiting else self.study.propose()
        if proposal is None:
            return None if self._live else Searcher.FINISHED  # one may come back, out of memory
        trial = self.folder.trial(proposal.number)
        trial.mkdir(parents=True, exist_ok=True)
        atomic.write_text(trial / "config.json", proposal.config.model_dump_json(indent=1))
        self.study.started(proposal.number)
        self._live[trial_id] = proposal
        sweep = self.study.sweep
        self.watch.progressed(
            proposal.number, num_steps=sweep.num_waves * sweep.train.epochs, all_folds=sweep.num_units
        )
        params = self.study.trials[proposal.number].params
        return {"number": proposal.number, **params}

    def decide(self, trial_id: str, result: Mapping[str, Any]) -> str | None:
        """Record what a trial reports; returns why it is to be stopped, or None."""
        if "failed" in result or trial_id not in self._live:
            return None
        sweep, proposal = self.study.sweep, self._live[trial_id]
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
        if error or result is None:
            self._losses[number] += 1
            if self._losses[number] > sweep.max_failures:
                times = formats.count(self._losses[number], "time")
                self._failed(number, f"its process was lost {times}: killed, out of memory, or its node gone")
            else:
                self._waiting.insert(0, proposal)
        elif result.get("is_out_of_memory") and self._make_room(number, "ran out of memory"):
            self._waiting.append(proposal)
        elif "failed" in result:
            self._failed(number, result["failed"])
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
            self.watch.ended(number, state, result[OBJECTIVE], text)
        else:
            study.prune(number, self._reasons.get(trial_id, "stopped"))
            value = result[OBJECTIVE]
            text = f"validation AUC {value:.3f} after {result['num_epochs']:>3} epochs"
            self.watch.ended(number, "pruned", value, text)
        self.clock.save()

    def lost(self, number: int, reason: str) -> None:
        """Say that a trial's process was lost, after it was put back to be started again."""
        if not any(proposal.number == number for proposal in self._waiting):
            return
        if "OutOfMemory" in reason or "out of memory" in reason:
            self._make_room(number, "was killed because its node ran out of memory")
        else:
            self.watch.say(f"trial {number}: its process was lost; it goes on from its last checkpoint")

    def _make_room(self, number: int, what: str) -> bool:
        """Run fewer trials at once after one ran out of memory; false where that cannot help."""
        if number in self._out_of_memory or not self._live:
            return False
        self._out_of_memory.add(number)
        self._limit = min(self._limit, len(self._live))  # one less than ran when it happened
        self.watch.say(
            f"trial {number} {what}: from now on {formats.count(self._limit, 'trial')} at once, and it runs "
            "again"
        )
        return True

    def _failed(self, number: int, reason: str) -> None:
        file = self.folder.trial(number) / ERROR_FILE
        details = file.read_text(encoding="utf-8") if file.exists() else reason
        self.study.fail(number, details)
        self.watch.ended(number, "failed", None, reason)


def _nothing() -> None:
    return None


class StudySearcher(Searcher):
    """Passes Ray Tune's questions to the study."""

    def __init__(self, driver: Driver) -> None:
        super().__init__()
        self._driver = driver

    def suggest(self, trial_id: str) -> Any:
        """See `Driver.suggest`."""
        return self._driver.suggest(trial_id)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """See `Driver.ended`."""
        self._driver.ended(trial_id, result, error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study has it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


class StudyScheduler(FIFOScheduler):
    """Passes every report to the study, and stops the trials that it says."""

    def __init__(self, driver: Driver) -> None:
        super().__init__()
        self._driver = driver

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """See `Driver.decide`."""
        if self._driver.decide(trial.trial_id, result) is not None:
            return TrialScheduler.STOP
        return TrialScheduler.CONTINUE


class Following(tune.Callback):
    """Notes the trials whose process was lost."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """See `Driver.lost`."""
        self._driver.lost(trial.config["number"], str(trial.get_error() or ""))
