"""Sections about how the folds trained: learning curves, student against teacher, masking, cost."""

from statistics import fmean, median

from markupsafe import Markup

from mhimdist.pages.subject import Configuration, Subject
from mhimdist.report import blocks, fold_plots, formats, plots
from mhimdist.report.blocks import Cell, Section
from mhimdist.report.summary import History, is_number

MOST_CONFIGURATIONS = 6
"""Most configurations whose learning curves a page draws: the paper's tables have dozens."""


def _shown(subject: Subject, column: str = "epoch") -> list[Configuration]:
    """The first configurations whose histories have a column."""
    return [each for each in subject.configurations if _with(each, column)][:MOST_CONFIGURATIONS]


def _with(configuration: Configuration, column: str) -> dict[str, History]:
    """The histories that have a column."""
    return {
        name: history
        for name, history in configuration.histories.items()
        if any(is_number(row.get(column)) for row in history)
    }


def _named(subject: Subject, configuration: Configuration) -> str:
    several = len(subject.protocols) > 1
    return configuration.name + (f", {configuration.protocol} protocol" if several else "")


def learning_section(subject: Subject) -> Section:
    """Validation AUC and loss of every fold over its epochs."""
    parts = []
    for each in _shown(subject):
        selected = {fold.name: fold.result["best_epoch"] for fold in each.folds if fold.result}
        if len(subject.configurations) > 1:
            parts.append(blocks.heading(_named(subject, each)))
        parts.append(
            blocks.side_by_side(
                blocks.figure(
                    fold_plots.learning_curves(
                        each.histories,
                        plots.STUDENT_SCORE,
                        f"validation {subject.score}",
                        selected=selected,
                    ),
                    title=f"Validation {subject.score} of the student",
                ),
                blocks.figure(
                    fold_plots.learning_curves(each.histories, "loss", "training loss"), title="Training loss"
                ),
            )
        )
    if parts:
        parts.append(blocks.paragraph("A dot marks the selected epoch of a fold.", muted=True))
    if any(
        row.get("selects_on_test")
        for each in _shown(subject)
        for h in each.histories.values()
        for row in h[:1]
    ):
        parts.append(
            blocks.paragraph(
                "Under the paper's protocol the bags that validate are the test bags.", muted=True
            )
        )
    left = sum(bool(each.histories) for each in subject.configurations) - len(_shown(subject))
    if left > 0:
        parts.append(blocks.paragraph(f"{formats.count(left, 'more configuration')} not drawn.", muted=True))
    return blocks.section("learning", "Learning curves", *parts)


def stability_section(subject: Subject) -> Section:
    """Student against teacher over the epochs, as in the figure under Table 5 of the paper."""
    parts: list[Markup] = []
    rows: list[list[str | Cell]] = []
    for each in _shown(subject, plots.TEACHER_SCORE):
        histories = _with(each, plots.TEACHER_SCORE)
        name = _named(subject, each)
        parts.append(blocks.figure(fold_plots.stability_figure(histories, subject.score), title=name))
        for who, key in (("student", plots.STUDENT_SCORE), ("teacher", plots.TEACHER_SCORE)):
            rows.append(
                [
                    name,
                    who,
                    _mean_text([fold_plots.roughness(h, key) for h in histories.values()]),
                    _mean_text([fold_plots.last_half_deviation(h, key) for h in histories.values()]),
                ]
            )
    if not parts:
        return blocks.section("stability", "Student and teacher")
    return blocks.section(
        "stability",
        "Student and teacher",
        blocks.paragraph(
            "A teacher that is the moving average of the student should have a validation "
            f"{subject.score} that moves less from epoch to epoch. The paper shows the same curves under "
            "its Table 5."
        ),
        blocks.side_by_side(*parts),
        blocks.table(
            "stability-table",
            ["configuration", "network", "mean change per epoch", "deviation, last half"],
            rows,
            texts=2,
            caption=f"Both of the validation {subject.score}, averaged over the folds: the mean absolute "
            "change from one epoch to the next, and the standard deviation over the last half of the epochs.",
        ),
    )


def _mean_text(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{fmean(known):.4f}" if known else formats.NONE


def _masks(configuration: Configuration) -> bool:
    """Whether anything was hidden from its students."""
    rows = (row for history in configuration.histories.values() for row in history)
    return any((row.get("kept_ratio") or 1.0) < 1 for row in rows)


_MASKS = {
    "kept": "kept_ratio",
    "high": "masked_high_ratio",
    "low": "masked_low_ratio",
    "random": "masked_random_ratio",
}


def masking_section(subject: Subject) -> Section:
    """The shares of the instances that the student saw and that each mask hid."""
    parts: list[Markup] = []
    rows: list[list[str | Cell]] = []
    masked = [each for each in subject.configurations if _masks(each)]
    for each in masked[:MOST_CONFIGURATIONS]:
        history: History = fold_plots.mean_history(each.histories)
        name = _named(subject, each)
        parts.append(blocks.figure(plots.masking_curves(history), title=name))
        cells: list[str | Cell] = [name]
        for key in _MASKS.values():
            first, last = history[0].get(key) or 0.0, history[-1].get(key) or 0.0
            cells.append(f"{100 * first:.2f}% to {100 * last:.2f}%")
        rows.append(cells)
    caption = (
        "Shares of an epoch's instances, the mean over the folds, in the first and in the last epoch. The "
        "masks may overlap, so the shares need not add up to 1."
    )
    return blocks.section(
        "masking",
        "Masking",
        blocks.side_by_side(*parts),
        blocks.table(
            "masking-table",
            ["configuration", "student sees", "masked: high", "masked: low", "masked: random"],
            rows,
            caption=caption,
        ),
    )


def cost_section(subject: Subject) -> Section:
    """Parameters, epochs and time of every configuration."""
    rows: list[list[str | Cell]] = []
    for each in subject.configurations:
        histories = list(each.histories.values())
        if not histories:
            continue
        epochs = [len(history) for history in histories]
        seconds = [value for h in histories for row in h if (value := row.get("epoch_s")) is not None]
        parameters = next((fold.result.get("num_parameters") for fold in each.folds if fold.result), None)
        rows.append(
            [
                _named(subject, each),
                formats.NONE if parameters is None else f"{parameters:,}",
                f"{len(histories)}",
                f"{min(epochs)}" if len(set(epochs)) == 1 else f"{min(epochs)}–{max(epochs)}",
                formats.duration(median(seconds)) if seconds else formats.NONE,
                formats.duration(sum(seconds)) if seconds else formats.NONE,
            ]
        )
    caption = "Time per epoch: the median, with its validation. Total: all epochs of all runs, added up."
    wall = subject.table.get("wall_s")
    if isinstance(wall, int | float):
        caption += f" The command took {formats.duration(wall)}"
        found = subject.table.get("num_found")
        caption += f"; {formats.count(found, 'run')} were finished before." if found else "."
    header = ["configuration", "parameters", "runs", "epochs", "time per epoch", "total"]
    return blocks.section("cost", "Cost", blocks.table("cost-table", header, rows, caption=caption))
