"""The tables of the paper (Tang et al., ICCV 2023, Tables 1 to 5) on any sharded data set.

A cell is a configuration. Cells with equal configurations, such as the baselines of all tables, share a run.
"""

import json
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from mhimdist import files, terminal
from mhimdist.config.train import TrainConfig
from mhimdist.cross_validation.compare import compare, print_report, raise_failures
from mhimdist.cross_validation.options import Candidate
from mhimdist.data.remote import Location
from mhimdist.errors import ConfigError
from mhimdist.foreign_text import markdown
from mhimdist.paper.costs import measure_costs
from mhimdist.paper.options import Ablation
from mhimdist.paper.rows import ROWS, Base, Cell
from mhimdist.paper.tables import common, cost_failures, grids
from mhimdist.report.comparison import PAPER_WARNING, Comparison, records_csv
from mhimdist.training.cost import Cost

_METHOD = ("teacher.", "loss.temperature")
"""Settings that a network without masking does not have."""


def run_ablation(job: Ablation, base: Base, *, data: Location) -> Comparison:
    """Run every configuration of the tables and write tables.md, .csv, .json and report.html.

    Args:
        job: the tables and rows to run, and how to cross-validate them.
        base: returns the full configuration of a model by its name: with MHIM if the model can be masked.
        data: folder of shards, on storage that every node sees, or its URL.

    Raises:
        ConfigError: no table has a row of a given name, or no row has a given setting.
        CrossValidationError: runs failed; the tables of the others are written and printed first.
    """
    cells = select(job, base)
    candidates = {cell.candidate.name: cell.candidate for cell in cells}
    comparison = compare(job, list(candidates.values()), data=data)
    _write(job, cells, comparison, {})  # now, in case measuring the costs fails
    costs = measure_costs(
        job, {cell.row: cell.candidate.config for cell in cells if cell.table == 2}, data=data
    )
    _write(job, cells, comparison, costs)
    console = terminal.console()
    for block in grids(cells, comparison, costs):
        block.print(console)
    console.print(common(comparison, cells), end="\n\n", highlight=False)
    for block in comparison.across_protocols():
        block.print(console)
    console.print(f"tables: {job.folder}/tables.md, .csv, .json", highlight=False, soft_wrap=True)
    print_report(comparison, job.folder)
    raise_failures(comparison, job.folder, cost_failures(costs))
    return comparison


def select(job: Ablation, base: Base) -> list[Cell]:
    """The cells that a job asks for.

    Raises:
        ConfigError: no table has a row of a given name, or no row has a given setting.
    """
    base = _overlaid(base, job.overlay)
    known = [
        Cell(table, row, column, _candidate(job, config))
        for table in job.tables
        for row, column, config in ROWS[table](base)
        if config.model.name not in job.without
    ]
    if not known:
        raise ConfigError(f"without: nothing is left of these tables without {', '.join(job.without)}")
    wanted = {row.casefold() for row in job.rows}
    if unknown := wanted - {cell.row.casefold() for cell in known}:
        rows = ", ".join(dict.fromkeys(cell.row for cell in known))
        raise ConfigError(f"rows: expected rows of these tables ({rows}), got {', '.join(sorted(unknown))}")
    cells = [cell for cell in known if not wanted or cell.row.casefold() in wanted]
    for path in job.overlay:
        if not any(_has(cell.candidate.config, path) for cell in cells):
            raise ConfigError(f"train.{path}: none of these rows has this setting; leave it out")
    return _named_apart(cells)


def _overlaid(base: Base, overlay: Mapping[str, Any]) -> Base:
    """The base with these settings changed in every configuration that has them."""

    def overlaid(model: str) -> TrainConfig:
        config = base(model)
        return config.override({path: value for path, value in overlay.items() if _has(config, path)})

    return overlaid


def _has(config: TrainConfig, path: str) -> bool:
    if path.startswith("model."):
        return path.removeprefix("model.") in type(config.model).model_fields
    return config.teacher.kind != "none" or not path.startswith(_METHOD)


def _named_apart(cells: Sequence[Cell]) -> list[Cell]:
    """The cells; those of equal configurations share a candidate, and each candidate has another name."""
    candidates: dict[tuple[str, int | None], Candidate] = {}
    names = Counter[str]()
    for cell in cells:
        candidate, key = cell.candidate, _key(cell.candidate)
        if key not in candidates:
            names[candidate.name] += 1
            number = f" ({names[candidate.name]})" if names[candidate.name] > 1 else ""
            candidates[key] = replace(candidate, name=candidate.name + number)
    return [replace(cell, candidate=candidates[_key(cell.candidate)]) for cell in cells]


def _key(candidate: Candidate) -> tuple[str, int | None]:
    return candidate.config.digest(), candidate.num_folds


def _candidate(job: Ablation, config: TrainConfig) -> Candidate:
    """A configuration under a name that describes it, so that equal configurations share the name."""
    is_transmil = config.model.name == "transmil"
    epochs = (job.transmil_epochs if is_transmil else None) or job.epochs
    if epochs is not None:
        config = config.model_copy(update={"epochs": epochs})
    name: str = config.model.name
    if config.teacher.kind != "none":
        consistency = "" if config.loss.alpha else ", no consistency"
        name += f" {config.masking.strategy}, {config.teacher.kind.replace('_', ' ')}{consistency}"
    return Candidate(name, config, job.transmil_folds if is_transmil else None)


def _write(
    job: Ablation,
    cells: Sequence[Cell],
    comparison: Comparison,
    costs: Mapping[str, Cost | str],
) -> None:
    blocks = grids(cells, comparison, costs)
    text = "\n".join(
        [
            *(block.markdown() for block in blocks),
            textwrap.fill(markdown(common(comparison, cells)), 110, break_on_hyphens=False),
            "",
        ]
    )
    text += "".join("\n" + block.markdown() for block in comparison.across_protocols())
    records = []
    for protocol in comparison.protocols:
        row_of = {row.name: row for row in comparison.of(protocol)}
        for cell in cells:
            place = {"table": cell.table, "row": cell.row, "column": cell.column}
            cost = costs.get(cell.row) if cell.table == 2 else None
            spent = asdict(cost) if isinstance(cost, Cost) else dict.fromkeys(Cost.__dataclass_fields__)
            records.append({**place, **comparison.record(row_of[cell.candidate.name]), **spent})
    warning = {"warning": PAPER_WARNING} if "paper" in comparison.protocols else {}
    body = {
        "protocols": comparison.protocols,
        **warning,
        "cells": records,
        "cost_failures": cost_failures(costs),
        "tables": [asdict(block) for block in blocks],
        "caption": common(comparison, cells),
    }
    body["comparison"] = json.loads(comparison.json())
    for suffix, content in (
        ("md", text),
        ("csv", records_csv(records)),
        ("json", json.dumps(body, indent=1, allow_nan=False) + "\n"),
    ):
        files.write_text(job.folder / f"tables.{suffix}", content)
