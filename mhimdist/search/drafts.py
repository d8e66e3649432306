"""A study for drafts: it shows a record's trials, leaves no trace in the record, and copies nothing."""

import copy
from collections.abc import Callable, Container, Sequence
from datetime import datetime
from typing import Any, NoReturn

import optuna
from optuna.distributions import BaseDistribution, check_distribution_compatibility
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

_STUDY_ID = 0
_STUDY_NAME = "drafts"


def drafts(trials: Sequence[FrozenTrial], directions: Sequence[StudyDirection], number: int) -> optuna.Study:
    """A study that shows a record's trials; trials drawn in it leave no trace in that record.

    Args:
        trials: the record's trials to show, by number. They are read in place and never changed, so the cost
            does not grow with their number.
        directions: of the record's objectives.
        number: of the first draft.
    """
    storage = _DraftStorage(trials, directions, number)
    sampler = optuna.samplers.RandomSampler()  # the caller sets another one before each draw
    return optuna.load_study(study_name=_STUDY_NAME, storage=storage, sampler=sampler)


class _DraftStorage(BaseStorage):
    """Shows trials that it does not own, followed by drafts. A write replaces a trial by a changed copy.

    Drafts have negative ids, which never clash with the record's.
    """

    def __init__(
        self, trials: Sequence[FrozenTrial], directions: Sequence[StudyDirection], number: int
    ) -> None:
        self._trials = list(trials)
        self._ahead = number - len(trials)  # how many trials of the record are not shown
        self._directions = list(directions)
        self._distributions: dict[str, BaseDistribution] = {}

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        assert template_trial is None, "a draft begins empty"
        number = len(self._trials) + self._ahead
        trial_id = -1 - number
        self._trials.append(
            FrozenTrial(
                trial_id=trial_id,
                number=number,
                state=TrialState.RUNNING,
                params={},
                distributions={},
                user_attrs={},
                system_attrs={},
                value=None,
                intermediate_values={},
                datetime_start=datetime.now(),
                datetime_complete=None,
            )
        )
        return trial_id

    def get_trial(self, trial_id: int) -> FrozenTrial:
        return self._trials[self._place(trial_id)]

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        found = [trial for trial in self._trials if states is None or trial.state in states]
        return copy.deepcopy(found) if deepcopy else found

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        # Checked for drafts only: the ranges of the record's trials may have been widened since.
        check_distribution_compatibility(
            self._distributions.setdefault(param_name, distribution), distribution
        )
        self._distributions[param_name] = distribution

        def set_param(trial: FrozenTrial) -> None:
            value = distribution.to_external_repr(param_value_internal)
            trial.params = trial.params | {param_name: value}
            trial.distributions = trial.distributions | {param_name: distribution}

        self._change(trial_id, set_param)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        if state == TrialState.RUNNING and self.get_trial(trial_id).state != TrialState.WAITING:
            return False

        def set_state(trial: FrozenTrial) -> None:
            trial.state = state
            if values is not None:
                trial.values = list(values)
            if state == TrialState.RUNNING:
                trial.datetime_start = datetime.now()
            if state.is_finished():
                trial.datetime_complete = datetime.now()

        self._change(trial_id, set_state)
        return True

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        def set_attribute(trial: FrozenTrial) -> None:
            trial.system_attrs = trial.system_attrs | {key: value}

        self._change(trial_id, set_attribute)

    def _place(self, trial_id: int) -> int:
        if trial_id < 0:
            return -1 - trial_id - self._ahead
        # A trial of the record: another program requested it by `Study.enqueue_trial`.
        return next(place for place, trial in enumerate(self._trials) if trial._trial_id == trial_id)

    def _change(self, trial_id: int, change: Callable[[FrozenTrial], None]) -> None:
        place = self._place(trial_id)
        self.check_trial_is_updatable(trial_id, self._trials[place].state)
        changed = copy.copy(self._trials[place])
        # `optuna.Trial` changes these in place.
        changed.params, changed.distributions = dict(changed.params), dict(changed.distributions)
        changed.system_attrs = dict(changed.system_attrs)
        change(changed)
        self._trials[place] = changed

    def get_study_id_from_name(self, study_name: str) -> int:
        return _STUDY_ID

    def get_study_name_from_id(self, study_id: int) -> str:
        return _STUDY_NAME

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return self._directions

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        return {}

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return {}

    def _refuse(self, *arguments: Any, **named: Any) -> NoReturn:
        raise NotImplementedError("a draft can be drawn and marked as failed, nothing else")

    create_new_study = delete_study = get_all_studies = _refuse
    set_study_user_attr = set_study_system_attr = _refuse
    set_trial_intermediate_value = set_trial_user_attr = _refuse
