"""Sections of a folder of predictions: what was called, how sure the ensemble is, and every slide."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from markupsafe import Markup

from mhimdist.pages.subject import Subject
from mhimdist.report import blocks, formats, score_plots
from mhimdist.report.blocks import Cell, Section
from mhimdist.tasks import Task

MOST_ROWS = 2000
"""Most slides or cases in a table of a page; the files of the folder have all of them."""
MOST_COLUMNS = 8
"""Most predictions of a slide in a table of a page."""
MOST_SPREADS = 3
"""Of more predictions, only the first one has its spread next to it."""
Columns = Mapping[str, list[Any]]


def slides_section(subject: Subject) -> Section:
    """How many slides each class has, the probabilities by label, and the slides, the least sure first."""
    slides, classes = subject.slides, list(subject.prediction.get("classes", ()))
    if not slides:
        return blocks.section("slides", "Slides")
    if (task := subject.task) is not None and not task.has_classes:
        parts = [_of_targets(task, subject.cases, "case")] if subject.cases else []
        parts.append(_of_targets(task, slides, "slide"))
        return blocks.section("slides", "Slides" if not subject.cases else "Slides and cases", *parts)
    called = Counter(slides["predicted"])
    parts = [
        blocks.table(
            "called",
            ["class", "slides called", "slides labelled"],
            [
                [name, f"{called[name]:,}", f"{sum(label == name for label in slides['label']):,}"]
                for name in classes
            ],
        ),
        _probabilities(subject, classes),
        _table(subject, classes, subject.cases, "case") if subject.cases else Markup(""),
        _table(subject, classes, slides, "slide"),
    ]
    return blocks.section("slides", "Slides" if not subject.cases else "Slides and cases", *parts)


def _probabilities(subject: Subject, classes: list[str]) -> Markup:
    shown, slides = classes[1:] if len(classes) == 2 else classes, subject.slides
    labels = np.array([label if label in classes else "no label" for label in slides["label"]], dtype=object)
    figures = []
    for name in shown:
        values_N = np.array(slides[f"probability_{name}"], dtype=np.float64)
        by_label = {
            f"label {label}" if label in classes else label: values_N[labels == label]
            for label in [*classes, "no label"]
            if (labels == label).any()
        }
        figures.append(
            blocks.figure(score_plots.probability_figure(by_label, name), title=f"Probability of {name}")
        )
    return blocks.side_by_side(*figures)


def _table(subject: Subject, classes: list[str], rows: Columns, kind: Literal["slide", "case"]) -> Markup:
    """Every slide or every case, those nearest to the decision first."""
    probabilities_NC = np.array([rows[f"probability_{name}"] for name in classes], dtype=np.float64).T
    spreads = [each for name in classes if (each := rows.get(f"spread_{name}")) is not None]
    spread_N = np.array(spreads, dtype=np.float64).max(axis=0) if spreads else np.zeros(len(rows["case"]))
    names = ("slide", "case") if kind == "slide" else ("case", "slides")
    order_N = np.argsort(_margins(subject, probabilities_NC), kind="stable")
    lines: list[list[str | Cell]] = []
    for i in order_N[:MOST_ROWS]:
        label, predicted = rows["label"][i], rows["predicted"][i]
        lines.append(
            [
                *(str(rows[name][i]) for name in names),
                formats.NONE if label is None else label,
                Cell(predicted, "wrong" if label is not None and label != predicted else ""),
                *(formats.auc(float(p)) for p in probabilities_NC[i]),
                *((formats.auc(float(spread_N[i])),) if spread_N.any() else ()),
            ]
        )
    caption = f"The least sure first; click a heading to sort. All are in {kind}s.csv."
    caption = caption.replace("slides.csv", "predictions.csv")
    if len(order_N) > MOST_ROWS:
        caption += f" These are the first {MOST_ROWS:,} of {len(order_N):,}."
    if spread_N.any():
        caption += " Spread: standard deviation of the probability over the models."
    header = [*names, "label", "called", *(f"P({name})" for name in classes)]
    header += ["spread"] if spread_N.any() else []
    name = f"every-{kind}"
    table = blocks.table(name, header, lines, texts=4, caption=caption, sortable=True)
    return blocks.heading(f"Every {kind}") + table


def _of_targets(task: Task, rows: Columns, kind: Literal["slide", "case"]) -> Markup:
    """Every slide or every case with its targets, what is predicted and its spread, in the file's order."""
    names = ("slide", "case") if kind == "slide" else ("case", "slides")
    truths = [f"true_{name}" for name in task.info.columns if f"true_{name}" in rows]
    shown = task.columns[:MOST_COLUMNS]
    spreads = [name for column in shown if any(rows.get(name := f"spread_{_bare(column)}", ()))]
    spreads = spreads[:1] if len(shown) > MOST_SPREADS else spreads
    decides = ["predicted"] if "predicted" in rows else []
    lines: list[list[str | Cell]] = [
        [
            *(str(rows[name][i]) for name in (*names, *decides)),
            *(_number(rows[name][i], is_truth=True) for name in truths),
            *(_number(rows[name][i]) for name in (*shown, *spreads)),
        ]
        for i in range(min(len(rows["case"]), MOST_ROWS))
    ]
    caption = f"Click a heading to sort. All are in {'predictions' if kind == 'slide' else 'cases'}.csv."
    if len(rows["case"]) > MOST_ROWS:
        caption += f" These are the first {MOST_ROWS:,} of {len(rows['case']):,}."
    if len(task.columns) > len(shown):
        caption += f" The first {len(shown)} of {len(task.columns)} predictions."
    if spreads:
        caption += " Spread: standard deviation over the models."
    header = [*names, *decides]
    header += [each.replace("_", " ", 1) for each in (*truths, *map(_bare, shown), *spreads)]
    texts = len(names) + len(decides)
    table = blocks.table(f"every-{kind}", header, lines, texts=texts, caption=caption, sortable=True)
    return blocks.heading(f"Every {kind}") + table


def _bare(column: str) -> str:
    return column.removeprefix("probability_")


def _number(value: float | None, *, is_truth: bool = False) -> Cell:
    if value is None:
        return Cell(formats.NONE, key=float("-inf"))
    return Cell(f"{value:.3f}" if abs(value) < 100 and not is_truth else f"{value:,.4g}", key=value)


def _margins(subject: Subject, probabilities_NC: np.ndarray) -> np.ndarray:
    """How far each row is from another decision: from the threshold, or from the second best class."""
    threshold = subject.prediction.get("threshold")
    if probabilities_NC.shape[1] == 2 and isinstance(threshold, float):
        return np.abs(probabilities_NC[:, 1] - threshold)
    sorted_NC = np.sort(probabilities_NC, axis=1)
    return sorted_NC[:, -1] - sorted_NC[:, -2] if sorted_NC.shape[1] > 1 else sorted_NC[:, -1]
