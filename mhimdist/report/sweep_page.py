"""The report of a sweep: one HTML file that needs no network and no server."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from mhimdist.report import formats, page, plots
from mhimdist.report.formats import last_line
from mhimdist.report.page import figure_html
from mhimdist.report.summary import (
    FinalRun,
    Spread,
    SweepSummary,
    Trial,
    is_number,
    short_names,
    value_of,
)
from mhimdist.report.sweep_tables import case_texts, inner_note, median_text

MAX_REASON_CHARACTERS = 4000  # the end of a traceback says most


class Column(NamedTuple):
    """A parameter in the table of trials; columns of numbers are aligned to the right."""

    path: str
    name: str
    is_number: bool


class Cell(NamedTuple):
    """A trial's choice for a parameter, and the key that sorts it in the table ("" comes last)."""

    text: str
    sort_key: float | str


class Failure(NamedTuple):
    """A failure of trials: the last line of their reason, and the full reason of the first trial."""

    reason: str
    details: str
    numbers: list[int]


class FinalRow(NamedTuple):
    """A row of the table of final runs: one seed, or the median over the seeds."""

    seed: str
    best_epoch: str
    validation_score: str
    test: list[str]
    threshold: str


def write_sweep_report(summary: SweepSummary, path: Path) -> None:
    """Write the report; a reader sees either the old file or the complete new one."""
    page.write(path, render_sweep_report(summary))


def render_sweep_report(summary: SweepSummary) -> str:
    """The report as HTML text; equal summaries yield equal texts."""
    best_history, base = summary.best.history, summary.base
    run_figures = {
        f"Validation {summary.score}": plots.score_curves(best_history, summary.score),
        "Training losses": plots.loss_curves(best_history),
        "Instances kept and masked": plots.masking_curves(best_history),
    }
    complete, columns = summary.in_state("complete"), param_columns(summary)
    return page.render(
        "sweep.html",
        summary=summary,
        inner_note=inner_note(summary),
        best=summary.best,
        base=base,
        base_value=base.value if base else None,
        num_in_state={state: len(summary.in_state(state)) for state in ("complete", "pruned", "failed")},
        complete_median=median(value_of(trial) for trial in complete),
        test=Spread.of([run.test for run in summary.final_runs], summary.selection),
        changes=[
            (change.path, *formats.setting_pair(change.best, change.base)) for change in summary.changes
        ],
        best_config=json.dumps(summary.best_config, indent=2, default=str, ensure_ascii=False),
        columns=columns,
        rows=[(trial, param_cells(trial, columns)) for trial in summary.ranked],
        failures=failures(summary.in_state("failed")),
        stopped=[trial for trial in summary.in_state("pruned") if trial.reason],
        fold_names=fold_names(summary),
        final_rows={
            name: final_rows(runs, summary)
            for name, runs in {"best configuration": summary.final_runs, **summary.baselines}.items()
            if runs
        },
        splits=split_texts(summary.split_sizes),
        trial_s=sum(trial.duration_s for trial in summary.trials),
        history_figure=figure_html(plots.optimisation_history(summary)),
        trials_figure=figure_html(plots.trial_curves(summary)),
        run_figures={title: figure_html(figure) for title, figure in run_figures.items()},
        front=[trial for number in summary.front for trial in summary.trials if trial.number == number],
        front_figure=figure_html(plots.pareto_front(summary)) if summary.front else None,
        final_validation=None
        if (again := Spread.of([run.validation for run in summary.final_runs], summary.selection)) is None
        else again.median,
        has_folds=any(run.fold is not None for run in summary.final_runs),
        final_figure=figure_html(plots.final_curves(summary.final_runs, summary.score)),
        importance_figure=figure_html(plots.importance_bars(summary)) if summary.importances else None,
        slice_figures=[
            (name, figure_html(figure)) for name, figure in plots.parameter_slices(summary).items()
        ],
    )


def param_columns(summary: SweepSummary) -> list[Column]:
    """The parameters that vary, the most important first."""
    names = short_names(summary.varied_params)
    return [
        Column(path, name, all(is_number(trial.params.get(path, 0)) for trial in summary.trials))
        for path, name in names.items()
    ]


def param_cells(trial: Trial, columns: Sequence[Column]) -> list[Cell]:
    """A cell per column; it is empty if the trial does not have the parameter."""
    cells = []
    for column in columns:
        if column.path in trial.params:
            value = trial.params[column.path]
            text = formats.setting(value)
            cells.append(Cell(text, float(str(value)) if is_number(value) else text.lower()))
        else:
            cells.append(Cell("", ""))
    return cells


def fold_names(summary: SweepSummary) -> list[str]:
    """The folds that some trial was trained on to its end, in their order; empty if there is only one."""
    names = list(dict.fromkeys(name for trial in summary.trials for name in trial.folds))
    return names if len(names) > 1 else []


def failures(trials: Sequence[Trial]) -> list[Failure]:
    """The failures of trials, the most common first; reasons with the same last line are one failure."""
    by_reason: dict[str, Failure] = {}
    for trial in trials:
        reason = last_line(trial.reason) or "no reason was recorded"
        details = trial.reason.strip()[-MAX_REASON_CHARACTERS:] or reason
        by_reason.setdefault(reason, Failure(reason, details, [])).numbers.append(trial.number)
    return sorted(by_reason.values(), key=lambda failure: -len(failure.numbers))


def final_rows(runs: Sequence[FinalRun], summary: SweepSummary) -> list[FinalRow]:
    """A row per final run and, if there is more than one, their median last."""
    score, metrics = summary.selection, summary.headings
    rows = [
        FinalRow(
            seed=str(run.seed) if run.fold is None else f"{run.seed}, fold {run.fold}",
            best_epoch=str(run.best_epoch),
            validation_score=formats.auc(run.validation.get(score)),
            test=[
                *(formats.auc(run.test.get(metric)) for metric in metrics),
                *case_texts([run], summary),
            ],
            threshold=formats.auc(run.test.get("threshold")),
        )
        for run in runs
    ]
    if len(runs) > 1:
        median_row = FinalRow(
            seed="median",
            best_epoch="",
            validation_score=median_text([run.validation for run in runs], score),
            test=[
                *(median_text([run.test for run in runs], metric) for metric in metrics),
                *case_texts(runs, summary),
            ],
            threshold="",
        )
        rows.append(median_row)
    return rows


def split_texts(sizes: Mapping[str, Mapping[str, int]]) -> dict[str, str]:
    """The size of each split in words, such as "2 cases, 40 bags"."""
    nouns = {"cases": "case", "bags": "bag", "positive_bags": "positive bag", "instances": "instance"}
    return {
        split: ", ".join(formats.count(number, nouns.get(unit, unit)) for unit, number in units.items())
        for split, units in sizes.items()
    }
