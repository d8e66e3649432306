"""The picture of a data set that `data_prep.inspect` draws."""

from pathlib import Path
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from data_prep.checks.inspection import Inspection
from mhimdist.errors import ConfigError

# Okabe and Ito's palette, which colour-blind readers can tell apart, without its yellow and black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7")
GREY, RED = "#8b939c", "#c00000"
MAX_CLASSES = len(COLOURS)


def draw(found: Inspection, path: Path) -> None:
    """Draw bag sizes, classes, feature values, and the mixture of classes in each shard.

    Raises:
        ConfigError: `path` does not have the suffix of a picture.
    """
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2)
    info = found.manifest.info
    figure.suptitle(f"{info.name}: {len(found.manifest.rows):,} bags", fontsize=14)
    _sizes(axes[0, 0], found)
    _classes(axes[0, 1], found)
    _values(axes[1, 0], found)
    _shards(axes[1, 1], found)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    if path.suffix.removeprefix(".") not in figure.canvas.get_supported_filetypes():
        raise ConfigError(f"{path}: expected a picture, such as .png, .svg or .pdf")
    figure.savefig(path, dpi=130)


def _groups(found: Inspection) -> list[tuple[str, str, np.ndarray]]:
    """Name, colour and rows of each class; if there are many classes, the smallest ones form one group."""
    label_N = found.manifest.rows["label"].to_numpy()
    classes = found.manifest.info.classes
    counts = np.bincount(label_N, minlength=len(classes))
    order = sorted(range(len(classes)), key=lambda label: (-counts[label], label))
    shown = sorted(order if len(classes) <= MAX_CLASSES else order[: MAX_CLASSES - 1])
    groups = [
        (classes[label], colour, label_N == label) for label, colour in zip(shown, COLOURS, strict=False)
    ]
    if len(shown) < len(classes):
        groups.append((f"{len(classes) - len(shown)} others", GREY, ~np.isin(label_N, shown)))
    return groups


def _sizes(axis: Axes, found: Inspection) -> None:
    size_N = found.manifest.rows["num_instances"].to_numpy()
    low, high = max(size_N.min(), 1), size_N.max()
    bins = np.geomspace(low * 0.95, high * 1.05, min(40, max(8, len(size_N) // 4))).tolist()
    groups = _groups(found)
    # The panel of the classes shows which colour is which class.
    colours = [colour for _, colour, _ in groups]
    axis.hist([size_N[mask_N] for _, _, mask_N in groups], bins, stacked=True, color=colours)
    median = float(np.median(size_N))
    axis.set(
        xscale="log", xlabel="instances per bag", ylabel="bags", title=f"Bag sizes, median {median:,.0f}"
    )
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.axvline(median, color="black", linewidth=1, linestyle="--")


def _classes(axis: Axes, found: Inspection) -> None:
    case_N = np.array(found.manifest.rows["case"].to_pylist())
    groups = _groups(found)
    counts = [int(mask_N.sum()) for _, _, mask_N in groups]
    names = [fill(name, 22) for name, _, _ in groups]
    bars = axis.barh(names, counts, color=[colour for _, colour, _ in groups])
    cases = [len(set(case_N[mask_N])) for _, _, mask_N in groups]
    axis.bar_label(
        bars, [f" {count:,} bags, {case:,} cases" for count, case in zip(counts, cases, strict=True)]
    )
    axis.set(xlabel="bags", title="Classes", xlim=(0, max(counts) * 1.6))
    axis.invert_yaxis()


def _values(axis: Axes, found: Inspection) -> None:
    axis.set(title="Feature values per bag", xlabel="mean", ylabel="standard deviation")
    if not found.values:
        axis.set(xticks=[], yticks=[])
        axis.text(0.5, 0.5, "not read (--quick)", ha="center", transform=axis.transAxes, color=GREY)
        return
    mean_N = np.array([bag.mean for bag in found.values])
    deviation_N = np.array([bag.deviation for bag in found.values])
    for _, colour, mask_N in _groups(found):
        axis.scatter(mean_N[mask_N], deviation_N[mask_N], s=14, color=colour, alpha=0.6, linewidths=0)
    slides = found.manifest.rows["slide"].to_pylist()
    odd = {slide for slide, _ in found.odd}
    odd_N = np.array([slide in odd for slide in slides])
    if odd_N.any():
        axis.scatter(
            mean_N[odd_N],
            deviation_N[odd_N],
            s=70,
            facecolors="none",
            edgecolors=RED,
            label=f"odd ({odd_N.sum():,})",
        )
        axis.legend(frameon=False)


def _shards(axis: Axes, found: Inspection) -> None:
    """Draw the share of each class in each shard: every shard should be a mixture like the whole."""
    rows = found.manifest.rows
    names = [shard.name for shard in found.manifest.info.shards]
    number_of = {name: number for number, name in enumerate(names)}
    shard_N = np.array([number_of[name] for name in rows["shard"].to_pylist()])
    totals = np.bincount(shard_N, minlength=len(names))
    bottom = np.zeros(len(names))
    for _, colour, mask_N in _groups(found):
        share = np.bincount(shard_N[mask_N], minlength=len(names)) / totals
        axis.bar(range(len(names)), share, bottom=bottom, color=colour, width=1.0 if len(names) > 60 else 0.8)
        bottom += share
    axis.set(title="Classes in each shard", xlabel="shard", ylabel="share of its bags", ylim=(0, 1))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
