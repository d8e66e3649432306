"""The figures of the sweep report, as plotly objects.

In figures that compare trials, blue is the best trial, vermilion the base
configuration and grey the others. A hollow marker is a pruned trial, at its value when it was stopped.
"""

import math
from collections.abc import Sequence
from itertools import accumulate
from statistics import median

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mhimdist.report import drawing, formats
from mhimdist.report.drawing import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION
from mhimdist.report.summary import FinalRun, History, SweepSummary, Trial, is_number, short_names, value_of

STUDENT_SCORE = "student_validation_score"
TEACHER_SCORE = "teacher_validation_score"


def optimisation_history(summary: SweepSummary) -> go.Figure:
    """The value of each trial in the order of starting, and the best complete one so far."""
    figure = drawing.figure(
        x_title="trial", y_title=summary.objective, height=340, num_steps=len(summary.trials)
    )
    hover = "trial %{x}: %{y:.3f}<extra>%{fullData.name}</extra>"
    for name, state, symbol in (("complete", "complete", "circle"), ("pruned", "pruned", "circle-open")):
        trials = [trial for trial in summary.trials if trial.state == state and is_number(trial.value)]
        if trials:
            figure.add_scatter(
                name=name,
                x=[trial.number for trial in trials],
                y=[trial.value for trial in trials],
                mode="markers",
                marker={"color": GREY, "size": 8, "symbol": symbol, "line": {"width": 1.5, "color": GREY}},
                hovertemplate=hover,
            )
    complete = sorted(summary.in_state("complete"), key=lambda trial: trial.number)
    figure.add_scatter(
        name="best so far",
        x=[trial.number for trial in complete] + [max(trial.number for trial in summary.trials)],
        y=[*accumulate(map(value_of, complete), max), value_of(summary.best)],
        mode="lines",
        line={"color": BLUE, "width": 1.5, "shape": "hv"},
        hoverinfo="skip",
    )
    for name, trial, colour, symbol in _emphasised(summary):
        if is_number(trial.value):
            figure.add_scatter(
                name=name,
                x=[trial.number],
                y=[trial.value],
                mode="markers",
                marker={"color": colour, "size": 12, "symbol": symbol},
                hovertemplate=hover,
            )
    return figure


def trial_curves(summary: SweepSummary) -> go.Figure:
    """The student's validation score over the epochs of every trial."""
    num_epochs = max(len(trial.history) for trial in summary.trials)
    figure = drawing.figure(
        x_title="epoch",
        y_title=f"validation {summary.score} of the student",
        height=340,
        num_steps=num_epochs,
    )
    emphasised = _emphasised(summary)
    others = [trial for trial in summary.trials if all(trial is not shown for _, shown, _, _ in emphasised)]
    opacity = max(0.12, min(0.45, 10 / max(1, len(others))))
    curves = [trial for trial in others if trial.history]
    if curves:
        # One trace with gaps between the curves, and four decimals: hundreds of traces would make the page
        # slow, and all digits of hundreds of curves would make it large.
        figure.add_scatter(
            name="other trials",
            x=[x for trial in curves for x in [*drawing.column(trial.history, "epoch"), None]],
            y=[
                y
                for trial in curves
                for y in [*drawing.rounded(drawing.column(trial.history, STUDENT_SCORE)), None]
            ],
            customdata=[trial.number for trial in curves for _ in range(len(trial.history) + 1)],
            mode="lines",
            line={"color": GREY, "width": 1.2},
            opacity=opacity,
            hovertemplate="trial %{customdata}, epoch %{x}: %{y:.3f}<extra></extra>",
        )
    stopped = [trial for trial in curves if trial.state == "pruned"]
    if stopped:
        figure.add_scatter(
            name="pruned here",
            x=[trial.last_row.get("epoch") for trial in stopped],
            y=[trial.last_row.get(STUDENT_SCORE) for trial in stopped],
            customdata=[[trial.number, _stop_text(trial)] for trial in stopped],
            mode="markers",
            marker={"color": GREY, "size": 7, "symbol": "circle-open", "line": {"width": 1.5}},
            hovertemplate="trial %{customdata[0]}, pruned at epoch %{x}%{customdata[1]}: %{y:.3f}"
            "<extra></extra>",
        )
    for name, trial, colour, _ in reversed(emphasised):  # the best is drawn last, on top
        drawing.add_curve(figure, trial.history, STUDENT_SCORE, name=name, colour=colour)
    figure.update_layout(legend_traceorder="reversed")
    return figure


def _stop_text(trial: Trial) -> str:
    """The number of epochs over all folds, if the curve is the mean of several folds."""
    if trial.epochs_done == len(trial.history):
        return ""
    return f" of a fold, after {formats.count(trial.epochs_done, 'epoch')} over all folds"


def score_curves(history: History, score: str = "AUC") -> go.Figure:
    """Validation score of student and teacher over the epochs of one run; `score` is its name."""
    figure = drawing.figure(
        x_title="epoch", y_title=f"validation {score}", height=320, num_steps=len(history)
    )
    drawing.add_curve(figure, history, STUDENT_SCORE, name="student", colour=BLUE)
    drawing.add_curve(figure, history, TEACHER_SCORE, name="teacher (EMA)", colour=GREEN, dash="dash")
    return figure


def loss_curves(history: History) -> go.Figure:
    """Total, task's and consistency loss over the epochs of one run, on a logarithmic axis."""
    figure = drawing.figure(
        x_title="epoch", y_title="training loss (log scale)", height=320, num_steps=len(history)
    )
    drawing.add_curve(figure, history, "loss", name="total", colour=BLUE)
    drawing.add_curve(
        figure, history, "classification_loss", name="classification", colour=GREEN, dash="dash"
    )
    drawing.add_curve(figure, history, "consistency_loss", name="consistency", colour=PURPLE, dash="dot")
    figure.update_yaxes(drawing.log_axis((1, 2, 5)))
    return figure


def masking_curves(history: History) -> go.Figure:
    """Shares of the instances that are kept and masked, a strip per kind: they differ a hundredfold.

    A kind that never masks anything has no strip. The kinds may overlap, so the shares need not add up to 1.
    """
    kinds = {
        "kept": "kept_ratio",
        "masked: high": "masked_high_ratio",
        "masked: low": "masked_low_ratio",
        "masked: random": "masked_random_ratio",
    }
    drawn = [name for name, key in kinds.items() if any(drawing.column(history, key))] or ["kept"]
    figure = make_subplots(
        rows=len(drawn), cols=1, shared_xaxes=True, vertical_spacing=0.15, subplot_titles=drawn
    )
    figure.update_annotations(x=0, xanchor="left", font={"size": 12})
    for row, name in enumerate(drawn, start=1):
        drawing.add_curve(figure, history, kinds[name], name=name, colour=BLUE, row=row, col=1)
    figure.update_traces(hovertemplate="epoch %{x}: %{y:.2%}<extra>%{fullData.name}</extra>")
    figure.update_yaxes(tickformat=".2~%", rangemode="tozero", nticks=4)
    figure.update_xaxes(dtick=drawing.step(len(history)))
    figure.update_xaxes(title_text="epoch", row=len(drawn))
    figure.update_layout(template=drawing.TEMPLATE, height=320, showlegend=False, margin={"t": 24})
    return figure


def final_curves(runs: Sequence[FinalRun], score: str = "AUC") -> go.Figure:
    """The student's validation score in each final run; a dot marks the tested epoch."""
    figure = drawing.figure(x_title="epoch", y_title=f"validation {score} of the student", height=320)
    colours = (BLUE, ORANGE, GREEN, PURPLE, SKY)
    for number, run in enumerate(run for run in runs if run.history):
        colour = colours[number % len(colours)]
        name = f"seed {run.seed}" if run.fold is None else f"seed {run.seed}, fold {run.fold}"
        drawing.add_curve(figure, run.history, STUDENT_SCORE, name=name, colour=colour)
        tested = [row for row in run.history if row.get("epoch") == run.best_epoch]
        figure.add_scatter(
            name=f"{name}, tested epoch",
            x=drawing.column(tested, "epoch"),
            y=drawing.column(tested, STUDENT_SCORE),
            mode="markers",
            marker={"color": colour, "size": 10},
            showlegend=False,
        )
    return figure


def pareto_front(summary: SweepSummary) -> go.Figure:
    """Both objectives of every complete trial, and the line through those that no other beats in both."""
    figure = drawing.figure(x_title=summary.cost, y_title=summary.objective, height=340)
    hover = "trial %{customdata}: %{y:.3f} at %{x:.3g}<extra>%{fullData.name}</extra>"
    complete = [trial for trial in summary.in_state("complete") if is_number(trial.cost)]
    front = sorted((t for t in complete if t.number in summary.front), key=lambda t: t.cost or 0.0)
    others = [trial for trial in complete if trial.number not in summary.front]
    for name, trials, colour, mode in (
        ("beaten in both", others, GREY, "markers"),
        ("Pareto front", front, BLUE, "lines+markers"),
    ):
        figure.add_scatter(
            name=name,
            x=[trial.cost for trial in trials],
            y=[trial.value for trial in trials],
            customdata=[trial.number for trial in trials],
            mode=mode,
            line={"color": colour, "width": 1.5, "shape": "hv"},
            marker={"color": colour, "size": 9},
            hovertemplate=hover,
        )
    return figure


def importance_bars(summary: SweepSummary) -> go.Figure:
    """The importance of each searched parameter, the largest on top."""
    ranked = sorted(summary.importances.items(), key=lambda item: item[1])
    names = short_names([path for path, _ in ranked])
    figure = drawing.figure(x_title="importance (share)", y_title="", height=90 + 26 * len(ranked))
    figure.add_bar(
        orientation="h",
        x=[share for _, share in ranked],
        y=[drawing.label(names[path]) for path, _ in ranked],
        text=[formats.share(share) for _, share in ranked],
        textposition="outside",
        cliponaxis=False,
        marker={"color": BLUE},
        hovertext=[drawing.label(path) for path, _ in ranked],
        hovertemplate="%{hovertext}: %{x:.3f}<extra></extra>",
    )
    figure.update_xaxes(rangemode="tozero", tickformat=".0%")
    figure.update_yaxes(showgrid=False, ticklabelstandoff=6)
    figure.update_layout(bargap=0.35, margin={"r": 48}, showlegend=False)
    return figure


def parameter_slices(summary: SweepSummary) -> dict[str, go.Figure]:
    """The values of the complete trials against each parameter that varies, by its dotted path."""
    complete = summary.in_state("complete")
    values = [value_of(trial) for trial in complete]
    margin = 0.06 * (max(values) - min(values)) or 0.05
    names = short_names(summary.varied_params)
    colours = {trial.number: colour for _, trial, colour, _ in reversed(_emphasised(summary))}
    figures = {}
    for path in summary.varied_params:
        trials = [trial for trial in complete if path in trial.params]
        trials.sort(key=lambda trial: trial.number in colours)  # the highlighted ones are drawn last, on top
        if not trials:
            continue
        figure = drawing.figure(x_title=drawing.label(names[path]), y_title=summary.objective, height=240)
        figure.add_scatter(
            x=_place_settings(
                figure, [trial.params[path] for trial in trials], title=drawing.label(names[path])
            ),
            y=[trial.value for trial in trials],
            customdata=[
                [trial.number, drawing.label(formats.setting(trial.params[path]))] for trial in trials
            ],
            mode="markers",
            marker={
                "color": [colours.get(trial.number, GREY) for trial in trials],
                "size": [10 if trial.number in colours else 7 for trial in trials],
                "line": {"width": 0},
                "opacity": [1 if trial.number in colours else 0.7 for trial in trials],
            },
            hovertemplate="trial %{customdata[0]}: %{y:.3f} at %{customdata[1]}<extra></extra>",
        )
        figure.update_yaxes(range=[min(values) - margin, max(values) + margin])
        figure.update_layout(showlegend=False)
        figures[path] = figure
    return figures


def _place_settings(figure: go.Figure, settings: Sequence[object], *, title: str) -> list[float] | list[str]:
    """Choose the x axis that suits a parameter's settings, and return their positions on it."""
    numbers = [
        float(setting) for setting in settings if isinstance(setting, int | float) and is_number(setting)
    ]
    if len(numbers) < len(settings):
        figure.update_xaxes(type="category", categoryorder="category ascending")
        return [drawing.label(formats.setting(setting)) for setting in settings]
    if min(numbers) > 0.9 and max(numbers) < 1:  # a momentum: its distance to 1 matters
        numbers = [1 - number for number in numbers]
        figure.update_xaxes(title_text=f"1 − {title}")
    if _looks_logarithmic(numbers):
        decades = math.log10(max(numbers) / min(numbers))
        figure.update_xaxes(drawing.log_axis((1, 2, 5) if decades < 1 else (1, 3) if decades < 1.5 else (1,)))
    else:
        figure.update_xaxes(nticks=5)
    return numbers


def _emphasised(summary: SweepSummary) -> list[tuple[str, Trial, str, str]]:
    """Name, trial, colour and marker of the highlighted trials, the best first."""
    best, base = summary.best, summary.base
    if base is None or base is best:
        name = (
            f"best (trial {best.number})"
            if base is None
            else f"best and base configuration (trial {best.number})"
        )
        return [(name, best, BLUE, "circle")]
    return [
        (f"best (trial {best.number})", best, BLUE, "circle"),
        (f"base configuration (trial {base.number})", base, VERMILION, "diamond"),
    ]


def _looks_logarithmic(values: Sequence[float]) -> bool:
    """Whether positive values crowd at their low end, as log-uniform draws do.

    The largest uniform draw is about twice the median; the largest log-uniform draw over a decade is about
    three times the median.
    """
    return min(values) > 0 and max(values) > 3 * median(values)
