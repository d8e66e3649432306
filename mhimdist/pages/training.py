"""Sections about how the folds trained: learning curves, student against teacher, masking, cost."""

from statistics import fmean, median

from markupsafe import Markup

from mhimdist.pages.subject import Configuration, FoldRun, Subject
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
        inner = {fold.name: _inner_curve(fold) for fold in each.folds if fold.result.get("validation_curve")}
        parts.append(
            blocks.side_by_side(
                blocks.figure(
                    fold_plots.learning_curves(
                        inner or each.histories,
                        plots.STUDENT_SCORE,
                        f"validation {subject.score}",
                        selected=selected,
                    ),
                    title=f"Mean validation {subject.score} of the inner runs"
                    if inner
                    else f"Validation {subject.score} of the student",
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
    if {"refit", "nested"} & set(subject.protocols):
        parts.append(
            blocks.paragraph(
                "Under refit the mean curve of a fold's inner runs, after a moving average, selects the "
                "number of epochs; the network then trains on the whole training fold for as many, without "
                "validation.",
                muted=True,
            )
        )
    left = sum(bool(each.histories) for each in subject.configurations) - len(_shown(subject))
    if left > 0:
        parts.append(blocks.paragraph(f"{formats.count(left, 'more configuration')} not drawn.", muted=True))
    return blocks.section("learning", "Learning curves", *parts)


def _inner_curve(fold: FoldRun) -> History:
    """The mean validation curve of a fold's inner runs, as a history."""
    return [
        {"epoch": epoch, plots.STUDENT_SCORE: score}
        for epoch, score in enumerate(fold.result["validation_curve"])
    ]


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


def _mean_text(values: list[float | None], digits: int = 4) -> str:
    known = [value for value in values if value is not None]
    return f"{fmean(known):.{digits}f}" if known else formats.NONE


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


_TELEMETRY = {
    "overlap with the epoch before": "mask_overlap",
    "of the high mask": "high_mask_overlap",
    "ranks, teacher and student": "rank_agreement",
    "positives hidden": "positives_hidden",
    "by high": "positives_hidden_high",
    "by low": "positives_hidden_low",
    "by random": "positives_hidden_random",
}


def masking_section(subject: Subject) -> Section:
    """What the masks hid, how they change from epoch to epoch, and how teacher and student rank."""
    parts: list[Markup] = []
    rows: list[list[str | Cell]] = []
    figures: list[list[str | Cell]] = []
    masked = [each for each in subject.configurations if _masks(each)]
    for each in masked[:MOST_CONFIGURATIONS]:
        history: History = fold_plots.mean_history(each.histories)
        name = _named(subject, each)
        parts.append(blocks.figure(plots.masking_curves(history), title=name))
        for drawn in (fold_plots.agreement_figure(history), fold_plots.positives_figure(history)):
            if drawn.data:
                parts.append(blocks.figure(drawn, title=name))
        cells: list[str | Cell] = [name]
        for key in _MASKS.values():
            first, last = history[0].get(key) or 0.0, history[-1].get(key) or 0.0
            cells.append(f"{100 * first:.2f}% to {100 * last:.2f}%")
        rows.append(cells)
        means = [_mean_text(_known(history, key), 3) for key in _TELEMETRY.values()]
        if any(text != formats.NONE for text in means):
            figures.append([name, *means])
    caption = (
        "Shares of an epoch's instances, the mean over the folds, in the first and in the last epoch. The "
        "masks may overlap, so the shares need not add up to 1."
    )
    tables = [
        blocks.table(
            "masking-table",
            ["configuration", "student sees", "masked: high", "masked: low", "masked: random"],
            rows,
            caption=caption,
        )
    ]
    if figures:
        tables.append(
            blocks.table("telemetry-table", ["configuration", *_TELEMETRY], figures, caption=_MEASURED)
        )
    return blocks.section("masking", "Masking", blocks.side_by_side(*parts), *tables)


_MEASURED = (
    "Means over folds and epochs, measured at the end of each epoch on the same few training bags, with at "
    "most 2% of the instances. Overlap: instances that the masks of two epochs in a row hide, as a share of "
    "those that either hides (Jaccard); by chance it is h / (2 - h) if a share h is hidden. Ranks: "
    "Spearman's correlation of the scores of teacher and student. Positives: where instances have labels, "
    "the share of the positive ones that the masks hide."
)


def _known(history: History, key: str) -> list[float | None]:
    return [value for row in history if is_number(value := row.get(key))]


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
    if {"refit", "nested"} & set(subject.protocols):
        caption += " Under refit the inner runs come on top; they are in the folder inner, or are trials."
    header = ["configuration", "parameters", "runs", "epochs", "time per epoch", "total"]
    return blocks.section("cost", "Cost", blocks.table("cost-table", header, rows, caption=caption))
