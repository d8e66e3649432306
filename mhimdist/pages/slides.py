"""Sections of a folder of predictions: what was called, how sure the ensemble is, and every slide."""

from collections import Counter

import numpy as np
from markupsafe import Markup

from mhimdist.pages.subject import Subject
from mhimdist.report import blocks, formats, score_plots
from mhimdist.report.blocks import Cell, Section

MOST_SLIDES = 2000
"""Most slides in the table of a page; all of them are in `predictions.csv`."""


def slides_section(subject: Subject) -> Section:
    """How many slides each class has, the probabilities by label, and the slides, the least sure first."""
    slides, classes = subject.slides, list(subject.prediction.get("classes", ()))
    if not slides:
        return blocks.section("slides", "Slides")
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
        _table(subject, classes),
    ]
    return blocks.section("slides", "Slides", *parts)


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


def _table(subject: Subject, classes: list[str]) -> Markup:
    slides = subject.slides
    probabilities_NC = np.array([slides[f"probability_{name}"] for name in classes], dtype=np.float64).T
    sorted_NC = np.sort(probabilities_NC, axis=1)
    threshold = subject.prediction.get("threshold")
    if len(classes) == 2 and isinstance(threshold, float):
        margin_N = np.abs(probabilities_NC[:, 1] - threshold)
    else:
        margin_N = sorted_NC[:, -1] - sorted_NC[:, -2] if len(classes) > 1 else sorted_NC[:, -1]
    spreads = [slides.get(f"spread_{name}") for name in classes]
    has_spread = all(spread is not None for spread in spreads) and any(
        any(spread) for spread in spreads if spread
    )
    rows: list[list[str | Cell]] = []
    for i in np.argsort(margin_N, kind="stable")[:MOST_SLIDES]:
        label, predicted = slides["label"][i], slides["predicted"][i]
        wrong = label is not None and label != predicted
        rows.append(
            [
                slides["slide"][i],
                slides["case"][i],
                formats.NONE if label is None else label,
                Cell(predicted, "wrong" if wrong else ""),
                *(formats.auc(float(p)) for p in probabilities_NC[i]),
                *(
                    (formats.auc(max(float(spread[i]) for spread in spreads if spread)),)
                    if has_spread
                    else ()
                ),
            ]
        )
    more = (
        ""
        if len(margin_N) <= MOST_SLIDES
        else f" The {MOST_SLIDES:,} least sure of {len(margin_N):,} slides."
    )
    caption = f"The least sure first; click a heading to sort.{more} All slides are in predictions.csv."
    if has_spread:
        caption += " Spread: standard deviation of the probability over the models."
    header = ["slide", "case", "label", "called", *(f"P({name})" for name in classes)]
    return blocks.heading("Every slide") + blocks.table(
        "every-slide",
        [*header, *(("spread",) if has_spread else ())],
        rows,
        texts=4,
        caption=caption,
        sortable=True,
    )
