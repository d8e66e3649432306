"""The model card of trained networks: what they are, what they learnt from, how good they are, how to load.

A card is Markdown in the sections that model hubs use. Names of data sets, classes and cases come from other
people's files, so they are escaped.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mhimdist import files, foreign_text
from mhimdist.data.splits import Split
from mhimdist.errors import CheckpointError
from mhimdist.statistics.bootstrap import estimates
from mhimdist.tasks import Task, restored
from mhimdist.training.result import NOTES, Result

MODEL_CARD = "model_card.md"
MAX_NAME = 120
"""Longest name of others that a card prints, in characters."""
MAX_TEXT = 1000
"""Longest description of a data set."""
MAX_ROWS = 30
"""Most classes and most networks that a card lists one by one."""

_UNKNOWN = "not recorded"


@dataclass(frozen=True)
class Trained:
    """A trained network, as its folder describes it.

    Attributes:
        name: name of its folder.
        state: what was saved with its weights: configuration, classes, features, data, threshold, versions.
        result: its metrics; None if it was stopped before it was judged.
        split_sizes: bags that trained, validated and tested it, by set; empty if that is not known.
    """

    name: str
    state: Mapping[str, Any]
    result: Result | None
    split_sizes: Mapping[str, int]

    @classmethod
    def of(cls, folder: Path, state: Mapping[str, Any], result: Result | None, split: Split) -> "Trained":
        """A network whose fold has just ended."""
        return cls(folder.name, state, result, {name: len(keys) for name, keys in split.sets.items()})

    @property
    def data(self) -> Mapping[str, Any]:
        """The data set that trained it; an earlier release recorded the digest alone."""
        return self.state.get("data") or {"digest": self.state.get("data_digest")}

    @property
    def task(self) -> Task:
        """What it predicts."""
        return restored(self.state.get("task"), self.state["classes"])

    @property
    def protocol(self) -> str:
        """strict, paper, refit, nested, or unknown without a result."""
        return self.result.protocol if self.result else "unknown"


def metric_intervals(members: Sequence[Trained]) -> dict[str, tuple[float, float]]:
    """The 95 % intervals of the mean test metrics by name, resampled by case; undefined ones are left out."""
    results = [member.result for member in members if member.result is not None and member.result.keys]
    if not results:
        return {}
    task = members[0].task
    found = estimates([task.weighed(result.judged, result.fitted) for result in results])
    return {name: (each.low, each.high) for name in task.headings if (each := found.get(name)) is not None}


def write_card(folder: Path, members: Sequence[Trained], title: str) -> None:
    """Write `model_card.md` into a folder; it replaces an older one.

    Args:
        folder: of the run, the cross-validation, the sweep or the export.
        members: the networks, at least one, all of one configuration.
        title: the model's name.

    Raises:
        DiskFullError: the disk is full.
    """
    files.write_text(folder / MODEL_CARD, card(members, title))


def card(members: Sequence[Trained], title: str) -> str:
    """The text of a model card.

    Args:
        members: the networks, at least one, all of one configuration.
        title: the model's name.
    """
    first = members[0]
    sections = {
        "Model": _model(members),
        "Intended use": _use(first),
        "Data and its limits": _data(members),
        "Training": _training(members),
        "Metrics": _metrics(members),
        "Limits and ethics": _limits(members),
        "How to load": _loading(members),
        "Versions": _listed((first.state.get("versions") or {"versions": _UNKNOWN}).items()),
    }
    head = (
        "---\nlibrary_name: mhimdist\ntags: [multiple-instance-learning, pathology, whole-slide-images]\n---"
    )
    body = "\n\n".join(f"## {name}\n\n{text.strip()}" for name, text in sections.items())
    return f"{head}\n\n# Model card: {escaped(title)}\n\n{body}\n"


def escaped(value: object, limit: int = MAX_NAME) -> str:
    """See `foreign_text.markdown`; a name of any length must not swell the card."""
    return foreign_text.markdown(value, limit)


def _listed(items: Iterable[tuple[str, object]]) -> str:
    lines = []
    for name, value in items:
        values = value if isinstance(value, list) else [_UNKNOWN if value is None else value]
        lines.append(f"- {name}: {', '.join(map(escaped, values))}")
    return "\n".join(lines)


def _model(members: Sequence[Trained]) -> str:
    state, result = members[0].state, members[0].result
    config, features = state["config"], state.get("features") or {}
    model = config["model"]
    masked = config.get("teacher", {}).get("kind", "none") != "none"
    task, classes = members[0].task, list(state["classes"])
    what = f"MHIM-MIL on {model['name']}" if masked else f"{model['name']} without masking"
    kind = "classifier" if task.has_classes else f"{task.name} model"
    text = f"A {kind} of whole slides from the features of their patches: {what}.\n\n"
    if len(members) > 1:
        text += f"It is an ensemble of {len(members)} networks, whose predictions are averaged.\n\n"
    rows = [
        ("input", f"N x {state['num_features']} patch features of a slide, N of 1 or more"),
        ("encoder of the features", features.get("encoder")),
        *((("feature set", config["features"]),) if config.get("features") else ()),
        *((("features standardised by", scale),) if (scale := features.get("standardized")) else ()),
        *((name.replace("_", " "), features.get(name)) for name in ("patch_size", "level", "magnification")),
        *_output(task, classes),
        ("parameters", f"{result.num_parameters:,}" if result else None),
    ]
    if len(classes) == 2 and task.has_classes:
        chosen = state.get("threshold_from") or "Youden's J on the bags that select"
        threshold = state.get("threshold")
        if threshold is None and result is not None:  # an earlier release has it in the result alone
            threshold = result.validation.get("threshold")
        rows.append(("positive class", classes[1]))
        rows.append(("decision threshold", None if threshold is None else f"{threshold:.6g}, from {chosen}"))
    return text + _listed(rows)


def _output(task: Task, classes: list[str]) -> list[tuple[str, object]]:
    if task.has_classes:
        return [
            ("output", f"one probability per class, {len(classes)} classes"),
            ("classes, in order", classes[:MAX_ROWS] + ["..."] * (len(classes) > MAX_ROWS)),
        ]
    columns = list(task.columns)
    return [
        ("task", task.name),
        ("output", columns[:MAX_ROWS] + ["..."] * (len(columns) > MAX_ROWS)),
        ("learnt from the columns", list(task.info.columns)),
        ("unit", task.info.unit or None),
    ]


def _use(first: Trained) -> str:
    text = (
        "For research: to predict slides like those that trained it, and to look at which patches it "
        "attends to. It takes features of the encoder named above only; features of another encoder, patch "
        "size or magnification give numbers without meaning.\n\n"
        "It is not a medical device. It must not decide about a patient."
    )
    if first.data.get("synthetic"):
        text += "\n\n**Its data are synthetic: it says nothing about tissue.**"
    return text


def _data(members: Sequence[Trained]) -> str:
    first, data = members[0], members[0].data
    synthetic = {True: "yes: generated, not computed from slides", False: "no, as its maker says"}
    rows: list[tuple[str, object]] = [
        ("data set", data.get("name")),
        ("synthetic", synthetic.get(data.get("synthetic"))),  # type: ignore[arg-type]  # None is unknown
        ("digest", data.get("digest")),
        ("bags", data.get("num_bags")),
        ("cases (patients)", data.get("num_cases")),
    ]
    if sizes := data.get("instances"):
        rows.append(
            ("patches per bag", f"{sizes['lowest']} to {sizes['highest']}, median {sizes['median']:g}")
        )
    sets = {"train": "bags that train", "validation": "bags that select", "test": "bags kept for the test"}
    of = "" if len(members) == 1 else " (first network)"
    rows += [(f"{sets[name]}{of}", number) for name, number in first.split_sizes.items()]
    text = _listed(rows)
    if data.get("description"):
        text += f"\n\nIts maker describes it: {escaped(data['description'], MAX_TEXT)}"
    if per_class := data.get("bags_per_class"):
        lines = [f"| {escaped(name)} | {number} |" for name, number in list(per_class.items())[:MAX_ROWS]]
        text += "\n\n| class | bags |\n| --- | ---: |\n" + "\n".join(lines)
    return text + (
        "\n\nWhole cases are split, so no patient is on two sides. The card knows the data set only by these "
        "numbers: scanner, staining, site and the patients' characteristics are not recorded."
    )


def _training(members: Sequence[Trained]) -> str:
    first, notes = members[0], []
    for protocol in sorted({member.protocol for member in members}):
        note = NOTES.get(protocol, "The protocol is unknown: the run was not judged.")
        notes.append(f"**{note}**" if protocol == "paper" else note)
    said = {member.result.note for member in members if member.result and member.result.note}
    notes += [f"Note: {escaped(note, MAX_TEXT)}." for note in sorted(said)]
    for member in members:
        for name, classes in (member.result.missing_classes if member.result else {}).items():
            listing = ", ".join(map(escaped, classes))
            notes.append(f"{escaped(member.name)}: no {name} bag is of {listing}; its figures omit them.")
    config = json.dumps(first.state["config"], indent=1)
    fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", config)), default=0))
    return "\n\n".join([*notes, f"{fence}json\n{config}\n{fence}"])


def _metrics(members: Sequence[Trained]) -> str:
    task = members[0].task
    headings = task.headings
    rows, tested = [], [m for m in members if m.result is not None and m.result.test]
    for member in members[:MAX_ROWS]:
        for name in ("validation", "test"):
            found = getattr(member.result, name, None)
            if found:
                inner = name == "validation" and member.result is not None and member.result.inner_runs
                what = f"held out by {inner} inner runs" if inner else name
                rows.append([escaped(member.name), what, *(_number(found.get(each)) for each in headings)])
    if not rows:
        return "The run was stopped before it was judged: there are no metrics."
    ends = metric_intervals(tested)
    if tested:
        several = len(tested) > 1
        if several:
            means = (
                _number(_mean([m.result.test.get(each) for m in tested if m.result])) for each in headings
            )
            rows.append([f"mean of {len(tested)}", "test", *means])
        spans = (
            f"{ends[each][0]:.3f} to {ends[each][1]:.3f}" if each in ends else "none" for each in headings
        )
        rows.append(["95 % interval" + (" of the mean" if several else ""), "test", *spans])
    header = ["network", "bags", *headings.values()]
    lines = [header, ["---", "---", *["---:"] * len(headings)], *rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    if len(members) > MAX_ROWS:
        text += f"\n\n{len(members) - MAX_ROWS} more networks are not listed."
    if not tested:
        return (
            f"{text}\n\nIt was not tested: validation bags selected the epoch, so these figures flatter it."
        )
    at = "at each network's threshold" if task.has_classes else "with what each network has fitted"
    text += (
        f"\n\nIntervals are percentile bootstraps of 1,000 resamples of the test cases, {at}; other seeds "
        "are not in them."
    )
    if len(members) > 1:
        text += "\n\nEach network was tested by itself on its own fold. The ensemble was not tested: its "
        text += "networks have trained on each other's test cases."
    return text


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def _limits(members: Sequence[Trained]) -> str:
    num_cases = members[0].data.get("num_cases")
    size = f" of {num_cases:,} {'case' if num_cases == 1 else 'cases'}" if num_cases else ""
    return (
        f"- It knows one data set{size}. On slides of another site, scanner or stain it may fail unnoticed.\n"
        "- Its predictions are not calibrated unless somebody has calibrated them on other cases.\n"
        "- Attention shows what the network weights, not why, and is no annotation.\n"
        "- Performance by sex, age, origin or site was not measured: measure it on your own cases.\n"
        "- Weights can hold traces of the data that trained them. Their licence and any consent of the "
        "patients are for whoever owns the data to state; the code is Apache-2.0."
    )


def _loading(members: Sequence[Trained]) -> str:
    return (
        "From the folder of the run:\n\n"
        "```python\nimport mhimdist as mh\n\nstudent = mh.load_student(folder)\n```\n\n"
        "From a folder that `python jobs/export.py` wrote, with PyTorch and safetensors alone:\n\n"
        "```python\nfrom load_model import load\n\nmodel = load(folder)\n"
        "predictions, attention = model(features)  # N x D of one slide\n```"
    )


def read_trained(folder: Path) -> Trained:
    """Read a trained network's description from its folder.

    Args:
        folder: of a fold, with `best_student/`.

    Raises:
        CheckpointError: the files are damaged or of another release.
    """
    file = folder / "best_student" / "state.json"
    try:
        state = files.parse_json(file.read_text(encoding="utf-8"))["state"]
        _ = state["config"]["model"]["name"], state["classes"], state["num_features"]
        found = folder / "result.json"
        result = Result(**files.parse_json(found.read_text(encoding="utf-8"))) if found.exists() else None
        found = folder / "split.json"
        split = Split.load(found) if found.exists() else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder}: expected a finished fold of this release: {error!r}") from None
    sizes = {name: len(keys) for name, keys in split.sets.items()} if split else {}
    return Trained(folder.name, state, result, sizes)
