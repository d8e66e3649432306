"""The sections on grades: agreement, who is taken for what, calibration."""

from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup

from mhimdist.pages.calibration import NUM_BINS
from mhimdist.pages.tasks.bags import Graded
from mhimdist.pages.tasks.measures import by_seed, measures_table
from mhimdist.report import blocks, formats, score_plots
from mhimdist.report.blocks import Cell, Section
from mhimdist.report.score_plots import MOST_CURVES
from mhimdist.statistics.calibration import ReliabilityBin, ece, reliability
from mhimdist.statistics.curves import confusion

HEADINGS = {
    "kappa": "quadratic weighted kappa",
    "accuracy": "accuracy",
    "adjacent_accuracy": "within one grade",
    "mae": "mean error in grades",
}


def ordinal_sections(configurations: Mapping[str, Sequence[Graded]], classes: Sequence[str]) -> list[Section]:
    """What a page says of grades.

    Args:
        configurations: the networks of each configuration.
        classes: names of the grades, in ascending order.
    """
    shown = dict(list(configurations.items())[:MOST_CURVES])
    caption = "Kappa: agreement beyond chance, where an error of two grades weighs four times one of one."
    return [
        blocks.section("results", "Results", measures_table(configurations, HEADINGS, caption=caption)),
        blocks.section(
            "decisions",
            "Which grades are taken for which",
            *(
                part
                for number, (name, networks) in enumerate(shown.items())
                for part in (blocks.heading(name), _confusion(networks, classes, number))
            ),
        ),
        blocks.section("calibration", "Calibration", _calibration(shown)),
    ]


def counts(networks: Sequence[Graded], num_classes: int) -> np.ndarray:
    """Bags by true grade, then by predicted grade, as a mean over the seeds: float64, shape (C, C)."""
    total_CC = np.zeros((num_classes, num_classes))
    for each in networks:
        total_CC += confusion(each.labels_N, each.predicted_N, num_classes)
    return total_CC / len(by_seed(networks))


def _confusion(networks: Sequence[Graded], classes: Sequence[str], number: int) -> Markup:
    counts_CC = counts(networks, len(classes))
    rows: list[list[str | Cell]] = []
    for name, counts_C in zip(classes, counts_CC, strict=True):
        whole = counts_C.sum()
        shares = counts_C / whole if whole else np.zeros(len(classes))
        cells = [
            Cell(f"{count:,.4g}", formats.share(share) if whole else "", float(share))
            for count, share in zip(counts_C, shares, strict=True)
        ]
        rows.append([Cell(f"true {name}"), *cells])
    kappas = [value for each in networks if (value := each.weighed.once()["kappa"]) is not None]
    kappa = f" Kappa: {np.mean(kappas):.3f}." if kappas else " Kappa is undefined: there is one grade only."
    seeds = len(by_seed(networks))
    what = f"Mean number of slides over {seeds} seeds" if seeds > 1 else "Number of slides"
    return blocks.table(
        f"confusion-{number}",
        ["", *(f"called {name}" for name in classes)],
        rows,
        caption=f"{what}, and the share of the true grade.{kappa}",
    )


def _calibration(shown: Mapping[str, Sequence[Graded]]) -> Markup:
    bins: dict[str, list[ReliabilityBin]] = {}
    rows: list[list[str | Cell]] = []
    for name, networks in shown.items():
        of_first = [networks[place] for place in by_seed(networks)[0]]
        given = [each.probabilities_NC for each in of_first if each.probabilities_NC is not None]
        if len(given) < len(of_first):
            continue
        labels_N, probabilities_NC = (
            np.concatenate([each.labels_N for each in of_first]),
            np.concatenate(given),
        )
        bins[name] = reliability(labels_N, probabilities_NC, num_bins=NUM_BINS)
        rows.append([name, f"{ece(labels_N, probabilities_NC, num_bins=NUM_BINS):.4f}"])
    if not bins:
        return Markup("")
    caption = (
        f"ECE: mean gap between probability and frequency in {NUM_BINS} bins of equal width, of the first "
        "seed's networks pooled."
    )
    table = blocks.table("calibration-table", ["configuration", "ECE"], rows, caption=caption)
    drawn = score_plots.reliability_figure(bins, "of the most probable grade")
    return table + blocks.figure(
        drawn, "A point below the diagonal: the probability promises too much.", title="Reliability"
    )
