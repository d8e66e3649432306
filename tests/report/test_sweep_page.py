import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from html_pages import Page

from mhimdist.report import page as page_module
from mhimdist.report import sweep_page
from mhimdist.report.summary import State, SweepSummary, Trial
from mhimdist.report.sweep_page import render_sweep_report, write_sweep_report

MakeSweep = Callable[..., SweepSummary]
HOSTILE = "</script><script>alert('x')</script>&amp;<b>"


@pytest.fixture(autouse=True)
def without_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove plotly.js from the page: it is 4.8 MB of the text that the tests read."""
    monkeypatch.setattr(page_module, "get_plotlyjs", lambda: "")


def page(summary: SweepSummary) -> Page:
    return Page(render_sweep_report(summary))


@pytest.fixture(scope="module")
def report(make_sweep: MakeSweep) -> Page:
    """The page of `make_sweep()`, for most tests."""
    return page(make_sweep())


def test_the_file_is_whole_and_needs_no_network(make_sweep: MakeSweep, tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    write_sweep_report(make_sweep(2), path)
    assert [file.name for file in path.parent.iterdir()] == ["report.html"], "no part remains"
    report = Page(path.read_text(encoding="utf-8"))
    assert not report.attributes("src")
    assert not report.attributes("href")
    assert not [tag for tag, _ in report.elements if tag in ("link", "img", "iframe", "object", "base")]
    (policy,) = [value for value in report.attributes("content") if "default-src" in value]
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy


def test_plotly_is_inside_once(
    make_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.undo()  # of `without_plotly`
    path = tmp_path / "report.html"
    write_sweep_report(make_sweep(300), path)
    assert path.stat().st_size < 8e6
    assert path.read_text(encoding="utf-8").count("plotly.js v") == 1


def test_a_failed_write_leaves_the_old_report(
    make_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    def full_disk(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space left"):
        write_sweep_report(make_sweep(1), path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_headline(make_sweep: MakeSweep, report: Page) -> None:
    summary = make_sweep()
    text = " ".join(report.text.split())
    aucs = sorted(auc for run in summary.final_runs if (auc := run.test["auc"]) is not None)
    assert f"Best validation AUC {summary.best.value:.3f} trial {summary.best.number};" in text
    assert f"Median test AUC {aucs[1]:.3f} {aucs[0]:.3f} to {aucs[2]:.3f} over 3 seeds" in text
    assert "Trials 24 14 complete, 9 pruned, 1 failed" in text
    assert "Duration of the sweep 2 min 43 s" in text


def test_every_trial_has_a_row_and_a_badge(make_sweep: MakeSweep, report: Page) -> None:
    summary = make_sweep()
    badges = [value for value in report.attributes("class") if value.startswith("badge")]
    assert badges == ["badge complete"] * 14 + ["badge pruned"] * 9 + ["badge failed"]
    head, *rows = report.rows["trials"]
    assert head[:7] == ["Trial", "State", "validation AUC", "Epochs", "Time", "learning_rate", "alpha"]
    for trial, row in zip(summary.ranked, rows, strict=True):
        assert row[0] == str(trial.number)
        assert row[1].split()[0] == trial.state
        assert row[2] == (f"{trial.value:.3f}" if trial.value is not None else "-")
        assert row[3] == str(len(trial.history))
        present = [path in trial.params for path in summary.varied_params]
        assert [bool(cell) for cell in row[5:]] == present
    assert [row[1].split()[1:] for row in rows if len(row[1].split()) > 1] == [["best"], ["base"]]
    assert rows[0][1].split() == ["complete", "best"]


def test_only_the_heading_of_the_objective_says_it_is_sorted(report: Page) -> None:
    assert report.attributes("aria-sort") == ["descending"]


def test_sort_keys_are_numbers_for_numbers_and_empty_for_what_is_missing(make_sweep: MakeSweep) -> None:
    trials = [
        Trial(0, "complete", 0.9, {"rate": 0.000123456, "kind": "Step"}),
        Trial(1, "failed", None, {"rate": 0.1}),
    ]
    keys = page(make_sweep(trials=trials)).attributes("data-sort")
    assert keys == [
        "0",
        "complete",
        "0.9",
        "0",
        "0.0",
        "0.000123456",
        "step",
        "1",
        "failed",
        "",
        "0",
        "0.0",
        "0.1",
        "",
    ]


def test_best_against_base(report: Page) -> None:
    assert report.rows["changes"][1:] == [
        ["optimizer.learning_rate", "0.000512", "0.0002"],
        ["mhim.masking.high_ratio", "0.0437", "0.01"],
        ["mhim.masking.high_schedule", "step", "cosine"],
        ["mhim.masking.high_step_epochs", "5", "-"],
        ["mhim.masking.random_ratio", "0.312", "0.5"],
        ["mhim.consistency.alpha", "0.0312", "0.1"],
        ["mhim.teacher.momentum", "0.99923", "0.9999"],
    ]
    assert '"hidden_dim": 128' in report.text, "the page has the full configuration, too"


def test_final_runs_and_their_median(make_sweep: MakeSweep, report: Page) -> None:
    summary = make_sweep()
    _, _, *rows = report.rows["final-runs"]
    assert [row[0] for row in rows if len(row) == 10] == ["best configuration", "AB-MIL without masking"]
    assert [row[-9] for row in rows] == ["2021", "2022", "2023", "median"] * 2
    aucs = sorted(row[-8] for row in rows[:3])
    assert rows[3][-8] == aucs[1]
    assert aucs == sorted(f"{run.test['auc']:.3f}" for run in summary.final_runs)


def test_undefined_metrics_are_dashes(make_sweep: MakeSweep) -> None:
    runs = [replace(run, test={"auc": None, "accuracy": 0.5}) for run in make_sweep().final_runs]
    report = page(make_sweep(final_runs=runs, baselines={}))
    assert report.rows["final-runs"][-1][1:4] == ["-", "0.500", "-"]
    assert "undefined on these test cases" in report.text
    assert "There is no test figure, so do not quote any number" in report.text


def test_the_note_on_selection_names_split_and_gap(report: Page) -> None:
    text = " ".join(report.text.split())
    judged = "of 23 trials judged on the same validation split (2 cases, 40 bags). 14 trials ran to the end;"
    assert judged in text
    assert "as only survivors are complete, the median of all is likely lower" in text
    assert "were never candidates" not in text
    assert "seeds that the search did not use" in text
    assert "the test cases were used for nothing but these runs" in text
    assert "The sweep never saw the test split (7 cases, 139 bags)" in text
    assert "below the value that won the sweep" in text


def test_banners_are_shown_where_they_apply(make_sweep: MakeSweep) -> None:
    both = page(make_sweep(protocol="paper", synthetic=True))
    assert both.attributes("role").count("note") == 2
    assert "Paper protocol." in both.text
    assert "The sweep never saw" not in both.text
    neither = page(make_sweep(synthetic=False))
    assert "note" not in neither.attributes("role")


def test_hostile_strings_stay_text(make_sweep: MakeSweep) -> None:
    trials = [
        Trial(0, "complete", 0.9, {HOSTILE: HOSTILE, "other": 1}),
        Trial(1, "complete", 0.8, {HOSTILE: "plain", "other": 2}),
        Trial(2, "failed", None, {HOSTILE: "plain", "other": 3}, reason=f"one\n{HOSTILE}"),
    ]
    summary = make_sweep(
        trials=trials,
        name=HOSTILE,
        dataset=HOSTILE,
        objective=HOSTILE,
        best_config={HOSTILE: HOSTILE},
        importances={HOSTILE: 1.0},
        environment={HOSTILE: HOSTILE},
        split_sizes={HOSTILE: {HOSTILE: 3}},
        baselines={HOSTILE: make_sweep().final_runs},
    )
    report = page(summary)
    assert [tag for tag, _ in report.elements].count("script") == 2 + len(report.figures)
    assert "b" not in [tag for tag, _ in report.elements]
    assert report.text.count(HOSTILE) > 10
    assert report.rows["failures"][1] == [HOSTILE + f"one\n{HOSTILE}", "2"]
    assert report.rows["trials"][0].count(HOSTILE) == 2, "as the objective and as a parameter"


def test_the_figures_are_valid_json_with_the_values_of_the_trials(
    make_sweep: MakeSweep, report: Page
) -> None:
    summary = make_sweep()
    figures = report.figures
    assert len(figures) == 1 + 1 + 3 + 1 + 1 + len(summary.varied_params)
    complete = [trace for figure in figures for trace in figure["data"] if trace.get("name") == "complete"]
    assert [trace["y"] for trace in complete] == [[trial.value for trial in summary.in_state("complete")]]


def test_failures_with_the_same_end_are_one_row(make_sweep: MakeSweep) -> None:
    reasons = ["Traceback 1\nOutOfMemoryError: 8 GB", "", "Traceback 2\nOutOfMemoryError: 8 GB", "x" * 10_000]
    failed = [Trial(number, "failed", None, {}, reason=text) for number, text in enumerate(reasons, start=1)]
    summary = make_sweep(trials=[Trial(0, "complete", 0.7, {}), *failed])
    rows = sweep_page.failures(summary.in_state("failed"))
    assert [(row.reason[:20], row.numbers) for row in rows] == [
        ("OutOfMemoryError: 8 ", [1, 3]),
        ("no reason was record", [2]),
        ("x" * 20, [4]),
    ]
    assert len(rows[2].reason) == 200
    assert len(rows[2].details) == sweep_page.MAX_REASON_CHARACTERS
    assert page(summary).rows["failures"][1][1] == "1, 3"


@pytest.mark.parametrize("state", ["pruned", "failed"])
def test_all_but_one_gone(make_sweep: MakeSweep, state: State) -> None:
    rest = [replace(trial, state=state) for trial in make_sweep().trials[1:]]
    report = page(make_sweep(trials=[make_sweep().trials[0], *rest], importances={}))
    assert f"1 complete, {23 if state == 'pruned' else 0} pruned" in report.text
    assert "Not available: it needs several complete trials" in report.text


def test_the_least_a_sweep_can_be(make_sweep: MakeSweep) -> None:
    summary = SweepSummary(
        name="least",
        dataset="d",
        synthetic=False,
        objective="validation AUC",
        protocol="strict",
        trials=[Trial(0, "complete", 0.5, {"a": 1})],
        best_config={"a": 1},
        sweep_s=1.0,
    )
    report = page(summary)
    assert "No final run was made" in report.text
    assert "1 complete, 0 pruned, 0 failed" in report.text
    assert "Only trial 0 was judged" in report.text
    assert "Learning curves" not in report.text
    assert report.rows["trials"][1][:3] == ["0", "complete best", "0.500"]


def test_the_same_summary_gives_the_same_text(make_sweep: MakeSweep) -> None:
    assert render_sweep_report(make_sweep(5)) == render_sweep_report(make_sweep(5))


def test_a_note_says_what_else_the_test_cases_have_tested(make_sweep: MakeSweep) -> None:
    assert "also" not in page(make_sweep(num_tested=2)).text.split("How far to trust")[1][:2000].split()
    text = " ".join(page(make_sweep(num_tested=4)).text.split())
    assert "The same test cases have also tested 2 other configurations, in final runs of earlier" in text
    assert "used for nothing but these runs" not in text


def test_what_the_base_is_and_what_the_search_met_is_said(make_sweep: MakeSweep) -> None:
    summary = make_sweep(base_text="the paper's preset with epochs 25", notes=["3 draws impossible"])
    text = " ".join(page(summary).text.split())
    assert "The base configuration, which was the first trial, is the paper's preset with epochs 25." in text
    assert "3 draws impossible." in text


def test_every_fold_and_every_reason_is_shown(make_sweep: MakeSweep) -> None:
    names = ("fold 1, seed 7", "fold 2, seed 7")
    trials = [
        Trial(0, "complete", 0.8, {"a": 1}, folds=dict(zip(names, (0.9, 0.7), strict=True))),
        Trial(1, "complete", 0.9, {"a": 2}, folds=dict(zip(names, (0.92, 0.88), strict=True))),
        Trial(2, "pruned", 0.6, {"a": 3}, folds={names[0]: 0.6}, reason="0.600 after 30 epochs"),
        Trial(3, "failed", None, {"a": 4}, reason="it raised"),
    ]
    report = page(make_sweep(trials=trials))
    assert report.rows["folds"] == [
        ["Trial", "Fold 1, seed 7", "Fold 2, seed 7", "Highest minus lowest"],
        ["1", "0.920", "0.880", "0.040"],
        ["0", "0.900", "0.700", "0.200"],
        ["2", "0.600", "", ""],
    ]
    assert report.rows["stopped"][1:] == [["2", "0.600 after 30 epochs"]]
    one = [replace(trial, folds={}) for trial in trials]
    assert "folds" not in page(make_sweep(trials=one)).rows


def test_the_second_objective_has_a_column_and_breaks_ties(make_sweep: MakeSweep) -> None:
    trials = [
        Trial(0, "complete", 0.9, {"a": 1}, cost=12.5),
        Trial(1, "complete", 0.9, {"a": 2}, cost=3.25),
        Trial(2, "complete", 0.7, {"a": 3}, cost=1.0),
        Trial(3, "failed", None, {"a": 4}),
    ]
    summary = make_sweep(trials=trials, front=[1, 2], cost="seconds of training a fold")
    assert summary.best.number == 1
    rows = page(summary).rows["trials"]
    assert rows[0][3] == "seconds of training a fold"
    assert [row[3] for row in rows[1:]] == ["3.25", "12.5", "1", "-"]


def test_a_task_without_a_threshold_has_no_column_of_dashes(make_sweep: MakeSweep, report: Page) -> None:
    headings = {"harrell_c": "C-index", "ibs": "Brier score"}
    summary = make_sweep(headings=headings, selection="harrell_c", protocol="refit")
    runs = [replace(run, test={"harrell_c": 0.7, "ibs": 0.2}) for run in summary.final_runs]
    text = page(replace(summary, final_runs=runs, baselines={})).text
    assert "Threshold" not in text
    assert "mean validation curve; validation C-index is of the bags that these folds held out." in " ".join(
        text.split()
    )
    assert "Threshold" in report.text
    assert "Epoch and threshold were chosen" in report.text


def test_final_runs_of_slides_have_their_score_by_case(make_sweep: MakeSweep) -> None:
    summary = make_sweep()
    plain = page(summary).rows["final-runs"]
    runs = [
        replace(run, by_case={"mean": {"auc": 0.9 + place / 100}, "max": {"auc": None}})
        for place, run in enumerate(summary.final_runs)
    ]
    report = page(replace(summary, final_runs=runs))
    head, rows = report.rows["final-runs"][1], report.rows["final-runs"][2:]
    assert head == [*plain[1], "case AUC, mean", "case AUC, max"]
    num = len(plain[1])
    cells = [row[-3 - 2 :][:2] for row in rows[:4]]  # before validation, epoch and threshold
    assert cells == [["0.900", "-"], ["0.910", "-"], ["0.920", "-"], ["0.910", "-"]]
    assert {tuple(row[num + 1 :][:2]) for row in rows[5:]} == {("-", "-")}
    assert "there a case has the mean, or the largest (max), of its slides" in report.text
    assert "by case" not in page(summary).text
