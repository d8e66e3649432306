"""The picture of a slide: a row of maps per prediction, all on the same view and the same scales.

Dimensions: N patches of a slide; Y, X rows and columns of a canvas; 2 the coordinates x and y.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import matplotlib
import numpy as np
from matplotlib import font_manager, patheffects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image

from mhimdist.heatmaps import colours, overlay, raster
from mhimdist.heatmaps.annotations import Outline
from mhimdist.heatmaps.places import Places
from mhimdist.heatmaps.scores import Scores
from mhimdist.heatmaps.slides import Region

# Inches.
_MARGIN, _GAP = 0.15, 0.12
_TITLE, _ROW_TITLE, _COLUMN_TITLE, _BAR, _NOTE = 0.62, 0.27, 0.23, 0.66, 0.19
_LONGEST_SIDE = 0.8
"""Highest panel relative to the picture's width."""
_LETTER, _SMALLEST = 0.58, 5.0
"""Mean width of a letter relative to its size, and the smallest size in points."""
_OPACITY = 0.62
"""Of a map over a slide."""
_STYLES = ("solid", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))
_STYLE_NAMES = ("solid", "dashed", "dotted", "dash-dotted")


@dataclass(frozen=True, eq=False)
class Row:
    """A prediction on the slide.

    Attributes:
        name: of the prediction.
        scores: the scores of the slide.
        places: where its patches lie.
    """

    name: str
    scores: Scores
    places: Places


@dataclass(frozen=True, eq=False)
class Sheet:
    """What is drawn.

    Attributes:
        rows: the predictions; all are of the same slide.
        classes: whose probability is drawn.
        view: the region that all maps show.
        thumbnail: returns the view as a picture of this width and height; None on a clean canvas.
        outlines: annotations to draw in.
        notes: what the reader must know besides the notes of the places.
        in_one: whether attention and probability are one map, as in the paper's Figure 4.
        width_px: width of the picture.
        dpi: pixels per inch.
    """

    rows: Sequence[Row]
    classes: Sequence[str]
    view: Region
    thumbnail: Any = None
    outlines: Sequence[Outline] = ()
    notes: Sequence[str] = ()
    in_one: bool = False
    width_px: int = 2400
    dpi: int = 200


def compose(sheet: Sheet) -> Figure:
    """Compose the picture; `figure.savefig` writes it with the sheet's width."""
    columns = _columns(sheet)
    width = sheet.width_px / sheet.dpi
    num_columns = max(len(columns), 1 if sheet.in_one else 2)
    room = (width - 2 * _MARGIN - (num_columns - 1) * _GAP) / num_columns
    aspect = sheet.view.height / sheet.view.width
    panel_height = min(room * aspect, _LONGEST_SIDE * width)
    panel_width = panel_height / aspect
    notes = _notes(sheet, round(width * 13))
    row_height = _ROW_TITLE + panel_height + _GAP
    bars = _TITLE + _COLUMN_TITLE + len(sheet.rows) * row_height
    height = bars + _BAR + _NOTE * len(notes) + _MARGIN
    figure = Figure(figsize=(width, height), dpi=sheet.dpi, facecolor="white")
    FigureCanvasAgg(figure)

    about = sheet.rows[0].scores.about
    _text(figure, _MARGIN, _MARGIN, _shortened(about.slide, round(width * 9)), size=12, weight="bold")
    label = _shortened(f"label: {about.label or 'unknown'}", round(width * 12))
    _text(figure, _MARGIN, _MARGIN + 0.25, label, size=9)
    pixels = (max(1, round(panel_width * sheet.dpi)), max(1, round(panel_height * sheet.dpi)))
    picture = sheet.thumbnail(*pixels) if sheet.thumbnail else None
    start = (width - len(columns) * room - (len(columns) - 1) * _GAP) / 2
    for number, row in enumerate(sheet.rows):
        top = _TITLE + number * row_height + (_COLUMN_TITLE if number else 0)
        _text(figure, _MARGIN, top, _row_title(row, round(width * 12)), size=9)
        top = _TITLE + _COLUMN_TITLE + number * row_height + _ROW_TITLE
        for index, column in enumerate(columns):
            left = start + index * (room + _GAP) + (room - panel_width) / 2
            axes = _axes(figure, left, top, panel_width, panel_height)
            _panel(axes, sheet, row, column, pixels, picture)
            if number == index == 0:
                _scale_bar(axes, sheet, row.places)
    for index, column in enumerate(columns):
        left = start + index * (room + _GAP)
        title, size = _fitted(column.title, room, 9)
        _text(figure, left + room / 2, _TITLE + _ROW_TITLE, title, size=size, ha="center")
        if column.kind == overlay.KIND:
            key = _axes(figure, left + 0.3 * room, bars + 0.06, 0.4 * room, 0.24)
            overlay.draw_key(key, _fitted(column.scale, room, 7.5)[0])
        elif column.colour_map:
            _colour_bar(figure, column, left, bars, room, opacity=1.0 if picture is None else _OPACITY)
    for index, note in enumerate(notes):
        _text(figure, _MARGIN, bars + _BAR + index * _NOTE + 0.06, note, size=7.5, color="#444444")
    return figure


@dataclass(frozen=True)
class _Column:
    """One map of every row: `of` gives its values, or None if the row has none."""

    title: str
    scale: str = ""
    colour_map: str = ""
    top: float = 1.0
    kind: str = ""
    of_class: str = ""

    def values(self, scores: Scores) -> np.ndarray | None:
        if self.kind == "probability":
            return scores.probability_N.get(self.of_class)
        values_N = scores.teacher_attention_N if self.kind == "teacher" else scores.attention_N
        return None if values_N is None else raster.percentiles(values_N)


def _columns(sheet: Sheet) -> list[_Column]:
    if sheet.in_one:
        return [
            _Column(
                printable(f"attention (bright) and probability of {name} (cyan)"),
                "right: attention, percentile of the slide's patches; up: probability of each patch alone",
                overlay.KIND,
                kind=overlay.KIND,
                of_class=name,
            )
            for name in sheet.classes
        ]
    columns = [_Column("slide")] if sheet.thumbnail else []
    all_scores = [row.scores for row in sheet.rows]
    percentile = "percentile of the slide's patches"
    attention = [("attention", [scores.attention_N for scores in all_scores])]
    attention.append(("teacher's attention", [scores.teacher_attention_N for scores in all_scores]))
    for (title, values), kind in zip(attention, ("attention", "teacher"), strict=True):
        if any(each is not None for each in values):
            columns.append(_Column(title, percentile, colours.ATTENTION, 100.0, kind))
    for name in sheet.classes:
        if any(name in scores.probability_N for scores in all_scores):
            title = printable(f"probability of {name}")
            columns.append(
                _Column(title, "of each patch alone", colours.PROBABILITY, 1.0, "probability", name)
            )
    return columns


def _panel(
    axes: Axes, sheet: Sheet, row: Row, column: _Column, pixels: tuple[int, int], picture: Image.Image | None
) -> None:
    view = sheet.view
    extent = (view.x, view.x + view.width, view.y + view.height, view.y)
    axes.set(xlim=extent[:2], ylim=extent[2:])
    values_N = column.values(row.scores) if column.colour_map else None
    if column.colour_map and values_N is None:
        _say_none(axes, "attention" if column.kind == overlay.KIND else column.title)
        return
    if column.kind == overlay.KIND and values_N is not None:
        probability_N = row.scores.probability_N.get(column.of_class)
        if probability_N is None:
            _say_none(axes, "probability")
        else:
            attention_YX, probability_YX = (
                raster.draw(each, row.places, view, *pixels) for each in (values_N, probability_N)
            )
            both_YX3 = overlay.blend(attention_YX, probability_YX, picture)
            axes.imshow(both_YX3, extent=extent, aspect="auto", interpolation="nearest")
            _draw_outlines(axes, sheet, overlay.OUTLINE)
        return
    if picture is not None:
        under = picture if not column.colour_map else picture.convert("L").convert("RGB")
        axes.imshow(np.asarray(under), extent=extent, aspect="auto", interpolation="nearest")
    if values_N is not None:
        axes.imshow(
            np.ma.masked_invalid(raster.draw(values_N, row.places, view, *pixels)),
            extent=extent,
            aspect="auto",
            interpolation="nearest",
            cmap=column.colour_map,
            norm=Normalize(0, column.top),
            alpha=1.0 if picture is None else _OPACITY,
        )
    _draw_outlines(axes, sheet, "black")


def _say_none(axes: Axes, what: str) -> None:
    said = f"this model gives patches\nno {what}"
    axes.text(0.5, 0.5, said, transform=axes.transAxes, ha="center", va="center", size=9, parse_math=False)


def _draw_outlines(axes: Axes, sheet: Sheet, colour: str) -> None:
    groups = _groups(sheet.outlines)
    halo = [patheffects.Stroke(linewidth=2.6, foreground="white"), patheffects.Normal()]
    for outline in sheet.outlines:
        closed_P2 = np.concatenate([outline.points_P2, outline.points_P2[:1]])
        style: Any = _STYLES[groups.index(outline.group) % len(_STYLES)]
        axes.plot(*closed_P2.T, color=colour, linewidth=1.2, linestyle=style, path_effects=halo)


def _scale_bar(axes: Axes, sheet: Sheet, places: Places) -> None:
    """A bar of a round length, about a fifth of the panel, if the size of a pixel is known."""
    if places.mpp is None:
        return
    view = sheet.view
    length_um = _round_length(view.width * places.mpp / 5)
    share = length_um / places.mpp / view.width
    text = f"{length_um / 1000:g} mm" if length_um >= 1000 else f"{length_um:g} µm"
    halo = [patheffects.Stroke(linewidth=5, foreground="white"), patheffects.Normal()]
    axes.plot(
        [0.03, 0.03 + share],
        [0.035, 0.035],
        transform=axes.transAxes,
        color="black",
        linewidth=2.5,
        solid_capstyle="butt",
        path_effects=halo,
    )
    thin = [patheffects.Stroke(linewidth=2, foreground="white"), patheffects.Normal()]
    axes.text(0.03, 0.055, text, transform=axes.transAxes, size=8, va="bottom", path_effects=thin)


def _round_length(length: float) -> float:
    """The largest of 1, 2, 5, 10, 20, ... that is not above a length."""
    power = 10.0 ** math.floor(math.log10(length))
    return next(factor * power for factor in (5, 2, 1) if factor * power <= length * (1 + 1e-9))


def _colour_bar(
    figure: Figure, column: _Column, left: float, top: float, room: float, *, opacity: float
) -> None:
    axes = _axes(figure, left + 0.1 * room, top + 0.06, 0.8 * room, 0.11)
    mappable = ScalarMappable(Normalize(0, column.top), column.colour_map)
    bar = figure.colorbar(mappable, cax=axes, orientation="horizontal", alpha=opacity)
    bar.set_ticks([0, column.top / 4, column.top / 2, 3 * column.top / 4, column.top])
    bar.outline.set_linewidth(0.5)
    axes.tick_params(labelsize=7, length=2, width=0.5, pad=1.5)
    label, size = _fitted(f"{column.title}\n{column.scale}", room, 7.5)
    axes.set_xlabel(label, fontsize=size, labelpad=1.5, parse_math=False)


def _notes(sheet: Sheet, width: int) -> list[str]:
    """The lines under the maps; what all rows share is said once."""
    groups = _groups(sheet.outlines)
    notes = []
    if groups:
        styles = [
            f"{group or 'outline'} ({_STYLE_NAMES[index % len(_STYLES)]})"
            for index, group in enumerate(groups)
        ]
        notes.append(f"outlines: {', '.join(styles)}")
    for row in sheet.rows:
        several = f"{row.name}: " if len(sheet.rows) > 1 else ""
        said = [f"{row.scores.num_patches:,} patches", *row.places.notes]
        notes.append(several + "; ".join(said))
        notes += [f"{several}warning: {text}" for text in row.scores.about.warnings]
    return [_shortened(note, width) for note in (*notes, *sheet.notes)]


def _row_title(row: Row, width: int) -> str:
    about = row.scores.about
    if about.predicted is None:
        return _shortened(row.name, width)
    probability = about.probability.get(about.predicted)
    sure = "" if probability is None else f", probability {probability:.3f}"
    end = f" — predicted: {about.predicted}{sure}"
    return _shortened(row.name, max(width - len(end), 20)) + end


def _groups(outlines: Sequence[Outline]) -> list[str]:
    return list(dict.fromkeys(outline.group for outline in outlines))


def _axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a place in inches from the upper left corner."""
    whole_width, whole_height = figure.get_size_inches()
    axes = figure.add_axes(
        (left / whole_width, 1 - (top + height) / whole_height, width / whole_width, height / whole_height)
    )
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(linewidth=0.5, color="#888888")
    return axes


def _text(figure: Figure, left: float, top: float, text: str, **style: Any) -> None:
    width, height = figure.get_size_inches()
    figure.text(left / width, 1 - top / height, printable(text), va="top", parse_math=False, **style)


def _fitted(text: str, room: float, size: float) -> tuple[str, float]:
    """Lines that fit into so many inches, and the size of their letters, at most `size` points."""
    lines = text.split("\n")
    fits = room * 72 / (_LETTER * max(map(len, lines)))
    size = min(size, max(fits, _SMALLEST))
    return "\n".join(_shortened(line, int(room * 72 / (_LETTER * size))) for line in lines), size


def _shortened(text: str, width: int) -> str:
    """A text of at most so many characters; its middle is left out."""
    text = printable(text)
    if len(text) <= width:
        return text
    half = max(width // 2 - 1, 4)
    return f"{text[:half]}…{text[-half:]}"


def printable(text: str) -> str:
    """A text without what the font lacks or what moves the line: control characters become spaces."""
    has = _font_has()
    return "".join(
        letter if ord(letter) in has else " " if letter.isspace() or ord(letter) < 32 else "?"
        for letter in text
    )


@cache
def _font_has() -> frozenset[int]:
    font = font_manager.get_font(font_manager.findfont(matplotlib.rcParamsDefault["font.sans-serif"][0]))
    return frozenset(font.get_charmap())
