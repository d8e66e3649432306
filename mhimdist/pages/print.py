"""The figures of a report as vector PDF, one file each, in the size of a paper's column.

Text stays text, so that a journal can change the font. The files do not hold the time, so equal folders yield
equal files.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mhimdist.errors import UndefinedError
from mhimdist.files import full_disk
from mhimdist.pages.calibration import NUM_BINS
from mhimdist.pages.subject import Configuration, Subject
from mhimdist.report import fold_plots, plots
from mhimdist.report.score_plots import COLOURS
from mhimdist.statistics import curves
from mhimdist.statistics.calibration import reliability
from mhimdist.statistics.metrics import pooled

STYLE: Any = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "lines.linewidth": 1.2,
    "pdf.fonttype": 42,  # TrueType: text that can be edited and searched
    "text.parse_math": False,  # a name with dollar signs is a name
}
INCHES = (3.4, 3.0)
"""A column of a paper."""


def write_figures(subject: Subject, folder: Path) -> list[Path]:
    """Write the figures of a report to a folder.

    Args:
        subject: what was run.
        folder: receives `roc.pdf`, `precision-recall.pdf`, `reliability.pdf`, `thresholds.pdf`,
            `learning.pdf` and `stability.pdf`, those that there is something to draw in; with several
            protocols, of each. The first four are of classes without an order; `of_tasks` has those of tasks.

    Returns:
        The files.

    Raises:
        DiskFullError: a file does not fit on the disk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    protocols: Sequence[str] = subject.protocols or [""]
    for protocol in protocols:
        shown = [each for each in subject.configurations if each.protocol == protocol][: len(COLOURS)]
        binary = [each for each in shown if each.is_binary]
        of_classes = [each for each in shown if each.entry and each.task is None]
        end = f"-{protocol}" if len(protocols) > 1 else ""
        for name, chosen, draw in (
            ("roc", binary, _draw_roc),
            ("precision-recall", binary, _draw_precision_recall),
            ("reliability", of_classes, _draw_reliability),
            ("thresholds", binary[:1], _draw_thresholds),
            ("learning", shown, partial(_draw_learning, score=subject.score)),
            ("stability", shown, partial(_draw_stability, score=subject.score)),
        ):
            path = folder / f"{name}{end}.pdf"
            if save(path, partial(draw, chosen=chosen)):
                written.append(path)
    return written


def save(path: Path, draw: Callable[[Axes], None]) -> bool:
    """Draw and write a figure; returns whether there was anything to draw.

    Raises:
        DiskFullError: it does not fit on the disk.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=INCHES, layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        if not axes.has_data():
            return False
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="best")
        with full_disk(path):
            figure.savefig(path, metadata={"CreationDate": None, "Producer": None, "Creator": None})
    return True


def _draw_roc(axes: Axes, chosen: Sequence[Configuration]) -> None:
    bands = _bands(chosen, curves.roc, curves.roc_band)
    if bands:
        axes.plot([0, 1], [0, 1], ":", color="0.6", linewidth=0.8)
    draw_bands(axes, bands, "AUC")
    axes.set(xlabel="1 − specificity", ylabel="sensitivity", xlim=(0, 1), ylim=(0, 1.01))


def _draw_precision_recall(axes: Axes, chosen: Sequence[Configuration]) -> None:
    draw_bands(axes, _bands(chosen, curves.precision_recall, curves.precision_recall_band), "AP")
    axes.set(xlabel="recall (sensitivity)", ylabel="precision", xlim=(0, 1), ylim=(0, 1.01))


def _bands(
    chosen: Sequence[Configuration],
    curve: Callable[[np.ndarray, np.ndarray], curves.Curve],
    band: Callable[[Sequence[curves.Curve]], curves.Band],
) -> dict[str, curves.Band]:
    found = {}
    for each in chosen:
        drawn = []
        for part in each.parts:
            try:
                drawn.append(curve(part.labels_N == 1, part.probabilities_NC[:, 1]))
            except UndefinedError:
                continue
        if drawn:
            found[each.name] = band(drawn)
    return found


def draw_bands(axes: Axes, bands: dict[str, curves.Band], area: str) -> None:
    for colour, (name, band) in zip(COLOURS, bands.items(), strict=False):
        text = f"{np.mean(band.areas):.3f}"
        if len(band.areas) > 1:
            text += f" ± {np.std(band.areas):.3f}"
            low_G, high_G = (np.clip(band.mean_G + k * band.deviation_G, 0, 1) for k in (-1, 1))
            axes.fill_between(band.x_G, low_G, high_G, color=colour, alpha=0.15, linewidth=0)
        axes.plot(band.x_G, band.mean_G, color=colour, label=f"{one_line(name)}: {area} {text}")


def _draw_reliability(axes: Axes, chosen: Sequence[Configuration]) -> None:
    for colour, each in zip(COLOURS, chosen, strict=False):
        whole = pooled(each.parts)
        points = reliability(whole.labels_N, whole.probabilities_NC, num_bins=NUM_BINS)
        x, y = [p.confidence for p in points], [p.frequency for p in points]
        axes.plot(x, y, "o-", color=colour, markersize=3, label=one_line(each.name))
    if chosen:
        axes.plot([0, 1], [0, 1], ":", color="0.6", linewidth=0.8)
    axes.set(xlabel="probability", ylabel="frequency", xlim=(0, 1), ylim=(-0.01, 1.01))


def _draw_thresholds(axes: Axes, chosen: Sequence[Configuration]) -> None:
    for each in chosen:
        found = []
        for part in each.parts:
            try:
                found.append(curves.threshold_curve(part.labels_N == 1, part.probabilities_NC[:, 1]))
            except UndefinedError:
                continue
        if not found:
            continue
        for (name, key), colour in zip(
            (("sensitivity", "sensitivity_G"), ("specificity", "specificity_G"), ("F1", "f1_G")),
            COLOURS,
            strict=False,
        ):
            mean_G = np.mean([getattr(curve, key) for curve in found], axis=0)
            axes.plot(found[0].thresholds_G, mean_G, color=colour, label=name)
        for network in each.networks:
            if network.threshold is not None and network.threshold <= 1:
                axes.axvline(network.threshold, color="0.7", linewidth=0.6, linestyle=":")
        axes.set_title(one_line(each.name), fontsize=8)
    axes.set(xlabel="decision threshold", ylabel="mean over the networks", xlim=(0, 1), ylim=(0, 1.01))


def _draw_learning(axes: Axes, chosen: Sequence[Configuration], score: str = "AUC") -> None:
    for colour, each in zip(COLOURS, chosen, strict=False):
        _draw_histories(axes, each, plots.STUDENT_SCORE, colour, "-", one_line(each.name))
    axes.set(xlabel="epoch", ylabel=f"validation {score} of the student")


def _draw_stability(axes: Axes, chosen: Sequence[Configuration], score: str = "AUC") -> None:
    for each in chosen[:1]:
        if all(row.get(plots.TEACHER_SCORE) is not None for h in each.histories.values() for row in h):
            _draw_histories(axes, each, plots.STUDENT_SCORE, COLOURS[0], "-", "student")
            _draw_histories(axes, each, plots.TEACHER_SCORE, COLOURS[2], "--", "teacher")
    axes.set(xlabel="epoch", ylabel=f"validation {score}")


def _draw_histories(
    axes: Axes, configuration: Configuration, key: str, colour: str, line: str, label: str
) -> None:
    """The folds in pale and their mean in full."""
    histories = configuration.histories
    for history in histories.values():
        values = [np.nan if (value := row.get(key)) is None else value for row in history]
        axes.plot(range(len(values)), values, line, color=colour, alpha=0.25, linewidth=0.7)
    epochs, means = fold_plots.mean_column(histories, key)
    if epochs:
        axes.plot(epochs, [np.nan if v is None else v for v in means], line, color=colour, label=label)


def one_line(name: str) -> str:
    """A name as one line of at most 40 characters; a leading underscore would hide it from the legend."""
    line = " ".join(name.split())
    line = line if len(line) <= 40 else f"{line[:39]}…"
    return f" {line}" if line.startswith("_") else line
