"""A page's sections and figures for tasks other than classes without an order, from what was run.

`pages.tasks` makes the sections of a task from plain arrays; this module takes them from the folders.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mhimdist.errors import ReportError, UndefinedError
from mhimdist.pages.by_case import by_case_table
from mhimdist.pages.subject import Subject
from mhimdist.pages.tasks import JudgedNetwork, page_of
from mhimdist.report import blocks, formats
from mhimdist.report.blocks import Cell, Section
from mhimdist.report.score_plots import COLOURS
from mhimdist.tasks import Task


def sections_of_task(subject: Subject, task: Task, *, risk_groups: int = 2) -> list[Section]:
    """The results of a task's own kind, the figures by case, and a table of every fold.

    Args:
        subject: what was run and tested.
        task: its task.
        risk_groups: groups of risk, where a task has risks.

    Raises:
        ReportError: more than two groups are asked for, and the validation bags' risks are not recorded.
    """
    found = page_of(task).sections(task, _configurations(subject, task, risk_groups))
    cases = by_case_table(subject, task.headings)
    folds = blocks.section("folds", "Every fold", _folds_table(subject, task))
    results = replace(found[0], body=Markup("\n").join(filter(None, [found[0].body, cases])))
    return [results, folds, *found[1:]]


def figures_of_task(subject: Subject, task: Task, folder: Path, *, risk_groups: int = 2) -> list[Path]:
    """Write the figures of a task's results as vector PDF.

    Args:
        subject, task, risk_groups: as in `sections_of_task`.
        folder: receives the files.

    Raises:
        ReportError: see `sections_of_task`.
        DiskFullError: a file does not fit on the disk.
    """
    from mhimdist.pages.tasks.print import write_drawings  # matplotlib is slow to import

    shown = dict(list(_configurations(subject, task, risk_groups).items())[: len(COLOURS)])
    return write_drawings(page_of(task).drawings(task, shown), folder)


def _configurations(subject: Subject, task: Task, risk_groups: int) -> Mapping[str, Sequence[Any]]:
    """The tested networks of each configuration, with the protocol in the name where there are several."""
    found: dict[str, list[Any]] = {}
    page = page_of(task)
    for each in subject.tested:
        name = each.name + (f", {each.protocol} protocol" if len(subject.protocols) > 1 else "")
        folds = {fold.folder: fold for fold in each.folds}
        for network in each.networks:
            fold = folds.get(network.folder) if network.folder is not None else None
            try:
                made = page.network(
                    JudgedNetwork(
                        task=network.task or task,
                        judged=network.judged,
                        fitted=network.fitted,
                        keys=network.keys,
                        seed=network.seed,
                        validation=None if fold is None else fold.judged_validation,
                        num_groups=risk_groups,
                    )
                )
            except UndefinedError as error:
                raise ReportError(f"{network.folder or subject.path}: risk_groups: {error}") from None
            found.setdefault(name, []).append(made)
    return found


def _folds_table(subject: Subject, task: Task) -> Any:
    rows: list[list[str | Cell]] = []
    for each in subject.tested:
        for fold, metrics in zip(each.folds, each.metrics, strict=False):
            best, epochs = fold.result.get("best_epoch"), len(fold.history)
            rows.append(
                [
                    each.name + (f", {each.protocol}" if len(subject.protocols) > 1 else ""),
                    fold.name.replace(" ", "\N{NO-BREAK SPACE}"),
                    *(_cell(metrics.get(name)) for name in task.headings),
                    _cell(fold.result.get("validation", {}).get(task.selection)),
                    f"{best} of {epochs}" if epochs else formats.setting(best),
                ]
            )
    if not rows:
        return ""
    header = ["configuration", "fold", *task.headings.values(), f"validation {task.title}", "selected epoch"]
    caption = "Click a heading to sort. Epochs are counted from 0."
    return blocks.table("folds", header, rows, texts=2, sortable=True, caption=caption)


def _cell(value: float | None) -> Cell:
    return Cell(formats.auc(value), key=float("-inf") if value is None else value)
