import optuna
import pytest

from mhimdist.search.options import Sweep
from mhimdist.search.pruning import between_folds, within_folds


@pytest.mark.parametrize(
    ("mine", "others", "reason"),
    [
        ({}, [{"a": 0.9}] * 9, None),  # no fold is done yet
        ({"a": 0.1, "b": 0.1, "c": 0.1}, [{"a": 0.9}] * 9, None),  # all are
        ({"a": 0.8}, [{"a": 0.9}] * 3, None),  # too few others to compare with
        ({"a": 0.8}, [{"a": 0.9}] * 4, "below the median of 0.900"),
        ({"a": 0.8}, [{"b": 0.9}] * 4, None),  # of another fold
        ({"a": 0.9}, [{"a": 0.9, "b": 0.1}] * 4, None),  # their other folds do not count
        ({"a": 0.6}, [{"a": 0.9, "b": 0.9, "c": 0.9}], "cannot reach the best trial's 0.900"),
        ({"a": 0.69}, [{"a": 0.9, "b": 0.9, "c": 0.9}], "cannot reach"),
        ({"a": 0.71}, [{"a": 0.9, "b": 0.9, "c": 0.9}], None),
    ],
)
def test_which_trial_is_hopeless_between_folds(mine, others, reason):
    found = between_folds(mine, others, 3)
    assert (found is None) if reason is None else reason in found


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("asha", "SuccessiveHalvingPruner"),
        ("hyperband", "HyperbandPruner"),
        ("median", "BelowMedian"),
        ("none", "NopPruner"),
    ],
)
def test_every_scheduler_has_its_pruner(name, kind):
    assert type(within_folds(Sweep(scheduler=name))).__name__ == kind


def _reporting(study, values: dict[int, float]) -> optuna.trial.FrozenTrial:
    """A trial with values by step, as it is in the study while it runs."""
    trial = study.ask()
    for step, value in values.items():
        trial.report(value, step)
    return study.get_trials(deepcopy=False)[trial.number]


def _two_folds(first: float, second: float) -> dict[int, float]:
    """Reports of a trial with two folds of three epochs: the mean of the folds so far."""
    return dict.fromkeys((1, 2, 3), first) | dict.fromkeys((4, 5, 6), (first + second) / 2)


@pytest.mark.parametrize(
    ("values", "is_stopped"),
    [
        ({1: 0.1}, False),  # before the grace has passed
        ({1: 0.8, 2: 0.8}, False),
        ({1: 0.8, 2: 0.79}, True),
        ({1: 0.8, 2: 0.8, 3: 0.8, 4: 0.55}, True),  # the second fold is at .3, the first was as the others'
        ({1: 0.8, 2: 0.8, 3: 0.8, 4: 0.8}, False),
        ({1: 0.9, 2: 0.1, 3: 0.8}, False),  # what it once was does not count either way
    ],
)
def test_a_trial_is_compared_with_the_median_after_as_many_steps(values, is_stopped):
    study = optuna.create_study(direction="maximize")
    for second in (0.7, 0.8, 0.8, 0.9):
        done = _reporting(study, _two_folds(0.8, second))
        study.tell(done.number, done.intermediate_values[6])
    _reporting(study, dict.fromkeys(range(1, 7), 1.0))  # one that still runs is no measure
    assert (
        within_folds(Sweep(scheduler="median", grace_epochs=2)).prune(study, _reporting(study, values))
        == is_stopped
    )


def test_a_skipped_step_counts_with_the_last_value_before_it():
    study = optuna.create_study(direction="maximize")
    pruner = within_folds(Sweep(scheduler="median", grace_epochs=2))
    for _ in range(4):
        assert not pruner.prune(study, _reporting(study, {3: 0.1})), "too few to compare with"
        done = _reporting(study, {1: 0.5, 2: 0.8, 5: 0.6})
        study.tell(done.number, 0.6)
    assert pruner.prune(study, _reporting(study, {3: 0.7}))
    assert not pruner.prune(study, _reporting(study, {5: 0.7}))
    assert not pruner.prune(study, _reporting(study, {}))
