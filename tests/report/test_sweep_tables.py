import io
from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.console import Console

from mhimdist.report.summary import SweepSummary, Trial
from mhimdist.report.sweep_tables import configuration_table, final_table, print_summary, trials_table

MakeSweep = Callable[..., SweepSummary]


def printed(summary: SweepSummary, width: int, top: int = 10) -> str:
    out = io.StringIO()
    print_summary(summary, Console(file=out, width=width), top=top)
    return out.getvalue()


@pytest.mark.parametrize(("width", "num_params"), [(80, 3), (100, 5), (160, 10)])
def test_the_table_fits_and_drops_the_least_important_parameters(
    make_sweep: MakeSweep, width: int, num_params: int
) -> None:
    summary = make_sweep()
    table = trials_table(summary, width=width)
    assert len(table.columns) == 5 + num_params
    text = printed(summary, width)
    assert max(map(len, text.splitlines())) <= width
    assert "0.00105" in text, "no number of the most important parameter is cut"
    assert ("The report shows" in " ".join(text.split())) == (num_params < 10)


def test_the_best_come_first_and_the_base_is_kept(make_sweep: MakeSweep) -> None:
    summary = make_sweep()
    table = trials_table(summary, top=3)
    numbers, marks, aucs = ([str(cell) for cell in table.columns[i].cells] for i in (0, 1, 2))
    assert numbers == [str(trial.number) for trial in summary.ranked[:3]] + ["0"]
    assert marks == ["best", "", "", "base"]
    assert aucs == [f"{trial.value:.3f}" for trial in summary.ranked[:3]] + [f"{summary.trials[0].value:.3f}"]
    assert str(table.caption).startswith("24 trials: 14 complete, 9 pruned, 1 failed, in 2 min 43 s.")


def test_pruned_trials_are_counted_but_not_among_the_best(make_sweep: MakeSweep) -> None:
    trials = [Trial(0, "complete", 0.7, {}), Trial(1, "pruned", 0.9, {}), Trial(2, "failed", None, {})]
    table = trials_table(make_sweep(trials=trials))
    assert [str(cell) for cell in table.columns[0].cells] == ["0"]
    assert [str(cell) for cell in table.columns[1].cells] == ["best, base"]
    pruned_base = trials_table(make_sweep(trials=trials, base_number=1))
    assert [str(cell) for cell in pruned_base.columns[1].cells] == ["best", "base, pruned"]


def test_configuration_table(make_sweep: MakeSweep) -> None:
    summary = make_sweep()
    columns = [[str(cell) for cell in column.cells] for column in configuration_table(summary).columns]
    rows = list(zip(*columns, strict=True))
    assert rows[0] == ("optimizer.learning_rate", "0.000512", "0.0002")
    assert rows[3] == ("mhim.masking.high_step_epochs", "5", "-")
    assert len(rows) == 7
    alone = configuration_table(replace(summary, base_config=None))
    assert [str(cell) for cell in alone.columns[0].cells] == list(summary.best.params)


def test_final_table_compares_medians(make_sweep: MakeSweep) -> None:
    summary = make_sweep(protocol="paper")
    table = final_table(summary)
    aucs = sorted(auc for run in summary.final_runs if (auc := run.test["auc"]) is not None)
    assert [str(cell) for cell in table.columns[0].cells] == ["best configuration", "AB-MIL without masking"]
    assert [str(next(iter(table.columns[i].cells))) for i in (2, 3, 4)] == [
        f"{aucs[i]:.3f}" for i in (1, 0, 2)
    ]
    assert "test fold selects" in str(table.caption)


def test_the_final_table_says_what_else_was_tested(make_sweep: MakeSweep) -> None:
    assert str(final_table(make_sweep(num_tested=2)).title) == "Final runs, tested once"
    again = final_table(make_sweep(num_tested=3))
    assert str(again.title) == "Final runs"
    assert "Earlier final runs tested 1 other configuration on the same cases" in str(again.caption)


def test_the_second_objective_has_a_column(make_sweep: MakeSweep) -> None:
    trials = [Trial(0, "complete", 0.7, {}, cost=0.25), Trial(1, "failed", None, {})]
    table = trials_table(make_sweep(trials=trials, cost="share of instances kept", front=[0]))
    assert [str(column.header) for column in table.columns][3] == "share\nof instances kept"
    assert [str(cell) for cell in table.columns[3].cells] == ["0.25"]


def test_a_log_gets_plain_ascii_where_its_encoding_is(make_sweep: MakeSweep) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    print_summary(make_sweep(), Console(file=out, width=80))
    out.seek(0)
    text = out.read()
    assert "\x1b" not in text, "no colour outside a terminal"
    assert "mhim.masking.high_ratio" in text


def test_brackets_in_names_are_not_markup(make_sweep: MakeSweep) -> None:
    trials = [Trial(n, "complete", 0.7 + n / 10, {"[red]x": f"[bold]{n}"}) for n in range(2)]
    text = printed(make_sweep(trials=trials, name="[b]sweep", importances={}), 100)
    assert "[b]sweep" in text
    assert "[red]x" in text
    assert "[bold]1" in text
