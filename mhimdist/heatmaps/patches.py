"""The patches of a slide with the highest and the lowest scores: a table, and their pictures.

Dimensions: N patches of a slide, K of them.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mhimdist import files
from mhimdist.foreign_text import csv_text
from mhimdist.heatmaps.picture import printable
from mhimdist.heatmaps.places import Places
from mhimdist.heatmaps.qupath import ranked_by
from mhimdist.heatmaps.raster import percentiles
from mhimdist.heatmaps.scores import Scores
from mhimdist.heatmaps.slides import Region, Slide

PATCH_PIXELS = 224


def extremes(ranked_N: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The patches with the highest scores, highest first, and those with the lowest, lowest first.

    No patch is among both; of equal scores the earlier patch comes first. int64, at most `count` each.
    """
    top_K = np.argsort(-ranked_N, kind="stable")[:count]
    order_N = np.argsort(ranked_N, kind="stable")
    bottom_K = order_N[~np.isin(order_N, top_K)][:count]
    return top_K, bottom_K


def write_table(path: Path, predictions: Sequence[tuple[str, Scores]], count: int) -> None:
    """Write the extreme patches of one slide as CSV: by each prediction, the highest and the lowest.

    Args:
        path: the file.
        predictions: name and scores of each prediction.
        count: how many of either kind.

    Raises:
        DiskFullError: the file does not fit on the disk.
    """
    classes = list(dict.fromkeys(name for _, scores in predictions for name in scores.probability_N))
    head = ("prediction", "slide", "end", "rank", "patch", "x", "y", "ranked by", "percentile")
    header = [*head, "attention", "teacher_attention", *(f"instance_{c}" for c in classes), "instance_label"]
    rows: list[list[object]] = []
    for name, scores in predictions:
        by, ranked_N = ranked_by(scores)
        percentile_N = percentiles(ranked_N)
        values = (
            scores.attention_N,
            scores.teacher_attention_N,
            *(scores.probability_N.get(each) for each in classes),
            scores.instance_labels_N,
        )
        for end, chosen_K in zip(("top", "bottom"), extremes(ranked_N, count), strict=True):
            for rank, patch in enumerate(chosen_K, start=1):
                place = ("", "") if scores.coords_N2 is None else scores.coords_N2[patch].astype(int)
                row = (name, scores.about.slide, end, rank, patch, *place, by)
                numbers = ("" if value_N is None else f"{value_N[patch]:.6g}" for value_N in values)
                rows.append([*row, f"{percentile_N[patch]:.4f}", *numbers])
    files.write_text(path, csv_text(header, rows))


def draw(
    path: Path, slide: Slide, predictions: Sequence[tuple[str, Scores, Places]], count: int, dpi: int
) -> None:
    """Draw the extreme patches as the slide shows them: a row of the highest and one of the lowest each.

    Args:
        path: the PNG file.
        slide: where the pictures come from.
        predictions: name, scores and places of each prediction; places are in pixels.
        count: how many of either kind.
        dpi: pixels per inch.

    Raises:
        DataError: the slide is damaged.
    """
    edge = PATCH_PIXELS / dpi
    width, line, head = max(count * (edge + 0.08) + 0.16, 1500 / dpi), edge + 0.38, 0.24
    height = len(predictions) * (2 * (line + head)) + 0.1
    figure = Figure(figsize=(width, height), dpi=dpi, facecolor="white")
    FigureCanvasAgg(figure)
    top = 0.08
    for name, scores, places in predictions:
        by, ranked_N = ranked_by(scores)
        percentile_N = percentiles(ranked_N)
        for end, chosen_K in zip(("highest", "lowest"), extremes(ranked_N, count), strict=True):
            title = printable(f"{name}: {end} {by}; each with its percentile and place")
            figure.text(0.08 / width, 1 - top / height, title, va="top", size=9, parse_math=False)
            for index, patch in enumerate(chosen_K):
                x, y = places.corners_N2[patch]
                region = Region(x, y, places.edge, places.edge)
                picture = slide.read(region, PATCH_PIXELS, PATCH_PIXELS)
                left, bottom = 0.08 + index * (edge + 0.08), top + head + edge
                box = (left / width, 1 - bottom / height, edge / width, edge / height)
                axes = figure.add_axes(box)
                axes.imshow(np.asarray(picture), interpolation="nearest")
                axes.set(xticks=[], yticks=[])
                label = f"{percentile_N[patch]:.2f} %\n{x:.0f}, {y:.0f}"
                axes.set_xlabel(label, fontsize=6, labelpad=2, parse_math=False)
            top += line + head
    figure.savefig(path, dpi=dpi)
