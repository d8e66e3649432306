"""The figures of a task's sections as vector PDF, one file each, in the size of a paper's column."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from mhimdist.pages.print import draw_bands, one_line, save
from mhimdist.pages.tasks import multilabel, ordinal, regression, survival
from mhimdist.pages.tasks.bags import Followed, Graded, Labelled, Valued
from mhimdist.pages.tasks.interface import Drawing
from mhimdist.pages.tasks.measures import by_seed
from mhimdist.report import outcome_plots
from mhimdist.report.score_plots import COLOURS
from mhimdist.statistics import curves
from mhimdist.statistics.survival_curves import numbers_at_risk

_GREY: Any = {"color": "0.6", "linewidth": 0.8}


def write_drawings(drawings: Iterable[Drawing], folder: Path) -> list[Path]:
    """Write figures to a folder.

    Args:
        drawings: the figures, as `TaskPage.drawings` makes them.
        folder: receives the files, such as `survival-mhim.pdf`.

    Returns:
        The files.

    Raises:
        DiskFullError: a file does not fit on the disk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for name, draw in drawings:
        path = folder / f"{name}.pdf"
        number = 2
        while path in written:  # names that differ only in signs that a file's name does not have
            path = folder / f"{name}-{number}.pdf"
            number += 1
        if save(path, draw):
            written.append(path)
    return written


def survival_drawings(shown: Mapping[str, Sequence[Followed]], unit: str) -> Iterator[Drawing]:
    """The figures of follow-up: curves of the risk groups of each configuration, measures over time."""
    for name, networks in shown.items():
        of_first = [networks[place] for place in by_seed(networks)[0]]
        if all(len(each.cuts) for each in of_first):
            groups = survival.grouped(of_first)
            yield f"survival-{_file(name)}", partial(_draw_groups, groups=groups, title=name, unit=unit)
    for measure, title in (("auc", "AUC"), ("brier", "Brier score")):
        lines = {name: survival.line_over_time(each, measure) for name, each in shown.items()}
        known = {name: line for name, line in lines.items() if line is not None}
        without = None
        if known and measure == "brier":
            without = survival.line_without_model(next(iter(shown.values())))
        yield (
            f"{measure}-over-time",
            partial(_draw_over_time, lines=known, without=without, y_title=title, unit=unit),
        )


def _draw_groups(axes: Axes, *, groups: survival.RiskGroups, title: str, unit: str) -> None:
    last = max(float(times.max()) for times in groups.times.values())
    marks_T = outcome_plots.marks(last, most=6)
    for row, (colour, (name, curve)) in enumerate(zip(COLOURS, groups.curves.items(), strict=False)):
        known_U = np.isfinite(curve.low_U)
        ends = curve.low_U[known_U], curve.high_U[known_U]
        axes.fill_between(curve.times_U[known_U], *ends, step="post", color=colour, alpha=0.15, linewidth=0)
        axes.step(curve.times_U, curve.survival_U, where="post", color=colour, label=name)
        lost_U = curve.censored_U > 0
        axes.plot(curve.times_U[lost_U], curve.survival_U[lost_U], "|", color=colour, markersize=4)
        for mark, number in zip(marks_T, numbers_at_risk(groups.times[name], marks_T), strict=True):
            _below(axes, f"{number:,}", row + 1, mark, ha="center")
        _below(axes, name, row + 1, ha="right", color=colour)
    _below(axes, "at risk", 0, ha="right")
    axes.set_title(f"{one_line(title)}. {groups.text.partition(' (')[0].rstrip('.')}", fontsize=8)
    axes.set(
        xlabel=f"time ({unit})" if unit else "time",
        ylabel="without event",
        xlim=(0, last * 1.02),
        ylim=(0, 1.02),
        xticks=marks_T,
    )


def _below(axes: Axes, text: str, row: int, mark: float | None = None, **style: Any) -> None:
    """Text in a row below the axis's title, at a time or left of the axis."""
    where = (0.0, 0.0) if mark is None else (mark, 0.0)
    frame = axes.transAxes if mark is None else axes.get_xaxis_transform()
    # In points: shares of a height that changes to make room would never settle.
    offset = (-14 if mark is None else 0, -38 - 10 * row)
    axes.annotate(
        text, where, offset, xycoords=frame, textcoords="offset points", va="center", fontsize=7, **style
    )


def _draw_over_time(
    axes: Axes,
    *,
    lines: Mapping[str, outcome_plots.Line],
    without: outcome_plots.Line | None,
    y_title: str,
    unit: str,
) -> None:
    for colour, (name, line) in zip(COLOURS, lines.items(), strict=False):
        if line.low_T is not None and line.high_T is not None:
            axes.fill_between(line.x_T, line.low_T, line.high_T, color=colour, alpha=0.15, linewidth=0)
        axes.plot(line.x_T, line.y_T, color=colour, label=one_line(name))
    if without is not None:
        axes.plot(without.x_T, without.y_T, "--", label="without a model", **_GREY)
    elif lines:
        axes.axhline(0.5, linestyle=":", **_GREY)
    axes.set(xlabel=f"time ({unit})" if unit else "time", ylabel=y_title)


def regression_drawings(shown: Mapping[str, Sequence[Valued]], unit: str) -> Iterator[Drawing]:
    """The figures of values: predicted and true ones of each configuration and target."""
    for name, networks in shown.items():
        for k, column in enumerate(networks[0].columns[: regression.MOST_COLUMNS]):
            truth_N, predicted_N, _ = regression.pairs(networks, k)
            if len(truth_N):
                what = f"{one_line(column)} ({unit})" if unit else one_line(column)
                draw = partial(_draw_scatter, truth_N=truth_N, predicted_N=predicted_N, title=name, what=what)
                yield f"values-{_file(name)}-{_file(column)}", draw


def _draw_scatter(axes: Axes, *, truth_N: np.ndarray, predicted_N: np.ndarray, title: str, what: str) -> None:
    ends = min(truth_N.min(), predicted_N.min()), max(truth_N.max(), predicted_N.max())
    axes.plot(ends, ends, ":", label="identity", **_GREY)
    axes.plot(predicted_N, truth_N, "o", color=COLOURS[0], markersize=3, alpha=0.55, markeredgewidth=0)
    if (line := regression.calibration_line(truth_N, predicted_N)) is not None:
        across = np.array([predicted_N.min(), predicted_N.max()])
        label = f"fitted: slope {line[0]:.2f}"
        axes.plot(across, line[0] * across + line[1], "--", color=COLOURS[1], label=label)
    axes.set_title(one_line(title), fontsize=8)
    axes.set(xlabel=f"predicted {what}", ylabel=f"true {what}")


def ordinal_drawings(shown: Mapping[str, Sequence[Graded]], classes: Sequence[str]) -> Iterator[Drawing]:
    """The figures of grades: the confusion of each configuration."""
    for name, networks in shown.items():
        counts_CC = ordinal.counts(networks, len(classes))
        kappas = [value for each in networks if (value := each.weighed.once()["kappa"]) is not None]
        title = one_line(name) + (f": kappa {np.mean(kappas):.3f}" if kappas else "")
        yield (
            f"confusion-{_file(name)}",
            partial(_draw_confusion, counts_CC=counts_CC, classes=classes, title=title),
        )


def _draw_confusion(axes: Axes, *, counts_CC: np.ndarray, classes: Sequence[str], title: str) -> None:
    whole_C1 = counts_CC.sum(axis=1, keepdims=True)
    shares_CC = np.divide(counts_CC, whole_C1, out=np.zeros_like(counts_CC), where=whole_C1 > 0)
    # Cells, not a picture: a picture in a PDF is made of pixels.
    axes.pcolormesh(shares_CC, cmap="Blues", vmin=0, vmax=1, edgecolors="white", linewidth=0.5)
    for (row, column), count in np.ndenumerate(counts_CC):
        ink = "white" if shares_CC[row, column] > 0.6 else "black"
        axes.text(column + 0.5, row + 0.5, f"{count:,.4g}", ha="center", va="center", color=ink)
    names = [one_line(each) for each in classes]
    places = np.arange(len(names)) + 0.5
    slant: Any = {"rotation": 30, "ha": "right"} if max(map(len, names)) > 6 else {}
    axes.set_xticks(places, names, **slant)
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.set_title(title, fontsize=8)
    axes.set(xlabel="called", ylabel="true")


def multilabel_drawings(shown: Mapping[str, Sequence[Labelled]]) -> Iterator[Drawing]:
    """The figures of labels: two kinds of curves of each configuration."""
    for name, networks in shown.items():
        for kind, place, band, area, (x_title, y_title) in (
            ("roc", 0, curves.roc_band, "AUC", ("1 − specificity", "sensitivity")),
            (
                "precision-recall",
                1,
                curves.precision_recall_band,
                "AP",
                ("recall (sensitivity)", "precision"),
            ),
        ):
            bands = {}
            for k, column in enumerate(networks[0].columns):
                if of_label := multilabel.label_curves(networks, k)[place]:
                    bands[column] = band(of_label)
            yield (
                f"{kind}-{_file(name)}",
                partial(_draw_labels, bands=bands, area=area, title=name, x_title=x_title, y_title=y_title),
            )


def _draw_labels(
    axes: Axes, *, bands: dict[str, curves.Band], area: str, title: str, x_title: str, y_title: str
) -> None:
    if area == "AUC" and bands:
        axes.plot([0, 1], [0, 1], ":", **_GREY)
    draw_bands(axes, bands, area)
    axes.set_title(one_line(title), fontsize=8)
    axes.set(xlabel=x_title, ylabel=y_title, xlim=(0, 1), ylim=(0, 1.01))


def _file(name: str) -> str:
    """A name as part of a file's name."""
    plain = "".join(c if c.isascii() and c.isalnum() else "-" for c in name.lower())
    return "-".join(filter(None, plain.split("-")))[:60] or "unnamed"
