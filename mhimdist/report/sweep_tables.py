"""A sweep's results for a terminal or a job's log: best trials, best configuration, final runs."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from mhimdist import terminal
from mhimdist.report import formats
from mhimdist.report.summary import FinalRun, Metrics, Spread, SweepSummary, Trial, is_number, short_names

_STATE_STYLES = {"complete": "", "pruned": "dim", "failed": "red"}


def inner_note(summary: SweepSummary) -> str:
    """What final runs are whose epochs the folds of a trial have chosen."""
    what = "threshold and validation" if summary.has_threshold else "validation"
    verb = "are" if summary.has_threshold else "is"
    return (
        "Each run trained on all cases that do not test, for as many epochs as the folds of the trial chose "
        f"on their mean validation curve; {what} {summary.score} {verb} of the bags that these folds held "
        "out."
    )


def print_summary(summary: SweepSummary, console: Console | None = None, *, top: int = 10) -> None:
    """Print the tables, as wide as the console; outside a terminal, without colour.

    Args:
        summary: the finished sweep.
        console: prints the tables; None makes a new one.
        top: most trials to show.
    """
    console = console or terminal.console()
    tables = [trials_table(summary, top, width=console.width), configuration_table(summary)]
    if summary.final_runs:
        tables.append(final_table(summary))
    for table in tables:
        console.print(table)
        console.print()


def trials_table(summary: SweepSummary, top: int = 10, *, width: int = 100) -> Table:
    """The best trials, the best first, with as many of the most important parameters as the width holds.

    The base configuration follows below them if it is not one of the best. Pruned and failed trials are only
    counted.

    Args:
        summary: the finished sweep.
        top: most trials to show.
        width: width of the table in characters.
    """
    params = summary.varied_params
    table = _trials_table(summary, top, [])
    # The most important parameters come first, so a narrow table omits the least important ones.
    for num_params in range(1, len(params) + 1):
        wider = _trials_table(summary, top, params[:num_params])
        if Console(width=1000).measure(wider).maximum > width:
            break
        table = wider
    return table


def _trials_table(summary: SweepSummary, top: int, params: list[str]) -> Table:
    names = short_names(summary.varied_params)
    table = _table(f"Best trials of {summary.name}")
    table.add_column("trial", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    costs = [summary.cost.replace(" of ", "\nof ")] if summary.cost else []
    for heading in (summary.objective.replace(" ", "\n"), *costs, "epochs", "time"):
        table.add_column(Text(heading), justify="right", no_wrap=True)
    for path in params:
        is_numeric = all(is_number(trial.params.get(path, 0)) for trial in summary.trials)
        heading = names[path].replace("_", "_\n").replace(".", ".\n")
        table.add_column(Text(heading), justify="right" if is_numeric else "left", no_wrap=True)

    def add(trial: Trial) -> None:
        marks = [mark for mark, marked in (("best", summary.best), ("base", summary.base)) if trial is marked]
        cells = [
            str(trial.number),
            ", ".join([*marks, *([trial.state] if trial.state != "complete" else [])]),
            formats.auc(trial.value),
            *([formats.setting(trial.cost)] if costs else []),
            str(trial.epochs_done),
            formats.duration(trial.duration_s),
            *(formats.setting(trial.params[path]) if path in trial.params else "" for path in params),
        ]
        style = "bold" if trial is summary.best else _STATE_STYLES[trial.state]
        table.add_row(*map(Text, cells), style=style)

    best = [trial for trial in summary.ranked if trial.state == "complete"][:top]
    for trial in best:
        add(trial)
    if summary.base is not None and all(trial is not summary.base for trial in best):
        table.add_section()
        add(summary.base)
    counts = ", ".join(
        f"{len(trials)} {state}"
        for state in ("complete", "pruned", "failed")
        if (trials := summary.in_state(state))
    )
    caption = (
        f"{formats.count(len(summary.trials), 'trial')}: {counts}, in {formats.duration(summary.sweep_s)}."
    )
    hidden = len(names) - len(params)
    if hidden:
        caption += f" The report shows {formats.count(hidden, 'more parameter')}."
    table.caption = Text(caption)
    return table


def configuration_table(summary: SweepSummary) -> Table:
    """The fields in which the best configuration differs from the base; without a base, all choices."""
    best, base = f"trial {summary.best.number}", "base"
    if summary.base_config is None:
        table = _table("Best configuration")
        _add_columns(table, "field", best)
        for path, value in summary.best.params.items():
            table.add_row(Text(path), Text(formats.setting(value)))
        return table
    table = _table("Best configuration against the base")
    _add_columns(table, "field", best, base)
    for change in summary.changes:
        table.add_row(Text(change.path), *map(Text, formats.setting_pair(change.best, change.base)))
    table.caption = Text("All other fields are equal." if summary.changes else "All fields are equal.")
    return table


def final_table(summary: SweepSummary) -> Table:
    """Median and range of the test score over the seeds, for the best configuration and the baselines."""
    is_once = summary.protocol != "paper" and not summary.num_tested_before
    table = _table("Final runs, tested once" if is_once else "Final runs")
    score = summary.score
    by_case = [f"case {score}, {rule}" for rule in summary.case_rules]
    _add_columns(
        table, "configuration", "runs", f"test {score}", "lowest", "highest", *by_case, f"validation {score}"
    )
    for name, runs in {"best configuration": summary.final_runs, **summary.baselines}.items():
        test = Spread.of([run.test for run in runs], summary.selection)
        validation = Spread.of([run.validation for run in runs], summary.selection)
        cells = [
            name,
            str(len(runs)),
            formats.auc(test.median if test else None),
            formats.auc(test.lowest if test else None),
            formats.auc(test.highest if test else None),
            *case_texts(runs, summary),
            formats.auc(validation.median if validation else None),
        ]
        table.add_row(*map(Text, cells))
    caption = "Medians over the runs, one per seed"
    caption += " and fold." if any(run.fold is not None for run in summary.final_runs) else "."
    if summary.num_judged > 1:
        best = formats.auc(summary.best.value)
        caption += (
            f" The best value of {summary.num_judged} trials, {best}, is optimistic, because it was chosen."
        )
    if summary.num_tested_before:
        more = formats.count(summary.num_tested_before, "other configuration")
        caption += (
            f" Earlier final runs tested {more} on the same cases: do not choose among them by these figures."
        )
    if summary.protocol in ("refit", "nested"):
        caption += f" {inner_note(summary)}"
    if summary.protocol == "paper":
        caption += " Paper protocol: the test fold selects, so the test figures are optimistic."
    table.caption = Text(caption)
    return table


def _table(title: str) -> Table:
    # Style.null() and left, because rich centres and slants titles and captions, which logs cannot show.
    return Table(
        box=SIMPLE_HEAD,
        title=Text(title),
        title_style="bold",
        title_justify="left",
        caption_style=Style.null(),
        caption_justify="left",
        show_edge=False,
        pad_edge=False,
        header_style="bold",
    )


def median_text(rows: Sequence[Metrics], metric: str) -> str:
    """The median of a metric over the runs that define it."""
    spread = Spread.of(rows, metric)
    return formats.auc(spread.median if spread else None)


def case_texts(runs: Sequence[FinalRun], summary: SweepSummary) -> list[str]:
    """The median of the score by case over the runs, by each rule that makes cases of slides."""
    score = summary.selection
    return [median_text([run.by_case.get(rule, {}) for run in runs], score) for rule in summary.case_rules]


def _add_columns(table: Table, first: str, *others: str) -> None:
    table.add_column(first, overflow="fold")
    for heading in others:
        table.add_column(heading, justify="right", overflow="fold")
