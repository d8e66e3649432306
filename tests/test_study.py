import warnings

import optuna
import pytest
from optuna.trial import TrialState

from mhimdist import study
from mhimdist.errors import SweepError
from mhimdist.presets import preset
from mhimdist.space import Space

BASE = preset("c16", "abmil")


def space(s: Space) -> None:
    s.uniform("masking.high.start", 0.005, 0.2, log=True)
    s.uniform("loss.alpha", 0.0, 1.0)


def _search(tmp_path, space=space, seed=0):
    return study.search(
        space,
        study.check(space, BASE),
        metric="validation_auc",
        seed=seed,
        num_startup=2,
        path=tmp_path / "study.db",
    )


def test_the_first_proposal_is_the_base_and_each_has_its_number(tmp_path):
    searcher = _search(tmp_path)
    first, second = searcher.suggest("a"), searcher.suggest("b")
    assert (first["number"], second["number"]) == (0, 1)
    assert BASE.override(first["changes"]) == BASE
    assert BASE.override(second["changes"]) != BASE


def test_the_same_seed_proposes_the_same(tmp_path):
    proposed = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        searcher = _search(tmp_path / name, seed=4)
        changes = []
        for i in range(6):
            changes.append(searcher.suggest(str(i))["changes"])
            result = {"validation_auc": i / 10, "training_iteration": 1, "is_finished": True}
            searcher.on_trial_result(str(i), result)
            searcher.on_trial_complete(str(i), result)
        proposed.append(changes)
    assert proposed[0] == proposed[1]


def test_states_are_honest(tmp_path):
    searcher = _search(tmp_path)
    for trial, finished in (("a", True), ("b", False), ("c", None)):
        searcher.suggest(trial)
        if finished is None:
            searcher.on_trial_complete(trial, None, error=True)
            continue
        result = {"validation_auc": 0.7, "training_iteration": 1, "is_finished": finished}
        searcher.on_trial_result(trial, result)
        searcher.on_trial_complete(trial, result)
    trials = study.read(tmp_path / "study.db")
    assert [t.state for t in trials] == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL]
    assert [t.value for t in trials] == [0.7, 0.7, None]
    opened = optuna.load_study(study_name="sweep", storage=study.storage_url(tmp_path / "study.db"))
    assert opened.best_trial.number == 0


def _impossible(s: Space) -> None:
    s.uniform("masking.high.start", 0.005, 1.7)


def _unknown(s: Space) -> None:
    s.fix("masking.hihg", 0.1)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (_impossible, r"impossible configuration, .*high\.start is a ratio in \[0, 1\], got 1\."),
        (_unknown, r"impossible configuration, .*unknown key masking\.hihg \(did you mean high\?\)"),
    ],
)
def test_an_impossible_space_is_refused(space, message):
    with pytest.raises(SweepError, match=message):
        study.check(space, BASE)


def test_importances_find_the_parameter_that_matters(tmp_path):
    searcher = _search(tmp_path)
    for i in range(12):
        alpha = searcher.suggest(str(i))["changes"]["loss.alpha"]
        result = {"validation_auc": alpha, "training_iteration": 1, "is_finished": True}
        searcher.on_trial_complete(str(i), result)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shares = study.importances(tmp_path / "study.db")
    assert shares["loss.alpha"] > 0.9
    assert sum(shares.values()) == pytest.approx(1)


def test_importances_of_too_few_trials_are_not_made_up(tmp_path):
    searcher = _search(tmp_path)
    searcher.suggest("a")
    searcher.on_trial_complete("a", {"validation_auc": 0.5, "is_finished": True})
    assert study.importances(tmp_path / "study.db") == {}
