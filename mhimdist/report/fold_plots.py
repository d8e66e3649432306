"""Figures of the epochs of several folds: learning curves, student against teacher, masking."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean

import plotly.graph_objects as go

from mhimdist.report import drawing
from mhimdist.report.drawing import BLUE, GREEN, GREY, PURPLE, VERMILION
from mhimdist.report.plots import STUDENT_SCORE, TEACHER_SCORE
from mhimdist.report.score_plots import COLOURS
from mhimdist.report.summary import History, is_number

_DASHES = ("solid", "dash", "dot", "dashdot")


def learning_curves(
    histories: Mapping[str, History], key: str, title: str, *, selected: Mapping[str, int] | None = None
) -> go.Figure:
    """One column of the histories of all folds over the epochs; a dot marks the selected epoch.

    Args:
        histories: the history of each fold, by its name.
        key: the column.
        title: of the vertical axis.
        selected: the selected epoch of each fold.
    """
    longest = max((len(history) for history in histories.values()), default=0)
    drawn = drawing.figure(x_title="epoch", y_title=title, height=340, num_steps=longest)
    for number, (name, history) in enumerate(histories.items()):
        colour = COLOURS[number % len(COLOURS)]
        drawing.add_curve(
            drawn,
            history,
            key,
            name=drawing.label(name),
            colour=colour,
            dash=_DASHES[number // len(COLOURS) % len(_DASHES)],
        )
        chosen = [row for row in history if selected and row.get("epoch") == selected.get(name)]
        if chosen and is_number(chosen[0].get(key)):
            drawn.add_scatter(
                x=drawing.column(chosen, "epoch"),
                y=drawing.column(chosen, key),
                mode="markers",
                marker={"color": colour, "size": 8},
                hovertemplate="selected epoch %{x}: %{y:.3f}<extra></extra>",
                showlegend=False,
            )
    drawn.update_traces(line_width=1.6, selector={"mode": "lines"})
    return _below(drawn)


def stability_figure(histories: Mapping[str, History], score: str = "AUC") -> go.Figure:
    """Validation score of student and teacher over the epochs: the folds in pale, their mean in full.

    It is the figure under Table 5 of the paper. `score` is the score's name.
    """
    longest = max((len(history) for history in histories.values()), default=0)
    drawn = drawing.figure(x_title="epoch", y_title=f"validation {score}", height=340, num_steps=longest)
    for name, key, colour, dash in (
        ("student", STUDENT_SCORE, BLUE, "solid"),
        ("teacher", TEACHER_SCORE, GREEN, "dash"),
    ):
        for fold, history in histories.items():
            drawn.add_scatter(
                x=drawing.column(history, "epoch"),
                y=drawing.rounded(drawing.column(history, key)),
                mode="lines",
                line={"color": colour, "width": 1, "dash": dash},
                opacity=0.3,
                hovertemplate=f"{drawing.label(fold)}, epoch %{{x}}: %{{y:.3f}}<extra>{name}</extra>",
                showlegend=False,
            )
        epochs, means = mean_column(histories, key)
        drawn.add_scatter(
            name=f"{name}, mean over the folds" if len(histories) > 1 else name,
            x=epochs,
            y=drawing.rounded(means),
            mode="lines+markers" if len(epochs) == 1 else "lines",
            line={"color": colour, "width": 2.4, "dash": dash},
            hovertemplate="epoch %{x}: %{y:.3f}<extra>%{fullData.name}</extra>",
        )
    return drawn


def mean_column(histories: Mapping[str, History], key: str) -> tuple[list[int], list[float | None]]:
    """The mean of a column over the folds that reached each epoch, where all of them did."""
    shortest = min((len(history) for history in histories.values()), default=0)
    means: list[float | None] = []
    for epoch in range(shortest):
        values = [
            v for history in histories.values() if is_number(v := history[epoch].get(key)) and v is not None
        ]
        means.append(fmean(values) if len(values) == len(histories) else None)
    return list(range(shortest)), means


def mean_history(histories: Mapping[str, History]) -> list[dict[str, float | None]]:
    """The mean over the folds of every column, for the epochs that all folds reached."""
    keys = dict.fromkeys(key for history in histories.values() for row in history[:1] for key in row)
    epochs = mean_column(histories, "epoch")[0]
    rows: list[dict[str, float | None]] = [{"epoch": epoch} for epoch in epochs]
    for key in keys:
        if key != "epoch":
            for row, value in zip(rows, mean_column(histories, key)[1], strict=True):
                row[key] = value
    return rows


def agreement_figure(history: History) -> go.Figure:
    """How much of an epoch's masks the epoch before had too, and how alike teacher and student rank."""
    chance = [
        {"epoch": row["epoch"], "chance": _chance(row.get("kept_ratio"))}
        for row in history
        if is_number(row.get("mask_overlap"))
    ]
    curves = [
        ("masks of the epoch before", history, "mask_overlap", BLUE, "solid"),
        ("by chance", chance, "chance", GREY, "dot"),
        ("high mask of the epoch before", history, "high_mask_overlap", VERMILION, "dash"),
        ("ranks of teacher and student", history, "rank_agreement", GREEN, "dashdot"),
    ]
    return _shares(curves, "overlap or correlation")


def positives_figure(history: History) -> go.Figure:
    """The shares of the positive instances that the masks hide."""
    curves = [
        ("all masks", history, "positives_hidden", BLUE, "solid"),
        ("high", history, "positives_hidden_high", VERMILION, "dash"),
        ("low", history, "positives_hidden_low", GREEN, "dashdot"),
        ("random", history, "positives_hidden_random", PURPLE, "dot"),
    ]
    hides = {
        name for name in ("high", "low", "random") if any(drawing.column(history, f"masked_{name}_ratio"))
    }
    return _shares([each for each in curves if each[0] in hides | {"all masks"}], "positives hidden")


def _chance(kept: float | None) -> float | None:
    """The overlap of two masks that are drawn apart, if each hides the same share of a large bag."""
    return None if kept is None else (1 - kept) / (1 + kept)


def _shares(curves: Sequence[tuple[str, History, str, str, str]], y_title: str) -> go.Figure:
    drawn = drawing.figure(x_title="epoch", y_title=y_title, height=340, num_steps=len(curves[0][1]))
    for name, history, key, colour, dash in curves:
        if any(is_number(row.get(key)) for row in history):
            drawing.add_curve(drawn, history, key, name=name, colour=colour, dash=dash)
    drawn.update_yaxes(range=[min(0.0, _lowest(drawn)), 1.04])
    return _below(drawn)


def _lowest(drawn: go.Figure) -> float:
    return min((y for trace in drawn.data for y in trace.y if y is not None), default=0.0)


def roughness(history: History, key: str) -> float | None:
    """Mean absolute change of a column from one epoch to the next; None without two epochs."""
    values = [v for v in drawing.column(history, key) if v is not None]
    changes = [abs(b - a) for a, b in pairwise(values)]
    return fmean(changes) if changes else None


def last_half_deviation(history: History, key: str) -> float | None:
    """Standard deviation of a column over the last half of the epochs; None without two of them."""
    values = [v for v in drawing.column(history, key) if v is not None]
    late: Sequence[float] = values[len(values) // 2 :]
    if len(late) < 2:
        return None
    mean = fmean(late)
    return fmean([(v - mean) ** 2 for v in late]) ** 0.5


def _below(drawn: go.Figure) -> go.Figure:
    drawn.update_layout(legend={"orientation": "h", "x": 0, "y": -0.22, "yanchor": "top"})
    return drawn
