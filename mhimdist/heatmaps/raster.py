"""From patches and scores to pixels.

Dimensions: N patches of a slide; Y, X rows and columns of a canvas.
"""

import numpy as np

from mhimdist.heatmaps.places import Places
from mhimdist.heatmaps.slides import Region


def percentiles(scores_N: np.ndarray) -> np.ndarray:
    """The percentile of each score among all: float64, N, in (0, 100); equal scores share their mean one.

    The percentile of a score is the share of lower ones plus half the share of equal ones, so scores that are
    all equal are at 50.
    """
    _, which_N, counts = np.unique(scores_N, return_inverse=True, return_counts=True)
    middles = np.cumsum(counts) - counts / 2
    return 100 * middles[which_N] / len(scores_N)


def draw(values_N: np.ndarray, places: Places, view: Region, width: int, height: int) -> np.ndarray:
    """Draw the patches as squares on a canvas: float64, Y x X, NaN where there is none.

    A pixel under several patches holds their mean. Each patch covers at least one pixel. Values and counts
    are added at the corners of the squares and then summed over rows and columns, so that the time does not
    grow with the size of a patch.

    Args:
        values_N: value of each patch.
        places: the patches.
        view: what the canvas shows, in the unit of the places.
        width: X.
        height: Y.
    """
    low_N2 = (places.corners_N2 - (view.x, view.y)) * (width / view.width, height / view.height)
    span_2 = np.array([places.edge * width / view.width, places.edge * height / view.height])
    limits_2 = np.array([width, height])
    start_N2 = np.rint(low_N2).astype(np.int64)
    end_N2 = np.maximum(np.rint(low_N2 + span_2).astype(np.int64), start_N2 + 1)
    start_N2, end_N2 = np.clip(start_N2, 0, limits_2), np.clip(end_N2, 0, limits_2)
    sums_YX, counts_YX = np.zeros((height + 1, width + 1)), np.zeros((height + 1, width + 1), np.int64)
    corners = (
        (start_N2[:, 1], start_N2[:, 0], 1),
        (start_N2[:, 1], end_N2[:, 0], -1),
        (end_N2[:, 1], start_N2[:, 0], -1),
        (end_N2[:, 1], end_N2[:, 0], 1),
    )
    for y_N, x_N, sign in corners:
        np.add.at(sums_YX, (y_N, x_N), sign * values_N)
        np.add.at(counts_YX, (y_N, x_N), sign)
    sums_YX, counts_YX = (array.cumsum(0).cumsum(1)[:-1, :-1] for array in (sums_YX, counts_YX))
    drawn_YX = np.full((height, width), np.nan)
    # Sums of float64 leave rounding errors of 1e-9: clipped, so that a mean never leaves the values' range.
    np.divide(sums_YX, counts_YX, out=drawn_YX, where=counts_YX > 0)
    return np.clip(drawn_YX, values_N.min(), values_N.max())
