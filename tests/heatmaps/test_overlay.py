"""Attention makes patches bright and probability makes them cyan, on a slide and on a clean canvas."""

import numpy as np
import pytest
from PIL import Image

from mhimdist.heatmaps.overlay import blend

SLIDE = Image.new("RGB", (4, 2), (200, 120, 160))


@pytest.mark.parametrize("picture", [None, SLIDE])
def test_more_attention_is_brighter_and_more_probability_more_cyan(picture):
    attention_YX = np.array([[0.0, 50.0, 100.0, np.nan]] * 2)
    probability_YX = np.array([[0.0, 0.0, 0.0, np.nan], [1.0, 1.0, 1.0, np.nan]])
    found_YX3 = blend(attention_YX, probability_YX, picture)
    assert found_YX3.shape == (2, 4, 3)
    assert found_YX3.min() >= 0
    assert found_YX3.max() <= 1
    plain_X3, cyan_X3 = found_YX3[0, :3], found_YX3[1, :3]
    assert (np.diff(plain_X3.sum(1)) > 0).all()
    assert (np.diff(cyan_X3.sum(1)) > 0).all()
    assert np.ptp(plain_X3, axis=1).max() < 1e-12  # grey
    assert (cyan_X3[:, 1] > 2 * cyan_X3[:, 0]).all()
    assert (cyan_X3[:, 2] >= cyan_X3[:, 1]).all()


def test_beside_the_patches_a_canvas_is_white_and_a_slide_dark():
    nothing_YX = np.full((2, 4), np.nan)
    assert (blend(nothing_YX, nothing_YX, None) == 1).all()
    assert blend(nothing_YX, nothing_YX, SLIDE).max() < 0.2
