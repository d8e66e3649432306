"""`Mirror` shows what the database has, whatever is written, and what other programs add."""

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState

from mhimdist.search import mirror, storage

NAME = "sweep"


@pytest.fixture
def opened(tmp_path):
    url = storage.sqlite_url(tmp_path / "study.db")
    return url, *storage.create(url, NAME, None, [StudyDirection.MAXIMIZE])


def _template(value: float) -> optuna.trial.FrozenTrial:
    return optuna.trial.create_trial(
        state=TrialState.RUNNING,
        params={"x": value},
        distributions={"x": FloatDistribution(0, 1)},
        user_attrs={"ours": True},
        system_attrs={},
    )


def _is_ours(trial: optuna.trial.FrozenTrial) -> bool:
    return "ours" in trial.user_attrs


def test_memory_equals_the_database_after_every_kind_of_write(opened):
    url, study, seen = opened
    ids = [seen.create_new_trial(study._study_id, _template(value)) for value in (0.1, 0.2, 0.3, 0.4)]
    for step, value in ((1, 0.5), (2, float("nan")), (3, float("inf"))):
        seen.set_trial_intermediate_value(ids[0], step, value)
    seen.set_trial_user_attr(ids[1], "folds", {"fold 1": 0.5, "pair": (1, 2)})
    seen.set_trial_system_attr(ids[1], "completed_rung_0", 0.25)
    study.tell(1, 0.75)
    seen.set_trial_intermediate_value(ids[2], 1, 0.5)
    study.tell(2, state=TrialState.PRUNED)
    study.tell(3, state=TrialState.FAIL)
    assert repr(study.get_trials(deepcopy=False)) == repr(storage.read(url, NAME))
    assert seen.numbered(1).user_attrs["folds"] == {"fold 1": 0.5, "pair": [1, 2]}
    assert [trial.state.name for trial in study.get_trials()] == ["RUNNING", "COMPLETE", "PRUNED", "FAIL"]
    assert [trial.number for trial in study.get_trials(states=(TrialState.FAIL,))] == [3]


def test_whoever_holds_trials_sees_them_as_they_were(opened):
    _, study, seen = opened
    trial_id = seen.create_new_trial(study._study_id, _template(0.1))
    held = study.get_trials(deepcopy=False)
    seen.set_trial_intermediate_value(trial_id, 1, 0.5)
    study.tell(0, 0.5)
    assert (held[0].intermediate_values, held[0].state) == ({}, TrialState.RUNNING)


def test_trials_of_another_program_are_seen_and_numbers_stay_those_of_the_database(opened):
    url, study, seen = opened
    seen.create_new_trial(study._study_id, _template(0.1))
    other = optuna.load_study(study_name=NAME, storage=url)
    other.enqueue_trial({"x": 0.9})
    asked = other.ask()
    mine = seen.create_new_trial(study._study_id, _template(0.2))
    assert seen.get_trial(mine).number == 2
    assert [_is_ours(trial) for trial in study.get_trials()] == [True, False, True]
    asked.suggest_float("x", 0, 1)
    other.tell(asked, 0.5)
    seen.look(_is_ours)
    assert seen.numbered(1).params == {"x": 0.9}
    assert seen.numbered(1).state == TrialState.COMPLETE


def test_what_another_program_does_to_our_trials_is_seen_in_time(opened, monkeypatch):
    url, study, seen = opened
    seen.create_new_trial(study._study_id, _template(0.1))
    optuna.load_study(study_name=NAME, storage=url).tell(0, 0.5)
    monkeypatch.setattr(mirror.time, "monotonic", lambda: float("inf"))
    seen.look(_is_ours)
    assert seen.numbered(0).value == 0.5


def test_reports_ask_the_database_for_no_trial(opened, monkeypatch):
    _, study, seen = opened
    ids = [seen.create_new_trial(study._study_id, _template(number / 40)) for number in range(40)]
    study.pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1)

    def refuse(*arguments, **named):
        raise AssertionError("it asked for trials")

    monkeypatch.setattr(seen._database, "get_all_trials", refuse)
    monkeypatch.setattr(seen._database, "get_trial", refuse)
    for trial_id in ids:
        seen.set_trial_intermediate_value(trial_id, 1, 0.5)
        study.pruner.prune(study, seen.get_trial(trial_id))


def test_trials_share_the_distributions_that_are_equal(opened):
    url, study, seen = opened
    for value in (0.1, 0.2, 0.3):
        seen.create_new_trial(study._study_id, _template(value))
    study.tell(0, 0.5)
    study.tell(1, state=TrialState.PRUNED)
    held = study.get_trials(deepcopy=False)
    assert len({id(trial.distributions["x"]) for trial in held}) == 1
    _, again = storage.create(url, NAME, None, [StudyDirection.MAXIMIZE])[0:2]
    reopened = again.get_all_trials(study._study_id, deepcopy=False)
    assert len({id(trial.distributions["x"]) for trial in reopened}) == 1
    assert repr(reopened) == repr(held) == repr(storage.read(url, NAME))


def test_a_look_asks_about_no_trial_that_has_ended_or_is_ours(opened, monkeypatch):
    url, study, seen = opened
    for value in (0.1, 0.2):
        seen.create_new_trial(study._study_id, _template(value))
    study.tell(0, 0.5)
    other = optuna.load_study(study_name=NAME, storage=url)
    theirs = other.ask()
    asked, get = [], seen._database.get_trial

    def counted(trial_id: int) -> optuna.trial.FrozenTrial:
        asked.append(trial_id)
        return get(trial_id)

    monkeypatch.setattr(seen._database, "get_trial", counted)
    seen.look(_is_ours)
    assert asked == [theirs._trial_id]
    monkeypatch.setattr(seen, "_next_look", float("inf"))
    other.tell(theirs, 0.5)
    seen.look(_is_ours)
    assert seen.numbered(2).state == TrialState.COMPLETE
    seen.look(_is_ours)
    assert asked == [theirs._trial_id] * 2
