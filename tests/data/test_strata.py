"""Strata keep every group large enough for folds, and similar targets together."""

from collections import Counter

import numpy as np
import pytest

from mhimdist.data.splits import k_folds
from mhimdist.data.strata import strata
from mhimdist.data.targets import TaskInfo

REGRESSION = TaskInfo(name="regression", columns=("score",))
SURVIVAL = TaskInfo(name="survival", columns=("time", "event"))
MULTILABEL = TaskInfo(name="multilabel", columns=("a", "b", "c"))
NAN = np.nan


def named(task: TaskInfo, targets_NK: np.ndarray, cases: list[str] | None = None) -> list[str]:
    names, stratum_N = strata(
        task, np.asarray(targets_NK, float), cases or list(map(str, range(len(targets_NK))))
    )
    assert stratum_N.dtype == np.int64
    assert set(stratum_N.tolist()) == set(range(len(names)))
    return [names[stratum] for stratum in stratum_N]


def test_values_are_divided_at_their_quarters() -> None:
    values_N1 = np.random.default_rng(0).permutation(40)[:, None]
    found = named(REGRESSION, values_N1)
    order = ["lowest", "low", "high", "highest"]
    assert found == [order[int(value) // 10] for value in values_N1[:, 0]]


@pytest.mark.parametrize(("num_cases", "groups"), [(39, 3), (29, 2), (8, 2), (2, 2)])
def test_few_cases_make_fewer_groups(num_cases: int, groups: int) -> None:
    assert len(set(named(REGRESSION, np.arange(num_cases)[:, None]))) == groups


def test_cases_count_and_not_their_slides() -> None:
    values_N1 = np.repeat(np.arange(12), 5)[:, None]
    assert len(set(named(REGRESSION, values_N1))) == 4
    assert len(set(named(REGRESSION, values_N1, [f"case {value}" for value in values_N1[:, 0]]))) == 2


def test_equal_values_stay_together_even_if_most_are() -> None:
    assert named(REGRESSION, [[0]] * 30 + [[1]] * 3) == ["low"] * 30 + ["high"] * 3
    assert named(REGRESSION, [[1]] * 30 + [[0]] * 3) == ["high"] * 30 + ["low"] * 3


def test_several_columns_are_divided_by_their_mean_rank() -> None:
    first_N = np.arange(20.0)
    task = TaskInfo(name="regression", columns=("a", "b"))
    found = named(task, np.stack([first_N, np.exp(first_N)], axis=1))
    assert found == ["low"] * 10 + ["high"] * 10


def test_survival_is_divided_by_event_and_time() -> None:
    times_N = np.tile(np.arange(1.0, 41), 2)
    events_N = np.repeat([1, 0], 40)
    found = named(SURVIVAL, np.stack([times_N, events_N], axis=1))
    bins = ("first", "second", "third", "last")
    assert Counter(found) == {f"{what}, {when}": 10 for what in ("event", "censored") for when in bins}
    assert found[0] == "event, first"
    assert found[-1] == "censored, last"


def test_few_events_are_not_divided_by_time() -> None:
    times_N, events_N = np.arange(1.0, 41), np.arange(40) < 5
    found = named(SURVIVAL, np.stack([times_N, events_N], axis=1))
    assert Counter(found) == {"event": 5, "censored": 35}
    everyone = named(SURVIVAL, np.stack([times_N[:8], np.ones(8)], axis=1))
    assert Counter(everyone) == {"event, early": 4, "event, late": 4}


def test_a_bag_of_several_labels_counts_as_its_rarest() -> None:
    targets = [[1, 1, 0]] * 12 + [[1, 0, NAN]] * 30 + [[0, 0, 1]] * 20 + [[0, NAN, 0]] * 15
    assert Counter(named(MULTILABEL, targets)) == {"b": 12, "a": 30, "c": 20, "other": 15}


def test_labels_of_few_cases_are_left_out() -> None:
    targets = [[1, 1, 0]] * 3 + [[0, 1, 0]] * 2 + [[1, 0, 0]] * 30 + [[0, 0, 1]] * 20 + [[0, 0, 0]] * 10
    assert Counter(named(MULTILABEL, targets)) == {"a": 33, "c": 20, "other": 12}


def test_a_label_that_all_have_does_not_hide_a_rare_one() -> None:
    assert Counter(named(MULTILABEL, [[1, 1, 0]] * 3 + [[1, 0, 0]] * 30)) == {"b": 3, "other": 30}


@pytest.mark.parametrize("task", [REGRESSION, SURVIVAL, MULTILABEL], ids=lambda task: task.name)
def test_folds_of_strata_are_alike(task: TaskInfo) -> None:
    draw = np.random.default_rng(3)
    targets_NK = {
        "regression": draw.exponential(size=(120, 1)),
        "survival": np.stack([draw.exponential(size=120), draw.random(120) < 0.4], axis=1),
        "multilabel": (draw.random((120, 3)) < (0.5, 0.2, 0.1)).astype(float),
    }[task.name]
    cases = [str(row // 2) for row in range(120)]
    names, labels_N = strata(task, targets_NK, cases)
    folds = k_folds(
        list(map(str, range(120))), cases, labels_N, num_folds=5, validation_share=0.2, seed=1, classes=names
    )
    means = np.array([targets_NK[np.array(fold.test, int)].mean(axis=0) for fold in folds])
    assert np.ptp(means[:, -1]) < 0.5 * targets_NK[:, -1].std()
