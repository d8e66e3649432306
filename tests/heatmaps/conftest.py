"""A slide of 8 x 6 patches with a hot square, which most tests draw."""

import numpy as np
import pytest

EDGE = 64
HOT = (slice(1, 3), slice(5, 7))
"""Rows and columns of the hot patches."""


@pytest.fixture
def grid():
    """Coordinates, attention, hot mask: row by row."""
    y_N, x_N = (array.ravel() for array in np.mgrid[:6, :8])
    hot_YX = np.zeros((6, 8), bool)
    hot_YX[HOT] = True
    hot_N = hot_YX.ravel()
    scores_N = np.where(hot_N, 100.0, 1.0) + np.arange(48) / 1000
    return np.stack([x_N, y_N], axis=1) * EDGE, scores_N / scores_N.sum(), hot_N
