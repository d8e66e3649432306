import optuna
from optuna.trial import TrialState

from mhimdist.search.trial_record import TrialRecord, trial_record


def test_a_record_holds_every_state_of_a_trial_as_plain_data():
    study = optuna.create_study(directions=["maximize", "minimize"])
    complete, failed, _ = (
        study.ask({"x": optuna.distributions.FloatDistribution(0, 1)}),
        study.ask(),
        study.ask(),
    )
    complete.set_user_attr("folds", {"fold 1": 0.75})
    study.tell(complete, [0.75, 2.0])
    failed.set_user_attr("reason", "disk full")
    study.tell(failed, state=TrialState.FAIL)
    first, second, third = [trial_record(trial) for trial in study.trials]
    assert first == TrialRecord(0, "complete", 0.75, 2.0, complete.params, {"fold 1": 0.75}, "")
    assert second == TrialRecord(1, "failed", None, None, {}, {}, "disk full")
    assert third == TrialRecord(2, "unfinished", None, None, {}, {}, "")
    assert [record.has_ended for record in (first, second, third)] == [True, True, False]


def test_a_pruned_trial_has_the_value_of_its_last_report_if_it_made_one():
    study = optuna.create_study(direction="maximize")
    reported, silent = study.ask(), study.ask()
    for step, value in ((1, 0.9), (3, 0.5), (2, 0.7)):
        reported.report(value, step)
    for trial in (reported, silent):
        study.tell(trial, state=TrialState.PRUNED)
    records = [trial_record(trial) for trial in study.trials]
    assert [(record.state, record.value) for record in records] == [("pruned", 0.5), ("pruned", None)]
