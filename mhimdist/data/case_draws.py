"""Draws of whole cases, so that no patient is in two sets, with shares of classes or strata kept alike.

Dimensions: N bags.
"""

import warnings
from collections.abc import Mapping

import numpy as np
from sklearn.model_selection import GroupShuffleSplit, StratifiedGroupKFold

from mhimdist.errors import SplitError


def rows_of_folds(
    cases_N: np.ndarray, labels_N: np.ndarray, num_folds: int, seed: int, classes: Mapping[int, str] | None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The rows that do not test, and those that do, of each fold, with the shares of labels kept alike.

    Args:
        cases_N, labels_N: case of every bag, and its class or stratum.
        num_folds, seed: number of folds, and the seed of their draw.
        classes: names of the classes, each of which every fold must test; None if the labels are strata.

    Raises:
        SplitError: there are too few cases, or too few of a class.
    """
    if classes is None:
        if (found := len(set(cases_N))) < num_folds:
            raise SplitError(f"{found} cases are too few for {num_folds} folds; give fewer folds")
        if np.unique(labels_N, return_counts=True)[1].max() < num_folds:
            labels_N = np.zeros_like(labels_N)  # no stratum reaches every fold
    for label, name in (classes or {}).items():
        if (found := len(set(cases_N[labels_N == label]))) < num_folds:
            raise SplitError(
                f"class {name} has {found} case{'' if found == 1 else 's'}, too few for {num_folds} folds, "
                "each of which tests on one or more of them; give fewer folds, or write the shards with "
                "the class joined to another one (--class-map)"
            )
    folds = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed % 2**32)
    with warnings.catch_warnings(category=UserWarning, action="ignore"):  # of a stratum rarer than the folds
        return list(folds.split(cases_N, labels_N, cases_N))


def take(
    rows: np.ndarray, labels_N: np.ndarray, cases_N: np.ndarray, share: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Take a share of the cases, at least one, out of a set of rows."""
    num_cases = len(set(cases_N[rows]))
    num_taken = max(1, round(share * num_cases))
    if num_taken >= num_cases:
        raise SplitError(f"{num_cases} cases cannot make {num_taken} to validate and any to train")
    return most_alike(rows, labels_N, cases_N, num_taken, seed)


def most_alike(
    rows: np.ndarray, labels_N: np.ndarray, cases_N: np.ndarray, num_cases: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """The draw of `num_cases` cases, among 100, whose class shares are closest to those of all rows.

    A draw that leaves a class to the rows that are kept comes before one that does not, and then one that
    also takes a case of every class.
    """
    classes = np.unique(labels_N)
    target = np.array([(labels_N[rows] == c).mean() for c in classes])
    draws = GroupShuffleSplit(100, test_size=num_cases, random_state=seed % 2**32)
    nearest, best = (len(classes), len(classes), np.inf), None
    for kept, drawn in draws.split(rows, groups=cases_N[rows]):
        shares = np.array([(labels_N[rows[drawn]] == c).mean() for c in classes])
        lacking = (len(classes) - len(np.unique(labels_N[rows[side]])) for side in (kept, drawn))
        if (place := (*lacking, np.abs(shares - target).sum())) < nearest:
            nearest, best = place, (rows[kept], rows[drawn])
    assert best is not None, "both sides of a draw have rows, so each draw is nearer than none"
    return best
