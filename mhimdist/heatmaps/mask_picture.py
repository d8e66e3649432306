"""The picture of what masks hide of a slide.

Dimensions: N patches of a slide; Y, X rows and columns of a canvas.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from mhimdist.heatmaps import raster
from mhimdist.heatmaps.picture import printable
from mhimdist.heatmaps.places import Places
from mhimdist.heatmaps.slides import Region

SEEN, SALIENT, OTHER = "#dde1e5", "#D55E00", "#56B4E9"
_LEGEND = (
    (SALIENT, "hidden as salient"),
    (OTHER, "hidden by the low or random mask"),
    (SEEN, "seen by the student"),
)


@dataclass(frozen=True, eq=False)
class EpochMask:
    """The mask of a slide at the start of an epoch.

    Attributes:
        epoch: counted from 1.
        hidden_N: whether the student does not see a patch, bool, N.
        salient_N: whether the high mask, which follows the teacher's attention, hides it, bool, N.
    """

    epoch: int
    hidden_N: np.ndarray
    salient_N: np.ndarray


def draw(
    masks: Sequence[EpochMask], slide: str, places: Places, view: Region, *, width_px: int, dpi: int
) -> Figure:
    """Draw the masks of a slide side by side, at most three in a row."""
    columns = min(len(masks), 3)
    lines = -(-len(masks) // columns)
    width = width_px / dpi
    room = (width - 0.3 - 0.12 * 2) / 3
    panel_height = min(room * view.height / view.width, 0.8 * width)
    panel = (panel_height * view.width / view.height, panel_height)
    # The mean of overlapping patches would be no kind: each is drawn up to its neighbour.
    places = replace(places, edge=places.step)
    head, title = 0.68, 0.24
    height = head + lines * (panel[1] + title + 0.1) + 0.1
    figure = Figure(figsize=(width, height), dpi=dpi, facecolor="white")
    FigureCanvasAgg(figure)
    text = printable(f"{slide}: what the mask hides")
    figure.text(0.15 / width, 1 - 0.15 / height, text, va="top", size=12, weight="bold", parse_math=False)
    figure.legend(
        handles=[Patch(color=colour, label=label) for colour, label in _LEGEND],
        loc="upper left",
        bbox_to_anchor=(0.05 / width, 1 - 0.36 / height),
        ncols=3,
        frameon=False,
        fontsize=9,
    )
    pixels = (max(1, round(panel[0] * dpi)), max(1, round(panel[1] * dpi)))
    for index, mask in enumerate(masks):
        left = 0.15 + index % columns * (room + 0.12)
        top = head + index // columns * (panel[1] + title + 0.1)
        box = (left / width, 1 - (top + title + panel[1]) / height, panel[0] / width, panel[1] / height)
        axes = figure.add_axes(box)
        share = f"{mask.hidden_N.mean():.1%} hidden, {mask.salient_N.sum():,} as salient"
        axes.set_title(f"start of epoch {mask.epoch}: {share}", fontsize=9, loc="left", pad=3)
        kind_N = np.select([mask.salient_N, mask.hidden_N], [0.0, 1.0], 2.0)
        kind_YX = raster.draw(kind_N, places, view, *pixels)
        colours_YX3 = np.ones((*kind_YX.shape, 3))
        for kind, (colour, _) in enumerate(_LEGEND):
            colours_YX3[np.rint(kind_YX) == kind] = to_rgb(colour)
        extent = (view.x, view.x + view.width, view.y + view.height, view.y)
        axes.imshow(colours_YX3, extent=extent, aspect="auto", interpolation="nearest")
        axes.set(xticks=[], yticks=[])
    return figure
