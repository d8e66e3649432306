"""Every setting of a class of options: path, meaning, unit, range and default.

The commented files, the JSON Schema's descriptions and the page of settings are all made of this list.
"""

import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

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


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        path: from the root of the options.
        meaning: what it means, in the words of a file.
        allowed: type and range, such as "whole number, at least 1".
        unit: what its number counts; empty if there is none.
        default: the value if nobody sets it.
        default_text: the default in words where it depends on the machine; otherwise empty.
        choice: which choice of which group has it, such as "model abmil"; empty for all others.
        field: pydantic's description.
    """

    path: tuple[str, ...]
    meaning: str
    allowed: str
    unit: str
    default: Any
    default_text: str
    choice: str
    field: FieldInfo

    @property
    def name(self) -> str:
        """The dotted path."""
        return ".".join(self.path)


def groups_of(field: FieldInfo) -> dict[str, type[BaseModel]]:
    """The groups of settings that a field can hold, by the name that chooses them; empty for one value.

    A field that leaves no choice has its group under "".
    """
    annotation = field.annotation
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {"": annotation}
    if field.discriminator is None:
        return {}
    found = {}
    for member in get_args(annotation):
        for name in get_args(member.model_fields[field.discriminator].annotation):
            found[name] = member
    default = chosen_by_default(field)
    return {default: found[default], **found}


def chosen_by_default(field: FieldInfo) -> str:
    """The name of the group that a field holds if nobody chooses; "" if there is no choice."""
    return getattr(field.default, str(field.discriminator)) if field.discriminator else ""


def settings_of(
    options: type[BaseModel], chosen: Mapping[str, str] | None = None, *, hidden: tuple[str, ...] = ()
) -> Iterator[Setting]:
    """Every setting of a class of options, in the order of its fields.

    Args:
        options: the class.
        chosen: the name of the group to list where there is a choice, by the path of the field; None: all.
        hidden: fields of the class that a file does not set.
    """
    for name, field in options.model_fields.items():
        if name not in hidden:
            yield from _settings(options, (name,), field, chosen, "")


def _settings(
    owner: type[BaseModel],
    path: tuple[str, ...],
    field: FieldInfo,
    chosen: Mapping[str, str] | None,
    choice: str,
) -> Iterator[Setting]:
    groups = groups_of(field)
    if not groups:
        yield _setting(owner, path, field, choice)
        return
    if chosen is not None and "" not in groups:
        name = chosen.get(".".join(path), chosen_by_default(field))
        groups = {name: groups[name]}
    by_class: dict[type[BaseModel], list[str]] = {}
    for name, group in groups.items():
        by_class.setdefault(group, []).append(name)
    defaults = field.default
    for group, names in by_class.items():
        of = f"{path[-1]} {' or '.join(names)}" if names != [""] else choice
        for inner, each in group.model_fields.items():
            own = each
            if isinstance(defaults, group):  # such as a momentum, whose schedule starts elsewhere
                own = _with_default(each, getattr(defaults, inner))
            yield from _settings(group, (*path, inner), own, chosen, of)


def _with_default(field: FieldInfo, value: Any) -> FieldInfo:
    made = FieldInfo.merge_field_infos(field)
    made.default, made.default_factory = value, None
    return made


def _setting(owner: type[BaseModel], path: tuple[str, ...], field: FieldInfo, choice: str) -> Setting:
    described = field.description or ""
    found = _DEFAULT_TEXT.search(described)
    kind = allowed(_schema(owner)[path[-1]])
    default = None if field.is_required() or field.default_factory else field.default
    return Setting(
        path,
        in_file_words(_DEFAULT_TEXT.sub("", described)),
        kind,
        UNITS.get(path[-1], "") if "number" in kind else "",
        default,
        found[1] if found else "",
        choice,
        field,
    )


@cache
def _schema(owner: type[BaseModel]) -> dict[str, Any]:
    return owner.model_json_schema()["properties"]


def in_file_words(text: str) -> str:
    """A description with the names that settings have in a file: `bags_per_step`, not `--bags-per-step`."""
    known = _known_names()

    def renamed(found: re.Match[str]) -> str:
        name = found[0].removeprefix("--").replace("-", "_")
        return name if found[0].startswith("--") or name in known else found[0]

    return _KEBAB.sub(renamed, text)


def _known_names() -> frozenset[str]:
    return frozenset(UNITS)


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
    least, most = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    has_low, has_high = least is not None or above is not None, most is not None or below is not None
    if has_low and has_high:
        opening, closing = ("[" if above is None else "("), ("]" if below is None else ")")
        low, high = (least if above is None else above), (most if below is None else below)
        return f" in {opening}{low:g}, {high:g}{closing}"
    if has_low:
        return f", at least {least:g}" if above is None else f" above {above:g}"
    if has_high:
        return f", at most {most:g}" if below is None else f" below {below:g}"
    return ""


def members_of(annotation: Any) -> list[Any]:
    """The types that an annotation unites, without their conditions."""
    if get_origin(annotation) is Annotated:
        return members_of(get_args(annotation)[0])
    if get_origin(annotation) is Union or type(annotation).__name__ == "UnionType":
        return [each for member in get_args(annotation) for each in members_of(member)]
    return [annotation]


def choices_of(annotation: Any) -> list[Any]:
    """The words that an annotation lists."""
    members = members_of(annotation)
    return [word for each in members if get_origin(each) is Literal for word in get_args(each)]


def wrapped(text: str, width: int) -> list[str]:
    """A text on lines of at most this many characters."""
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
