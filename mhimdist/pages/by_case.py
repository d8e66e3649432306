"""The table of figures by slide and by case, of every task, where bags are slides and a case has several."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from markupsafe import Markup

from mhimdist.pages.subject import Configuration, Subject
from mhimdist.report import blocks, formats
from mhimdist.report.blocks import Cell
from mhimdist.tasks.cases import CASE_RULES

_RULES = {
    "mean": "the mean of its slides' predictions",
    "max": "the largest of its slides' predictions",
    "attention": "the mean of its slides' predictions, weighed by attention over all its slides",
    "union": "the prediction of all its slides as one bag",
}
_LEFT_OUT = "A case whose slides have different labels is left out."


def by_case_table(subject: Subject, headings: Mapping[str, str]) -> Markup:
    """The metrics of the test cases beside those of their slides; empty if every case has one slide.

    Args:
        subject: what was run, or predicted.
        headings: the metrics to show, and their headings.
    """
    found = _of_predictions(subject, headings) if subject.slides else _of_folds(subject, headings)
    return blocks.heading("By case") + found if found else Markup("")


def _of_folds(subject: Subject, headings: Mapping[str, str]) -> Markup:
    rows: list[list[str | Cell]] = []
    for each in subject.tested:
        name = each.name + (f", {each.protocol}" if len(subject.protocols) > 1 else "")
        for how in CASE_RULES:
            if both := _both(each, how):
                cells = (f"{_mean(both, 0, metric)} / {_mean(both, 1, metric)}" for metric in headings)
                rows.append([name, how, *map(Cell, cells)])
    if not rows:
        return Markup("")
    caption = (
        "By slide / by case; means over the networks. A case has the mean, or the largest (max), of its "
        f"slides' predictions, and what the validation cases choose by the same rule. {_LEFT_OUT}"
    )
    header = ["configuration", "a case has", *headings.values()]
    return blocks.table("by-case", header, rows, texts=2, caption=caption)


def _both(configuration: Configuration, how: str) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """The metrics by slide and by case of each network that has both."""
    return [
        (metrics, of_cases)
        for fold, metrics in zip(configuration.folds, configuration.metrics, strict=False)
        if (of_cases := fold.result.get("by_case", {}).get(how))
    ]


def _mean(both: Sequence[tuple[Mapping[str, Any], ...]], place: int, metric: str) -> str:
    known = [value for each in both if (value := each[place].get(metric)) is not None]
    return formats.auc(fmean(known)) if known else formats.NONE


def _of_predictions(subject: Subject, headings: Mapping[str, str]) -> Markup:
    """What `prediction.json` says of the slides and of the cases, with intervals."""
    measured, how = subject.prediction.get("metrics", {}), subject.prediction.get("how")
    if how is None or not {"slides", "cases"} <= measured.keys():
        return Markup("")
    shown = {name: text for name, text in headings.items() if name in measured["slides"]}
    rows: list[list[str | Cell]] = [
        [kind, f"{measured[kind]['rows']:,}", *(_estimate(measured[kind].get(name)) for name in shown)]
        for kind in ("slides", "cases")
    ]
    caption = f"A case has {_RULES[how]}. Below: 95 % bootstrap interval, by case. {_LEFT_OUT}"
    return blocks.table("by-case", ["", "known", *shown.values()], rows, caption=caption)


def _estimate(found: Mapping[str, Any] | None) -> Cell:
    if not found or found["value"] is None:
        return Cell(formats.NONE)
    ends = found["interval"]
    return Cell(formats.auc(found["value"]), " to ".join(map(formats.auc, ends)) if ends else "")
