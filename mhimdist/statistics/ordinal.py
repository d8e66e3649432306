"""How well predicted grades agree with the true ones, where a grade off by two is worse than one off by one.

The measures are functions of weighted confusion matrices, so that 1,000 resamples cost one matrix product;
the tests hold them to scikit-learn's.

Dimensions: N bags, C grades, R rows of weights (resamples).
"""

from collections.abc import Sequence

import numpy as np

from mhimdist.errors import UndefinedError
from mhimdist.statistics.bootstrap import Weighed
from mhimdist.statistics.results import check, ratio


def measures(labels_N: np.ndarray, predicted_N: np.ndarray, num_classes: int) -> dict[str, float | None]:
    """Agreement of grades.

    Args:
        labels_N: int64 grades, 0 to C - 1 in ascending order.
        predicted_N: int64 predicted grades.
        num_classes: number C of grades.

    Returns:
        "kappa", Cohen's (1968) with quadratic weights: 1 is perfect, 0 is chance, None if all bags have and
        are given one and the same grade; "accuracy"; "adjacent_accuracy", the share of the bags that are off
        by one grade at most; "mae", the mean number of grades by which a bag is off.

    Raises:
        UndefinedError: there is no bag, the lengths differ, or a grade is outside 0 to C - 1.
    """
    return weighed(labels_N, predicted_N, [""] * len(labels_N), num_classes).once()


def weighed(labels_N: np.ndarray, predicted_N: np.ndarray, cases: Sequence[str], num_classes: int) -> Weighed:
    """The measures as functions of weights, for `bootstrap.estimates` and `paired.bootstrap_tests`.

    Args:
        labels_N, predicted_N, num_classes: as in `measures`.
        cases: the case of each bag.

    Raises:
        UndefinedError: see `measures`.
    """
    check(labels_N, predicted_N, cases)
    for what, grades_N in (("true", labels_N), ("predicted", predicted_N)):
        if not 0 <= grades_N.min() <= grades_N.max() < num_classes:
            raise UndefinedError(
                f"expected {what} grades from 0 to {num_classes - 1}, got {grades_N.min()} to "
                f"{grades_N.max()}"
            )
    cells = num_classes**2
    one_hot_NC = np.eye(cells)[labels_N.astype(np.int64) * num_classes + predicted_N.astype(np.int64)]
    grades_C = np.arange(num_classes)
    off_CC = np.abs(grades_C[:, None] - grades_C)

    def values(weights_RN: np.ndarray) -> dict[str, np.ndarray]:
        counts_RCC = (weights_RN @ one_hot_NC).reshape(-1, num_classes, num_classes)
        total_R = counts_RCC.sum(axis=(1, 2))
        true_RC, called_RC = counts_RCC.sum(axis=2), counts_RCC.sum(axis=1)

        def mean(cost_CC: np.ndarray) -> np.ndarray:
            return ratio((counts_RCC * cost_CC).sum(axis=(1, 2)), total_R)

        by_chance_R = np.einsum("rc,cd,rd->r", true_RC, off_CC**2.0, called_RC)
        return {
            "kappa": 1 - ratio((counts_RCC * off_CC**2).sum(axis=(1, 2)) * total_R, by_chance_R),
            "accuracy": mean(off_CC == 0),
            "adjacent_accuracy": mean(off_CC <= 1),
            "mae": mean(off_CC),
        }

    return Weighed(cases, values)
