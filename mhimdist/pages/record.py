"""Sections that say exactly what was run: protocol, data, settings, versions."""

import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from markupsafe import Markup

import mhimdist
from mhimdist.config.options import leaves
from mhimdist.errors import ReportError
from mhimdist.files import json_object
from mhimdist.pages.subject import Subject
from mhimdist.report import blocks, formats
from mhimdist.report.blocks import Cell, Section
from mhimdist.report.comparison import PAPER_WARNING, notes_text
from mhimdist.training.result import NOTES

MOST_CONFIGURATIONS = 8
"""Most configurations whose settings are set side by side."""


def warnings(subject: Subject) -> list[Markup]:
    """What a reader of the figures must know before the first of them."""
    found = []
    if "paper" in subject.protocols or "paper" in str(subject.prediction.get("protocol", "")):
        strong, _, text = PAPER_WARNING.partition(": ")
        found.append(blocks.warning(f"{strong.capitalize()}:", text))
    if subject.table.get("synthetic"):
        found.append(
            blocks.warning(
                "Not real slides.",
                f"The bags of {subject.dataset} are synthetic, not scanned from tissue. The figures test the "
                "method and this software; they say nothing about pathology.",
            )
        )
    notes = [str(note) for note in subject.prediction.get("warnings", ())]
    notes += [note for each in subject.tested if each.entry for note in each.entry.notes]
    for row in subject.table.get("rows", ()):
        notes += [f"{name} failed: {formats.last_line(why)}" for name, why in row.get("failures", {}).items()]
    found += [blocks.warning("Note:", f"{note[:1].upper()}{note[1:]}") for note in dict.fromkeys(notes)]
    about = {row["name"]: str(row.get("note") or "") for row in subject.table.get("rows", ())}
    return [*found, blocks.warning("Note:", text)] if (text := notes_text(about).strip()) else found


def protocol_section(subject: Subject) -> Section:
    """The protocol of the figures, the data and the splits."""
    parts: list[Markup] = []
    inner = {"refit", "nested"} & set(subject.protocols)
    table, options = subject.table, subject.options
    notes = {**NOTES, **table.get("notes", {})}
    parts += [blocks.paragraph(str(notes[each])) for each in subject.protocols if each in notes]
    digests = {
        str(fold.result["data_digest"])
        for each in subject.configurations
        for fold in each.folds
        if fold.result
    }
    digests |= {str(subject.prediction.get("data", {}).get("digest") or "")}
    facts = {
        "Data set": subject.dataset,
        "Data hash (SHA-256)": ", ".join(sorted(filter(None, digests))),
        "Bags": _number(table.get("num_bags") or subject.prediction.get("data", {}).get("slides")),
        "Cases": _number(table.get("num_cases") or subject.prediction.get("data", {}).get("cases")),
        **_labels(subject),
        "Split": str(table.get("split_by", "")),
        "Seeds": ", ".join(str(seed) for seed in table.get("seeds", ())),
        "Share of the training cases that validates": _number(options.get("validation_share")),
        "Inner folds of a training fold": _number(table.get("inner_folds")) if inner else "",
        "Threshold": _number(subject.prediction.get("threshold")),
        "Threshold from": str(subject.prediction.get("threshold_from") or ""),
        "Probabilities of a case": str(subject.prediction.get("how") or ""),
    }
    return blocks.section(
        "protocol",
        "Protocol and data",
        *parts,
        blocks.facts("data", facts),
        _sizes(subject),
        _models(subject),
    )


def _labels(subject: Subject) -> dict[str, str]:
    """What the labels are: classes, or a task with its targets."""
    known = next((each.classes for each in subject.configurations if each.classes), ())
    if (task := subject.task) is None:
        return {"Classes": ", ".join(known or subject.prediction.get("classes", ()))}
    unit = f" ({task.info.unit})" if task.info.unit else ""
    return {
        "Task": task.name,
        "Classes": ", ".join(known or task.classes) if task.has_classes else "",
        "Targets": ", ".join(task.info.columns) + unit if task.info.columns else "",
    }


def _number(value: object) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else formats.setting(value)


def _sizes(subject: Subject) -> Markup:
    rows: dict[tuple[str, str], list[str | Cell]] = {}
    for each in subject.configurations:
        for fold in each.folds:
            if any(fold.split_sizes.values()):
                cells = [f"{fold.split_sizes[name]:,}" for name in ("train", "validation", "test")]
                protocol = each.protocol or formats.NONE
                rows.setdefault((protocol, fold.name), [protocol, fold.name, *cells])
    header = ["protocol", "fold", "train", "validation", "test"]
    return blocks.table("splits", header, list(rows.values()), texts=2, caption="Bags of each split.")


def _models(subject: Subject) -> Markup:
    rows: list[list[str | Cell]] = [
        [
            str(model.get("folder", "")),
            formats.setting(model.get("fold")),
            formats.setting(model.get("seed")),
            str(model.get("digest", ""))[:16],
        ]
        for model in subject.prediction.get("models", ())
        if isinstance(model, Mapping)
    ]
    header = ["model", "fold", "seed", "digest"]
    return blocks.table("models", header, rows, caption="The models of the ensemble.")


def settings_section(subject: Subject) -> Section:
    """The settings in which the configurations differ, and all settings of each."""
    if chosen := subject.table.get("chosen"):
        header, rows = list(map(str, chosen["header"])), [list(map(str, row)) for row in chosen["rows"]]
        table = blocks.table("chosen", header, rows, caption=str(chosen["caption"]))
        what = "Each outer fold has its own settings; its sweep's report is in its folder outer-<number>."
        return blocks.section("settings", "Settings", blocks.paragraph(what), table, *_options(subject))
    shown = [each for each in subject.configurations if each.folds][:MOST_CONFIGURATIONS]
    flat = [_settings(each.folds[0].config) for each in shown]
    paths = list(dict.fromkeys(path for settings in flat for path in settings))
    names = [each.name for each in shown]
    differing: list[list[str | Cell]] = [
        [path, *(formats.setting(settings[path]) if path in settings else "" for settings in flat)]
        for path in paths
        if len({json.dumps(settings.get(path, "absent"), sort_keys=True) for settings in flat}) > 1
    ]
    parts = [blocks.table("differences", ["setting", *names], differing)]
    if differing:
        parts.insert(
            0, blocks.paragraph("The configurations differ in these settings; an empty cell: it has none.")
        )
    for each in shown:
        text = json.dumps(each.folds[0].config, indent=2, ensure_ascii=False)
        parts.append(blocks.details(f"Full configuration of {each.name}, {each.folds[0].name}", text))
    return blocks.section("settings", "Settings", *parts, *_options(subject))


def _options(subject: Subject) -> list[Markup]:
    if not subject.options:
        return []
    text = json.dumps(subject.options, indent=2, ensure_ascii=False)
    return [blocks.details("Options of the command", text)]


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    return {path: value for path, value in leaves(config) if path != "seed"}


def environment_section(subject: Subject) -> Section:
    """The versions and the device that trained, as far as they were recorded, and those of the report."""
    trained = dict(subject.environment) or dict(subject.prediction.get("versions", {}))
    device = _launching(subject)
    made = {
        "mhimdist": mhimdist.__version__,
        "Python": platform.python_version(),
        **{name: version(name) for name in ("numpy", "scipy", "scikit-learn", "plotly")},
    }
    text = ", ".join(f"{name} {number}" for name, number in made.items())
    facts = {**{str(k): str(v) for k, v in trained.items()}, **device, "This report": text}
    return blocks.section("environment", "Versions", blocks.facts("versions", facts))


def _launching(subject: Subject) -> dict[str, str]:
    for each in subject.configurations:
        for fold in each.folds:
            file = fold.folder / "launching.json"
            if file.exists():
                found = json_object(file, ReportError)
                return {f"Training: {name}": str(value) for name, value in found.items()}
    return {}
