"""The Optuna study of a sweep: the one record of all proposals, reports and decisions.

The study's database has everything that decides anything before anyone acts on it: a trial with its
parameters when it starts, every epoch's value when it is reported, the values of finished folds. A process
that opens the study again, even after a kill -9, resumes it.
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

# Names of attributes, of the study or of its trials.
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
        is_resumed: whether an earlier start of the sweep began it.
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
            sweep: the settings of the search.
            space: the search space over `sweep.train`.
            facts: the facts about the space.
            url: of the study's database.
            first: parameters of the first trials, which no sampler proposes; the points of a grid follow.
            owner: the sweep that must own the study; None leaves the owner open.

        Raises:
            SweepError: no database answers, another sweep owns the study of that name, or the grid is too
                large or empty.
        """
        self._retries: list[FrozenTrial] = []
        self.sweep, self.space, self.facts, self.url = sweep, space, facts, url
        self._unsampled = _Unsampled([*first, *grid.points(sweep, space, facts)])
        directions = [StudyDirection.MAXIMIZE]
        if sweep.against != "none":
            directions.append(StudyDirection.MINIMIZE)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study, self._mirror = storage.create(url, sweep.name, owner, directions)
        self._study.pruner = pruning.within_folds(sweep)
        self._refusals = _Refusals(self._study)

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials, by number."""
        self._mirror.look(_is_ours)
        return self._study.get_trials(deepcopy=False)

    @property
    def records(self) -> list[TrialRecord]:
        """All trials as plain data, by number."""
        return [trial_record(trial) for trial in self.trials]

    def record(self, number: int) -> TrialRecord:
        """A trial as plain data."""
        return trial_record(self._mirror.numbered(number))

    def unfinished(self, max_starts: int, num_epochs: Callable[[int], int]) -> list[Proposal]:
        """Trials that an earlier start of the sweep began and nothing ended, to be resumed.

        Trials that cannot be resumed are marked as failed: those that another program added, and those that
        were running so often when the sweep was killed, without any progress, that they must be the cause.

        Args:
            max_starts: killed starts in a row without another epoch, after which a trial counts as the cause.
            num_epochs: returns the epochs that a trial has done, by its number.
        """
        found = []
        for trial in self.trials:
            if trial.state.is_finished():
                continue
            if not _is_ours(trial):
                self.fail(trial.number, "an orphan: the study does not say which configuration it ran")
            elif (starts := _starts(trial, num_epochs(trial.number))) >= max_starts:
                reason = f"the sweep was killed {starts} times in a row while this trial ran and did no epoch"
                self.fail(trial.number, reason)
            else:
                found.append(Proposal(trial.number, self._config(trial), is_resumed=True))
        return found

    def change(self, number: int, changes: Mapping[str, Any]) -> Proposal:
        """Change settings of a running trial that are not its parameters; returns the changed trial."""
        all_changes = json.loads(self._mirror.numbered(number).user_attrs[CHANGES]) | dict(changes)
        self._note(number, CHANGES, json.dumps(all_changes))
        return Proposal(number, self.config(number), is_resumed=True)

    def count_start(self, number: int, num_epochs: int) -> None:
        """Count a start of the sweep that begins or resumes a trial.

        Args:
            number: of the trial.
            num_epochs: epochs that the trial has done.
        """
        self._note(number, STARTS, _starts(self._mirror.numbered(number), num_epochs) + 1)
        self._note(number, EPOCHS, num_epochs)

    def uncount_start(self, number: int) -> None:
        """Take back `count_start`: this start ends in order, so the trial has not killed it."""
        self._note(number, STARTS, self._mirror.numbered(number).user_attrs[STARTS] - 1)

    def retry_failed(self) -> None:
        """Propose the configuration of each failed trial again, once, as a new trial."""
        retried = {trial.user_attrs.get(RETRY_OF) for trial in self.trials}
        self._retries = [
            trial
            for trial in self.trials
            if trial.state == TrialState.FAIL and CHANGES in trial.user_attrs and trial.number not in retried
        ]

    @property
    def num_trials(self) -> int:
        """Trials that the sweep will have: fewer than requested if the space has no more, and one more per
        failed trial that is run again.
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
        """Notes on the draws for the user."""
        notes = [self._unsampled.note(self.sweep.num_trials)] if self.sweep.is_grid else []
        return notes + self._refusals.notes()

    def take_news(self) -> list[str]:
        """Messages for the user since the last call."""
        return self._refusals.take_news()

    def propose(self) -> Proposal | None:
        """The next trial, already in the database; None once there are enough or the space has no more.

        Raises:
            ImpossibleDrawError: a first trial, a grid's point or a failed trial's parameters make no valid
                configuration.
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
        trial_id = self._mirror.create_new_trial(
            self._study._study_id,
            optuna.trial.create_trial(
                state=TrialState.RUNNING,
                params=drawn.params,
                distributions=drawn.distributions,
                user_attrs={CHANGES: json.dumps(drawn.changes)} | marks,
                system_attrs=dict(attributes),
            ),
        )
        return Proposal(self._mirror.get_trial(trial_id).number, drawn.config)

    def report(
        self, number: int, step: int, value: float, folds: Mapping[str, float], *, may_stop: bool
    ) -> str | None:
        """Record a trial's value after an epoch; returns why it should be stopped, or None.

        Args:
            number: of the trial.
            step: epochs done over all its folds, from 1.
            value: mean validation score of its folds so far.
            folds: values of its finished folds, by name.
            may_stop: whether the trial may be stopped at all.
        """
        trial = self._mirror.numbered(number)
        if self.sweep.against == "none" and step not in trial.intermediate_values:
            self._mirror.set_trial_intermediate_value(trial._trial_id, step, float(value))
        if dict(folds) != trial.user_attrs.get(FOLDS, {}):
            self._note(number, FOLDS, dict(folds))
        if not self.sweep.is_pruning:
            return None
        reason = None
        # Every trial is judged: a rung also counts the trials that may not be stopped.
        is_behind = self._study.pruner.prune(self._study, self._mirror.numbered(number))
        if not may_stop:
            return None
        if is_behind:
            reason = f"{value:.3f} after {formats.count(step, 'epoch')} (scheduler {self.sweep.scheduler})"
        elif self.sweep.between_folds and folds:
            trials = self._study.get_trials(deepcopy=False)
            others = [t.user_attrs.get(FOLDS, {}) for t in trials if t.number != number]
            reason = pruning.between_folds(folds, others, self.sweep.folds_per_trial)
        return reason

    def complete(self, number: int, value: float, cost: float | None) -> None:
        """Record a finished trial; a trial whose value is not finite has failed.

        Args:
            number: of the trial.
            value: of the objective.
            cost: of the second objective; None if there is none.
        """
        values = [value] if cost is None else [value, cost]
        if not all(map(math.isfinite, values)):
            self.fail(number, f"its value is not finite: {values}")
            return
        self._study.tell(number, values)

    def prune(self, number: int, reason: str) -> None:
        """Record a trial that was stopped early."""
        self._note(number, REASON, reason)
        self._study.tell(number, state=TrialState.PRUNED)

    def fail(self, number: int, reason: str) -> None:
        """Record a trial that failed, and why."""
        self._note(number, REASON, reason)
        self._study.tell(number, state=TrialState.FAIL)

    def importances(self) -> dict[str, float]:
        """See the function `importances`."""
        return importances(self._study)

    def pareto_front(self) -> list[int]:
        """Numbers of the trials that no other beats in both objectives; empty with one objective."""
        return [] if self.sweep.against == "none" else sorted(t.number for t in self._study.best_trials)

    def _config(self, trial: FrozenTrial) -> TrainConfig:
        return self.sweep.train.override(json.loads(trial.user_attrs[CHANGES]))

    def config(self, number: int) -> TrainConfig:
        """The full configuration of a trial, with the base's seed."""
        return self._config(self._mirror.numbered(number))

    def _note(self, number: int, attribute: str, value: Any) -> None:
        self._mirror.set_trial_user_attr(self._mirror.numbered(number)._trial_id, attribute, value)


def _is_ours(trial: FrozenTrial) -> bool:
    """Whether this sweep proposed a trial."""
    return CHANGES in trial.user_attrs


def _starts(trial: FrozenTrial, num_epochs: int) -> int:
    """Starts that were killed while a trial ran, since it last made progress."""
    has_got_on = num_epochs > trial.user_attrs.get(EPOCHS, 0)
    return 0 if has_got_on else trial.user_attrs.get(STARTS, 0)


class _Refusals:
    """Messages on refused draws for the user; the study's attributes keep them."""

    def __init__(self, study: optuna.Study) -> None:
        self._study = study
        self._news: list[str] = []

    @property
    def is_exhausted(self) -> bool:
        """Whether the space has no more to try."""
        return EXHAUSTED in self._study.user_attrs

    def count(self, error: proposals.ImpossibleDrawError) -> None:
        """Count an impossible draw.

        A branch so rare that no probe before the start took it must not end a sweep of a week.
        """
        counts = dict(self._study.user_attrs.get(IMPOSSIBLE, {}))
        if error.reason not in counts:
            self._news.append(f"{error}; the trial is drawn again")
        counts[error.reason] = counts.get(error.reason, 0) + 1
        self._study.set_user_attr(IMPOSSIBLE, counts)

    def exhaust(self, num_trials: int, num_wanted: int, refused: Counter[str]) -> None:
        """Note that the space has no more.

        Args:
            num_trials: trials that the sweep has.
            num_wanted: trials that were requested.
            refused: number of refused draws per reason.
        """
        reasons = ", ".join(f"{count} {reason}" for reason, count in refused.most_common())
        why = (
            f"the space has no more to try: none of {samplers.MAX_DRAWS} draws was new and valid "
            f"({reasons}); the sweep ends with {formats.count(num_trials, 'trial')} of {num_wanted}"
        )
        self._study.set_user_attr(EXHAUSTED, why)
        self._news.append(why)

    def notes(self) -> list[str]:
        """All messages of this sweep, earlier starts included."""
        attributes = self._study.user_attrs
        notes = [attributes[EXHAUSTED]] if EXHAUSTED in attributes else []
        for reason, count in attributes.get(IMPOSSIBLE, {}).items():
            notes.append(f"{formats.count(count, 'draw')} had to be repeated, as impossible: {reason}")
        return notes

    def take_news(self) -> list[str]:
        """Messages since the last call."""
        news, self._news = self._news, []
        return news


class _Unsampled:
    """The trials that no sampler proposes, and the parameters that a study has tried.

    A trial that has ended is looked at once, so a look costs only as much as the new and running trials.

    Attributes:
        num: number of the trials that no sampler proposes.
        num_retries: trials of the study that run a failed trial's configuration again.
    """

    def __init__(self, wanted: Iterable[Params]) -> None:
        """Begin with trials that no sampler proposes; `wanted` has their parameters, in order.

        Duplicates are left out.
        """
        self._left = {proposals.key(params): params for params in proposals.distinct(wanted)}
        self.num = len(self._left)
        self.num_retries = 0
        self._num_seen = 0
        self._unfinished: dict[int, tuple[Params, Key]] = {}
        self._ended_keys: set[Key] = set()
        self._unfinished_keys: set[Key] = set()

    def note(self, num_trials: int) -> str:
        """How much of a grid a sweep of so many trials tries."""
        tried = "all are tried"
        if self.num > num_trials:
            tried = f"{num_trials} of them are tried (num_trials), in an order set by the seed"
        return f"the grid, with the trials before it, has {self.num:,} points; {tried}"

    def look_at(self, trials: Sequence[FrozenTrial]) -> None:
        """Take in the new and the running trials; `trials` has all of the study, by number."""
        new = range(self._num_seen, len(trials))
        self._num_seen = len(trials)
        self.num_retries += sum(RETRY_OF in trials[number].user_attrs for number in new)
        unfinished, self._unfinished = self._unfinished, {}
        for number in [*unfinished, *new]:
            params = trials[number].params
            known = unfinished.get(number)
            # If another program added it, its parameters may still change.
            key = known[1] if known and known[0] == params else proposals.key(params)
            if trials[number].state.is_finished():
                self._ended_keys.add(key)
                self._left.pop(key, None)
            else:
                self._unfinished[number] = params, key
        self._unfinished_keys = {key for _, key in self._unfinished.values()}

    def is_tried(self, params: Params) -> bool:
        """Whether a trial has these parameters."""
        key = proposals.key(params)
        return key in self._ended_keys or key in self._unfinished_keys

    @property
    def next(self) -> Params | None:
        """Parameters of the next trial that no sampler proposes; None after the last."""
        return next((params for key, params in self._left.items() if key not in self._unfinished_keys), None)

    @property
    def num_left(self) -> int:
        """How many trials that no sampler proposes are still to come."""
        return len(self._left) - len(self._left.keys() & self._unfinished_keys)


def importances(study: optuna.Study) -> dict[str, float]:
    """The share of each parameter in the variation of complete trials, by fANOVA; empty if undefined.

    A parameter that only some trials have is left out, as it cannot be compared over all of them.
    """
    complete: Sequence[FrozenTrial] = study.get_trials(states=[TrialState.COMPLETE])
    if len(complete) < 4 or len({trial.values[0] for trial in complete}) == 1:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    try:
        shares = optuna.importance.get_param_importances(
            study, evaluator=evaluator, target=lambda trial: trial.values[0]
        )
    except RuntimeError:  # Optuna's answer if no parameter that all trials have differs between them
        return {}
    return {name: share for name, share in shares.items() if math.isfinite(share)}
