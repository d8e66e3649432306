"""What files, their schema and the page of settings say about settings: units, ranges and values in words."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

_DEFAULT_TEXT = re.compile(r"\s*\(default: ([^)]*)\)")
_KEBAB = re.compile(r"(?:--)?\b[a-z]+(?:-[a-z]+)+\b|--[a-z]+\b")

UNITS = {
    **dict.fromkeys(("worker_timeout_s", "save_every_s", "trial_timeout_s"), "seconds"),
    "shard_cache_gib": "GiB",
    **dict.fromkeys(("epochs", "patience", "from_epoch", "grace_epochs", "transmil_epochs"), "epochs"),
    "bags_per_step": "bags",
    **dict.fromkeys(("max_instances", "instances_per_bag", "num_clustered"), "instances"),
    **dict.fromkeys(("hidden_dim", "attention_dim", "query_dim"), "features"),
    "cpus_per_run": "CPU cores",
    "gpus_per_run": "GPUs",
    **dict.fromkeys(("workers", "min_workers"), "processes"),
    **dict.fromkeys(
        ("folds", "run_folds", "outer_folds", "inner_folds", "parallel_folds", "transmil_folds"), "folds"
    ),
    **dict.fromkeys(
        ("num_trials", "num_startup", "reduction_factor", "at_once", "max_failures_in_a_row"), "trials"
    ),
    **dict.fromkeys(("keep_last", "keep_best"), "checkpoints"),
    "huber_delta": "standard deviations",
    "num_bins": "bins",
    "num_pseudo_bags": "pseudo-bags",
    "num_landmarks": "landmarks",
    "num_heads": "heads",
    "pinv_iterations": "iterations",
    "num_stages": "stages",
    "evaluation_samples": "samples",
    "max_failures": "failures",
    "grid_points": "points",
    "final_seeds": "seeds",
    "final_top": "configurations",
    **dict.fromkeys(
        (
            *("test_share", "validation_share", "paper_validation_share", "instances_share"),
            *("high_pool_share", "dropout", "attention_dropout"),
        ),
        "share",
    ),
}
"""What numbers of a setting count; all others have no unit."""


def meaning(description: str) -> str:
    """A description in the words of a file, without the default in words that it may have."""
    return in_file_words(_DEFAULT_TEXT.sub("", description))


def default_text(description: str) -> str:
    """The default in words, where it depends on the machine; otherwise empty."""
    found = _DEFAULT_TEXT.search(description)
    return found[1] if found else ""


def in_file_words(text: str) -> str:
    """A description with the names that settings have in a file: `bags_per_step`, not `--bags-per-step`."""

    def renamed(found: re.Match[str]) -> str:
        name = found[0].removeprefix("--").replace("-", "_")
        return name if found[0].startswith("--") or name in UNITS else found[0]

    return _KEBAB.sub(renamed, text)


def allowed(schema: Mapping[str, Any]) -> str:
    """What a JSON Schema allows, in a few words: "number above 0 and at most 1, or none"."""
    if "anyOf" in schema:
        members = sorted(schema["anyOf"], key=lambda each: each.get("type") == "null")
        texts = [allowed(each) for each in members]
        return f"{', '.join(texts[:-1])}{', or' if 'number' in texts[0] else ' or'} {texts[-1]}"
    if "enum" in schema or "const" in schema:
        names = [str(each) for each in schema.get("enum", [schema.get("const")])]
        return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
    kind = schema.get("type")
    if kind == "array":
        return f"a list of {_plural(allowed(schema['items']))}"
    if kind == "object":
        return "settings by name"
    if kind == "string":
        return "a path" if schema.get("format") == "path" else "text"
    if kind in ("integer", "number"):
        return ("a whole number" if kind == "integer" else "a number") + _range(schema)
    return {"boolean": "true or false", "null": "none"}.get(str(kind), "any value")


def _plural(text: str) -> str:
    head, comma, rest = text.partition(",")
    return f"{head.removeprefix('a ').replace('number', 'numbers')}{comma}{rest}"


def _range(schema: Mapping[str, Any]) -> str:
    low, high = bounds(schema)
    if low and high:
        opening, closing = "[" if "minimum" in schema else "(", "]" if "maximum" in schema else ")"
        return f" in {opening}{low.rpartition(' ')[2]}, {high.rpartition(' ')[2]}{closing}"
    text = low or high
    return f", {text}" if text.startswith("at ") else f" {text}" if text else ""


def bounds(schema: Mapping[str, Any]) -> tuple[str, str]:
    """The least and the greatest number that a JSON Schema allows, in words; empty where there is none."""
    return _bound(schema, minimum="at least", exclusiveMinimum="above"), _bound(
        schema, maximum="at most", exclusiveMaximum="below"
    )


def _bound(schema: Mapping[str, Any], **words: str) -> str:
    return next((f"{text} {schema[key]:g}" for key, text in words.items() if key in schema), "")


def number_of(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a JSON Schema that is about a number, or about the numbers of a list."""
    members: Sequence[Mapping[str, Any]] = [schema, *schema.get("anyOf", ()), schema.get("items", {})]
    return next((each for each in members if each.get("type") in ("integer", "number")), {})
