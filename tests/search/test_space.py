import optuna
import pytest

from mhimdist.config.presets import preset
from mhimdist.errors import SweepError
from mhimdist.search.space import BaseValues, Space

BASE = preset("c16", "abmil")


def space(s: Space) -> None:
    s.schedule("masking.high", 0.005, 0.2, log=True)
    if s.branch("masking.strategy", ["HAM", "R-HAM"]) == "R-HAM":
        s.uniform("masking.random.start", 0.1, 0.8)
    else:
        s.fix("masking.random", 0.0)
    s.choice("masking.high_pool_share", [0.5, 1.0])


def _changes(**fixed):
    collected = Space(optuna.trial.FixedTrial(fixed))
    space(collected)
    return collected.changes


def test_conditional_settings_follow_their_branch():
    common = {
        "masking.high.start": 0.1,
        "masking.high.kind": "linear",
        "masking.high_pool_share": 1.0,
    }
    plain = _changes(**common, **{"masking.strategy": "HAM"})
    assert BASE.override(plain).masking.strategy == "HAM"
    randomised = _changes(**common, **{"masking.strategy": "R-HAM", "masking.random.start": 0.3})
    config = BASE.override(randomised)
    assert config.masking.strategy == "R-HAM"
    assert config.masking.random.start == 0.3
    assert config.masking.high.kind == "linear"


def test_the_first_trial_is_the_base_itself():
    values = BaseValues(BASE)
    collected = Space(values)
    space(collected)
    assert BASE.override(collected.changes) == BASE
    assert values.params["masking.strategy"] == "R-HAM"
    assert "masking.random" not in values.params


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda s: s.uniform("masking.high.start", 0.1, 0.2), r"\[0.1, 0.2\].*first trial, has 0.01"),
        (lambda s: s.choice("teacher.kind", ["init"]), r"among \['init'\].*has 'init_momentum'"),
        (lambda s: s.uniform("masking.hihg.start", 0, 1), "the configuration does not have"),
    ],
)
def test_a_space_that_does_not_hold_the_base_is_refused(wrong, message):
    with pytest.raises(SweepError, match=message):
        wrong(Space(BaseValues(BASE)))
