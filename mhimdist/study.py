"""The Optuna study of a sweep: the one record of what was proposed, reported and decided.

Everything that decides anything is in the study's database before it is acted upon: a trial with its
parameters when it starts, every epoch's value when it is reported, the values of finished folds. Whoever
opens the study again, after a kill -9 too, goes on with it.
"""

import json
import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from mhimdist import grid, pruning, samplers, storage
from mhimdist.config import TrainConfig
from mhimdist.report import formats
from mhimdist.samplers import Facts, Params
from mhimdist.space import SpaceFunction
from mhimdist.sweep import Sweep

CHANGES = "changes"
UNITS = "units"
REASON = "reason"
STARTS = "starts"
IMPOSSIBLE = "impossible"
EXHAUSTED = "exhausted"
EPOCHS = "epochs_at_start"
RETRY_OF = "retry_of"

MAX_DRAWS = 500
"""Draws that requirements, or earlier trials of the same configuration, may refuse before a space is given
up."""


@dataclass(frozen=True)
class Proposal:
    """A trial to run.

    Attributes:
        number: of the trial.
        config: the full configuration, with the base's seed.
        is_resumed: whether an earlier start of the sweep began with it.
    """

    number: int
    config: TrainConfig
    is_resumed: bool = False


class SweepStudy:
    """The study of one sweep, for the one process that drives it."""

    def __init__(
        self,
        sweep: Sweep,
        space: SpaceFunction,
        facts: Facts,
        url: str,
        first: Sequence[Params] = (),
        owner: storage.Owner | None = None,
    ) -> None:
        """Open the study, or begin it.

        Args:
            sweep: what is searched for and how.
            space: what a trial changes of `sweep.train`.
            facts: of the space.
            url: of Optuna's storage.
            first: parameters of the trials that no sampler proposes; the points of a grid follow them.
            owner: the sweep's folder.

        Raises:
            SweepError: no database answers, or its study of that name is another sweep's.
        """
        self._retries: list[FrozenTrial] = []
        self.sweep, self.space, self.facts, self.url = sweep, space, facts, url
        self._ahead = samplers.distinct([*first, *grid.points(sweep, space, facts)])
        self._news: list[str] = []
        directions = [StudyDirection.MAXIMIZE]
        if sweep.against != "none":
            directions.append(StudyDirection.MINIMIZE)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = storage.create(url, sweep.name, owner, directions)
        self._study.pruner = pruning.within_folds(sweep)

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials, by number."""
        return self._study.get_trials(deepcopy=False)

    def unfinished(self, max_starts: int, num_epochs: Callable[[int], int]) -> list[Proposal]:
        """Trials of an earlier start of the sweep that never ended, to go on with.

        Those that cannot are marked as failed: trials that are not of this software, and those that were
        started so often without getting on that they must be what ended the sweep.

        Args:
            max_starts: starts in a row that were killed before a trial has done an epoch more.
            num_epochs: epochs that a trial has done.
        """
        found = []
        for trial in self.trials:
            if trial.state.is_finished():
                continue
            if CHANGES not in trial.user_attrs:
                self.fail(trial.number, "an orphan: nothing says which configuration it ran")
            elif (starts := self._starts(trial, num_epochs(trial.number))) >= max_starts:
                reason = (
                    f"the sweep was killed {starts} times in a row while it ran, and it did no epoch more"
                )
                self.fail(trial.number, reason)
            else:
                found.append(Proposal(trial.number, self._config(trial), is_resumed=True))
        return found

    def change(self, number: int, changes: Mapping[str, Any]) -> Proposal:
        """Change settings of a trial that runs which are no parameters of it; returns it as it is now."""
        trial = self.trials[number]
        all_changes = json.loads(trial.user_attrs[CHANGES]) | dict(changes)
        self._live(trial).set_user_attr(CHANGES, json.dumps(all_changes))
        return Proposal(number, self.config(number), is_resumed=True)

    def started(self, number: int, num_epochs: int) -> None:
        """Note that a start of the sweep begins with a trial, for the first time or again.

        Args:
            number: of the trial.
            num_epochs: that it has done.
        """
        trial = self.trials[number]
        live = self._live(trial)
        live.set_user_attr(STARTS, self._starts(trial, num_epochs) + 1)
        live.set_user_attr(EPOCHS, num_epochs)

    def outlived(self, number: int) -> None:
        """Take back what `started` has noted: this start ends in order, so no trial has ended it."""
        trial = self.trials[number]
        self._live(trial).set_user_attr(STARTS, trial.user_attrs[STARTS] - 1)

    @staticmethod
    def _starts(trial: FrozenTrial, num_epochs: int) -> int:
        """Starts that were killed while a trial ran, since it last got on."""
        has_got_on = num_epochs > trial.user_attrs.get(EPOCHS, 0)
        return 0 if has_got_on else trial.user_attrs.get(STARTS, 0)

    def retry_failed(self) -> None:
        """Have the configurations of trials that failed proposed again, each as a trial of its own, once."""
        retried = {trial.user_attrs.get(RETRY_OF) for trial in self.trials}
        self._retries = [
            trial
            for trial in self.trials
            if trial.state == TrialState.FAIL and CHANGES in trial.user_attrs and trial.number not in retried
        ]

    @property
    def num_trials(self) -> int:
        """Trials that the sweep will have: fewer than asked for where the space has no more, and one more for
        each that is run again.
        """
        known = self._known()
        if self.sweep.is_grid:
            left = sum(samplers.key(params) not in known for params in self._ahead)
        else:
            left = 0 if EXHAUSTED in self._study.user_attrs else self.sweep.num_trials
        num_retries = sum(RETRY_OF in trial.user_attrs for trial in self.trials)
        own = len(self.trials) - num_retries
        return num_retries + len(self._retries) + max(own, min(self.sweep.num_trials, own + left))

    def notes(self) -> list[str]:
        """What there is to say of the draws."""
        attributes, notes = self._study.user_attrs, []
        if self.sweep.is_grid:
            num = len(self._ahead)
            more = f"num_trials {self.sweep.num_trials} tries so many of them, in an order of the seed"
            notes.append(
                f"the grid, with what is tried before it, has {num:,} points; "
                + (more if num > self.sweep.num_trials else "all are tried")
            )
        if EXHAUSTED in attributes:
            notes.append(attributes[EXHAUSTED])
        for reason, count in attributes.get(IMPOSSIBLE, {}).items():
            notes.append(f"{formats.count(count, 'draw')} impossible and drawn again: {reason}")
        return notes

    def take_news(self) -> list[str]:
        """What there is to say since this was asked last."""
        news, self._news = self._news, []
        return news

    def propose(self) -> Proposal | None:
        """The next trial, already in the database; None once there are enough or the space has no more."""
        number = len(self.trials)
        marks: dict[str, Any] = {}
        attributes: Mapping[str, Any] = {}
        if self._retries:
            failed = self._retries.pop(0)
            params: Params | None = failed.params
            marks = {RETRY_OF: failed.number}
        elif number >= self.num_trials:
            return None
        else:
            known = self._known()
            params = next((each for each in self._ahead if samplers.key(each) not in known), None)
        if params is not None:
            drawn = samplers.draw(self.space, self.sweep.train, samplers.fixed(params))
        else:
            found = self._draw(number)
            if found is None:
                return None
            drawn, attributes = found
        self._study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.RUNNING,
                params=drawn.params,
                distributions=drawn.distributions,
                user_attrs={CHANGES: json.dumps(drawn.changes)} | marks,
                system_attrs=dict(attributes),
            )
        )
        return Proposal(number, drawn.config)

    def _known(self) -> set[frozenset[tuple[str, Any]]]:
        return {samplers.key(trial.params) for trial in self.trials}

    def _draw(self, number: int) -> tuple[samplers.Draw, Mapping[str, Any]] | None:
        """What the sampler proposes that is new and meets the space's requirements.

        Draws are made in a copy of the study, so that refused ones leave no trace in the record.
        """
        copy = optuna.create_study(directions=self._study.directions, sampler=optuna.samplers.RandomSampler())
        copy.add_trials(self.trials)
        known, refused = self._known(), Counter[str]()
        for attempt in range(MAX_DRAWS):
            copy.sampler = samplers.make(self.sweep, number, attempt)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                trial = copy.ask()
                try:
                    drawn = samplers.draw(self.space, self.sweep.train, trial)
                except samplers.ImpossibleDrawError as error:
                    self._count_impossible(error)
                    refused["impossible"] += 1
                else:
                    if drawn.unmet is None and samplers.key(drawn.params) not in known:
                        return drawn, copy.get_trials(deepcopy=False)[trial.number].system_attrs
                    refused["tried before" if drawn.unmet is None else f"not to {drawn.unmet}"] += 1
            copy.tell(trial, state=TrialState.FAIL)
        reasons = ", ".join(f"{count} {reason}" for reason, count in refused.most_common())
        why = (
            f"the space has no more: of {MAX_DRAWS} draws none was new and as required ({reasons}); the "
            f"sweep ends with {formats.count(number, 'trial')} of {self.sweep.num_trials}"
        )
        self._study.set_user_attr(EXHAUSTED, why)
        self._news.append(why)
        return None

    def _count_impossible(self, error: samplers.ImpossibleDrawError) -> None:
        """A branch so rare that no probe before the start came to it must not end a sweep of a week."""
        counts = dict(self._study.user_attrs.get(IMPOSSIBLE, {}))
        if error.reason not in counts:
            self._news.append(f"{error}; another one is drawn")
        counts[error.reason] = counts.get(error.reason, 0) + 1
        self._study.set_user_attr(IMPOSSIBLE, counts)

    def report(
        self, number: int, step: int, value: float, units: Mapping[str, float], *, may_stop: bool
    ) -> str | None:
        """Record a trial's value after an epoch; returns why it should be stopped, or None.

        Args:
            number: of the trial.
            step: epochs done over all its folds, from 1.
            value: mean validation AUC of its folds so far.
            units: values of its finished folds, by name.
            may_stop: whether it may be stopped at all.
        """
        trial = self.trials[number]
        if self.sweep.against == "none" and step not in trial.intermediate_values:
            self._live(trial).report(value, step)
        if dict(units) != trial.user_attrs.get(UNITS, {}):
            self._live(trial).set_user_attr(UNITS, dict(units))
        if not self.sweep.is_pruning:
            return None
        reason = None
        # Asked of every trial: a rung counts those that went on whatever it said.
        is_behind = self._study.pruner.prune(self._study, self.trials[number])
        if not may_stop:
            return None
        if is_behind:
            reason = f"{value:.3f} after {step} epochs (scheduler {self.sweep.scheduler})"
        elif self.sweep.between_folds:
            others = [t.user_attrs.get(UNITS, {}) for t in self.trials if t.number != number]
            reason = pruning.between_folds(units, others, self.sweep.num_units)
        return reason

    def complete(self, number: int, value: float, cost: float | None) -> None:
        """Record a finished trial; one whose value is not finite has failed."""
        values = [value] if cost is None else [value, cost]
        if not all(map(math.isfinite, values)):
            self.fail(number, f"its value is not finite: {values}")
            return
        self._study.tell(number, values)

    def prune(self, number: int, reason: str) -> None:
        """Record a trial that was stopped early."""
        self._live(self.trials[number]).set_user_attr(REASON, reason)
        self._study.tell(number, state=TrialState.PRUNED)

    def fail(self, number: int, reason: str) -> None:
        """Record a trial that failed, and why."""
        self._live(self.trials[number]).set_user_attr(REASON, reason)
        self._study.tell(number, state=TrialState.FAIL)

    def importances(self) -> dict[str, float]:
        """See `importances`."""
        return importances(self._study)

    def pareto_front(self) -> list[int]:
        """Numbers of the trials that no other beats in both objectives; empty with one objective."""
        return [] if self.sweep.against == "none" else sorted(t.number for t in self._study.best_trials)

    def _config(self, trial: FrozenTrial) -> TrainConfig:
        return self.sweep.train.override(json.loads(trial.user_attrs[CHANGES]))

    def config(self, number: int) -> TrainConfig:
        """The full configuration of a trial, with the base's seed."""
        return self._config(self.trials[number])

    def _live(self, trial: FrozenTrial) -> optuna.Trial:
        return optuna.Trial(self._study, trial._trial_id)


def importances(study: optuna.Study) -> dict[str, float]:
    """The share of each parameter in what varies between complete trials, by fANOVA; empty if undefined.

    A parameter that only some trials have cannot be compared over all of them and is left out.
    """
    complete: Sequence[FrozenTrial] = study.get_trials(states=[TrialState.COMPLETE])
    if len(complete) < 4 or len({trial.values[0] for trial in complete}) == 1:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    shares = optuna.importance.get_param_importances(
        study, evaluator=evaluator, target=lambda trial: trial.values[0]
    )
    return {name: share for name, share in shares.items() if math.isfinite(share)}
