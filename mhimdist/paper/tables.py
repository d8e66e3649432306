"""The paper's Tables 1 to 5 in the paper's layout, with the captions below them."""

from collections.abc import Mapping, Sequence

from mhimdist.config.presets import departures
from mhimdist.config.protocols import Protocol
from mhimdist.paper.rows import COLUMNS, LOW_RATIO, RANDOM_RATIO, TITLES, Cell
from mhimdist.report import formats
from mhimdist.report.comparison import (
    PAPER_WARNING,
    Comparison,
    Row,
    notes_text,
    spread_text,
)
from mhimdist.report.text_table import Grid
from mhimdist.training.cost import Cost

PAPER_MEASURES = {"accuracy": "Accuracy", "auc": "AUC", "f1": "F1-score"}
"""The measures of the paper's Table 1, and its headings."""


def grid(
    number: int,
    protocol: Protocol,
    cells: Sequence[Cell],
    comparison: Comparison,
    costs: Mapping[str, Cost | str],
) -> Grid:
    """A table in the paper's layout: in per cent, or with the measures of another task than the paper's.

    Args:
        number: the table's number in the paper, 1 to 5.
        protocol: protocol of the figures.
        cells: the cells of all tables.
        comparison: the results of the cells' candidates.
        costs: a cost, or the reason why it is missing, by row; for Table 2.
    """
    mine = [cell for cell in cells if cell.table == number]
    row_of = {row.name: row for row in comparison.of(protocol)}
    names = list(dict.fromkeys(cell.row for cell in mine))
    found = {(cell.row, cell.column): row_of[cell.candidate.name] for cell in mine}
    warning = f"{PAPER_WARNING} " if protocol == "paper" else ""
    caption = f"{warning}{_used(mine, row_of)}"
    task = comparison.task
    score, title = task.selection, task.title
    match number:
        case 1:
            measures = PAPER_MEASURES if _is_papers(comparison) else task.shown
            header = ["Method", *measures.values()]
            lines = [[_value(found[name, ""], m, comparison) for m in measures] for name in names]
            if "TransMIL" in names:
                caption += (
                    " TransMIL is the network that MHIM starts from, with its class token drawn from "
                    "N(0, 1); the authors' TransMIL baseline starts it with a deviation of 1e-6."
                )
        case 2:
            header = ["Model", title, "Para.", "Time", "Mem."]
            lines = [
                [_value(found[name, ""], score, comparison), *_cost_texts(costs.get(name))] for name in names
            ]
            caption += _cost_caption(costs)
        case _:
            columns = [column for column in COLUMNS if any(cell.column == column for cell in mine)]
            header = [{3: "Module", 4: "Strategy", 5: "Teacher"}[number], *columns]
            lines = [[_value(found[name, column], score, comparison) for column in columns] for name in names]
            caption = f"{warning}{title[0].upper()}{title[1:]}. {_used(mine, row_of)}"
            if number == 4:
                caption += _borrowed(mine)
    if any(
        len(row_of[cell.candidate.name].results) < row_of[cell.candidate.name].num_planned for cell in mine
    ):
        caption += " (-1), (-2), ...: this many runs of the cell failed and are left out."
    caption += notes_text({cell.column or cell.row: row_of[cell.candidate.name].note for cell in mine})
    return Grid(
        title=f"{TITLES[number]} ({comparison.dataset}, {protocol} protocol)",
        header=header,
        rows=[[name, *line] for name, line in zip(names, lines, strict=True)],
        caption=caption,
    )


def common(comparison: Comparison, cells: Sequence[Cell]) -> str:
    """The caption of all tables together."""
    notes = [comparison.note(protocol) for protocol in comparison.protocols if protocol != "paper"]
    unit = ["All tables are in per cent."] if _is_papers(comparison) else []
    return " ".join([*unit, comparison.setting, *notes]) + _sizes(cells)


def _sizes(cells: Sequence[Cell]) -> str:
    """Names the networks with another width or learning rate than the authors'."""
    networks: dict[str, list[str]] = {}
    for config in {cell.candidate.config.model.name: cell.candidate.config for cell in cells}.values():
        networks.setdefault(departures(config), []).append(config.model.name)
    first, *others = sorted(networks, key=lambda text: -len(networks[text]))
    apart = [name for text in others for name in networks[text]]
    texts = [f" All networks{' but ' if apart else ''}{', '.join(apart)}: {first}."] if first else []
    return "".join([*texts, *(f" {', '.join(networks[text])}: {text}." for text in others if text)])


def _is_papers(comparison: Comparison) -> bool:
    """Whether the bags have classes, as the paper's."""
    return comparison.task.name == "classification"


def _value(row: Row, metric: str, comparison: Comparison) -> str:
    text = spread_text(row.spread(metric), 100 if _is_papers(comparison) else 1)
    missing = row.num_planned - len(row.results)
    return f"{text} (-{missing})" if missing else text


def grids(cells: Sequence[Cell], comparison: Comparison, costs: Mapping[str, Cost | str]) -> list[Grid]:
    """The tables of each protocol, one after the other.

    Args:
        cells: the cells of all tables.
        comparison: the results of the cells' candidates.
        costs: a cost, or the reason why it is missing, by row; for Table 2.
    """
    return [
        grid(number, protocol, cells, comparison, costs)
        for protocol in comparison.protocols
        for number in sorted({cell.table for cell in cells})
    ]


def cost_failures(costs: Mapping[str, Cost | str]) -> dict[str, str]:
    """The reasons for missing costs, by "cost of" and the row."""
    return {f"cost of {name}": why for name, why in costs.items() if isinstance(why, str)}


def _cost_caption(costs: Mapping[str, Cost | str]) -> str:
    """How the costs were measured, and the reasons for missing ones."""
    if not costs:
        return " Para., Time, Mem.: not measured."
    caption = " Para.: parameters of the trained network."
    for cost in costs.values():
        if isinstance(cost, Cost):
            where = "GPU" if cost.device == "cuda" else formats.count(cost.num_threads, "thread")
            caption += (
                f" Time: the training steps of an epoch on fold 1, one row at a time, {where}; Mem.: the "
                "peak memory of training and validation, beyond the memory that the process held before."
            )
            break
    return caption + "".join(
        f" {name[0].upper()}{name[1:]}: {why}." for name, why in cost_failures(costs).items()
    )


def _cost_texts(cost: Cost | str | None) -> tuple[str, str, str]:
    if not isinstance(cost, Cost):
        return formats.NONE, formats.NONE, formats.NONE
    size = cost.num_parameters
    return (
        f"{size / 1e6:.2f}M" if size >= 1e6 else f"{size / 1e3:.0f}K",
        f"{cost.train_s:.1f}s",
        f"{cost.peak_bytes / 2**20:.0f}M" if cost.peak_bytes < 2**30 else f"{cost.peak_bytes / 2**30:.1f}G",
    )


def _used(cells: Sequence[Cell], row_of: Mapping[str, Row]) -> str:
    """The folds, seeds and epochs that the rows ran, grouped if they differ."""
    used: dict[str, list[str]] = {}
    for cell in cells:
        row = row_of[cell.candidate.name]
        if not row.results:
            continue
        seeds, folds = len(row.by_seed), max(map(len, row.by_seed))
        what = f"{formats.count(folds, 'fold')} x {formats.count(seeds, 'seed')}, "
        what += f"{row.epochs} epoch{'' if row.epochs == '1' else 's'}"
        model = cell.candidate.config.model
        if model.name == "transmil":
            what += f", {model.num_landmarks} landmarks"
        used.setdefault(what, []).append(cell.column or cell.row)
    if len(used) == 1:
        return f"All runs: {next(iter(used))}."
    texts = (f"{', '.join(dict.fromkeys(names))} ({what})" for what, names in used.items())
    return f"Runs: {'; '.join(texts)}."


def _borrowed(cells: Sequence[Cell]) -> str:
    """The mask ratios, and which of them are ours because the data set's preset has none."""
    texts = []
    full = {cell.column: cell.candidate.config.masking for cell in cells if cell.row == "LR-HAM"}
    for column, masking in full.items():
        low, random = masking.low.start, masking.random.start
        texts.append(f"{column} high {masking.high.start:g}, low {low:g}, random {random:g}")
    if not texts:
        return ""
    return (
        f" Mask ratios: {'; '.join(texts)}. If the authors' preset has no low or random ratio, ours are "
        f"low {LOW_RATIO:g} and random {RANDOM_RATIO:g}."
    )
