"""Metrics of the scores of a set of bags, and their uncertainty.

Dimensions: N bags, C classes, K cases, R bootstrap resamples, U different scores, F folds, S seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn import metrics as sk

from mhimdist.statistics.bootstrap import LEAST_DEFINED, MOST_WEIGHTS, case_counts
from mhimdist.statistics.results import sums_by_value


def auc(labels_N: np.ndarray, probabilities_NC: np.ndarray) -> float | None:
    """Area under the ROC curve; for C > 2 the mean over the classes that have bags, each against the rest.

    Returns:
        A value in [0, 1], or None if the AUC is undefined: all bags have the same class.
    """
    present = np.unique(labels_N)
    if len(present) < 2:
        return None
    positive = (1,) if probabilities_NC.shape[1] == 2 else present
    return float(np.mean([sk.roc_auc_score(labels_N == c, probabilities_NC[:, c]) for c in positive]))


def youden_threshold(labels_N: np.ndarray, scores_N: np.ndarray) -> float:
    """The score that maximises true- minus false-positive rate; the highest one if several do.

    If calling no bag positive is best, it is the highest score + 1, which no probability reaches.
    """
    false_positive, true_positive, thresholds = sk.roc_curve(labels_N, scores_N)
    thresholds[0] = scores_N.max() + 1  # sklearn's is infinite, which JSON cannot hold
    # Rounded, so that rates that differ only in their last bit count as equal.
    return float(thresholds[np.argmax(np.round(true_positive - false_positive, 12))])


def classification(
    labels_N: np.ndarray, probabilities_NC: np.ndarray, threshold: float | None
) -> dict[str, float | None]:
    """AUC, accuracy, F1, precision and recall; with two classes the second one is positive.

    Args:
        labels_N: int64 class indices.
        probabilities_NC: class probabilities.
        threshold: for two classes, the lowest probability called positive, chosen on other bags than these.
            With more classes it is ignored: the most probable class is predicted, and the metrics are macro
            means over the classes that have bags.
    """
    binary = probabilities_NC.shape[1] == 2
    if binary:
        assert threshold is not None, "two classes always come with a threshold, see `evaluation.judge`"
        predicted_N = (probabilities_NC[:, 1] >= threshold).astype(np.int64)
    else:
        threshold, predicted_N = None, probabilities_NC.argmax(1)
    how: dict[str, Any] = {"average": "binary" if binary else "macro", "zero_division": 0.0}
    if not binary:
        how["labels"] = np.unique(labels_N)
    return {
        "auc": auc(labels_N, probabilities_NC),
        "accuracy": float(sk.accuracy_score(labels_N, predicted_N)),
        "f1": float(sk.f1_score(labels_N, predicted_N, **how)),
        "precision": float(sk.precision_score(labels_N, predicted_N, **how)),
        "recall": float(sk.recall_score(labels_N, predicted_N, **how)),
        "threshold": threshold,
    }


@dataclass(frozen=True)
class Scores:
    """One network's scores of bags that it was not trained on.

    Attributes:
        labels_N: int64 class indices.
        probabilities_NC: class probabilities.
        cases: the case of each bag.
    """

    labels_N: np.ndarray
    probabilities_NC: np.ndarray
    cases: Sequence[str]


def pooled(parts: Sequence[Scores]) -> Scores:
    """The bags of several folds as one set, for their out-of-fold AUC."""
    return Scores(
        np.concatenate([part.labels_N for part in parts]),
        np.concatenate([part.probabilities_NC for part in parts]),
        [case for part in parts for case in part.cases],
    )


def auc_interval(
    parts: Sequence[Scores], *, num_resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> tuple[float, float] | None:
    """Percentile bootstrap interval of the mean AUC over several networks, resampled by case.

    A resample draws as many cases as exist, with replacement. A bag counts as often as its case was drawn,
    in every part that tested it. The interval says how far the mean would move with other patients, not with
    other seeds.

    Args:
        parts: scores of each network, such as one per fold and seed.
        num_resamples: number R of resamples.
        level: share of the resamples inside the interval, in (0, 1).
        seed: seed of the draws.

    Returns:
        The interval's ends, or None if the AUC of a part is undefined, or fewer than `LEAST_DEFINED` of the
            resamples have all classes of a part: the interval would be that of a few lucky draws.
    """
    if not parts or any(auc(part.labels_N, part.probabilities_NC) is None for part in parts):
        return None
    names = sorted({case for part in parts for case in part.cases})
    index = {name: i for i, name in enumerate(names)}
    counts_RK = case_counts(len(names), num_resamples, seed)
    aucs_RP = np.stack(
        [_resampled_auc(part, counts_RK[:, [index[case] for case in part.cases]]) for part in parts], axis=1
    )
    # A part that lacks one of its classes in a resample is left out of it; a resample without any part is
    # left out.
    defined_R = np.isfinite(aucs_RP).any(axis=1)
    if defined_R.mean() < LEAST_DEFINED:
        return None
    means_R = np.nanmean(aucs_RP[defined_R], axis=1)
    low, high = np.quantile(means_R, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _resampled_auc(part: Scores, weights_RN: np.ndarray) -> np.ndarray:
    """The AUC of each resample, shape R; NaN if it is undefined."""
    classes = (1,) if part.probabilities_NC.shape[1] == 2 else np.unique(part.labels_N)
    each = [
        weighted_auc(part.labels_N == c, part.probabilities_NC[:, c], weights_RN.astype(np.float64))
        for c in classes
    ]
    return np.mean(each, axis=0)


def weighted_auc(positive_N: np.ndarray, scores_N: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """Per row of weights, the AUC of bags that count so often, shape R; NaN if it is undefined."""
    return share_in_order(scores_N, weights_RN * positive_N, weights_RN * ~positive_N)


def share_in_order(scores_N: np.ndarray, positive_RN: np.ndarray, negative_RN: np.ndarray) -> np.ndarray:
    """Per row, the weighted share of the pairs in which the positive bag scores higher; a tie counts half.

    Args:
        scores_N: a score per bag.
        positive_RN, negative_RN: each bag's weight as the positive and as the negative one of a pair.

    Returns:
        float64, shape (R); NaN without a pair.
    """
    positive_RU, negative_RU = sums_by_value(scores_N, positive_RN, negative_RN)
    below_RU = negative_RU.cumsum(axis=1) - negative_RU / 2
    pairs_R = positive_RU.sum(axis=1) * negative_RU.sum(axis=1)
    in_order_R = (positive_RU * below_RU).sum(axis=1)
    return np.divide(in_order_R, pairs_R, out=np.full(len(pairs_R), np.nan), where=pairs_R > 0)


def mean_and_std(values_SF: Sequence[Sequence[float]]) -> tuple[float, float | None]:
    """Mean and standard deviation over runs, formed as in the paper.

    With several seeds, each seed's mean over its folds is a value, and the deviation is over these values
    (CAMELYON16). With one seed the deviation is over the folds (TCGA). It is the population's deviation
    (division by n): with n, not with n - 1, the authors' logged AUCs of three seeds, .958 .957 .969, yield
    the published 96.14 +- 0.52.

    Args:
        values_SF: per seed, the values of its folds.

    Returns:
        The mean, and the deviation, which is None for a single run.
    """
    means = [float(np.mean(values)) for values in values_SF]
    spread = means if len(means) > 1 else list(values_SF[0])
    return float(np.mean(means)), float(np.std(spread)) if len(spread) > 1 else None


def auc_difference_interval(
    first: Sequence[Scores],
    second: Sequence[Scores],
    *,
    num_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Percentile bootstrap interval of the difference of two mean AUCs; a resample draws cases for both.

    Args:
        first, second: scores of each network of the one and of the other, as in `auc_interval`.
        num_resamples, level, seed: as in `auc_interval`.

    Returns:
        The interval's ends, or None if the AUC of a part is undefined, or fewer than `LEAST_DEFINED` of the
            resamples have one.
    """
    parts = [*first, *second]
    if not (first and second) or any(auc(part.labels_N, part.probabilities_NC) is None for part in parts):
        return None
    names = sorted({case for part in parts for case in part.cases})
    index = {name: i for i, name in enumerate(names)}
    counts_RK = case_counts(len(names), num_resamples, seed)

    def means(networks: Sequence[Scores]) -> np.ndarray:
        """The mean AUC of each resample, shape R; a part that lacks a class there is left out of it."""
        aucs_PR = np.empty((len(networks), num_resamples))
        for part, aucs_R in zip(networks, aucs_PR, strict=True):
            place_N = np.array([index[case] for case in part.cases])
            step = max(1, MOST_WEIGHTS // len(place_N))
            for start in range(0, num_resamples, step):
                block = slice(start, start + step)
                aucs_R[block] = _resampled_auc(part, counts_RK[block][:, place_N])
        num_R = np.isfinite(aucs_PR).sum(axis=0)
        total_R = np.nansum(aucs_PR, axis=0)
        return np.divide(total_R, num_R, out=np.full(num_resamples, np.nan), where=num_R > 0)

    differences_R = means(first) - means(second)
    differences_R = differences_R[np.isfinite(differences_R)]
    if len(differences_R) < LEAST_DEFINED * num_resamples:
        return None
    low, high = np.quantile(differences_R, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
