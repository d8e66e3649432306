"""What all plotly figures share: palette, template, axes, labels and curves.

Backgrounds are transparent, and the page's style sheet colours text and grid, so one figure serves the light
page, the dark page and print.
"""

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from mhimdist import foreign_text
from mhimdist.report import formats
from mhimdist.report.summary import History, is_number

# Okabe and Ito's palette without yellow and black; colour-blind readers can tell its colours apart.
BLUE, VERMILION, GREEN, ORANGE, SKY, PURPLE = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7"
GREY = "#8b939c"
SILENT: dict[str, Any] = {"hoverinfo": "skip", "showlegend": False}
"""What only helps the eye: it is in no legend and answers no pointer."""

_AXIS = {
    "automargin": True,
    "zeroline": False,
    "showline": True,
    "linewidth": 1,
    "ticks": "outside",
    "ticklen": 4,
    "title": {"standoff": 8},
}
TEMPLATE = go.layout.Template(
    layout={
        "margin": {"l": 8, "r": 12, "t": 12, "b": 8},
        "font": {"family": "system-ui, sans-serif", "size": 12},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        # A drag scrolls the page, which phones need; the bar over a figure offers zooming.
        "dragmode": False,
        "showlegend": True,
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "xaxis": {**_AXIS, "showgrid": False},
        "yaxis": {**_AXIS, "showgrid": True, "gridwidth": 1},
    }
)


def log_axis(multiples: Sequence[int]) -> dict[str, Any]:
    """Ticks at these multiples of the powers of ten; plotly's own ticks in between lose their zeros."""
    values = [multiple * 10.0**exponent for exponent in range(-9, 7) for multiple in multiples]
    return {"type": "log", "tickvals": values, "ticktext": [formats.setting(value) for value in values]}


def column(history: History, key: str) -> list[float | None]:
    """A column of a history; None where a row lacks it."""
    return [row.get(key) for row in history]


def rounded(values: Sequence[float | None]) -> list[float | None]:
    """Four decimals: all digits of hundreds of curves would make a page large."""
    return [value if value is None else round(value, 4) for value in values]


def label(text: str) -> str:
    """See `foreign_text.plotly`."""
    return foreign_text.plotly(text)


def add_curve(
    drawn: go.Figure,
    history: History,
    key: str,
    *,
    name: str,
    colour: str,
    dash: str = "solid",
    **place: int,
) -> None:
    """Draw one column of a history, if it has a value other than zero: a disabled loss has no curve."""
    values = column(history, key)
    if not any(is_number(value) and value for value in values):
        return
    drawn.add_scatter(
        name=name,
        x=column(history, "epoch"),
        y=values,
        mode="lines+markers" if len(history) == 1 else "lines",
        line={"color": colour, "width": 2, "dash": dash},
        hovertemplate="epoch %{x}: %{y:.3f}<extra>%{fullData.name}</extra>",
        **place,
    )


def figure(*, x_title: str, y_title: str, height: int, num_steps: int = 0) -> go.Figure:
    """An empty figure; `num_steps` is the number of trials or epochs along x, or 0 for another axis."""
    return go.Figure(
        layout={
            "template": TEMPLATE,
            "height": height,
            "xaxis": {"title": {"text": x_title}, "dtick": step(num_steps)},
            "yaxis": {"title": {"text": y_title}},
        }
    )


def step(num_steps: int) -> int | None:
    """Distance of the ticks on an axis of whole numbers: with few of them, plotly would add halves."""
    return 1 if 0 < num_steps <= 8 else None


def translucent(colour: str, opacity: float) -> str:
    """A colour of the palette, such as #0072B2, for an area that others must show through."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def with_intervals(
    colour: str, above: Sequence[float | None], below: Sequence[float | None]
) -> dict[str, Any]:
    """How a line through points with intervals looks.

    Args:
        colour: of line, points and intervals.
        above, below: how far each point's interval reaches up and down.
    """
    return {
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": above,
            "arrayminus": below,
            "thickness": 1,
            "width": 3,
            "color": colour,
        },
        "mode": "lines+markers",
        "line": {"color": colour, "width": 1.5},
        "marker": {"color": colour, "size": 7},
    }
