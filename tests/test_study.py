import json
import warnings

import optuna
import pytest
from optuna.trial import TrialState

from mhimdist import samplers, study
from mhimdist.presets import preset
from mhimdist.space import Space
from mhimdist.study import SweepStudy
from mhimdist.sweep import Sweep

BASE = preset("c16", "abmil").override({"epochs": 3})


def space(s: Space) -> None:
    s.uniform("masking.high.start", 0.005, 0.2, log=True)
    s.uniform("loss.alpha", 0.0, 1.0)


def choices(s: Space) -> None:
    s.choice("masking.high_pool_share", [0.25, 0.5])
    s.choice("teacher.momentum.kind", ["constant", "cosine"])


def _study(tmp_path, space=space, **options) -> SweepStudy:
    sweep = Sweep(
        **(
            {"name": "test", "num_startup": 2, "grace_epochs": 1, "train": BASE, "warm_presets": False}
            | options
        )
    )
    facts = samplers.examine(space, BASE)
    first, _ = samplers.first_params(sweep, space, facts)
    tmp_path.mkdir(exist_ok=True)
    return SweepStudy(sweep, space, facts, study.sqlite_url(tmp_path / "study.db"), first)


def _run(opened: SweepStudy, value: float) -> dict:
    proposal = opened.propose()
    opened.complete(proposal.number, value, None)
    return opened.trials[-1].params


def test_the_first_proposal_is_the_base_and_each_is_in_the_database_before_it_runs(tmp_path):
    opened = _study(tmp_path)
    first, second = opened.propose(), opened.propose()
    assert (first.number, second.number) == (0, 1)
    assert first.config == BASE
    assert second.config != BASE
    assert [trial.state for trial in study.read(opened.url, "test")] == [TrialState.RUNNING] * 2
    assert second.config.loss.alpha == opened.trials[1].params["loss.alpha"]


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "random"])
def test_a_study_that_is_opened_again_proposes_what_it_would_have(tmp_path, sampler):
    whole = _study(tmp_path / "whole", sampler=sampler)
    expected = [_run(whole, i / 10) for i in range(8)]
    found = []
    for i in range(8):  # killed and opened again before every trial
        found.append(_run(_study(tmp_path / "killed", sampler=sampler), i / 10))
    assert found == expected
    assert len({json.dumps(params) for params in expected}) == 8
    other = _study(tmp_path / "other", sampler=sampler, seed=1)
    assert [_run(other, i / 10) for i in range(3)] != expected[:3]


def test_what_never_ended_is_gone_on_with_or_marked_failed(tmp_path):
    opened = _study(tmp_path)
    for _ in range(3):
        opened.started(opened.propose().number)
    opened.complete(0, 0.5, None)
    for _ in range(3):
        opened.started(2)
    optuna.load_study(study_name="test", storage=opened.url).ask()  # of somebody else
    again = _study(tmp_path)
    (resumed,) = again.unfinished(max_starts=4)
    assert (resumed.number, resumed.is_resumed) == (1, True)
    assert resumed.config.loss.alpha == again.trials[1].params["loss.alpha"]
    assert [t.state for t in again.trials] == [
        TrialState.COMPLETE,
        TrialState.RUNNING,
        TrialState.FAIL,
        TrialState.FAIL,
    ]
    assert again.trials[2].user_attrs[study.REASON] == "started 4 times and never ended"
    assert "orphan" in again.trials[3].user_attrs[study.REASON]


def test_states_are_honest(tmp_path):
    opened = _study(tmp_path)
    for _ in range(5):
        opened.propose()
    opened.complete(0, 0.7, None)
    opened.report(1, 1, 0.9, {}, may_stop=False)
    opened.prune(1, "stopped by hand")
    opened.fail(2, "it raised")
    opened.complete(3, float("inf"), None)
    opened.complete(4, float("nan"), None)
    trials = study.read(opened.url, "test")
    expected = [TrialState.COMPLETE, TrialState.PRUNED, *[TrialState.FAIL] * 3]
    assert [trial.state for trial in trials] == expected
    assert trials[1].value == 0.9
    assert "not finite" in trials[3].user_attrs[study.REASON]
    opened = optuna.load_study(study_name="test", storage=opened.url)
    assert opened.best_trial.number == 0


def test_a_trial_behind_the_others_is_stopped_at_a_rung(tmp_path):
    opened = _study(tmp_path, reduction_factor=2)
    for value in (0.9, 0.8, 0.4):
        number = opened.propose().number
        reason = opened.report(number, 1, value, {}, may_stop=number > 0)
        assert (reason is None) == (value == 0.9)
    assert reason == "0.400 after 1 epochs (scheduler asha)"


def test_between_folds_the_hopeless_are_stopped_by_what_the_database_says(tmp_path):
    opened = _study(tmp_path, scheduler="none", folds=2)
    for value in (0.9, 0.85, 0.8, 0.75, 0.7):
        number = opened.propose().number
        reason = opened.report(number, 3, value, {"fold 1": value}, may_stop=True)
    assert reason == "after 1 of 2 folds 0.700, below the median of 0.825"
    again = _study(tmp_path, scheduler="none", folds=2)
    assert again.report(4, 3, 0.7, {"fold 1": 0.7}, may_stop=True) == reason
    assert again.report(4, 3, 0.7, {"fold 1": 0.7}, may_stop=False) is None


def test_no_configuration_is_tried_twice(tmp_path):
    opened = _study(tmp_path, choices, num_trials=10)
    tried = []
    while (proposal := opened.propose()) is not None:
        tried.append(proposal.config.digest())
        opened.complete(proposal.number, 0.5, None)
    assert len(tried) == len(set(tried)) == 4  # all there are


def test_two_objectives_have_a_front(tmp_path):
    opened = _study(tmp_path, against="kept_share", scheduler="none")
    for value, cost in ((0.9, 0.5), (0.8, 0.2), (0.7, 0.4), (0.95, 0.9)):
        opened.complete(opened.propose().number, value, cost)
    assert opened.pareto_front() == [0, 1, 3]


def test_an_earlier_sweep_lends_its_best(tmp_path):
    opened = _study(tmp_path)
    params = [_run(opened, value) for value in (0.1, 0.9, 0.5, 0.7, 0.3)]
    (tmp_path / "sweep.json").write_text(json.dumps({"url": opened.url, "name": "test"}))
    assert study.best_params(str(tmp_path)) == [params[1], params[3], params[2]]


def test_importances_find_the_parameter_that_matters(tmp_path):
    opened = _study(tmp_path)
    for _ in range(12):
        proposal = opened.propose()
        opened.complete(proposal.number, proposal.config.loss.alpha, None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shares = opened.importances()
    assert shares["loss.alpha"] > 0.9
    assert sum(shares.values()) == pytest.approx(1)


def test_importances_of_too_few_trials_are_not_made_up(tmp_path):
    opened = _study(tmp_path)
    _run(opened, 0.5)
    assert opened.importances() == {}
