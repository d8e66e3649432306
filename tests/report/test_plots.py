from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from mhimdist.report import plots
from mhimdist.report.summary import SweepSummary, Trial

MakeSweep = Callable[..., SweepSummary]


def trace(figure: Any, name: str) -> Any:
    (found,) = [trace for trace in figure.data if trace.name == name]
    return found


def test_history_shows_complete_and_pruned_apart_and_the_best_so_far(make_sweep: MakeSweep) -> None:
    trials = [
        Trial(0, "complete", 0.7, {}),
        Trial(1, "pruned", 0.95, {}),
        Trial(2, "failed", None, {}),
        Trial(3, "complete", 0.6, {}),
        Trial(4, "complete", 0.8, {}),
        Trial(5, "pruned", None, {}),
    ]
    figure = plots.optimisation_history(make_sweep(trials=trials))
    complete, pruned, best = (trace(figure, name) for name in ("complete", "pruned", "best so far"))
    assert (complete.x, complete.y) == ((0, 3, 4), (0.7, 0.6, 0.8))
    assert (pruned.x, pruned.y, pruned.marker.symbol) == ((1,), (0.95,), "circle-open")
    assert (best.x, best.y) == ((0, 3, 4, 5), (0.7, 0.7, 0.8, 0.8))
    assert trace(figure, "best (trial 4)").y == (0.8,)
    assert trace(figure, "base configuration (trial 0)").y == (0.7,)
    assert figure.layout.yaxis.title.text == "validation AUC"


def test_trial_curves_hold_every_epoch_of_every_trial_once(make_sweep: MakeSweep) -> None:
    summary = make_sweep()
    figure = plots.trial_curves(summary)
    best, base = summary.best, summary.base
    assert base is not None
    for shown, name in ((best, f"best (trial {best.number})"), (base, "base configuration (trial 0)")):
        assert list(trace(figure, name).y) == [row["student_validation_score"] for row in shown.history]
    others = [trial for trial in summary.trials if trial not in (best, base)]
    expected = {
        (trial.number, row["epoch"], round(row["student_validation_score"] or 0, 4))
        for trial in others
        for row in trial.history
    }
    grey = trace(figure, "other trials")
    points = [point for point in zip(grey.customdata, grey.x, grey.y, strict=True) if point[2] is not None]
    assert len(points) == len(expected)
    assert set(points) == expected
    pruned = [trial for trial in others if trial.state == "pruned"]
    assert list(trace(figure, "pruned here").x) == [len(trial.history) for trial in pruned]


def test_curves_of_one_run_equal_its_history(make_sweep: MakeSweep) -> None:
    history = make_sweep().best.history
    for figure, columns in (
        (
            plots.score_curves(history),
            {"student": "student_validation_score", "teacher (EMA)": "teacher_validation_score"},
        ),
        (
            plots.loss_curves(history),
            {"total": "loss", "classification": "classification_loss", "consistency": "consistency_loss"},
        ),
        (
            plots.masking_curves(history),
            {
                "kept": "kept_ratio",
                "masked: high": "masked_high_ratio",
                "masked: random": "masked_random_ratio",
            },
        ),
    ):
        assert {trace.name for trace in figure.data} == set(columns)
        for name, column in columns.items():
            assert list(trace(figure, name).x) == [row["epoch"] for row in history]
            assert list(trace(figure, name).y) == [row[column] for row in history]


def test_what_was_never_measured_or_is_switched_off_is_no_curve() -> None:
    history = [{"epoch": 1, "loss": 0.7, "consistency_loss": 0.0, "student_validation_score": None}]
    assert [trace.name for trace in plots.loss_curves(history).data] == ["total"]
    assert not plots.score_curves(history).data
    assert not plots.masking_curves(history).data
    assert not plots.score_curves([]).data


def test_final_curves_mark_the_tested_epoch(make_sweep: MakeSweep) -> None:
    runs = make_sweep().final_runs
    figure = plots.final_curves(runs)
    for run in runs:
        tested = trace(figure, f"seed {run.seed}, tested epoch")
        assert tested.x == (run.best_epoch,)
        assert tested.y == (run.validation["auc"],)


def test_importances_are_ranked(make_sweep: MakeSweep) -> None:
    (bars,) = plots.importance_bars(make_sweep(importances={"a.low": 0.2, "a.high": 0.7, "b.high": 0.1})).data
    assert bars.y == ("b.high", "low", "a.high"), "plotly draws the last bar on top"
    assert bars.x == (0.1, 0.2, 0.7)
    assert bars.text == ("10%", "20%", "70%")


def test_slices_hold_the_complete_trials_that_have_the_parameter(make_sweep: MakeSweep) -> None:
    summary = make_sweep()
    figures = plots.parameter_slices(summary)
    assert list(figures) == summary.varied_params
    for path in ("mhim.masking.random_ratio", "mhim.consistency.temperature", "mhim.masking.high_schedule"):
        (points,) = figures[path].data
        expected = {
            (trial.number, trial.params[path], trial.value)
            for trial in summary.in_state("complete")
            if path in trial.params
        }
        numbers = [number for number, _ in points.customdata]
        assert set(zip(numbers, points.x, points.y, strict=True)) == expected
    (points,) = figures["mhim.masking.random_ratio"].data
    assert points.customdata[-1][0] == summary.best.number, "the best is drawn last"
    assert points.marker.color[-1] == plots.BLUE


def test_slices_choose_an_axis_that_spreads_the_settings(make_sweep: MakeSweep) -> None:
    figures = plots.parameter_slices(make_sweep())
    assert figures["optimizer.learning_rate"].layout.xaxis.type == "log"
    assert figures["mhim.masking.random_ratio"].layout.xaxis.type is None
    assert figures["mhim.masking.high_schedule"].layout.xaxis.type == "category"
    momentum = figures["mhim.teacher.momentum"]
    assert momentum.layout.xaxis.title.text == "1 − momentum"
    summary = make_sweep()
    by_number = {trial.number: trial for trial in summary.trials}
    for (number, _), x in zip(momentum.data[0].customdata, momentum.data[0].x, strict=True):
        assert x == pytest.approx(1 - by_number[number].params["mhim.teacher.momentum"])  # type: ignore[operator]


def test_a_sweep_of_one_trial_without_history_can_be_drawn(make_sweep: MakeSweep) -> None:
    trial = replace(make_sweep().trials[0], history=())
    summary = make_sweep(trials=[trial])
    history = plots.optimisation_history(summary)
    assert trace(history, "complete").y == (trial.value,)
    assert trace(history, "best and base configuration (trial 0)").y == (trial.value,)
    assert not plots.trial_curves(summary).data
    assert plots.parameter_slices(summary) == {}


def test_plotly_gets_no_markup_from_names(make_sweep: MakeSweep) -> None:
    trials = [
        Trial(0, "complete", 0.7, {"<b>x</b>": "<a href='y'>"}),
        Trial(1, "complete", 0.8, {"<b>x</b>": "z"}),
    ]
    figure = plots.parameter_slices(make_sweep(trials=trials))["<b>x</b>"]
    assert figure.layout.xaxis.title.text == "&lt;b&gt;x&lt;/b&gt;"
    assert "<" not in "".join(figure.data[0].x)


def test_a_trial_that_was_stopped_in_a_later_fold_is_marked_where_that_fold_was(
    make_sweep: MakeSweep,
) -> None:
    history = [{"epoch": epoch, "student_validation_score": 0.5 + epoch / 100} for epoch in range(10)]
    trials = [
        Trial(0, "complete", 0.9, {}, history),
        Trial(1, "pruned", 0.5, {}, history, num_epochs=13, last_epoch=2),
        Trial(2, "pruned", 0.5, {}, history[:4]),
    ]
    marks = trace(plots.trial_curves(make_sweep(trials=trials)), "pruned here")
    assert (marks.x, marks.y) == ((2, 3), (0.52, 0.53))
    assert [list(each) for each in marks.customdata] == [
        [1, " of a fold, after 13 epochs over all folds"],
        [2, ""],
    ]
