"""TPE is shown all trials of a usual sweep, and a thousand of ten thousand: a proposal costs the same."""

import optuna
import pytest
from optuna.study import StudyDirection
from optuna.trial import TrialState

from mhimdist.config.presets import preset
from mhimdist.search import proposals, samplers
from mhimdist.search.options import Sweep
from mhimdist.search.space import Space

UP, DOWN = StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE
BASE = preset("c16", "abmil")


def space(s: Space) -> None:
    s.uniform("loss.alpha", 0.0, 1.0)


def _trials(states: str, values=None) -> list[optuna.trial.FrozenTrial]:
    """Trials that are complete (c), pruned (p) or running (r)."""
    names = {"c": TrialState.COMPLETE, "p": TrialState.PRUNED, "r": TrialState.RUNNING}
    found = []
    for number, state in enumerate(states):
        given = (values or {}).get(number, (number / 1e6,))
        trial = optuna.trial.create_trial(
            state=names[state],
            values=list(given) if state == "c" else None,
            params={"loss.alpha": number / len(states)},
            distributions={"loss.alpha": optuna.distributions.FloatDistribution(0, 1)},
            intermediate_values={1: 0.5} if state == "p" else {},
        )
        trial.number = number
        found.append(trial)
    return found


def test_all_of_a_usual_sweep_are_shown():
    trials = _trials("cp" * 500 + "r" * 50)
    assert samplers.shown(trials, [UP]) == trials


def test_of_more_the_newest_are_shown_all_that_run_and_the_best_of_all():
    trials = _trials("r" + "p" * 9 + "c" * 1490 + "r", values={20: (0.9,), 30: (0.8,)})
    shown = [trial.number for trial in samplers.shown(trials, [UP])]
    ended = [number for number in shown if trials[number].state.is_finished()]
    assert len(ended) == samplers.MAX_SHOWN
    assert shown[:4] == [0, 20, 30, 502]  # the other best ones are among the newest
    assert shown[3:] == list(range(502, 1501))


def test_of_two_objectives_the_best_of_each_are_shown():
    values = dict.fromkeys(range(1500), (0.5, 0.5)) | {7: (0.9, 0.9), 8: (0.1, 0.1)}
    shown = [trial.number for trial in samplers.shown(_trials("c" * 1500, values), [UP, DOWN])]
    assert {7, 8} <= set(shown)
    assert len(shown) == samplers.MAX_SHOWN


@pytest.mark.parametrize("num_trials", [1000, 1400])
def test_a_proposal_after_many_trials_is_a_function_of_seed_number_and_trials(num_trials):
    sweep = Sweep(train=BASE, num_startup=2)
    trials = _trials("c" * num_trials)
    drawn = [
        samplers.sample(
            sweep, space, trials, [UP], is_tried=lambda params: False, on_impossible=lambda error: None
        ).draw.params
        for _ in range(2)
    ]
    assert drawn[0] == drawn[1]
    # The best trials have the largest alpha.
    assert proposals.key(drawn[0])
    assert drawn[0]["loss.alpha"] > 0.5
