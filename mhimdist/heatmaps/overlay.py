"""Attention and probability in one map, in the style of the paper's Figure 4: bright patches, cyan patches.

The more attention a patch gets, the brighter it is; the more probable the class, the more cyan it is.

Dimensions: Y, X rows and columns of a canvas; 3 red, green and blue in [0, 1].
"""

import numpy as np
from matplotlib.axes import Axes
from PIL import Image

KIND = "overlay"
OUTLINE = "#D00000"
_CYAN_3 = np.array([0.0, 0.9, 1.0])
_DARKEST, _TINT = 0.2, 0.75
"""Brightness of a patch without attention, and how far a certain patch turns cyan."""
_CANVAS = 0.85


def blend(attention_YX: np.ndarray, probability_YX: np.ndarray, picture: Image.Image | None) -> np.ndarray:
    """The map as a picture: float, shape (Y, X, 3).

    Args:
        attention_YX: percentile of attention in [0, 100]; NaN where no patch is.
        probability_YX: probability in [0, 1]; NaN where no patch is.
        picture: the slide under the map, of the same size; None: a clean canvas, white beside the patches.
    """
    shape = attention_YX.shape
    if picture is None:
        base_YX3 = np.where(np.isnan(attention_YX), 1.0, _CANVAS)[..., None].repeat(3, axis=2)
    else:
        grey = picture.convert("L").resize((shape[1], shape[0]))
        base_YX3 = np.asarray(grey, float)[..., None].repeat(3, axis=2) / 255
    bright_YX1 = _DARKEST + (1 - _DARKEST) * np.nan_to_num(attention_YX)[..., None] / 100
    if picture is None:
        bright_YX1 = np.where(np.isnan(attention_YX)[..., None], 1.0, bright_YX1)
    tint_YX1 = _TINT * np.nan_to_num(probability_YX)[..., None]
    # The slide's own light and dark stay visible in a cyan patch.
    return bright_YX1 * ((1 - tint_YX1) * base_YX3 + tint_YX1 * _CYAN_3 * (0.5 + 0.5 * base_YX3))


def draw_key(axes: Axes, title: str) -> None:
    """Explain the colours: attention to the right, probability upward."""
    attention_YX, probability_YX = np.meshgrid(np.linspace(0, 100, 128), np.linspace(0, 1, 32))
    axes.imshow(
        blend(attention_YX, probability_YX, None), extent=(0, 100, 0, 1), aspect="auto", origin="lower"
    )
    axes.set(xticks=[0, 25, 50, 75, 100], yticks=[0, 1])
    axes.tick_params(labelsize=7, length=2, width=0.5, pad=1.5)
    axes.set_xlabel(title, fontsize=7.5, labelpad=1.5, parse_math=False)
