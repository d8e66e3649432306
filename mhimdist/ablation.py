"""The tables of the paper (Tang et al., ICCV 2023, Tables 1 to 5) on any sharded data set.

A cell is a configuration. Many cells share one, such as every table's baseline: it is run once.
"""

import argparse
import json
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PlainSerializer, WrapValidator, field_validator, model_validator
from rich import get_console

from mhimdist import atomic
from mhimdist.config import Masking, Momentum, Teacher, TeacherKind, TrainConfig
from mhimdist.cost import Cost
from mhimdist.cross_validation import compare, measure_costs, raise_failures
from mhimdist.data.remote import Location
from mhimdist.errors import ConfigError
from mhimdist.experiment import Candidate, Experiment
from mhimdist.options import leaves
from mhimdist.presets import departures
from mhimdist.report import formats
from mhimdist.report.comparison import (
    PAPER_WARNING,
    STRICT_NOTE,
    Comparison,
    Protocol,
    Row,
    notes_text,
    records_csv,
    spread_text,
)
from mhimdist.report.grid import Grid
from mhimdist.schedules import Schedule

_VARIED = ("model.name", "masking", "teacher.kind", "student_init", "loss.alpha")
_METHOD = ("teacher.", "loss.temperature")
"""Settings that a network which is not masked does not have."""

Base = Callable[[str], TrainConfig]

SYSTEMS = {
    "Max-pooling": "max_pooling",
    "Mean-pooling": "mean_pooling",
    "AB-MIL": "abmil",
    "DSMIL": "dsmil",
    "CLAM-SB": "clam_sb",
    "CLAM-MB": "clam_mb",
    "TransMIL": "transmil",
    "DTFD-MIL": "dtfd",
}
MASKED = {"AB-MIL": "abmil", "TransMIL": "transmil", "DSMIL": "dsmil"}
COLUMNS = {"AB.": "abmil", "Trans.": "transmil"}
LOW_RATIO, RANDOM_RATIO = 0.2, 0.5
"""Of a strategy with a low or random mask where the data set's preset has none (the paper gives none)."""

TITLES = {
    1: "Table 1: multiple-instance learning systems",
    2: "Table 2: cost",
    3: "Table 3: the parts of MHIM-MIL",
    4: "Table 4: masking strategies",
    5: "Table 5: teachers",
}


Overlay = Annotated[
    TrainConfig,  # for the command line, which learns of all settings so
    WrapValidator(lambda given, _: given),  # as nested settings: they belong to several configurations
    PlainSerializer(lambda given: given),
]


class Ablation(Experiment):
    """Fill the paper's tables."""

    tables: tuple[int, ...] = Field((1, 2, 3, 4, 5), min_length=1, description="of the paper; several as 1,3")
    rows: tuple[str, ...] = Field((), description="only these rows, by their names in the tables; none: all")
    quick: bool = Field(False, description="the job's choice of fewer seeds, folds and epochs")
    preset: Literal["c16", "tcga"] = Field("c16", description="whose settings the rows start from")
    train: Overlay = Field(  # type: ignore[assignment]  # a mapping, see `Overlay`
        default_factory=dict,
        description="settings of every row whose network or method has them, in place of its own",
    )
    epochs: int | None = Field(None, ge=1, description="of every row; none: its configuration's")
    transmil_epochs: int | None = Field(None, ge=1, description="of TransMIL's rows, instead")
    transmil_folds: int | None = Field(
        None, ge=1, description="run TransMIL's rows on the first so many folds only; none: on all"
    )

    @field_validator("tables")
    @classmethod
    def _paper_has_them(cls, tables: tuple[int, ...]) -> tuple[int, ...]:
        if unknown := set(tables) - TITLES.keys():
            raise ValueError(f"the paper's tables are 1 to 5, got {', '.join(map(str, sorted(unknown)))}")
        return tables

    @model_validator(mode="after")
    def _tables_vary_the_rest(self) -> Self:
        if fixed := [path for path in self.overlay if path.startswith(_VARIED)]:
            raise ValueError(f"the tables vary {', '.join(fixed)}; rows and tables choose what is run")
        return self

    @property
    def overlay(self) -> dict[str, Any]:
        """The settings of `train` that were given, by dotted path."""
        return dict(leaves(self.train))  # type: ignore[arg-type]

    @classmethod
    def from_job(cls, *, quick: dict[str, Any], arguments: list[str] | None = None, **defaults: Any) -> Self:
        """The options of this process, where `--quick` changes the defaults of others.

        Args:
            quick: those defaults.
            arguments, defaults: as in `from_command_line`.
        """
        first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        first.add_argument("--quick", action="store_true")
        is_quick = first.parse_known_args(arguments)[0].quick
        return cls.from_command_line(arguments, **(defaults | (quick if is_quick else {})))


@dataclass(frozen=True)
class Cell:
    """A place in a table: what is trained for it."""

    table: int
    row: str
    column: str
    candidate: Candidate


def run_ablation(job: Ablation, base: Base, *, data: Location) -> Comparison:
    """Run every configuration of the tables and leave tables.md, tables.csv and tables.json.

    Args:
        job: which tables and rows, on what.
        base: the full configuration of a model, by its name; that of MHIM where it can be masked.
        data: folder of shards, on storage that every node sees, or its URL.

    Raises:
        ConfigError: a row's name is in none of the tables.
        CrossValidationError: runs failed; the tables of the others are written and printed first.
    """
    cells = select(job, base)
    candidates = {cell.candidate.name: cell.candidate for cell in cells}
    comparison = compare(job, list(candidates.values()), data=data)
    _write(job, cells, comparison, {})  # whatever becomes of the costs
    costs = measure_costs(
        job, {cell.row: cell.candidate.config for cell in cells if cell.table == 2}, data=data
    )
    _write(job, cells, comparison, costs)
    console = get_console()
    for block in _blocks(cells, comparison, costs):
        block.print(console)
    console.print(_common(comparison, cells), end="\n\n", highlight=False)
    if len(comparison.protocols) > 1:
        comparison.inflation().print(console)
    console.print(f"tables: {job.folder}/tables.md, .csv, .json", highlight=False, soft_wrap=True)
    raise_failures(comparison, job.folder, _cost_failures(costs))
    return comparison


def select(job: Ablation, base: Base) -> list[Cell]:
    """The cells that a job asks for.

    Raises:
        ConfigError: a row's name is in none of the tables, or no row has a setting that is given.
    """
    base = _overlaid(base, job.overlay)
    makers = {1: _systems, 2: _costs, 3: _parts, 4: _strategies, 5: _teachers}
    known = [
        Cell(table, row, column, _candidate(job, config))
        for table in job.tables
        for row, column, config in makers[table](base)
    ]
    wanted = {row.casefold() for row in job.rows}
    if unknown := wanted - {cell.row.casefold() for cell in known}:
        rows = ", ".join(dict.fromkeys(cell.row for cell in known))
        raise ConfigError(f"rows: no row {', '.join(sorted(unknown))}; these tables have {rows}")
    cells = [cell for cell in known if not wanted or cell.row.casefold() in wanted]
    for path in job.overlay:
        if not any(_has(cell.candidate.config, path) for cell in cells):
            raise ConfigError(f"train.{path}: none of these rows has it")
    return _named_apart(cells)


def _overlaid(base: Base, overlay: Mapping[str, Any]) -> Base:
    """The configurations with other settings where they have them."""

    def overlaid(model: str) -> TrainConfig:
        config = base(model)
        return config.override({path: value for path, value in overlay.items() if _has(config, path)})

    return overlaid


def _has(config: TrainConfig, path: str) -> bool:
    if path.startswith("model."):
        return path.removeprefix("model.") in type(config.model).model_fields
    return config.teacher.kind != "none" or not path.startswith(_METHOD)


def _named_apart(cells: Sequence[Cell]) -> list[Cell]:
    """The cells, those of equal configurations with the same candidate, and no two candidates of one name."""
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
    """A configuration under a name that tells what it is, so that equal ones share it."""
    is_transmil = config.model.name == "transmil"
    epochs = (job.transmil_epochs if is_transmil else None) or job.epochs
    if epochs is not None:
        config = config.model_copy(update={"epochs": epochs})
    name: str = config.model.name
    if config.teacher.kind != "none":
        consistency = "" if config.loss.alpha else ", no consistency"
        name += f" {config.masking.strategy}, {config.teacher.kind.replace('_', ' ')}{consistency}"
    return Candidate(name, config, job.transmil_folds if is_transmil else None)


Entry = tuple[str, str, TrainConfig]


def _plain(config: TrainConfig) -> TrainConfig:
    return config if config.teacher.kind == "none" else config.first_stage()


def _systems(base: Base) -> list[Entry]:
    plain: list[Entry] = [(name, "", _plain(base(model))) for name, model in SYSTEMS.items()]
    return plain + [(f"MHIM-MIL ({name})", "", base(model)) for name, model in MASKED.items()]


def _costs(base: Base) -> list[Entry]:
    rows = {row: config for row, _, config in _systems(base)}
    names = ("AB-MIL", "CLAM-MB", "DTFD-MIL", "MHIM-MIL (AB-MIL)", "TransMIL", "MHIM-MIL (TransMIL)")
    return [(name, "", rows[name]) for name in names]


def _parts(base: Base) -> list[Entry]:
    return [
        (row, column, config)
        for column, model in COLUMNS.items()
        for row, config in (
            ("Baseline", _plain(base(model))),
            ("+MHIM", _taught(base(model), "student_copy", alpha=0.0)),
            ("+MHIM+Siam.", _taught(base(model), "init_momentum", alpha=0.0)),
            ("+MHIM+Siam.+Con.", base(model)),
        )
    ]


def _strategies(base: Base) -> list[Entry]:
    return [
        (row, column, config)
        for column, model in COLUMNS.items()
        for row, config in (
            ("Baseline", _plain(base(model))),
            ("HAM", _masked(base(model), low=False, random=False)),
            ("R-HAM", _masked(base(model), low=False, random=True)),
            ("L-HAM", _masked(base(model), low=True, random=False)),
            ("LR-HAM", _masked(base(model), low=True, random=True)),
        )
    ]


def _teachers(base: Base) -> list[Entry]:
    kinds: dict[str, TeacherKind] = {
        "Student copy": "student_copy",
        "Init.": "init",
        "Momentum": "momentum",
        "Init.+Momentum": "init_momentum",
    }
    return [
        entry
        for column, model in COLUMNS.items()
        for entry in (
            ("Baseline", column, _plain(base(model))),
            *((row, column, _taught(base(model), kind)) for row, kind in kinds.items()),
        )
    ]


def _taught(config: TrainConfig, kind: TeacherKind, alpha: float | None = None) -> TrainConfig:
    """The configuration with another teacher and, where given, another weight of the consistency loss."""
    moves = kind in ("momentum", "init_momentum")
    own = config.teacher
    weights = {"weights": own.weights, "weights_of": own.weights_of} if "init" in kind else {}
    teacher = Teacher(
        kind=kind, momentum=own.momentum if moves else Momentum(), dropout=own.dropout, **weights
    )
    loss = config.loss if alpha is None else config.loss.model_copy(update={"alpha": alpha})
    return config.model_copy(update={"teacher": teacher, "loss": loss})


def _masked(config: TrainConfig, *, low: bool, random: bool) -> TrainConfig:
    """The configuration with its high mask, and with or without a low and a random one."""
    own = config.masking
    masking = Masking(
        high=own.high,
        high_pool_share=own.high_pool_share,
        low=(own.low if own.low.peak else Schedule(start=LOW_RATIO)) if low else Schedule(),
        random=(own.random if own.random.peak else Schedule(start=RANDOM_RATIO)) if random else Schedule(),
    )
    return config.model_copy(update={"masking": masking})


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


def _common(comparison: Comparison, cells: Sequence[Cell]) -> str:
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


def _blocks(cells: Sequence[Cell], comparison: Comparison, costs: Mapping[str, Cost | str]) -> list[Grid]:
    """The tables, one after the other for each protocol."""
    return [
        grid(number, protocol, cells, comparison, costs)
        for protocol in comparison.protocols
        for number in sorted({cell.table for cell in cells})
    ]


def _cost_failures(costs: Mapping[str, Cost | str]) -> dict[str, str]:
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
        f" {name[0].upper()}{name[1:]}: {why}." for name, why in _cost_failures(costs).items()
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


def _write(
    job: Ablation,
    cells: Sequence[Cell],
    comparison: Comparison,
    costs: Mapping[str, Cost | str],
) -> None:
    blocks = [block.markdown() for block in _blocks(cells, comparison, costs)]
    text = "\n".join([*blocks, textwrap.fill(_common(comparison, cells), 110), ""])
    if len(comparison.protocols) > 1:
        text += "\n" + comparison.inflation().markdown()
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
        "cost_failures": _cost_failures(costs),
    }
    body["comparison"] = json.loads(comparison.json())
    for suffix, content in (
        ("md", text),
        ("csv", records_csv(records)),
        ("json", json.dumps(body, indent=1, allow_nan=False) + "\n"),
    ):
        atomic.write_text(job.folder / f"tables.{suffix}", content)
