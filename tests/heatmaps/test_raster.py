"""Percentiles, and patches as pixels, against plain loops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mhimdist.heatmaps import raster
from mhimdist.heatmaps.places import Places
from mhimdist.heatmaps.slides import Region


def places(corners_N2, edge):
    return Places(np.asarray(corners_N2, float), edge, edge, "px", None)


def test_percentiles_share_ties():
    assert raster.percentiles(np.array([3.0, 1.0, 2.0, 2.0])).tolist() == [87.5, 12.5, 50, 50]
    assert raster.percentiles(np.full(7, 0.25)).tolist() == [50] * 7


def test_patches_fill_their_squares():
    drawn_YX = raster.draw(np.array([1.0, 2.0]), places([[0, 0], [20, 10]], 10), Region(0, 0, 40, 20), 8, 4)
    expected_YX = np.full((4, 8), np.nan)
    expected_YX[:2, :2] = 1
    expected_YX[2:, 4:6] = 2
    np.testing.assert_array_equal(drawn_YX, expected_YX)


@given(
    corners=st.lists(st.tuples(st.integers(-20, 70), st.integers(-20, 50)), min_size=1, max_size=30),
    edge=st.integers(1, 25),
    seed=st.integers(0, 99),
)
def test_overlapping_patches_are_averaged_as_by_a_loop(corners, edge, seed):
    values_N = np.random.default_rng(seed).normal(size=len(corners))
    drawn_YX = raster.draw(values_N, places(corners, edge), Region(0, 0, 60, 40), 60, 40)
    sums_YX, counts_YX = np.zeros((40, 60)), np.zeros((40, 60))
    for (x, y), value in zip(corners, values_N, strict=True):
        rows, columns = slice(max(y, 0), max(y + edge, 0)), slice(max(x, 0), max(x + edge, 0))
        sums_YX[rows, columns] += value
        counts_YX[rows, columns] += 1
    assert (np.isnan(drawn_YX) == (counts_YX == 0)).all()
    covered = counts_YX > 0
    np.testing.assert_allclose(drawn_YX[covered], sums_YX[covered] / counts_YX[covered], atol=1e-9)


def test_a_patch_smaller_than_a_pixel_is_seen():
    drawn_YX = raster.draw(np.array([5.0]), places([[501, 203]], 1), Region(0, 0, 1000, 500), 100, 50)
    assert np.argwhere(~np.isnan(drawn_YX)).tolist() == [[20, 50]]
    assert drawn_YX[20, 50] == pytest.approx(5)
