"""Folds inside a training fold: they choose what the outer test cases must not choose."""

from collections.abc import Sequence

import numpy as np

from mhimdist.data.splits import Split, k_folds
from mhimdist.data.stored import StoredBags


def inner_splits_of(bags: StoredBags, split: Split, *, num_folds: int, seed: int) -> list[Split]:
    """The inner folds of a data set's split, see `inner_folds`.

    Args:
        bags: the data set.
        split: the outer split.
        num_folds: number of inner folds, at least 2.
        seed: seed of the draw.

    Raises:
        SplitError: there are too few cases, or a class is too rare, for such folds.
    """
    return inner_folds(
        bags.keys,
        bags.cases,
        bags.labels_N,
        split,
        num_folds=num_folds,
        seed=seed,
        classes=bags.classes,
        strata=not bags.task.of_classes,
    )


def inner_folds(
    keys: Sequence[str],
    cases: Sequence[str],
    labels_N: np.ndarray,
    split: Split,
    *,
    num_folds: int,
    seed: int,
    classes: Sequence[str] | None = None,
    strata: bool = False,
) -> list[Split]:
    """Folds by case of the bags of a split that do not test: each of these bags validates exactly once.

    No inner fold trains or validates on the split's test bags; they stay its test bags, for whoever tests at
    the end.

    Args:
        keys: key of every bag.
        cases: case of every bag.
        labels_N: class index of every bag.
        split: the outer split.
        num_folds: number of inner folds, at least 2.
        seed: seed of the draw.
        classes, strata: names of all classes, and whether they are strata, as in `Split.check`.

    Raises:
        SplitError: there are too few cases, or a class is too rare, for such folds.
    """
    seen = set(split.train) | (set() if split.selects_on_test else set(split.validation))
    rows = [row for row, key in enumerate(keys) if key in seen]
    inner = k_folds(
        [keys[row] for row in rows],
        [cases[row] for row in rows],
        labels_N[rows],
        num_folds=num_folds,
        validation_share=0.0,
        selects_on_test=True,  # the held-out fold, which is not a test set
        seed=seed,
        classes=classes,
        strata=strata,
    )
    splits = [Split(fold.train, fold.validation, split.test) for fold in inner]
    for each in splits:
        each.check(keys, cases, labels_N, classes, strata=strata)
    return splits
