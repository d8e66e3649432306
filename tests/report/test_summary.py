from collections.abc import Callable
from dataclasses import replace

import pytest

from mhimdist.errors import SweepError
from mhimdist.report.summary import FieldChange, Metrics, Spread, SweepSummary, Trial, short_names

MakeSweep = Callable[..., SweepSummary]


def test_a_pruned_or_failed_trial_is_never_the_best(make_sweep: MakeSweep) -> None:
    trials = [
        Trial(number=0, state="complete", value=0.7, params={}),
        Trial(number=1, state="pruned", value=0.99, params={}),
        Trial(number=2, state="failed", value=1.0, params={}),
        Trial(number=3, state="complete", value=0.8, params={}),
        Trial(number=4, state="complete", value=0.8, params={}),
    ]
    summary = make_sweep(trials=trials)
    assert summary.best.number == 3, "the earlier of two equal ones"
    assert [trial.number for trial in summary.ranked] == [3, 4, 0, 1, 2]


@pytest.mark.faults(34)
@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_a_complete_trial_needs_a_finite_value(value: float | None) -> None:
    with pytest.raises(SweepError, match="trial 5: a complete trial needs a finite value"):
        Trial(number=5, state="complete", value=value, params={})


def test_a_sweep_without_a_complete_trial_has_no_summary(make_sweep: MakeSweep) -> None:
    trials = [Trial(number=0, state="pruned", value=0.6, params={}), Trial(1, "failed", None, {})]
    with pytest.raises(SweepError, match="got 2 trials, of which 1 pruned and 1 failed"):
        make_sweep(trials=trials)


def test_the_base_must_be_one_of_the_trials(make_sweep: MakeSweep) -> None:
    with pytest.raises(SweepError, match="expected the number of a trial as base_number, got 99"):
        make_sweep(base_number=99)


def test_varied_params_counts_absence_and_puts_the_most_important_first(make_sweep: MakeSweep) -> None:
    trials = [
        Trial(0, "complete", 0.7, {"fixed": 1, "sometimes": 2, "a": 0.1, "layers": [64, 32]}),
        Trial(1, "complete", 0.8, {"fixed": 1, "a": 0.2, "layers": [64]}),
    ]
    summary = make_sweep(trials=trials, importances={"a": 0.9, "layers": 0.1})
    assert summary.varied_params == ["a", "layers", "sometimes"]


def test_changes_lists_the_leaves_that_differ(make_sweep: MakeSweep) -> None:
    summary = make_sweep(
        best_config={"a": {"x": 1, "y": 2, "only_best": True}, "same": [1]},
        base_config={"a": {"x": 1, "y": 3}, "same": [1], "only_base": 4},
    )
    assert summary.changes == [
        FieldChange("a.y", 2, 3),
        FieldChange("a.only_best", True, None),
        FieldChange("only_base", None, 4),
    ]
    assert replace(summary, base_config=None).changes == []


def test_spread_is_over_the_runs_that_define_the_metric() -> None:
    rows: list[Metrics] = [
        {"auc": 0.9},
        {"auc": None},
        {"auc": 0.8},
        {"auc": 0.95},
        {},
        {"auc": float("nan")},
    ]
    assert Spread.of(rows, "auc") == Spread(median=0.9, lowest=0.8, highest=0.95)
    assert Spread.of(rows, "f1") is None


def test_short_names_stay_unique() -> None:
    names = short_names(["masking.high.ratio", "masking.low.ratio", "loss.alpha", "alpha"])
    assert names == {
        "masking.high.ratio": "high.ratio",
        "masking.low.ratio": "low.ratio",
        "loss.alpha": "loss.alpha",
        "alpha": "alpha",
    }
