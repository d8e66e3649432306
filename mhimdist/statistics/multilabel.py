"""How well several labels of a bag are told, where some cells of the label table may be missing.

A missing cell is neither positive nor negative: it is left out of its label's measures and of no other's.
The measures are functions of weights, so that one call answers for hundreds of resamples; with ten labels,
1,000 resamples by scikit-learn take half a minute. The tests hold them to scikit-learn's and
torchmetrics'.

Dimensions: N bags, K labels, R rows of weights (resamples), U different scores.
"""

from collections.abc import Sequence

import numpy as np

from mhimdist.errors import UndefinedError
from mhimdist.statistics.bootstrap import Weighed
from mhimdist.statistics.metrics import weighted_auc, youden_threshold
from mhimdist.statistics.regression import check_columns, with_columns
from mhimdist.statistics.results import ratio, sums_by_value


def measures(
    targets_NK: np.ndarray,
    probabilities_NK: np.ndarray,
    columns: Sequence[str] = (),
    *,
    thresholds_K: np.ndarray | None = None,
) -> dict[str, float | None]:
    """Measures as macro means over the labels that have both a positive and a negative bag.

    Args:
        targets_NK: float64: 0, 1, or NaN for a missing cell.
        probabilities_NK: float64, the probability of each label.
        columns: the names of the K labels; with several labels, each one's measures are added as
            "auc <name>", None if the label is undefined.
        thresholds_K: the lowest probability that is called positive, per label, chosen on other bags (see
            `thresholds`); None leaves out the measures of decisions.

    Returns:
        "auc"; "ap", the average precision, whose chance level is the label's share of positives; with
        thresholds "f1" and "accuracy"; "labels", the number of labels that the means are over. None if no
        label has both.

    Raises:
        UndefinedError: there is no bag, the shapes differ, a target is not 0, 1 or NaN, or a probability is
            not finite.
    """
    cases = [""] * len(targets_NK)
    return weighed(targets_NK, probabilities_NK, cases, columns, thresholds_K=thresholds_K).once()


def weighed(
    targets_NK: np.ndarray,
    probabilities_NK: np.ndarray,
    cases: Sequence[str],
    columns: Sequence[str] = (),
    *,
    thresholds_K: np.ndarray | None = None,
) -> Weighed:
    """The measures as functions of weights, for `bootstrap.estimates` and `paired.bootstrap_tests`.

    The macro means of a resample are over the labels that all bags define. A resample that lacks a positive
    or a negative bag of one of them is undefined: the mean over fewer labels would be another quantity.

    Args:
        targets_NK, probabilities_NK, columns, thresholds_K: as in `measures`.
        cases: the case of each bag.

    Raises:
        UndefinedError: see `measures`.
    """
    check_columns(targets_NK, probabilities_NK, cases, columns)
    known_NK = ~np.isnan(targets_NK)
    if (odd := known_NK & (targets_NK != 0) & (targets_NK != 1)).any():
        row, k = np.argwhere(odd)[0]
        raise UndefinedError(
            f"expected targets 0, 1 or NaN, got {targets_NK[row, k]} for bag {row}, label {k}"
        )
    defined = defined_labels(targets_NK)

    def values(weights_RN: np.ndarray) -> dict[str, np.ndarray]:
        each: dict[str, list[np.ndarray]] = {}
        for k in range(targets_NK.shape[1]):
            rows = known_NK[:, k]
            positive_N, scores_N = targets_NK[rows, k] == 1, probabilities_NK[rows, k]
            threshold = None if thresholds_K is None else float(thresholds_K[k])
            for name, value_R in _label(positive_N, scores_N, weights_RN[:, rows], threshold).items():
                each.setdefault(name, []).append(value_R)
        undefined_R = np.full(len(weights_RN), np.nan)
        means = {
            name: np.mean([value_R for k, value_R in enumerate(of_K) if defined[k]], axis=0)
            if defined.any()
            else undefined_R
            for name, of_K in each.items()
        }
        means["labels"] = np.full(len(weights_RN), float(defined.sum()))
        return with_columns(each, columns) | means

    return Weighed(cases, values)


def defined_labels(targets_NK: np.ndarray) -> np.ndarray:
    """Which labels have both a positive and a negative bag: bool, shape K."""
    return (targets_NK == 1).any(axis=0) & (targets_NK == 0).any(axis=0)


def thresholds(targets_NK: np.ndarray, probabilities_NK: np.ndarray) -> np.ndarray:
    """The threshold of each label that maximises Youden's index, or 0.5 for a label without both classes.

    Args:
        targets_NK, probabilities_NK: of validation bags, as in `measures`.

    Returns:
        float64, shape K.
    """
    found_K = np.full(targets_NK.shape[1], 0.5)
    for k in np.flatnonzero(defined_labels(targets_NK)):
        rows = ~np.isnan(targets_NK[:, k])
        found_K[k] = youden_threshold(targets_NK[rows, k].astype(np.int64), probabilities_NK[rows, k])
    return found_K


def _label(
    positive_N: np.ndarray, scores_N: np.ndarray, weights_RN: np.ndarray, threshold: float | None
) -> dict[str, np.ndarray]:
    """The measures of one label, each of shape R; NaN without a positive or without a negative bag."""
    true_R, total_R = (weights_RN * positive_N).sum(axis=1), weights_RN.sum(axis=1)
    both_R = (true_R > 0) & (true_R < total_R)
    if not both_R.any():
        nothing_R = np.full(len(weights_RN), np.nan)
        names = ("auc", "ap") if threshold is None else ("auc", "ap", "f1", "accuracy")
        return dict.fromkeys(names, nothing_R)
    found = {
        "auc": weighted_auc(positive_N, scores_N, weights_RN),
        "ap": _average_precision(positive_N, scores_N, weights_RN),
    }
    if threshold is not None:
        called_N = scores_N >= threshold
        right_R = (weights_RN * (positive_N & called_N)).sum(axis=1)
        found["f1"] = ratio(2 * right_R, true_R + (weights_RN * called_N).sum(axis=1))
        found["accuracy"] = ratio((weights_RN * (positive_N == called_N)).sum(axis=1), total_R)
    return {name: np.where(both_R, value_R, np.nan) for name, value_R in found.items()}


def _average_precision(positive_N: np.ndarray, scores_N: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """The sum of the precisions at each score, each weighted by the recall that is gained there, shape R."""
    gained_RU, level_RU = sums_by_value(-scores_N, weights_RN * positive_N, weights_RN)
    called_RU = level_RU.cumsum(axis=1)
    # No bag at or above a score that no bag of the resample has: nothing is gained there, either.
    precision_RU = np.nan_to_num(ratio(gained_RU.cumsum(axis=1), called_RU))
    return ratio((gained_RU * precision_RU).sum(axis=1), gained_RU.sum(axis=1))
