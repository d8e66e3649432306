"""The sections on values: agreement, predicted against true, how far off, calibration."""

from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup

from mhimdist.pages.tasks.bags import Valued
from mhimdist.pages.tasks.measures import by_seed, measures_table
from mhimdist.report import blocks, formats, outcome_plots
from mhimdist.report.blocks import Cell, Section
from mhimdist.report.score_plots import MOST_CURVES

HEADINGS = {
    "pearson": "Pearson's r",
    "spearman": "Spearman's ρ",
    "r2": "R²",
    "mae": "mean absolute error",
    "rmse": "root mean squared error",
}
MOST_COLUMNS = 6
"""Most targets that get figures."""


def regression_sections(configurations: Mapping[str, Sequence[Valued]], *, unit: str = "") -> list[Section]:
    """What a page says of values.

    Args:
        configurations: the networks of each configuration.
        unit: the unit of the values; may be empty.
    """
    shown = dict(list(configurations.items())[:MOST_CURVES])
    first = next(iter(configurations.values()))[0]
    several = len(first.columns) > 1
    caption = "R²: 1 − squared error by variance; below 0, the mean of all values would be nearer."
    if several:
        caption += f" Means over the {len(first.columns)} targets."
    of_columns = {
        f"{measure} {column}": f"{column}: {heading}"
        for column in first.columns
        for measure, heading in (("pearson", "Pearson's r"), ("mae", "mean absolute error"))
    }
    results = [measures_table(configurations, HEADINGS, caption=caption)]
    if several:
        results.append(blocks.heading("Each target"))
        results.append(measures_table(configurations, of_columns, caption="", name="results-targets"))
    return [
        blocks.section("results", "Results", *results),
        blocks.section(
            "values",
            "Predicted and true values",
            *(part for name, networks in shown.items() for part in _figures(name, networks, unit)),
        ),
        blocks.section("calibration", "Calibration", _calibration(shown)),
    ]


def pairs(networks: Sequence[Valued], k: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """True values, predicted values and names of the bags of the first seed that have this target."""
    truth, predicted, names = [], [], []
    for each in (networks[place] for place in by_seed(networks)[0]):
        rows = np.flatnonzero(np.isfinite(each.targets_NK[:, k]))
        truth.append(each.targets_NK[rows, k])
        predicted.append(each.predicted_NK[rows, k])
        names += [each.keys[row] for row in rows.tolist()]
    return np.concatenate(truth), np.concatenate(predicted), names


def calibration_line(truth_N: np.ndarray, predicted_N: np.ndarray) -> tuple[float, float] | None:
    """Slope and intercept of the true values over the predicted ones; None if the predictions do not differ.

    A slope below 1: the predictions spread too far. It is 1 and the intercept 0 if they can be taken at
    their word.
    """
    if len(truth_N) < 2 or np.ptp(predicted_N) == 0:
        return None
    slope, intercept = np.polyfit(predicted_N - predicted_N.mean(), truth_N, 1)
    return float(slope), float(intercept - slope * predicted_N.mean())


def _figures(name: str, networks: Sequence[Valued], unit: str) -> list[Markup]:
    columns = networks[0].columns
    seeds = len(by_seed(networks))
    whose = f" Seed {networks[0].seed} of {seeds}." if seeds > 1 else ""
    parts = [blocks.heading(name)]
    for k, column in enumerate(columns[:MOST_COLUMNS]):
        truth_N, predicted_N, names = pairs(networks, k)
        if not len(truth_N):
            parts.append(blocks.paragraph(f"{column}: no test slide has a value."))
            continue
        what = f"{column} ({unit})" if unit else column
        line = calibration_line(truth_N, predicted_N)
        many = len(truth_N) > outcome_plots.MOST_POINTS
        some = f" {outcome_plots.MOST_POINTS:,} of {len(truth_N):,} slides are drawn." if many else ""
        parts.append(
            blocks.side_by_side(
                blocks.figure(
                    outcome_plots.scatter_figure(truth_N, predicted_N, names, what=what, line=line),
                    f"Each point is a test slide. Dotted: identity.{some}{whose}",
                    title=f"{column}: predicted and true",
                ),
                blocks.figure(
                    outcome_plots.residual_figure(truth_N, predicted_N, names, what=what),
                    f"Above 0: predicted too high.{some}",
                    title=f"{column}: how far off",
                ),
            )
        )
    if len(columns) > MOST_COLUMNS:
        parts.append(blocks.paragraph(f"The first {MOST_COLUMNS} of {len(columns)} targets.", muted=True))
    return parts


def _calibration(shown: Mapping[str, Sequence[Valued]]) -> Markup:
    rows: list[list[str | Cell]] = []
    for name, networks in shown.items():
        for k, column in enumerate(networks[0].columns):
            truth_N, predicted_N, _ = pairs(networks, k)
            if not len(truth_N):
                continue
            line = calibration_line(truth_N, predicted_N)
            slope, intercept = (formats.NONE,) * 2 if line is None else (f"{line[0]:.3f}", f"{line[1]:.4g}")
            rows.append([name, column, slope, intercept, f"{(predicted_N - truth_N).mean():.4g}"])
    return blocks.table(
        "calibration-table",
        ["configuration", "target", "slope", "intercept", "mean of predicted − true"],
        rows,
        texts=2,
        caption="True over predicted values, least squares. Slope 1 and intercept 0: a value can be taken at "
        "its word. A slope below 1: the predictions spread too far.",
    )
