"""How close predicted values are to measured ones, and whether they are in the same order.

The measures are functions of weights, so that one call answers for hundreds of resamples: SciPy's
`spearmanr` takes .4 ms per column and resample. The tests hold them to SciPy's and scikit-learn's.

Dimensions: N bags, K target columns, R rows of weights (resamples), U different values.
"""

from collections.abc import Sequence

import numpy as np

from mhimdist.errors import UndefinedError
from mhimdist.statistics.bootstrap import Weighed
from mhimdist.statistics.results import ratio, sums_by_value

MEASURES = ("pearson", "spearman", "r2", "mae", "rmse")


def measures(
    targets_NK: np.ndarray, predicted_NK: np.ndarray, columns: Sequence[str] = ()
) -> dict[str, float | None]:
    """Agreement of values.

    Args:
        targets_NK: float64 measured values; NaN is missing and left out.
        predicted_NK: float64 predicted values, finite.
        columns: the names of the K columns; with several columns, each one's measures are added as
            "pearson <name>".

    Returns:
        Each of `MEASURES`, as a mean over the columns: Pearson's and Spearman's (ties share their mean rank)
        correlation, which are None if a column's values or predictions are all equal; R squared, 1 - residual
        by total sum of squares, which is negative for predictions worse than the mean and None for equal
        values; mean absolute error and root mean squared error in the unit of the targets.

    Raises:
        UndefinedError: there is no bag, the shapes differ, or a prediction is not finite.
    """
    return weighed(targets_NK, predicted_NK, [""] * len(targets_NK), columns).once()


def weighed(
    targets_NK: np.ndarray, predicted_NK: np.ndarray, cases: Sequence[str], columns: Sequence[str] = ()
) -> Weighed:
    """The measures as functions of weights, for `bootstrap.estimates` and `paired.bootstrap_tests`.

    Args:
        targets_NK, predicted_NK, columns: as in `measures`.
        cases: the case of each bag.

    Raises:
        UndefinedError: see `measures`.
    """
    check_columns(targets_NK, predicted_NK, cases, columns)
    known_NK = np.isfinite(targets_NK)

    def values(weights_RN: np.ndarray) -> dict[str, np.ndarray]:
        each = []
        for k in range(targets_NK.shape[1]):
            rows = known_NK[:, k]
            each.append(_column(targets_NK[rows, k], predicted_NK[rows, k], weights_RN[:, rows]))
        return with_columns({name: [one[name] for one in each] for name in MEASURES}, columns)

    return Weighed(cases, values)


def check_columns(
    targets_NK: np.ndarray, predicted_NK: np.ndarray, cases: Sequence[str], columns: Sequence[str]
) -> None:
    """Refuse predictions that do not fit their targets.

    Raises:
        UndefinedError: there is no bag or column, the shapes differ, or a prediction is not finite.
    """
    if targets_NK.ndim != 2 or not targets_NK.size:
        raise UndefinedError(f"expected targets of bags by columns, got shape {targets_NK.shape}")
    if predicted_NK.shape != targets_NK.shape or len(cases) != len(targets_NK):
        raise UndefinedError(
            f"expected a prediction per target and a case per bag, got targets of shape {targets_NK.shape}, "
            f"predictions of shape {predicted_NK.shape} and {len(cases)} cases"
        )
    if columns and len(columns) != targets_NK.shape[1]:
        raise UndefinedError(f"expected a name per column, got {len(columns)} for {targets_NK.shape[1]}")
    if not (finite := np.isfinite(predicted_NK)).all():
        row, k = np.argwhere(~finite)[0]
        raise UndefinedError(
            f"expected finite predictions, got {predicted_NK[row, k]} for bag {row}, column {k}"
        )


def with_columns(each: dict[str, list[np.ndarray]], columns: Sequence[str]) -> dict[str, np.ndarray]:
    """The mean of each measure over the columns, and, if there are several named ones, each column's own."""
    found = {name: np.mean(values, axis=0) for name, values in each.items()}
    if len(columns) > 1:
        for name, values in each.items():
            found |= {f"{name} {column}": value_R for column, value_R in zip(columns, values, strict=True)}
    return found


def _column(truth_N: np.ndarray, predicted_N: np.ndarray, weights_RN: np.ndarray) -> dict[str, np.ndarray]:
    num_R = weights_RN.sum(axis=1)
    if not len(truth_N):
        return dict.fromkeys(MEASURES, np.full(len(weights_RN), np.nan))
    error_N = predicted_N - truth_N
    squared_R = weights_RN @ error_N**2
    total_R = _moments(truth_N, truth_N, weights_RN)
    varies_R = _varies(truth_N, weights_RN)
    both_vary_R = varies_R & _varies(predicted_N, weights_RN)
    ranks_RN, predicted_RN = _ranks(truth_N, weights_RN), _ranks(predicted_N, weights_RN)
    return {
        "pearson": np.where(both_vary_R, _correlation(truth_N, predicted_N, weights_RN), np.nan),
        "spearman": np.where(both_vary_R, _correlation(ranks_RN, predicted_RN, weights_RN), np.nan),
        "r2": np.where(varies_R, 1 - ratio(squared_R, total_R), np.nan),
        "mae": ratio(weights_RN @ np.abs(error_N), num_R),
        "rmse": np.sqrt(ratio(squared_R, num_R)),
    }


def _varies(values_N: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """Whether the bags that count have different values, shape R; a sum of squares rounds and cannot say."""
    counts_RN = weights_RN > 0
    highest_R = np.where(counts_RN, values_N, -np.inf).max(axis=1)
    return highest_R > np.where(counts_RN, values_N, np.inf).min(axis=1)


def _moments(x: np.ndarray, y: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """The weighted sum of the products of two deviations from the mean, shape R; x and y: (N) or (R, N)."""
    num_R = weights_RN.sum(axis=1)
    mean_x_R, mean_y_R = (ratio((weights_RN * each).sum(axis=1), num_R) for each in (x, y))
    return (weights_RN * (x - mean_x_R[:, None]) * (y - mean_y_R[:, None])).sum(axis=1)


def _correlation(x: np.ndarray, y: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    # Two roots: the product of two small variances could be too small for a float.
    spread_R = np.sqrt(_moments(x, x, weights_RN)) * np.sqrt(_moments(y, y, weights_RN))
    return np.clip(ratio(_moments(x, y, weights_RN), spread_R), -1, 1)


def _ranks(values_N: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """The mean rank of each value among the bags that count, less 1/2, shape (R, N)."""
    (num_RU,) = sums_by_value(values_N, weights_RN)
    place_N = np.unique(values_N, return_inverse=True)[1]
    return (num_RU.cumsum(axis=1) - num_RU / 2)[:, place_N]
