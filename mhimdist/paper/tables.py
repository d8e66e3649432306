"""The paper's Tables 1 to 5 in its own layout: what is printed, and what is said below them."""

from collections.abc import Mapping, Sequence

from mhimdist.config.presets import departures
from mhimdist.paper.rows import COLUMNS, LOW_RATIO, RANDOM_RATIO, TITLES, Cell
from mhimdist.report import formats
from mhimdist.report.comparison import (
    PAPER_WARNING,
    STRICT_NOTE,
    Comparison,
    Row,
    notes_text,
    spread_text,
)
from mhimdist.report.text_table import Grid
from mhimdist.training.cost import Cost
from mhimdist.training.result import Protocol


def grid(
    number: int,
    protocol: Protocol,
    cells: Sequence[Cell],
    comparison: Comparison,
    costs: Mapping[str, Cost | str],
) -> Grid:
    """A table in the paper's layout, in per cent."""
    mine = [cell for cell in cells if cell.table == number]
    row_of = {row.name: row for row in comparison.of(protocol)}
    names = list(dict.fromkeys(cell.row for cell in mine))
    found = {(cell.row, cell.column): row_of[cell.candidate.name] for cell in mine}
    warning = f"{PAPER_WARNING} " if protocol == "paper" else ""
    caption = f"{warning}{_used(mine, row_of)}"
    match number:
        case 1:
            header = ["Method", "Accuracy", "AUC", "F1-score"]
            lines = [[_percent(found[name, ""], m) for m in ("accuracy", "auc", "f1")] for name in names]
            if "TransMIL" in names:
                caption += (
                    " TransMIL is the network that MHIM starts from, its class token drawn from N(0, 1); the "
                    "authors' TransMIL that stands alone starts it at 1e-6."
                )
        case 2:
            header = ["Model", "AUC", "Para.", "Time", "Mem."]
            lines = [[_percent(found[name, ""], "auc"), *_cost_texts(costs.get(name))] for name in names]
            caption += _cost_caption(costs)
        case _:
            header = [{3: "Module", 4: "Strategy", 5: "Teacher"}[number], *COLUMNS]
            lines = [[_percent(found[name, column], "auc") for column in COLUMNS] for name in names]
            caption = f"{warning}AUC. {_used(mine, row_of)}"
            if number == 4:
                caption += _borrowed(mine)
    if any(
        len(row_of[cell.candidate.name].results) < row_of[cell.candidate.name].num_planned for cell in mine
    ):
        caption += " (-1), (-2), ...: so many of its runs failed and are left out."
    caption += notes_text({cell.column or cell.row: row_of[cell.candidate.name].note for cell in mine})
    return Grid(
        title=f"{TITLES[number]} ({comparison.dataset}, {protocol} protocol)",
        header=header,
        rows=[[name, *line] for name, line in zip(names, lines, strict=True)],
        caption=caption,
    )


def common(comparison: Comparison, cells: Sequence[Cell]) -> str:
    """What holds for all tables."""
    note = f" {STRICT_NOTE}" if "strict" in comparison.protocols else ""
    return f"All tables: in per cent. {comparison.setting}{note}{_sizes(cells)}"


def _sizes(cells: Sequence[Cell]) -> str:
    """Where networks are of another width, or learn at another rate, than the authors'."""
    networks: dict[str, list[str]] = {}
    for config in {cell.candidate.config.model.name: cell.candidate.config for cell in cells}.values():
        networks.setdefault(departures(config), []).append(config.model.name)
    first, *others = sorted(networks, key=lambda text: -len(networks[text]))
    apart = [name for text in others for name in networks[text]]
    texts = [f" All networks{' but ' if apart else ''}{', '.join(apart)}: {first}."] if first else []
    return "".join([*texts, *(f" {', '.join(networks[text])}: {text}." for text in others if text)])


def _percent(row: Row, metric: str) -> str:
    text = spread_text(row.spread(metric), 100)
    missing = row.num_planned - len(row.results)
    return f"{text} (-{missing})" if missing else text


def grids(cells: Sequence[Cell], comparison: Comparison, costs: Mapping[str, Cost | str]) -> list[Grid]:
    """The tables, one after the other for each protocol."""
    return [
        grid(number, protocol, cells, comparison, costs)
        for protocol in comparison.protocols
        for number in sorted({cell.table for cell in cells})
    ]


def cost_failures(costs: Mapping[str, Cost | str]) -> dict[str, str]:
    return {f"cost of {name}": why for name, why in costs.items() if isinstance(why, str)}


def _cost_caption(costs: Mapping[str, Cost | str]) -> str:
    """How costs were measured, and why some were not."""
    if not costs:
        return " Para., Time, Mem.: not measured."
    caption = " Para.: parameters of the network that is trained."
    for cost in costs.values():
        if isinstance(cost, Cost):
            where = "GPU" if cost.device == "cuda" else formats.count(cost.num_threads, "thread")
            caption += (
                f" Time: the training steps of an epoch on fold 1, one row at a time, {where}; Mem.: the "
                "peak of training and validation above what the process held before."
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
    """What the rows ran: folds, seeds and epochs, by model where they differ."""
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
        return f"All of it: {next(iter(used))}."
    texts = (f"{', '.join(dict.fromkeys(names))} ({what})" for what, names in used.items())
    return f"Run: {'; '.join(texts)}."


def _borrowed(cells: Sequence[Cell]) -> str:
    """Where a strategy's ratio is ours, because the data set's preset has none."""
    texts = []
    full = {cell.column: cell.candidate.config.masking for cell in cells if cell.row == "LR-HAM"}
    for column, masking in full.items():
        low, random = masking.low.start, masking.random.start
        texts.append(f"{column} high {masking.high.start:g}, low {low:g}, random {random:g}")
    if not texts:
        return ""
    return (
        f" Ratios {'; '.join(texts)}; a low of {LOW_RATIO:g} or a random of {RANDOM_RATIO:g} is ours where "
        "the authors' preset has none."
    )
