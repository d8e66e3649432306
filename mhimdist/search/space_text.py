"""The section `space` of a file: as text, as JSON Schema, and to begin with."""

from collections.abc import Mapping
from typing import Any

from mhimdist.config.commented import comment, heading, word, written
from mhimdist.config.fields import file_settings_of
from mhimdist.config.setting_words import in_file_words
from mhimdist.config.train import TrainConfig
from mhimdist.config.yaml_nodes import Scalar
from mhimdist.search.written_space import KEEP, VERBS, Entry

HELP = """\
How each setting is searched; the base above is the first trial, so each range holds its value.

    {uniform: [low, high]}    a number; with log: true, evenly in its logarithm
    {integer: [low, high]}    a whole number
    {choice: [a, b]}          one of some values; {choice: {a: {...}, b: {...}}} searches
                              other settings with each of them
    {schedule: [low, high]}   the start of a schedule and its kind, of all or of kinds: [...]
    {branch: {a: {...}}}      which settings are searched at all, as masking.strategy
    {fix: value}              no search

keep_at_least tries only masks that leave the student this share of a bag."""


def lines_of(tree: Mapping[str, Any], depth: int = 1) -> list[str]:
    """A space as lines of YAML."""
    lines, indent = [], "  " * depth
    for path, entry in tree.items():
        if not isinstance(entry, Mapping):
            lines.append(f"{indent}{path}: {written(entry)}")
            continue
        branching = next(
            (verb for verb in ("choice", "branch") if isinstance(entry.get(verb), Mapping)), None
        )
        if branching is None:
            inner = ", ".join(f"{key}: {_flow(value)}" for key, value in entry.items())
            lines.append(f"{indent}{path}: {{{inner}}}")
            continue
        lines += [f"{indent}{path}:", f"{indent}  {branching}:"]
        for name, below in entry[branching].items():
            lines.append(f"{indent}    {_key(name)}:")
            lines += lines_of(below or {}, depth + 3)
    return lines


def _key(name: str) -> str:
    """A choice as a key, whose text is what counts: numbers need no quotes."""
    return word(name) if isinstance(Scalar(name, True, "").value, str) else name


def _flow(value: Any) -> str:
    """A value on one line; `none` is a word here, as in a choice, so nothing is `null`."""
    return "null" if value is None else written(value)


def section(tree: Mapping[str, Any]) -> list[str]:
    """The section of a file, with an explanation above it."""
    explained = [f"# {line}".rstrip() for line in HELP.splitlines()]
    return [*heading("Search space"), *explained, "", "space:", *lines_of(tree)]


def untold(digest: str, source: str) -> list[str]:
    """The lines that stand for a space that only Python can say.

    Args:
        digest: of the space.
        source: where the function is.
    """
    return [
        *heading("Search space"),
        *comment(
            f"The space is a function in Python, {source}, with the digest {digest}. It holds what a file "
            "cannot say, so run the script that holds it to repeat the sweep; a section `space` here would "
            "be another space."
        ),
    ]


def starting_space(base: TrainConfig) -> dict[str, Any]:
    """A space around a configuration of the authors: masks and teacher with MHIM, otherwise the optimiser."""
    if base.teacher.kind == "none":
        return {
            "optimizer.learning_rate": {"uniform": [1e-5, 2e-3], "log": True},
            "optimizer.weight_decay": {"uniform": [1e-6, 1e-3], "log": True},
            "optimizer.decay": {"choice": list(dict.fromkeys([base.optimizer.decay, "cosine", "constant"]))},
            "model.dropout": {"uniform": [0.0, 0.5]},
        }
    none, low, random = {"fix": 0.0}, {"schedule": [0.1, 0.8]}, {"schedule": [0.1, 0.7]}
    return {
        "masking.high": {"schedule": [0.002, 0.2], "log": True},
        "masking.high_pool_share": {"choice": [0.25, 0.5, 1.0]},
        "masking.strategy": {
            "branch": {
                "HAM": {"masking.low": none, "masking.random": none},
                "L-HAM": {"masking.low": low, "masking.random": none},
                "R-HAM": {"masking.low": none, "masking.random": random},
                "LR-HAM": {"masking.low": low, "masking.random": random},
            }
        },
        KEEP: 0.1,
        "loss.alpha": {"uniform": [0.01, 1.0], "log": True},
        "loss.temperature": {"uniform": [0.05, 1.0], "log": True},
        "teacher.momentum.start": {"choice": [0.99, 0.997, 0.999, 0.9997, 0.9999]},
        "teacher.momentum.kind": {"choice": ["constant", "cosine"]},
    }


def space_schema() -> dict[str, Any]:
    """The JSON Schema of the section, with its `$defs`."""
    entry = Entry.model_json_schema()
    below = {"anyOf": [{"$ref": "#/$defs/Space"}, {"type": "null"}]}
    branches = {"type": "object", "minProperties": 1, "additionalProperties": below}
    for name, each in entry["properties"].items():
        each.pop("title", None)
        each.pop("default", None)
        each["anyOf"] = [part for part in each.get("anyOf", ()) if part.get("type") not in ("null", "object")]
        if name in ("choice", "branch"):
            each["anyOf"].append(branches)
        if not each["anyOf"]:
            del each["anyOf"]
    entry["oneOf"] = [{"required": [verb]} for verb in VERBS]
    settings: dict[str, Any] = {}
    for each in file_settings_of(TrainConfig):
        group = ".".join(each.path[:-1])
        if each.path[-1] == "num_stages":
            settings[group] = {"description": "a schedule", "$ref": "#/$defs/Entry"}
        settings.setdefault(each.name, {"description": in_file_words(each.meaning), "$ref": "#/$defs/Entry"})
    space = {
        "type": "object",
        "properties": {
            KEEP: {
                "description": "try only masks that leave the student this share of a bag",
                "type": "number",
                "exclusiveMinimum": 0,
                "maximum": 1,
            },
            "masking.strategy": {"description": "the combination of masks", "$ref": "#/$defs/Entry"},
            **settings,
        },
        "additionalProperties": {"$ref": "#/$defs/Entry"},
        "minProperties": 1,
    }
    return {
        "description": "how each setting is searched, by its dotted path",
        "$ref": "#/$defs/Space",
        "$defs": {"Space": space, "Entry": entry},
    }
