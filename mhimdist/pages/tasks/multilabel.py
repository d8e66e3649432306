"""The sections on several labels: each label's measures, curves, missing cells, calibration."""

from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup

from mhimdist.errors import UndefinedError
from mhimdist.pages.calibration import NUM_BINS
from mhimdist.pages.tasks.bags import Labelled
from mhimdist.pages.tasks.measures import by_seed, measures_table
from mhimdist.report import blocks, formats, score_plots
from mhimdist.report.blocks import Cell, Section
from mhimdist.report.score_plots import MOST_CURVES
from mhimdist.statistics import curves
from mhimdist.statistics.bootstrap import estimates
from mhimdist.statistics.calibration import ece, reliability
from mhimdist.statistics.multilabel import defined_labels

HEADINGS = {"auc": "macro AUC", "ap": "macro average precision", "f1": "macro F1"}


def multilabel_sections(configurations: Mapping[str, Sequence[Labelled]]) -> list[Section]:
    """What a page says of several labels.

    Args:
        configurations: the networks of each configuration.
    """
    shown = dict(list(configurations.items())[:MOST_CURVES])
    decides = all(each.thresholds_K is not None for networks in configurations.values() for each in networks)
    headings = {name: heading for name, heading in HEADINGS.items() if decides or name != "f1"}
    caption = (
        "Means over the labels that have both positive and negative test slides. A missing cell is left out "
        "of its label."
    )
    fewest = min(_labels(each) for networks in configurations.values() for each in networks)
    number = len(next(iter(configurations.values()))[0].columns)
    if fewest < number:
        caption += f" At least one network tested both kinds of {fewest} of the {number} labels only."
    return [
        blocks.section("results", "Results", measures_table(configurations, headings, caption=caption)),
        blocks.section(
            "labels",
            "Each label",
            *(
                part
                for number, (name, networks) in enumerate(shown.items())
                for part in (blocks.heading(name), _labels_table(networks, number), _curves(networks))
            ),
        ),
        blocks.section("calibration", "Calibration", _calibration(shown)),
    ]


def _labels(network: Labelled) -> int:
    """How many labels have both kinds of test slides."""
    return int(defined_labels(network.targets_NK).sum())


def _cells(networks: Sequence[Labelled], k: int) -> tuple[int, int, int]:
    """Positive, negative and missing cells of a label among the bags of the first seed."""
    of_first = [networks[place] for place in by_seed(networks)[0]]
    cells_N = np.concatenate([each.targets_NK[:, k] for each in of_first])
    return int((cells_N == 1).sum()), int((cells_N == 0).sum()), int(np.isnan(cells_N).sum())


def _labels_table(networks: Sequence[Labelled], number: int) -> Markup:
    found = estimates([each.weighed for each in networks])
    columns = networks[0].columns
    rows: list[list[str | Cell]] = []
    for k, column in enumerate(columns):
        positive, negative, missing = _cells(networks, k)
        cells = [column, f"{positive:,}", f"{negative:,}", f"{missing:,}"]
        values: list[str | Cell] = []
        for measure in ("auc", "ap"):
            # With one label its own measures are the macro means.
            name = f"{measure} {column}" if len(columns) > 1 else measure
            if (estimate := found[name]) is None:
                once = [each.weighed.once()[name] for each in networks]
                known = [value for value in once if value is not None]
                some = f"in {len(known)} of {len(once)} networks" if known else "one kind only"
                values.append(Cell(f"{np.mean(known):.3f}" if known else formats.NONE, some))
            else:
                ends = f"{estimate.low:.3f}–{estimate.high:.3f}"
                values.append(Cell(f"{estimate.value:.3f}", ends, key=estimate.value))
        chance = positive / (positive + negative) if positive + negative else None
        rows.append([*cells, *values, formats.auc(chance)])
    return blocks.table(
        f"labels-{number}",
        ["label", "positive", "negative", "missing", "AUC", "average precision", "chance of the latter"],
        rows,
        sortable=True,
        caption="Test slides of the first seed, and the mean over the networks with its 95 % bootstrap "
        "interval by case.",
    )


def label_curves(networks: Sequence[Labelled], k: int) -> tuple[list[curves.Curve], list[curves.Curve]]:
    """ROC and precision-recall curves of a label, of each network that tested both kinds."""
    rocs, recalls = [], []
    for each in networks:
        rows = ~np.isnan(each.targets_NK[:, k])
        positive_N, scores_N = each.targets_NK[rows, k] == 1, each.probabilities_NK[rows, k]
        try:
            rocs.append(curves.roc(positive_N, scores_N))
        except UndefinedError:
            continue
        recalls.append(curves.precision_recall(positive_N, scores_N))
    return rocs, recalls


def _curves(networks: Sequence[Labelled]) -> Markup:
    rocs: dict[str, curves.Band] = {}
    recalls: dict[str, curves.Band] = {}
    columns = networks[0].columns
    for k, column in enumerate(columns):
        of_label = label_curves(networks, k)
        if of_label[0] and len(rocs) < MOST_CURVES:
            rocs[column] = curves.roc_band(of_label[0])
            recalls[column] = curves.precision_recall_band(of_label[1])
    if not rocs:
        return blocks.paragraph("No label has both positive and negative test slides, so there is no curve.")
    caption = "Mean over the networks; the band is one standard deviation." if len(networks) > 1 else ""
    if len(rocs) < len(columns):
        caption += f" {len(rocs)} of {len(columns)} labels."
    return blocks.side_by_side(
        blocks.figure(score_plots.roc_figure(rocs), caption, title="ROC"),
        blocks.figure(score_plots.precision_recall_figure(recalls), caption, title="Precision and recall"),
    )


def _calibration(shown: Mapping[str, Sequence[Labelled]]) -> Markup:
    rows: list[list[str | Cell]] = []
    figures = []
    for name, networks in shown.items():
        of_first = [networks[place] for place in by_seed(networks)[0]]
        bins = {}
        for k, column in enumerate(networks[0].columns):
            targets_N = np.concatenate([each.targets_NK[:, k] for each in of_first])
            scores_N = np.concatenate([each.probabilities_NK[:, k] for each in of_first])
            known = ~np.isnan(targets_N)
            if not known.any():
                continue
            labels_N, positive_N = targets_N[known].astype(np.int64), scores_N[known]
            pair_N2 = np.stack([1 - positive_N, positive_N], axis=1)
            bins[column] = reliability(labels_N, pair_N2, num_bins=NUM_BINS)
            error = ece(labels_N, pair_N2, num_bins=NUM_BINS)
            brier = float(((positive_N - labels_N) ** 2).mean())
            rows.append([name, column, f"{brier:.4f}", f"{error:.4f}"])
        if bins:
            drawn = score_plots.reliability_figure(dict(list(bins.items())[:MOST_CURVES]), "of the label")
            caption = "A point below the diagonal: the probability promises too much."
            figures.append(blocks.figure(drawn, caption, title=f"Reliability: {name}"))
    caption = (
        f"Brier score: mean squared error of the probabilities. ECE: mean gap to the frequency in {NUM_BINS} "
        "bins. The first seed's networks, pooled."
    )
    header = ["configuration", "label", "Brier score", "ECE"]
    table = blocks.table("calibration-table", header, rows, texts=2, caption=caption)
    return table + blocks.side_by_side(*figures)
