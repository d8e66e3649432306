"""Figures of outcomes that are no classes: survival curves, measures over time, predicted and true values.

Dimensions: N bags or cases, U times of a curve, T marks or times of a grid, G groups.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mhimdist.report import drawing
from mhimdist.report.drawing import BLUE, GREY, SILENT, VERMILION
from mhimdist.report.score_plots import COLOURS
from mhimdist.statistics.survival_curves import KaplanMeier

MOST_POINTS = 4000
"""Most points of a scatter: more make a page heavy and hide each other."""
_DOTTED = {"color": GREY, "width": 1, "dash": "dot"}


@dataclass(frozen=True)
class Line:
    """A measure over time with its interval.

    Attributes:
        x_T: times.
        y_T: the measure; NaN where it is undefined.
        low_T, high_T: the interval's ends; None without an interval.
    """

    x_T: np.ndarray
    y_T: np.ndarray
    low_T: np.ndarray | None = None
    high_T: np.ndarray | None = None


@dataclass(frozen=True)
class Point:
    """A group of cases: what was promised to them, and what came of it.

    Attributes:
        predicted: their mean prediction.
        observed: what was observed.
        low, high: the interval of what was observed.
        count: number of cases.
    """

    predicted: float
    observed: float
    low: float
    high: float
    count: int


def time_title(unit: str) -> str:
    """The title of an axis of times."""
    return f"time ({drawing.label(unit)})" if unit else "time"


def marks(last: float, most: int = 10) -> np.ndarray:
    """Round times from 0 up to the last one, at which numbers at risk are told."""
    step = 10.0 ** np.floor(np.log10(last / most))
    step *= next(factor for factor in (1, 2, 5, 10) if last / (factor * step) <= most)
    return np.arange(0, last * (1 + 1e-9), step)


def steps(x_U: np.ndarray, y_U: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The corners of a curve that is flat from each point to the next."""
    return np.repeat(x_U, 2)[1:], np.repeat(y_U, 2)[:-1]


def survival_figure(
    curves: Mapping[str, KaplanMeier], at_risk: Mapping[str, np.ndarray], marks_T: np.ndarray, unit: str
) -> go.Figure:
    """Kaplan-Meier curves with their bands, censored cases as ticks, and the numbers at risk below."""
    low = 0.1 + 0.05 * len(curves)
    drawn = make_subplots(
        rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.16, row_heights=[1 - low, low]
    )
    for colour, (name, curve) in zip(COLOURS, curves.items(), strict=False):
        known_U = np.isfinite(curve.low_U)
        x, low_y = steps(curve.times_U[known_U], curve.low_U[known_U])
        high_y = steps(curve.times_U[known_U], curve.high_U[known_U])[1]
        _add_area(drawn, x, low_y, high_y, colour, row=1, col=1)
        drawn.add_scatter(
            name=drawing.label(name),
            x=_short(curve.times_U),
            y=_short(curve.survival_U),
            customdata=curve.at_risk_U.tolist(),
            mode="lines",
            line={"color": colour, "width": 2, "shape": "hv"},
            hovertemplate="%{x}: %{y:.3f}, %{customdata} at risk<extra>%{fullData.name}</extra>",
            row=1,
            col=1,
        )
        lost_U = curve.censored_U > 0
        drawn.add_scatter(
            x=_short(curve.times_U[lost_U]),
            y=_short(curve.survival_U[lost_U]),
            mode="markers",
            marker={"color": colour, "size": 8, "symbol": "line-ns-open"},
            row=1,
            col=1,
            **SILENT,
        )
    for name, numbers_T in at_risk.items():
        drawn.add_scatter(
            x=_short(marks_T),
            y=[drawing.label(name)] * len(marks_T),
            text=[f"{number:,}" for number in numbers_T],
            mode="text",
            cliponaxis=False,
            row=2,
            col=1,
            **SILENT,
        )
    reach = [-0.03 * marks_T[-1], max(marks_T[-1], *(c.times_U[-1] for c in curves.values())) * 1.03]
    drawn.update_layout(template=drawing.TEMPLATE, height=400 + 22 * len(curves))
    drawn.update_xaxes(range=reach, tickvals=_short(marks_T), showticklabels=True, row=1)
    drawn.update_xaxes(title_text=time_title(unit), row=1)
    drawn.update_xaxes(visible=False, row=2)
    drawn.update_yaxes(title_text="without event", range=[-0.02, 1.02], row=1)
    drawn.update_yaxes(
        title_text="at risk",
        range=[len(curves) - 0.5, -0.5],
        showgrid=False,
        showline=False,
        ticks="",
        row=2,
    )
    return drawn


def over_time_figure(
    lines: Mapping[str, Line],
    *,
    y_title: str,
    unit: str,
    chance: float | None = None,
    without_model: Line | None = None,
) -> go.Figure:
    """A measure over time, what chance reaches (dotted), and what one reaches without a model (dashed)."""
    drawn = drawing.figure(x_title=time_title(unit), y_title=y_title, height=340)
    for colour, (name, line) in zip(COLOURS, lines.items(), strict=False):
        if line.low_T is not None and line.high_T is not None:
            known_T = np.isfinite(line.low_T)
            _add_area(drawn, line.x_T[known_T], line.low_T[known_T], line.high_T[known_T], colour)
        drawn.add_scatter(
            name=drawing.label(name),
            x=_short(line.x_T),
            y=_short(line.y_T),
            mode="lines+markers" if len(line.x_T) == 1 else "lines",
            line={"color": colour, "width": 2},
            hovertemplate="%{x}: %{y:.3f}<extra>%{fullData.name}</extra>",
        )
    if without_model is not None:
        drawn.add_scatter(
            name="without a model",
            x=_short(without_model.x_T),
            y=_short(without_model.y_T),
            mode="lines",
            line={"color": GREY, "width": 1.5, "dash": "dash"},
            hovertemplate="%{x}: %{y:.3f}<extra>%{fullData.name}</extra>",
        )
    if chance is not None and lines:
        ends = [
            min(line.x_T.min() for line in lines.values()),
            max(line.x_T.max() for line in lines.values()),
        ]
        drawn.add_scatter(x=_short(ends), y=[chance] * 2, mode="lines", line=_DOTTED, **SILENT)
    return drawn


def scatter_figure(
    truth_N: np.ndarray,
    predicted_N: np.ndarray,
    names: Sequence[str],
    *,
    what: str,
    line: tuple[float, float] | None,
) -> go.Figure:
    """Predicted against true values with the identity, and the line of true by predicted values.

    Args:
        truth_N, predicted_N: the values.
        names: the name of each point.
        what: what the values are, with their unit.
        line: slope and intercept of the true values over the predicted ones; None without one.
    """
    drawn = drawing.figure(
        x_title=f"predicted {drawing.label(what)}", y_title=f"true {drawing.label(what)}", height=420
    )
    ends = np.array([min(truth_N.min(), predicted_N.min()), max(truth_N.max(), predicted_N.max())])
    drawn.add_scatter(name="identity", x=_short(ends), y=_short(ends), mode="lines", line=_DOTTED)
    if line is not None:
        across = np.array([predicted_N.min(), predicted_N.max()])
        drawn.add_scatter(
            name=f"fitted: slope {line[0]:.2f}",
            x=_short(across),
            y=_short(line[0] * across + line[1]),
            mode="lines",
            line={"color": VERMILION, "width": 2, "dash": "dash"},
        )
    _add_points(drawn, predicted_N, truth_N, names, "predicted %{x}, true %{y}")
    return drawn


def residual_figure(
    truth_N: np.ndarray, predicted_N: np.ndarray, names: Sequence[str], *, what: str
) -> go.Figure:
    """How far predictions are off, over the predictions: a slope or a funnel shows what the mean hides."""
    drawn = drawing.figure(x_title=f"predicted {drawing.label(what)}", y_title="predicted − true", height=420)
    ends = [predicted_N.min(), predicted_N.max()]
    drawn.add_scatter(x=_short(ends), y=[0, 0], mode="lines", line=_DOTTED, **SILENT)
    _add_points(drawn, predicted_N, predicted_N - truth_N, names, "predicted %{x}, off by %{y}")
    return drawn


def promise_figure(points: Mapping[str, Sequence[Point]], *, what: str) -> go.Figure:
    """Observed against predicted shares of groups of cases, with intervals."""
    drawn = drawing.figure(x_title=f"predicted {what}", y_title=f"observed {what}", height=400)
    drawn.add_scatter(x=[0, 1], y=[0, 1], mode="lines", line=_DOTTED, **SILENT)
    for colour, (name, of_groups) in zip(COLOURS, points.items(), strict=False):
        drawn.add_scatter(
            name=drawing.label(name),
            x=_short([point.predicted for point in of_groups]),
            y=_short([point.observed for point in of_groups]),
            **drawing.with_intervals(
                colour,
                _short([point.high - point.observed for point in of_groups]),
                _short([point.observed - point.low for point in of_groups]),
            ),
            customdata=[point.count for point in of_groups],
            hovertemplate="predicted %{x:.3f}, observed %{y:.3f}, %{customdata} cases"
            "<extra>%{fullData.name}</extra>",
        )
    drawn.update_xaxes(range=[-0.02, 1.02])
    drawn.update_yaxes(range=[-0.02, 1.02])
    return drawn


def _add_points(drawn: go.Figure, x_N: np.ndarray, y_N: np.ndarray, names: Sequence[str], text: str) -> None:
    rows = np.unique(np.linspace(0, len(x_N) - 1, MOST_POINTS).round().astype(int))
    drawn.add_scatter(
        x=_short(x_N[rows]),
        y=_short(y_N[rows]),
        customdata=[drawing.label(names[row]) for row in rows],
        mode="markers",
        marker={"color": BLUE, "size": 6, "opacity": 0.55},
        hovertemplate=f"%{{customdata}}: {text}<extra></extra>",
        showlegend=False,
    )


def _add_area(
    drawn: go.Figure, x: np.ndarray, low: np.ndarray, high: np.ndarray, colour: str, **place: int
) -> None:
    drawn.add_scatter(
        x=_short([*x, *x[::-1]]),
        y=_short([*high, *low[::-1]]),
        fill="toself",
        fillcolor=drawing.translucent(colour, 0.16),
        mode="lines",
        line={"width": 0},
        **SILENT,
        **place,
    )


def _short(values: Sequence[float] | np.ndarray) -> list[float | None]:
    """Five significant digits, whatever the unit; a gap for NaN."""
    return [float(f"{value:.5g}") if np.isfinite(value) else None for value in values]
