"""The Optuna study of a sweep: the one record of what was proposed, reported and decided.

Everything that decides anything is in the study's database before it is acted upon: a trial with its
parameters when it starts, every epoch's value when it is reported, the values of finished folds. Whoever
opens the study again, after a kill -9 too, goes on with it.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from mhimdist.config.train import TrainConfig
from mhimdist.report import formats
from mhimdist.search import grid, proposals, pruning, samplers, storage
from mhimdist.search.options import Sweep
from mhimdist.search.proposals import Facts, Key, Params
from mhimdist.search.space import SpaceFunction
from mhimdist.search.trial_record import FOLDS, REASON, TrialRecord, trial_record

CHANGES = "changes"
STARTS = "starts"
IMPOSSIBLE = "impossible"
EXHAUSTED = "exhausted"
EPOCHS = "epochs_at_start"
RETRY_OF = "retry_of"


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
        self._unsampled = _Unsampled([*first, *grid.points(sweep, space, facts)])
        directions = [StudyDirection.MAXIMIZE]
        if sweep.against != "none":
            directions.append(StudyDirection.MINIMIZE)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = storage.create(url, sweep.name, owner, directions)
        self._study.pruner = pruning.within_folds(sweep)
        self._refusals = _Refusals(self._study)

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials, by number."""
        return self._study.get_trials(deepcopy=False)

    @property
    def records(self) -> list[TrialRecord]:
        """All trials as plain data, by number."""
        return [trial_record(trial) for trial in self.trials]

    def record(self, number: int) -> TrialRecord:
        """A trial as plain data."""
        return trial_record(self.trials[number])

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
            elif (starts := _starts(trial, num_epochs(trial.number))) >= max_starts:
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

    def count_start(self, number: int, num_epochs: int) -> None:
        """Note that a start of the sweep begins with a trial, for the first time or again.

        Args:
            number: of the trial.
            num_epochs: that it has done.
        """
        trial = self.trials[number]
        live = self._live(trial)
        live.set_user_attr(STARTS, _starts(trial, num_epochs) + 1)
        live.set_user_attr(EPOCHS, num_epochs)

    def uncount_start(self, number: int) -> None:
        """Take back what `started` has noted: this start ends in order, so no trial has ended it."""
        trial = self.trials[number]
        self._live(trial).set_user_attr(STARTS, trial.user_attrs[STARTS] - 1)

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
        return self._num_trials(self.trials)

    def _num_trials(self, trials: Sequence[FrozenTrial]) -> int:
        self._unsampled.look_at(trials)
        if self.sweep.is_grid:
            left = self._unsampled.num_left
        else:
            left = 0 if self._refusals.is_exhausted else self.sweep.num_trials
        own = len(trials) - self._unsampled.num_retries
        num_wanted = max(own, min(self.sweep.num_trials, own + left))
        return self._unsampled.num_retries + len(self._retries) + num_wanted

    def notes(self) -> list[str]:
        """What there is to say of the draws."""
        notes = []
        if self.sweep.is_grid:
            num = self._unsampled.num
            more = f"num_trials {self.sweep.num_trials} tries so many of them, in an order of the seed"
            notes.append(
                f"the grid, with what is tried before it, has {num:,} points; "
                + (more if num > self.sweep.num_trials else "all are tried")
            )
        return notes + self._refusals.notes()

    def take_news(self) -> list[str]:
        """What there is to say since this was asked last."""
        return self._refusals.take_news()

    def propose(self) -> Proposal | None:
        """The next trial, already in the database; None once there are enough or the space has no more.

        Raises:
            ImpossibleDrawError: one of the trials that no sampler proposes makes no valid configuration.
        """
        trials = self.trials
        number = len(trials)
        marks: dict[str, Any] = {}
        attributes: Mapping[str, Any] = {}
        if self._retries:
            failed = self._retries.pop(0)
            params: Params | None = failed.params
            marks = {RETRY_OF: failed.number}
        elif number >= self._num_trials(trials):
            return None
        else:
            params = self._unsampled.next
        if params is not None:
            drawn = proposals.draw(self.space, self.sweep.train, proposals.fixed(params))
        else:
            sampled = samplers.sample(
                self.sweep,
                self.space,
                trials,
                self._study.directions,
                is_tried=self._unsampled.is_tried,
                on_impossible=self._refusals.count,
            )
            if sampled.draw is None:
                self._refusals.exhaust(number, self.sweep.num_trials, sampled.refused)
                return None
            drawn, attributes = sampled.draw, sampled.attributes
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

    def report(
        self, number: int, step: int, value: float, folds: Mapping[str, float], *, may_stop: bool
    ) -> str | None:
        """Record a trial's value after an epoch; returns why it should be stopped, or None.

        Args:
            number: of the trial.
            step: epochs done over all its folds, from 1.
            value: mean validation AUC of its folds so far.
            folds: values of its finished folds, by name.
            may_stop: whether it may be stopped at all.
        """
        trial = self.trials[number]
        if self.sweep.against == "none" and step not in trial.intermediate_values:
            self._live(trial).report(value, step)
        if dict(folds) != trial.user_attrs.get(FOLDS, {}):
            self._live(trial).set_user_attr(FOLDS, dict(folds))
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
            others = [t.user_attrs.get(FOLDS, {}) for t in self.trials if t.number != number]
            reason = pruning.between_folds(folds, others, self.sweep.folds_per_trial)
        return reason

    def complete(self, number: int, value: float, cost: float | None) -> None:
        """Record a finished trial; one whose value is not finite has failed.

        Args:
            number: of the trial.
            value: of the objective.
            cost: of the second objective; None where there is none.
        """
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


def _starts(trial: FrozenTrial, num_epochs: int) -> int:
    """Starts that were killed while a trial ran, since it last got on."""
    has_got_on = num_epochs > trial.user_attrs.get(EPOCHS, 0)
    return 0 if has_got_on else trial.user_attrs.get(STARTS, 0)


class _Refusals:
    """What there is to say of refused draws; it is kept in the study's attributes."""

    def __init__(self, study: optuna.Study) -> None:
        self._study = study
        self._news: list[str] = []

    @property
    def is_exhausted(self) -> bool:
        """Whether the space was found to have no more."""
        return EXHAUSTED in self._study.user_attrs

    def count(self, error: proposals.ImpossibleDrawError) -> None:
        """Count an impossible draw.

        A branch so rare that no probe before the start came to it must not end a sweep of a week.
        """
        counts = dict(self._study.user_attrs.get(IMPOSSIBLE, {}))
        if error.reason not in counts:
            self._news.append(f"{error}; another one is drawn")
        counts[error.reason] = counts.get(error.reason, 0) + 1
        self._study.set_user_attr(IMPOSSIBLE, counts)

    def exhaust(self, num_trials: int, num_wanted: int, refused: Counter[str]) -> None:
        """Note that the space has no more.

        Args:
            num_trials: trials that the sweep has come to.
            num_wanted: trials that it was asked for.
            refused: how many draws were refused for each reason.
        """
        reasons = ", ".join(f"{count} {reason}" for reason, count in refused.most_common())
        why = (
            f"the space has no more: of {samplers.MAX_DRAWS} draws none was new and as required ({reasons}); "
            f"the sweep ends with {formats.count(num_trials, 'trial')} of {num_wanted}"
        )
        self._study.set_user_attr(EXHAUSTED, why)
        self._news.append(why)

    def notes(self) -> list[str]:
        """All there is to say."""
        attributes = self._study.user_attrs
        notes = [attributes[EXHAUSTED]] if EXHAUSTED in attributes else []
        for reason, count in attributes.get(IMPOSSIBLE, {}).items():
            notes.append(f"{formats.count(count, 'draw')} impossible and drawn again: {reason}")
        return notes

    def take_news(self) -> list[str]:
        """What there is to say since this was asked last."""
        news, self._news = self._news, []
        return news


class _Unsampled:
    """The trials that no sampler proposes, and which parameters a study has tried.

    A trial that has ended is looked at once, so that a look costs what is new and what runs.

    Attributes:
        num: of these trials.
        num_retries: trials of the study that run a failed one's configuration again.
    """

    def __init__(self, wanted: Iterable[Params]) -> None:
        """Begin.

        Args:
            wanted: parameters of the trials, in their order; those that come again are left out.
        """
        self._left = {proposals.key(params): params for params in proposals.distinct(wanted)}
        self.num = len(self._left)
        self.num_retries = 0
        self._num_seen = 0
        self._unfinished: list[int] = []
        self._ended_keys: set[Key] = set()
        self._unfinished_keys: set[Key] = set()

    def look_at(self, trials: Sequence[FrozenTrial]) -> None:
        """Take in what is new of a study's trials, which stand in the order of their numbers."""
        new = range(self._num_seen, len(trials))
        self._num_seen = len(trials)
        self.num_retries += sum(RETRY_OF in trials[number].user_attrs for number in new)
        unfinished, self._unfinished, self._unfinished_keys = [*self._unfinished, *new], [], set()
        for number in unfinished:
            key = proposals.key(trials[number].params)
            if trials[number].state.is_finished():
                self._ended_keys.add(key)
                self._left.pop(key, None)
            else:  # its parameters may still change, where it is not of this software
                self._unfinished.append(number)
                self._unfinished_keys.add(key)

    def is_tried(self, params: Params) -> bool:
        """Whether a trial has these parameters."""
        key = proposals.key(params)
        return key in self._ended_keys or key in self._unfinished_keys

    @property
    def next(self) -> Params | None:
        """Parameters of the next of these trials; None after the last."""
        return next((params for key, params in self._left.items() if key not in self._unfinished_keys), None)

    @property
    def num_left(self) -> int:
        """How many of these trials are still to be proposed."""
        return len(self._left) - len(self._left.keys() & self._unfinished_keys)


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
