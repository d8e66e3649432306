"""Cross-validated configurations side by side: the results of their runs, as plain data and as tables.

Nothing here knows Ray. Every table, record and file names the protocol of its figures.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from mhimdist.config.protocols import Protocol
from mhimdist.foreign_text import csv_text, markdown
from mhimdist.report import formats
from mhimdist.report.text_table import Grid
from mhimdist.statistics import metrics
from mhimdist.tasks import Judged, Task, classification
from mhimdist.tasks.cases import CASE_RULES, CaseRule
from mhimdist.training.result import NOTES, Result
from mhimdist.training.result import PAPER_WARNING as PAPER_WARNING
from mhimdist.training.result import STRICT_NOTE as STRICT_NOTE


@dataclass(frozen=True)
class Row:
    """A named configuration under one protocol.

    Attributes:
        name: its name in the table.
        protocol: the protocol of its runs.
        results: the results of the finished runs.
        num_planned: number of runs that it should have.
        failures: the last line of the reason per failed run, by the run's name.
        note: what is special about its runs, such as fewer folds; may be empty.
    """

    name: str
    protocol: Protocol
    results: Sequence[Result]
    num_planned: int
    failures: Mapping[str, str] = field(default_factory=dict)
    note: str = ""

    @cached_property
    def task(self) -> Task:
        """What the runs predict; classification if none is finished."""
        return self.results[0].meaning if self.results else classification(2)

    @cached_property
    def by_seed(self) -> list[list[Result]]:
        """The results of each seed, by fold."""
        seeds = sorted({result.seed for result in self.results})
        return [
            sorted((r for r in self.results if r.seed == seed), key=lambda result: result.fold)
            for seed in seeds
        ]

    def spread(self, metric: str, how: CaseRule | None = None) -> tuple[float, float | None] | None:
        """Mean and standard deviation of a test metric, see `metrics.mean_and_std`; None without a value.

        Args:
            metric: its name.
            how: take the metric by case, each of which follows from its slides by this rule; None: by bag.
        """
        values = [[v for r in results if (v := _of(r, metric, how)) is not None] for results in self.by_seed]
        values = [each for each in values if each]
        return metrics.mean_and_std(values) if values else None

    @property
    def has_cases(self) -> bool:
        """Whether bags are slides, and the test cases of a run have several."""
        return any(result.by_case for result in self.results)

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """95 % bootstrap interval of the mean score, clustered by case."""
        return self.task.interval([result.judged for result in self.results])

    @cached_property
    def pooled(self) -> float | None:
        """The score of all folds' test bags as one set, the mean over the seeds; None if it says nothing."""
        if not self.task.pools:
            return None
        sets = [Judged.pooled([result.judged for result in results]) for results in self.by_seed]
        defined = [score for each in sets if (score := self.task.score(each)) is not None]
        return float(np.mean(defined)) if defined else None

    @property
    def epochs(self) -> str:
        """The number of epochs done: a number or a range."""
        done = [result.num_epochs for result in self.results]
        if not done:
            return formats.NONE
        return f"{done[0]}" if len(set(done)) == 1 else f"{min(done)}-{max(done)}"

    @property
    def num_runs(self) -> str:
        """The number of finished runs and, if some are missing, the planned number."""
        done = len(self.results)
        return f"{done}" if done == self.num_planned else f"{done} of {self.num_planned}"

    def record(self) -> dict[str, Any]:
        """A flat row of numbers, for CSV and JSON."""
        low, high = self.interval or (None, None)
        score = self.task.selection
        found: dict[str, Any] = {
            "name": self.name,
            "protocol": self.protocol,
            "selects_on_test": self.protocol == "paper",
            "inner_runs": max((result.inner_runs for result in self.results), default=0),
            "seeds": len(self.by_seed),
            "folds": max(map(len, self.by_seed), default=0),
            "runs": len(self.results),
            "runs_planned": self.num_planned,
            "epochs": self.epochs,
        }
        for metric in self.task.headings:
            mean, std = self.spread(metric) or (None, None)
            found |= {metric: mean, f"{metric}_std": std}
        ends = {f"{score}_low": low, f"{score}_high": high, f"{score}_pooled": self.pooled}
        return found | ends | {"note": self.note}

    def case_record(self) -> dict[str, Any]:
        """The metrics by case, by each rule, in the form of `record`."""
        found: dict[str, Any] = {}
        for how in CASE_RULES:
            for metric in self.task.headings:
                mean, std = self.spread(metric, how) or (None, None)
                found |= {f"{metric}_case_{how}": mean, f"{metric}_case_{how}_std": std}
        return found


@dataclass(frozen=True)
class Comparison:
    """Configurations run on the same folds and seeds.

    Attributes:
        name: name of the experiment's folder.
        dataset: the data set's name.
        synthetic: whether its bags are made up.
        num_bags, num_cases: bags and cases of the data set.
        num_folds: folds of the data.
        split_by: how the data are split, in words, such as "3-fold by case".
        seeds: seeds of the runs.
        rows: a row per configuration and protocol.
        wall_s: wall-clock seconds of the command; runs that were finished before took none.
        num_found: number of runs that were finished before.
        num_train: bags that train under each protocol, the mean over folds and seeds.
        validation_share: share of the training fold's cases that only selects under strict.
        inner_folds: inner folds that select under refit.
        chosen: under nested, the settings that each outer fold has chosen.
    """

    name: str
    dataset: str
    synthetic: bool
    num_bags: int
    num_cases: int
    num_folds: int
    split_by: str
    seeds: Sequence[int]
    rows: Sequence[Row]
    wall_s: float
    num_found: int
    num_train: Mapping[Protocol, float] = field(default_factory=dict)
    validation_share: float | None = None
    inner_folds: int | None = None
    chosen: Grid | None = None

    @property
    def protocols(self) -> list[Protocol]:
        """The protocols of the rows, in their order."""
        return list(dict.fromkeys(row.protocol for row in self.rows))

    @property
    def task(self) -> Task:
        """What the runs predict; classification if none is finished."""
        return next((row.task for row in self.rows if row.results), classification(2))

    @property
    def failures(self) -> dict[str, str]:
        """The reason of every failed run, by the run's name."""
        return {name: reason for row in self.rows for name, reason in row.failures.items()}

    def of(self, protocol: Protocol) -> list[Row]:
        """The rows of a protocol."""
        return [row for row in self.rows if row.protocol == protocol]

    def caption(self, protocol: Protocol) -> str:
        """The text that a reader of a protocol's figures must know."""
        return f"{self.note(protocol)} {self.setting}"

    def note(self, protocol: Protocol) -> str:
        """What a protocol is, with the number of inner folds where it has some."""
        inner = self.inner_folds if protocol in ("refit", "nested") else None
        return NOTES[protocol] + (f" With {inner} inner folds." if inner else "")

    @property
    def setting(self) -> str:
        """Data, folds and seeds in words, and how the figures average over them."""
        over = "the seeds, each with its mean over the folds" if len(self.seeds) > 1 else "the folds"
        data = " (SYNTHETIC bags)" if self.synthetic else ""
        return (
            f"{self.dataset}{data}: {formats.count(self.num_bags, 'bag')} of "
            f"{formats.count(self.num_cases, 'case')}, {self.split_by}, "
            f"{formats.count(len(self.seeds), 'seed')} ({', '.join(map(str, self.seeds))}). "
            f"Mean +- standard deviation over {over}."
        )

    def grids(self) -> list[Grid]:
        """A table per protocol; with several protocols, all side by side, and how much paper's adds."""
        tables = [self._grid(protocol) for protocol in self.protocols]
        return [*tables, *([self.chosen] if self.chosen else []), *self.across_protocols()]

    def across_protocols(self) -> list[Grid]:
        """The tables that compare protocols; none if there is one."""
        if len(self.protocols) < 2:
            return []
        inflation = [self.inflation()] if {"strict", "paper"} <= set(self.protocols) else []
        return [*([self.side_by_side()] if len(self.protocols) > 2 else []), *inflation]

    def side_by_side(self) -> Grid:
        """A table of two metrics of each configuration, such as AUC and accuracy, under each protocol."""
        names = list(dict.fromkeys(row.name for row in self.rows))
        row_of = {(row.name, row.protocol): row for row in self.rows}
        shown = dict(list(self.task.shown.items())[:2])
        pairs = [(metric, protocol) for metric in shown for protocol in self.protocols]

        def text(name: str, protocol: Protocol, metric: str) -> str:
            row = row_of.get((name, protocol))
            return formats.NONE if row is None else spread_text(row.spread(metric))

        trained = ", ".join(f"{number:.0f} under {name}" for name, number in self.num_train.items())
        optimistic = " The figures of paper are optimistic." if "paper" in self.protocols else ""
        return Grid(
            title=f"{self.name}: protocols side by side",
            header=["configuration", *(f"{shown[metric]}, {protocol}" for metric, protocol in pairs)],
            rows=[[name, *(text(name, protocol, metric) for metric, protocol in pairs)] for name in names],
            caption=f"On the same test folds and seeds. Bags that train: {trained}.{optimistic} "
            f"{self.setting}",
            optional=[f"{title}, {each}" for title in list(shown.values())[1:] for each in self.protocols],
        )

    def _grid(self, protocol: Protocol) -> Grid:
        rows = self.of(protocol)
        shown, title = self.task.shown, self.task.title
        header = ["configuration", *shown.values(), f"{title} 95 %"]
        caption = f"{self.caption(protocol)} {title} 95 %: bootstrap interval of the mean {title}, by case"
        if self.task.pools:
            header.append("pooled")
            caption += f"; pooled: {title} of all folds' test bags as one set"
        caption += "."
        by_case: tuple[CaseRule, ...] = CASE_RULES if any(row.has_cases for row in rows) else ()
        if by_case:
            header += [f"case {title}, {how}" for how in by_case]
            caption += (
                f" All figures are by slide but the case {title}: there a case has the mean, or the largest, "
                "of its slides' predictions; a case whose slides have different labels is left out."
            )
        caption += notes_text({row.name: row.note for row in rows})
        return Grid(
            title=f"{self.name}: test figures, {protocol} protocol",
            header=[*header, "epochs", "runs"],
            rows=[
                [
                    row.name,
                    *(spread_text(row.spread(metric)) for metric in shown),
                    interval_text(row.interval),
                    *([formats.auc(row.pooled)] if self.task.pools else []),
                    *(spread_text(row.spread(self.task.selection, how)) for how in by_case),
                    row.epochs,
                    row.num_runs,
                ]
                for row in rows
            ],
            caption=caption,
            optional=(*reversed(list(shown.values())[1:]), "pooled", "epochs", f"case {title}, max"),
        )

    def inflation_of(self, row: Row) -> dict[str, float | None]:
        """The gain of the paper's protocol over a strict row's mean metrics; None if either is missing."""
        strict = next((each for each in self.of("strict") if each.name == row.name), None)
        added: dict[str, float | None] = {}
        for metric in self.task.shown:
            first, second = strict.spread(metric) if strict else None, row.spread(metric)
            added[metric] = second[0] - first[0] if row.protocol == "paper" and first and second else None
        return added

    def inflation(self) -> Grid:
        """A table of how much higher each configuration scores if the test fold selects."""
        strict = {row.name for row in self.of("strict")}
        pairs = [(row.name, self.inflation_of(row)) for row in self.of("paper") if row.name in strict]
        return Grid(
            title=f"{self.name}: inflation, paper minus strict",
            header=["configuration", *self.task.shown.values()],
            rows=[[name, *(_signed(added[metric]) for metric in self.task.shown)] for name, added in pairs],
            caption=self.inflation_note,
        )

    @property
    def inflation_note(self) -> str:
        """The effects that make up the inflation."""
        same = "on the same test folds and seeds."
        strict, paper = (self.num_train.get(protocol, 0.0) for protocol in ("strict", "paper"))
        if strict == paper:
            return f"How much selecting on the test fold adds to the figures of that fold, {same}"
        text = (
            f"Two effects together, {same} Under paper the test fold selects, and {paper:.0f} bags train "
            f"against {strict:.0f} under strict, because the cases that validate under strict train, too."
        )
        if self.chosen is not None:  # of a sweep, which has no such option
            return text
        share = f" {self.validation_share:g}" if self.validation_share else ""
        return f"{text} Run with --paper-validation-share{share} to see the first effect alone."

    def record(self, row: Row) -> dict[str, Any]:
        """A row's record with, if any row has them, metrics by case and, of strict and paper, the gain."""
        record = row.record() | (row.case_record() if any(each.has_cases for each in self.rows) else {})
        if not {"strict", "paper"} <= set(self.protocols):
            return record
        added = self.inflation_of(row)
        return record | {f"{metric}_inflation": value for metric, value in added.items()}

    def markdown(self) -> str:
        """All tables and the failed runs, as Markdown."""
        text = "\n".join(grid.markdown() for grid in self.grids())
        if self.failures:
            text += "\nFailed runs:\n\n"
            text += "".join(
                f"- {markdown(name)}: {markdown(reason)}\n" for name, reason in self.failures.items()
            )
        return text

    def csv(self) -> str:
        """A line per row, as CSV."""
        return records_csv([self.record(row) for row in self.rows])

    def json(self) -> str:
        """Everything except the scores of single bags, which are in the runs' folders, as JSON."""
        large = {"keys", "cases", "labels", "probabilities", "targets", "predictions"}
        large |= {f"validation_{name}" for name in large}
        said = {protocol: self.note(protocol) for protocol in self.protocols}
        rows = [
            self.record(row)
            | {
                "results": [
                    {name: value for name, value in result.record().items() if name not in large}
                    for result in row.results
                ],
                "failures": dict(row.failures),
            }
            for row in self.rows
        ]
        own = (
            "name",
            "dataset",
            "synthetic",
            "num_bags",
            "num_cases",
            "num_folds",
            "split_by",
            "inner_folds",
            "wall_s",
            "num_found",
        )
        body = {name: getattr(self, name) for name in own} | {"seeds": list(self.seeds), "rows": rows}
        warning = {"warning": PAPER_WARNING} if "paper" in self.protocols else {}
        if {"strict", "paper"} <= set(self.protocols):
            warning["inflation"] = self.inflation_note
        if self.chosen:
            body["chosen"] = asdict(self.chosen)
        body = {"protocols": self.protocols, "notes": said, **warning, **body}
        return json.dumps(body, indent=1, allow_nan=False) + "\n"


def _of(result: Result, metric: str, how: CaseRule | None) -> float | None:
    return (result.test if how is None else result.by_case.get(how, {})).get(metric)


def notes_text(notes: Mapping[str, str]) -> str:
    """The notes on rows, for a caption; rows with the same note share a sentence."""
    sharing: dict[str, list[str]] = {}
    for name, note in notes.items():
        if note:
            sharing.setdefault(note, []).append(name)
    return "".join(f" {', '.join(names)}: {note}." for note, names in sharing.items())


def records_csv(records: Sequence[Mapping[str, Any]]) -> str:
    """CSV text of flat records with the same columns; None is an empty cell."""
    return csv_text(list(records[0]) if records else [], [list(record.values()) for record in records])


def _signed(value: float | None) -> str:
    return formats.NONE if value is None else f"{value:+.3f}"


def spread_text(spread: tuple[float, float | None] | None, scale: int = 1) -> str:
    """`0.961 +- 0.005`, or with a scale of 100 `96.14 +- 0.52`: in per cent, as the paper prints it."""
    if spread is None:
        return formats.NONE
    decimals = 3 if scale == 1 else 2
    mean, std = spread
    text = f"{scale * mean:.{decimals}f}"
    return text if std is None else f"{text} +- {scale * std:.{decimals}f}"


def interval_text(interval: tuple[float, float] | None) -> str:
    """`0.93-0.98`; `-0.1 to 0.2` where a metric can be below zero."""
    if interval is None:
        return formats.NONE
    return f"{interval[0]:.3f}{' to ' if interval[0] < 0 else '-'}{interval[1]:.3f}"
