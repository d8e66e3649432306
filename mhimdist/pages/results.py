"""Sections about how good the test figures are: tables with intervals, curves, decisions, calibration."""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from mhimdist.errors import UndefinedError
from mhimdist.pages.by_case import by_case_table
from mhimdist.pages.subject import Configuration, Subject
from mhimdist.report import blocks, formats, score_plots
from mhimdist.report.blocks import Cell, Section
from mhimdist.report.comparison import interval_text, spread_text
from mhimdist.statistics import curves
from mhimdist.statistics.intervals import class_intervals
from mhimdist.statistics.metrics import auc_interval
from mhimdist.tasks import classification

SHOWN = ("auc", "accuracy", "f1", "precision", "recall", "specificity")
_HEADINGS = {**classification(2).headings, "recall": "sensitivity (recall)", "specificity": "specificity"}
_BY_CASE = {name: _HEADINGS[name] for name in ("auc", "accuracy", "f1")}
MOST_NAMED = 200
"""Most slides that are listed as misclassified."""


def intervals(configuration: Configuration) -> dict[str, tuple[float, float] | None]:
    """95 % bootstrap intervals of the mean metrics, resampled by case."""
    parts = configuration.parts
    found: dict[str, tuple[float, float] | None] = {"auc": auc_interval(parts)}
    return found | class_intervals(
        [part.labels_N for part in parts],
        configuration.predicted,
        [part.cases for part in parts],
        len(configuration.classes),
    )


def results_section(subject: Subject) -> Section:
    """A table per protocol with means, deviations and intervals, and a table of the single folds."""
    parts = []
    for protocol in subject.protocols:
        shown = [each for each in subject.tested if each.protocol == protocol]
        if len(subject.protocols) > 1:
            parts.append(blocks.heading(f"{protocol.capitalize()} protocol"))
        rows, aucs = [], []
        for each in shown:
            ends = intervals(each)
            cells = [_spread_cell(each.spread(name), ends[name]) for name in SHOWN]
            rows.append([Cell(each.name, _size(each)), *cells])
            if (mean := each.spread("auc")) is not None:
                aucs.append((each.name, mean[0], ends["auc"]))
        header = ["configuration", *(_HEADINGS[name] for name in SHOWN)]
        parts.append(blocks.table(f"results-{_plain(protocol)}", header, rows, caption=_caption(shown)))
        if len(aucs) > 1:
            parts.append(
                blocks.figure(
                    score_plots.forest_figure(aucs), "Mean test AUC with its 95 % interval.", title="Test AUC"
                )
            )
    parts += [_inflation(subject), by_case_table(subject, _BY_CASE), _folds_table(subject)]
    return blocks.section("results", "Results", *parts)


def _inflation(subject: Subject) -> Markup:
    """How much higher each configuration scores if the test fold selects, where both protocols ran."""
    strict = {each.name: each for each in subject.tested if each.protocol == "strict"}
    rows: list[list[str | Cell]] = []
    for each in subject.tested:
        if each.protocol != "paper" or each.name not in strict:
            continue
        cells: list[str | Cell] = [each.name]
        for name in SHOWN:
            first, second = strict[each.name].spread(name), each.spread(name)
            cells.append(f"{second[0] - first[0]:+.3f}" if first and second else formats.NONE)
        rows.append(cells)
    if not rows:
        return Markup("")
    caption = str(subject.table.get("inflation", "")) or (
        "Paper minus strict: under paper the test fold selects, and the cases that validate under strict may "
        "train, too."
    )
    return blocks.heading("Inflation: paper minus strict") + blocks.table(
        "inflation", ["configuration", *(_HEADINGS[name] for name in SHOWN)], rows, caption=caption
    )


def paper_section(subject: Subject) -> Section:
    """The paper's tables in the paper's layout, as their command made them."""
    parts: list[Markup] = []
    for number, grid in enumerate(subject.paper.get("tables", ())):
        parts.append(blocks.heading(str(grid["title"])))
        header, rows = list(map(str, grid["header"])), [list(map(str, row)) for row in grid["rows"]]
        rows = [[text.replace("+-", "±") for text in row] for row in rows]
        parts.append(blocks.table(f"paper-{number}", header, rows, caption=str(grid["caption"])))
    if parts:
        parts.append(blocks.paragraph(str(subject.paper.get("caption", "")).replace("+-", "±")))
    return blocks.section("paper", "The paper's tables", *parts)


def _size(configuration: Configuration) -> str:
    entry = configuration.entry
    return entry.size.replace(" x ", " × ") if entry is not None else ""


def _caption(shown: Sequence[Configuration]) -> str:
    several = any(len(each.networks) > 1 for each in shown)
    seeds = any(each.entry is not None and each.entry.num_seeds > 1 for each in shown)
    over = "the seeds, each with its mean over the folds" if seeds else "the folds"
    mean = f"Mean ± standard deviation over {over}. " if several else ""
    what = "of the mean " if several else ""
    classes = (
        f"The positive class is {shown[0].classes[1]}."
        if shown[0].is_binary
        else "F1, precision, sensitivity and specificity are means over the classes."
    )
    return f"{mean}Below: 95 % bootstrap interval {what}from 1,000 resamples of the cases. {classes}"


def _spread_cell(value: tuple[float, float | None] | None, ends: tuple[float, float] | None) -> Cell:
    text = spread_text(value).replace("+-", "±")
    return Cell(text, interval_text(ends).replace("-", "–") if ends else "", key=value[0] if value else -1.0)


def _metric_cell(value: float | None) -> Cell:
    return Cell(formats.auc(value), key=-1.0 if value is None else value)


def _folds_table(subject: Subject) -> Markup:
    rows: list[list[str | Cell]] = []
    for each in subject.tested:
        for network, fold, metrics in zip(each.networks, each.folds, each.metrics, strict=False):
            best = fold.result.get("best_epoch")
            num_epochs = len(fold.result.get("validation_curve") or fold.history)
            rows.append(
                [
                    each.name + (f", {each.protocol}" if len(subject.protocols) > 1 else ""),
                    fold.name.replace(" ", "\N{NO-BREAK SPACE}"),
                    *(_metric_cell(metrics[name]) for name in SHOWN),
                    formats.auc(network.threshold),
                    formats.auc(fold.result.get("validation", {}).get("auc")),
                    f"{best} of {num_epochs}" if num_epochs else formats.setting(best),
                ]
            )
    if not rows:
        return Markup("")
    header = ["configuration", "fold", *(_HEADINGS[m] for m in SHOWN)]
    return blocks.heading("Every fold") + blocks.table(
        "folds",
        [*header, "threshold", "validation AUC", "selected epoch"],
        rows,
        texts=2,
        sortable=True,
        caption="Click a heading to sort. Epochs are counted from 0." + _inner_text(subject),
    )


def _inner_text(subject: Subject) -> str:
    """What the columns of validation are under refit; empty without such runs."""
    if not {"refit", "nested"} & set(subject.protocols):
        return ""
    return (
        " Under refit the validation AUC is that of the training bags, each scored by an inner run that held "
        "it out, all pooled; networks differ in scale, so it is lower than the mean of the inner runs'."
    )


def curves_section(subject: Subject) -> Section:
    """ROC and precision-recall curves, with a band over the folds."""
    parts = []
    for protocol in subject.protocols:
        shown = [each for each in subject.tested if each.protocol == protocol]
        if len(subject.protocols) > 1:
            parts.append(blocks.heading(f"{protocol.capitalize()} protocol"))
        if all(each.is_binary for each in shown):
            parts.append(_pair({each.name: (each, 1) for each in shown}))
        else:
            for each in shown[: score_plots.MOST_CURVES]:
                parts.append(blocks.heading(f"{each.name}: each class against the rest"))
                parts.append(_pair({name: (each, c) for c, name in enumerate(each.classes)}))
    return blocks.section("curves", "ROC and precision-recall curves", *parts)


def _pair(wanted: dict[str, tuple[Configuration, int]]) -> Markup:
    """The two figures of several configurations, or of several classes of one."""
    rocs: dict[str, list[curves.Curve]] = {}
    recalls: dict[str, list[curves.Curve]] = {}
    shares = []
    left_out = 0
    for name, (each, c) in list(wanted.items())[: score_plots.MOST_CURVES]:
        for part in each.parts:
            positive_N, scores_N = part.labels_N == c, part.probabilities_NC[:, c]
            try:
                rocs.setdefault(name, []).append(curves.roc(positive_N, scores_N))
            except UndefinedError:
                left_out += 1
                continue
            recalls.setdefault(name, []).append(curves.precision_recall(positive_N, scores_N))
            shares.append(float(positive_N.mean()))
    rocs = {name: each for name, each in rocs.items() if each}
    if not rocs:
        return blocks.paragraph("The test bags are all of one class, so there is no curve.")
    networks = max(len(each) for each in rocs.values())
    single = next(iter(rocs)) if len(rocs) == 1 and networks > 1 else None
    caption = f"Mean over {networks} networks; the band is one standard deviation." if networks > 1 else ""
    if single:
        caption += " Grey: the single networks."
    if left_out:
        caption += f" {formats.count(left_out, 'network')} tested on one class only: left out."
    if len(wanted) > score_plots.MOST_CURVES:
        caption += f" The first {score_plots.MOST_CURVES} of {len(wanted)} configurations."
    # The classes of one configuration have different shares, so one line would stand for none of them.
    chance = float(np.mean(shares)) if len({c for _, c in wanted.values()}) == 1 else None
    return blocks.side_by_side(
        blocks.figure(
            score_plots.roc_figure(
                {name: curves.roc_band(each) for name, each in rocs.items()},
                rocs[single] if single else (),
            ),
            caption,
            title="ROC",
        ),
        blocks.figure(
            score_plots.precision_recall_figure(
                {name: curves.precision_recall_band(each) for name, each in recalls.items()},
                recalls[single] if single else (),
                prevalence=chance,
            ),
            caption + ("" if chance is None else f" Dotted: chance, the share of positives, {chance:.2f}."),
            title="Precision and recall",
        ),
    )


def decisions_section(subject: Subject) -> Section:
    """Confusion at the chosen threshold, what other thresholds would do, and the slides that were missed."""
    parts: list[Markup] = []
    for each in subject.tested[: score_plots.MOST_CURVES]:
        name = each.name + (f", {each.protocol} protocol" if len(subject.protocols) > 1 else "")
        parts.append(blocks.heading(name))
        parts.append(blocks.side_by_side(_confusion(each, len(parts)), _thresholds(each)))
        parts.append(_missed(each, len(parts)))
    if len(subject.tested) > score_plots.MOST_CURVES:
        parts.append(
            blocks.paragraph(
                f"The first {score_plots.MOST_CURVES} of {len(subject.tested)} configurations.", muted=True
            )
        )
    return blocks.section("decisions", "Decisions at the chosen threshold", *parts)


def _confusion(configuration: Configuration, number: int) -> Markup:
    classes, times = configuration.classes, configuration.times_tested
    total_CC = sum(
        curves.confusion(part.labels_N, predicted_N, len(classes))
        for part, predicted_N in zip(configuration.parts, configuration.predicted, strict=True)
    )
    counts_CC = np.asarray(total_CC)
    rows: list[list[str | Cell]] = []
    for c, name in enumerate(classes):
        whole = int(counts_CC[c].sum())
        shares = [count / whole if whole else 0.0 for count in counts_CC[c]]
        rows.append(
            [
                Cell(f"true {name}"),
                *(
                    Cell(f"{count / times:,.4g}", formats.share(share) if whole else "", share)
                    for count, share in zip(counts_CC[c], shares, strict=True)
                ),
            ]
        )
    what = f"Mean number of slides over {times} seeds" if times > 1 else "Number of slides"
    return blocks.table(
        f"confusion-{number}",
        ["", *(f"called {name}" for name in classes)],
        rows,
        caption=f"{what}, and the share of the true class. {_threshold_text(configuration)}",
    )


def _threshold_text(configuration: Configuration) -> str:
    if not configuration.is_binary:
        return "The most probable class is called."
    values = [each.threshold for each in configuration.networks if each.threshold is not None]
    if not values:
        return "The more probable class is called."
    where = {
        "strict": "of the validation cases",
        "paper": "of the test cases themselves",
        **dict.fromkeys(("refit", "nested"), "of its training cases, as inner runs scored those held out"),
    }.get(configuration.protocol, "that the predictions name")
    span = f"{min(values):.3f}" if len(values) == 1 else f"{min(values):.3f} to {max(values):.3f}"
    return (
        f"Each network has its own threshold {where}: {span}." if len(values) > 1 else f"Threshold: {span}."
    )


def _thresholds(configuration: Configuration) -> Markup:
    if not configuration.is_binary:
        return Markup("")
    found = []
    for part in configuration.parts:
        try:
            found.append(curves.threshold_curve(part.labels_N == 1, part.probabilities_NC[:, 1]))
        except UndefinedError:
            continue
    if not found:
        return Markup("")
    names = ("sensitivity_G", "specificity_G", "accuracy_G", "f1_G")
    mean = curves.ThresholdCurve(
        found[0].thresholds_G, *(np.mean([getattr(each, name) for each in found], axis=0) for name in names)
    )
    chosen = [each.threshold for each in configuration.networks if each.threshold is not None]
    return blocks.figure(
        score_plots.threshold_figure(
            mean,
            [value for value in chosen if value <= 1],
            y_title="value" if len(found) == 1 else "mean over the networks",
        ),
        "What a fixed threshold would do. Dotted: the chosen thresholds. To choose one here is "
        "to choose it on these slides, which then test nothing.",
        title="Other thresholds",
    )


def _missed(configuration: Configuration, number: int) -> Markup:
    """The test slides that networks called wrong, the most often missed first."""
    tested: dict[str, list[tuple[bool, float]]] = {}
    about: dict[str, tuple[str, int]] = {}
    for network, predicted_N in zip(configuration.networks, configuration.predicted, strict=True):
        scores = network.scores
        for i, key in enumerate(network.keys):
            label = int(scores.labels_N[i])
            about[key] = (scores.cases[i], label)
            wrong = bool(predicted_N[i] != label)
            tested.setdefault(key, []).append((wrong, float(scores.probabilities_NC[i, label])))
    missed = [(key, each) for key, each in tested.items() if any(wrong for wrong, _ in each)]
    missed.sort(key=lambda item: (-np.mean([w for w, _ in item[1]]), np.mean([p for _, p in item[1]])))
    rows: list[list[str | Cell]] = [
        [
            key,
            about[key][0],
            configuration.classes[about[key][1]],
            f"{sum(wrong for wrong, _ in each)} of {len(each)}",
            formats.auc(float(np.mean([p for _, p in each]))),
        ]
        for key, each in missed[:MOST_NAMED]
    ]
    if not rows:
        return blocks.paragraph("No test slide was called wrong.")
    summary = f"Slides that were called wrong: {len(missed)} of {len(tested)}"
    more = f" The first {MOST_NAMED} are listed." if len(missed) > MOST_NAMED else ""
    inner = blocks.table(
        f"missed-{number}",
        ["slide", "case", "label", "called wrong", "mean probability of its label"],
        rows,
        texts=3,
        caption="The most often missed first." + more,
    )
    return Markup("<details><summary>{}</summary>{}</details>").format(summary, inner)


def _plain(protocol: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in protocol.lower())
