import pytest

from mhimdist.pruning import between_folds, within_folds
from mhimdist.sweep import Sweep


@pytest.mark.parametrize(
    ("mine", "others", "reason"),
    [
        ({}, [{"a": 0.9}] * 9, None),  # no fold is done yet
        ({"a": 0.1, "b": 0.1, "c": 0.1}, [{"a": 0.9}] * 9, None),  # all are
        ({"a": 0.8}, [{"a": 0.9}] * 3, None),  # too few to compare with
        ({"a": 0.8}, [{"a": 0.9}] * 4, "below the median of 0.900"),
        ({"a": 0.8}, [{"b": 0.9}] * 4, None),  # of another fold
        ({"a": 0.9}, [{"a": 0.9, "b": 0.1}] * 4, None),  # their other folds do not count
        ({"a": 0.6}, [{"a": 0.9, "b": 0.9, "c": 0.9}], "cannot reach the best trial's 0.900"),
        ({"a": 0.69}, [{"a": 0.9, "b": 0.9, "c": 0.9}], "cannot reach"),
        ({"a": 0.71}, [{"a": 0.9, "b": 0.9, "c": 0.9}], None),
    ],
)
def test_who_is_hopeless_between_folds(mine, others, reason):
    found = between_folds(mine, others, 3)
    assert (found is None) if reason is None else reason in found


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("asha", "SuccessiveHalvingPruner"),
        ("hyperband", "HyperbandPruner"),
        ("median", "MedianPruner"),
        ("none", "NopPruner"),
    ],
)
def test_every_scheduler_has_its_pruner(name, kind):
    assert type(within_folds(Sweep(scheduler=name))).__name__ == kind
