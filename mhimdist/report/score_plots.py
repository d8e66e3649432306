"""Figures of test scores: ROC, precision-recall, reliability, thresholds, probabilities, AUCs in a row.

Dimensions: G points of a grid, N bags.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mhimdist.report import drawing
from mhimdist.report.drawing import BLUE, GREEN, GREY, ORANGE, PURPLE, SILENT, SKY, VERMILION
from mhimdist.statistics.calibration import ReliabilityBin
from mhimdist.statistics.curves import Band, Curve, ThresholdCurve

COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
MOST_CURVES = len(COLOURS)
"""Most configurations in one figure: more could not be told apart."""
_MOST_POINTS = 400


def roc_figure(bands: Mapping[str, Band], curves: Sequence[Curve] = ()) -> go.Figure:
    """Mean ROC curves with a band of one standard deviation over folds, and single folds' curves in grey."""
    drawn = drawing.figure(x_title="1 − specificity", y_title="sensitivity", height=400)
    drawn.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", line={"color": GREY, "width": 1, "dash": "dot"}, **SILENT
    )
    _add_bands(drawn, bands, curves, "AUC")
    return _unit(drawn)


def precision_recall_figure(
    bands: Mapping[str, Band], curves: Sequence[Curve] = (), *, prevalence: float | None = None
) -> go.Figure:
    """Mean precision-recall curves; a dotted line is the share of positives, which chance reaches."""
    drawn = drawing.figure(x_title="recall (sensitivity)", y_title="precision", height=400)
    if prevalence is not None:
        drawn.add_scatter(
            x=[0, 1],
            y=[prevalence, prevalence],
            mode="lines",
            line={"color": GREY, "width": 1, "dash": "dot"},
            **SILENT,
        )
    _add_bands(drawn, bands, curves, "average precision")
    return _unit(drawn)


def _add_bands(drawn: go.Figure, bands: Mapping[str, Band], curves: Sequence[Curve], area: str) -> None:
    for curve in curves:
        x_G, y_G = _thinned(curve)
        drawn.add_scatter(
            x=x_G, y=y_G, mode="lines", line={"color": GREY, "width": 1}, opacity=0.45, **SILENT
        )
    for colour, (name, band) in zip(COLOURS, bands.items(), strict=False):
        if band.deviation_G.any():
            low_G = np.clip(band.mean_G - band.deviation_G, 0, 1)
            high_G = np.clip(band.mean_G + band.deviation_G, 0, 1)
            drawn.add_scatter(
                x=_four([*band.x_G, *band.x_G[::-1]]),
                y=_four([*high_G, *low_G[::-1]]),
                fill="toself",
                fillcolor=drawing.translucent(colour, 0.16),
                mode="lines",
                line={"width": 0},
                **SILENT,
            )
        mean, spread = np.mean(band.areas), np.std(band.areas)
        text = f"{mean:.3f}" + (f" ± {spread:.3f}" if len(band.areas) > 1 else "")
        drawn.add_scatter(
            name=f"{drawing.label(name)}: {area} {text}",
            x=_four(band.x_G),
            y=_four(band.mean_G),
            mode="lines",
            line={"color": colour, "width": 2},
            hovertemplate="%{x:.3f}, %{y:.3f}<extra>%{fullData.name}</extra>",
        )


def reliability_figure(bins: Mapping[str, Sequence[ReliabilityBin]], event: str) -> go.Figure:
    """The frequency of an event against its probability, with intervals, over the numbers of bags."""
    drawn = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.06, row_heights=[0.78, 0.22])
    drawn.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", line={"color": GREY, "width": 1, "dash": "dot"}, **SILENT
    )
    for colour, (name, points) in zip(COLOURS, bins.items(), strict=False):
        drawn.add_scatter(
            name=drawing.label(name),
            x=_four([p.confidence for p in points]),
            y=_four([p.frequency for p in points]),
            **drawing.with_intervals(
                colour,
                _four([p.frequency_high - p.frequency for p in points]),
                _four([p.frequency - p.frequency_low for p in points]),
            ),
            customdata=[p.count for p in points],
            hovertemplate="probability %{x:.3f}, frequency %{y:.3f}, %{customdata} predictions"
            "<extra>%{fullData.name}</extra>",
            row=1,
            col=1,
        )
        drawn.add_bar(
            x=_four([(p.low + p.high) / 2 for p in points]),
            y=[p.count for p in points],
            marker={"color": colour},
            hovertemplate="%{y} predictions<extra></extra>",
            showlegend=False,
            row=2,
            col=1,
        )
    drawn.update_layout(template=drawing.TEMPLATE, height=440, barmode="group", bargap=0.15)
    drawn.update_xaxes(range=[-0.02, 1.02])
    drawn.update_xaxes(title_text=f"probability {event}", row=2)
    drawn.update_yaxes(title_text="frequency", range=[-0.02, 1.02], row=1)
    drawn.update_yaxes(title_text="count", nticks=3, row=2)
    return drawn


def threshold_figure(curve: ThresholdCurve, thresholds: Sequence[float], *, y_title: str) -> go.Figure:
    """What every decision threshold does; vertical lines are the chosen ones."""
    drawn = drawing.figure(x_title="decision threshold", y_title=y_title, height=360)
    for threshold in thresholds:
        drawn.add_scatter(
            x=[threshold, threshold],
            y=[0, 1],
            mode="lines",
            line={"color": GREY, "width": 1, "dash": "dot"},
            hovertemplate="chosen: %{x:.3f}<extra></extra>",
            showlegend=False,
        )
    for name, values_G, colour, dash in (
        ("sensitivity", curve.sensitivity_G, BLUE, "solid"),
        ("specificity", curve.specificity_G, VERMILION, "solid"),
        ("accuracy", curve.accuracy_G, GREEN, "dash"),
        ("F1", curve.f1_G, PURPLE, "dashdot"),
    ):
        drawn.add_scatter(
            name=name,
            x=_four(curve.thresholds_G),
            y=_four(values_G),
            mode="lines",
            line={"color": colour, "width": 2, "dash": dash},
            hovertemplate="threshold %{x:.2f}: %{y:.3f}<extra>%{fullData.name}</extra>",
        )
    _unit(drawn).update_layout(legend={"orientation": "h", "y": -0.24})
    return drawn


def probability_figure(probabilities: Mapping[str, np.ndarray], class_name: str) -> go.Figure:
    """How often each probability of a class was given, by the bags' labels: counts in bins of 0.05."""
    drawn = drawing.figure(
        x_title=f"probability of {drawing.label(class_name)}", y_title="slides", height=320
    )
    edges = np.linspace(0, 1, 21)
    for colour, (name, values_N) in zip(COLOURS, probabilities.items(), strict=False):
        counts, _ = np.histogram(values_N, edges)
        drawn.add_bar(
            name=drawing.label(name),
            x=_four((edges[:-1] + edges[1:]) / 2),
            y=counts.tolist(),
            marker={"color": colour},
            hovertemplate="%{y} slides near %{x:.3f}<extra>%{fullData.name}</extra>",
        )
    drawn.update_layout(barmode="stack", bargap=0.06)
    drawn.update_xaxes(range=[0, 1])
    return drawn


def forest_figure(rows: Sequence[tuple[str, float, tuple[float, float] | None]]) -> go.Figure:
    """Mean AUCs with their intervals, a line per configuration, the first on top."""
    drawn = drawing.figure(x_title="test AUC", y_title="", height=90 + 26 * len(rows))
    names = [
        _apart(drawing.label(name), [drawing.label(n) for n, _, _ in rows], i)
        for i, (name, _, _) in enumerate(rows)
    ]
    drawn.add_scatter(
        x=_four([mean for _, mean, _ in rows]),
        y=names,
        mode="markers",
        marker={"color": BLUE, "size": 9},
        error_x={
            "type": "data",
            "symmetric": False,
            "array": _four([high_low[1] - mean if high_low else 0.0 for _, mean, high_low in rows]),
            "arrayminus": _four([mean - high_low[0] if high_low else 0.0 for _, mean, high_low in rows]),
            "thickness": 1.5,
            "color": BLUE,
        },
        hovertemplate="%{y}: %{x:.3f}<extra></extra>",
        showlegend=False,
    )
    drawn.update_xaxes(showgrid=True)
    drawn.update_yaxes(autorange="reversed", showgrid=False, type="category", ticklabelstandoff=6)
    return drawn


def _apart(name: str, names: Sequence[str], row: int) -> str:
    """A name that no other row has: rows of one name would share a line."""
    return f"{name} ({row + 1})" if names.count(name) > 1 else name


def _unit(drawn: go.Figure) -> go.Figure:
    drawn.update_xaxes(range=[-0.01, 1.01])
    drawn.update_yaxes(range=[-0.01, 1.02])
    drawn.update_layout(legend={"orientation": "v", "x": 0, "y": -0.2, "yanchor": "top"})
    return drawn


def _thinned(curve: Curve) -> tuple[list[float], list[float]]:
    """The points of a curve, or an even choice of them if there are very many."""
    rows = np.unique(np.linspace(0, len(curve.x_G) - 1, _MOST_POINTS).round().astype(int))
    return _four(curve.x_G[rows]), _four(curve.y_G[rows])


def _four(values: Sequence[float] | np.ndarray) -> list[float]:
    return [round(float(value), 4) for value in values]
