"""`Mirror`: a study's trials in the memory of the one process that drives the sweep.

Optuna's own storage asks the database about every unfinished trial each time that anybody looks at the
trials, so a report costs as much as there are trials running. Here a write goes to the database first and
then changes the trial in memory, and a look reads memory alone.
"""

import copy
import json
import time
from collections.abc import Callable, Container, Sequence
from typing import Any, NoReturn

import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

SHARE_OF_TIME = 0.02
"""Largest share of the time that asking the database about all trials may take."""


class Mirror(BaseStorage):
    """The storage of one study whose trials are in memory, too.

    Other programs may add trials to the study, change these, or end trials of ours; `look` takes that in.

    A trial in memory is never changed in place: a write replaces it by a changed copy, so whoever holds a
    list of trials sees them as they were.
    """

    def __init__(self, database: RDBStorage) -> None:
        """Mirror a study of a database, from the first look at its trials on."""
        self._engine, self._database = database.engine, optuna.storages.get_storage(database)
        self._study_id: int | None = None
        self._trials: list[FrozenTrial] = []
        self._places: dict[int, int] = {}
        self._unsettled: set[int] = set()  # numbers of trials that another program may be changing
        self._distributions: dict[BaseDistribution, BaseDistribution] = {}
        self._next_look = float("-inf")

    def look(self, is_ours: Callable[[FrozenTrial], bool]) -> None:
        """Take in what other programs have changed: at once what they added, later what they did to ours.

        Args:
            is_ours: whether this process alone changes a trial.
        """
        if time.monotonic() >= self._next_look or self._num_in_database() != len(self._trials):
            self._look_at_all()
        # Not a pass over all trials: it would cost a proposal 2 ms at 10,000.
        for number in sorted(self._unsettled):
            trial = self._trials[number]
            if trial.state.is_finished() or is_ours(trial):
                self._unsettled.remove(number)
            else:
                self._put(self._database.get_trial(trial._trial_id))

    def _num_in_database(self) -> int:
        count = sqlalchemy.text("SELECT COUNT(*) FROM trials WHERE study_id = :study")
        with self._engine.connect() as connection:
            return connection.execute(count, {"study": self._study_id}).scalar_one()

    def _look_at_all(self) -> None:
        assert self._study_id is not None, "its trials have been read"
        begun = time.monotonic()
        self._trials = self._database.get_all_trials(self._study_id, deepcopy=False)
        for trial in self._trials:
            self._share_distributions(trial)
        self._places = {trial._trial_id: trial.number for trial in self._trials}
        self._unsettled = {trial.number for trial in self._trials if not trial.state.is_finished()}
        now = time.monotonic()
        self._next_look = now + (now - begun) / SHARE_OF_TIME

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        assert self._study_id in (None, study_id), "a mirror shows one study"
        if self._study_id is None:
            self._study_id = study_id
            self._look_at_all()
        found = [t for t in self._trials if t.state in states] if states is not None else list(self._trials)
        return copy.deepcopy(found) if deepcopy else found

    def get_trial(self, trial_id: int) -> FrozenTrial:
        place = self._places.get(trial_id)
        return self._database.get_trial(trial_id) if place is None else self._trials[place]

    def numbered(self, number: int) -> FrozenTrial:
        """The trial of a number, from memory."""
        return self._trials[number]

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        return self._trials[trial_number]._trial_id

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        trial_id = self._database.create_new_trial(study_id, template_trial)
        trial = self._database.get_trial(trial_id)
        if trial.number == len(self._trials):
            self._share_distributions(trial)
            self._places[trial_id] = trial.number
            self._trials.append(trial)
        else:  # another program has added one
            self._look_at_all()
        return trial_id

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        is_set = self._database.set_trial_state_values(trial_id, state, values)
        trial = self._database.get_trial(trial_id)
        self._share_distributions(trial)
        self._put(trial)
        return is_set

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        self._database.set_trial_intermediate_value(trial_id, step, intermediate_value)
        changed = copy.copy(self.get_trial(trial_id))
        changed.intermediate_values = changed.intermediate_values | {step: intermediate_value}
        self._put(changed)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._database.set_trial_user_attr(trial_id, key, value)
        changed = copy.copy(self.get_trial(trial_id))
        changed.user_attrs = changed.user_attrs | {key: _as_stored(value)}
        self._put(changed)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._database.set_trial_system_attr(trial_id, key, value)
        changed = copy.copy(self.get_trial(trial_id))
        changed.system_attrs = changed.system_attrs | {key: _as_stored(value)}
        self._put(changed)

    def _share_distributions(self, trial: FrozenTrial) -> None:
        """Have a trial from the database hold the one copy of each distribution, not copies of its own.

        They would be a third of what a trial takes: 30 MB of 10,000 trials.
        """
        shared = {
            name: self._distributions.setdefault(each, each) for name, each in trial.distributions.items()
        }
        trial.distributions = shared

    def _put(self, trial: FrozenTrial) -> None:
        place = self._places.get(trial._trial_id)
        if place is not None:
            self._trials[place] = trial

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        self._database.set_trial_param(trial_id, param_name, param_value_internal, distribution)
        self._put(self._database.get_trial(trial_id))

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        return self._database.create_new_study(directions, study_name)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        self._database.set_study_user_attr(study_id, key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self._database.set_study_system_attr(study_id, key, value)

    def get_study_id_from_name(self, study_name: str) -> int:
        return self._database.get_study_id_from_name(study_name)

    def get_study_name_from_id(self, study_id: int) -> str:
        return self._database.get_study_name_from_id(study_id)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return self._database.get_study_directions(study_id)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        return self._database.get_study_user_attrs(study_id)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return self._database.get_study_system_attrs(study_id)

    def remove_session(self) -> None:
        self._database.remove_session()

    def _refuse(self, *arguments: Any, **named: Any) -> NoReturn:
        raise NotImplementedError("a mirror shows one study and deletes nothing")

    delete_study = get_all_studies = _refuse


def _as_stored(value: Any) -> Any:
    """An attribute as a database gives it back, which keeps attributes as JSON."""
    return json.loads(json.dumps(value))
