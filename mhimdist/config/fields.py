"""A class of settings as a flat list: path, kind, default, range and meaning of each setting.

A command line, its help and whatever else shows all settings of a class reads this list.
"""

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo

MISSING: Any = FieldInfo().default
"""The default of a setting that must be given."""


@dataclass(frozen=True)
class Metavar:
    """Name of a setting's value in help, as in `Annotated[Path, Metavar("TABLE")]`."""

    name: str


@dataclass(frozen=True)
class Several:
    """Marks a setting whose option takes several values, separated by spaces; it gets them as a list."""


@dataclass(frozen=True)
class Repeated:
    """Marks a setting whose option may be given several times; it gets the values as a list."""


@dataclass(frozen=True)
class Hidden:
    """Marks a setting that files and Python set, and no option."""


@dataclass(frozen=True)
class Inline:
    """Marks a group of settings that an option names without the name of the group."""


@dataclass(frozen=True)
class Positional:
    """Marks a setting that a command takes by its place, without an option's name."""

    name: str


@dataclass(frozen=True)
class Setting:
    """A setting of a class, or of a class within it.

    Attributes:
        path: its names from the outside in, such as `("train", "model", "hidden_dim")`.
        field: what pydantic knows about it.
        default: its default; `MISSING` if it must be given.
        named: its names on a command line, which leave out those of `Inline` groups.
        variants: the names of the variants, such as bag models, that have it; empty if all have it.
        choices: the values that it takes, if these are few.
    """

    path: tuple[str, ...]
    field: FieldInfo
    default: Any
    named: tuple[str, ...]
    variants: tuple[str, ...] = ()
    choices: tuple[Any, ...] = ()

    @property
    def dotted(self) -> str:
        """Its name in Python and in files, such as `train.model.hidden_dim`."""
        return ".".join(self.path)

    @property
    def option(self) -> str:
        """Its name on a command line, such as `--train.model.hidden-dim`."""
        return f"--{'.'.join(self.named).replace('_', '-')}"

    @property
    def description(self) -> str:
        """What it means, in one sentence without a full stop."""
        return self.field.description or ""

    @cached_property
    def kinds(self) -> tuple[Any, ...]:
        """Its types; of an optional one without None."""
        return tuple(kind for kind in _flat(self.field.annotation) if kind is not type(None))

    @property
    def is_optional(self) -> bool:
        """Whether it may be None."""
        return type(None) in _flat(self.field.annotation)

    @property
    def is_required(self) -> bool:
        """Whether it must be given."""
        return self.default is MISSING

    @property
    def is_flag(self) -> bool:
        """Whether it is only on or off."""
        return self.kinds == (bool,)

    @property
    def is_group(self) -> bool:
        """Whether it holds further settings."""
        return any(_is_model(kind) for kind in self.kinds)

    @property
    def is_mapping(self) -> bool:
        """Whether it has values by name."""
        return any(get_origin(kind) in (dict, Mapping) for kind in self.kinds)

    @property
    def is_list(self) -> bool:
        """Whether it has several values."""
        return any(get_origin(kind) in (tuple, list) for kind in self.kinds)

    @property
    def is_path(self) -> bool:
        """Whether it names a file or a folder."""
        inner = [get_args(kind)[0] for kind in self.kinds if get_origin(kind) in (tuple, list)]
        return Path in (*self.kinds, *inner)

    @property
    def reads_text(self) -> bool:
        """Whether it has a way of its own to read its value from text."""
        return any(isinstance(item, BeforeValidator) for item in self.field.metadata)

    def mark(self, kind: type) -> Any:
        """The mark of this kind, such as `Positional`, that the setting has; None if it has none."""
        return next((item for item in self.field.metadata if isinstance(item, kind)), None)

    @property
    def metavar(self) -> str:
        """The name of its value in help."""
        for kind in (Metavar, Positional):
            if (mark := self.mark(kind)) is not None:
                return str(mark.name)
        if self.is_group:
            return "JSON"
        if self.is_mapping:
            return "NAME=VALUE"
        if self.is_list:
            inner = get_args(next(kind for kind in self.kinds if get_origin(kind) in (tuple, list)))[0]
            return f"{(name := _name(inner))},{name},..."
        return "|".join(dict.fromkeys(_name(kind) for kind in self.kinds))

    @property
    def range(self) -> str:
        """The numbers that it takes, in words; empty if it takes any, or if its description says it."""
        if any(words in self.description for words in ("at least", "above 0", "in [", "in (")):
            return ""
        low = high = ""
        for item in _bounds(self.field):
            for name, words in (("ge", "at least"), ("gt", "above")):
                low = f"{words} {getattr(item, name):g}" if hasattr(item, name) else low
            for name, words in (("le", "at most"), ("lt", "below")):
                high = f"{words} {getattr(item, name):g}" if hasattr(item, name) else high
        return " and ".join(part for part in (low, high) if part)


def settings_of(model: type[BaseModel], defaults: Mapping[str, Any] | None = None) -> list[Setting]:
    """The settings of a class, depth first; a group of settings comes before what it holds.

    Args:
        model: the class.
        defaults: defaults that differ from those of the class, by name.
    """
    return list(_walk({"": model}, None, (), (), defaults or {}))


def variants_of(setting: Setting) -> dict[str, type[BaseModel]]:
    """The classes of a group of settings, by the names that choose among them; one class has the name ""."""
    models = [kind for kind in setting.kinds if _is_model(kind)]
    if len(models) == 1:
        return {"": models[0]}
    tag = setting.field.discriminator
    return {name: model for model in models for name in get_args(model.model_fields[str(tag)].annotation)}


def _walk(
    models: Mapping[str, type[BaseModel]],
    instance: BaseModel | None,
    path: tuple[str, ...],
    named: tuple[str, ...],
    defaults: Mapping[str, Any],
) -> Iterator[Setting]:
    """The settings of one class, or of all variants of a group, each once."""
    own = type(instance) if instance is not None else next(iter(models.values()))
    everyone = [own, *(model for model in dict.fromkeys(models.values()) if model is not own)]
    names = dict.fromkeys(name for model in everyone for name in model.model_fields)
    for name in names:
        holder = next(model for model in everyone if name in model.model_fields)
        field = holder.model_fields[name]
        default = defaults[name] if name in defaults else _default(field)
        if instance is not None and holder is own:
            default = getattr(instance, name)
        having = tuple(tag for tag, model in models.items() if name in model.model_fields)
        choices = tuple(
            dict.fromkeys(
                value
                for model in models.values()
                if name in model.model_fields
                for value in _choices(model.model_fields[name].annotation)
            )
        )
        if any(isinstance(item, Hidden) for item in field.metadata):
            continue
        called = field.alias or name
        setting = Setting(
            (*path, called),
            field,
            default,
            (*named, called),
            () if len(having) == len(models) else having,
            choices,
        )
        yield setting
        if setting.is_group:
            inside = default if isinstance(default, BaseModel) else None
            inner = named if setting.mark(Inline) else setting.named
            yield from _walk(variants_of(setting), inside, setting.path, inner, {})


def _default(field: FieldInfo) -> Any:
    return field.get_default(call_default_factory=True)


def _flat(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, without what only annotates them."""
    if get_origin(annotation) is Annotated:
        return _flat(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(kind for part in get_args(annotation) for kind in _flat(part))
    return (annotation,)


def _bounds(field: FieldInfo) -> Iterator[Any]:
    yield from field.metadata
    for part in get_args(field.annotation):
        if get_origin(part) is Annotated:
            for item in part.__metadata__:
                yield from item.metadata if isinstance(item, FieldInfo) else (item,)


def _choices(annotation: Any) -> tuple[Any, ...]:
    """The values of a setting that has no others; of a list, those of its items."""
    kinds = [kind for kind in _flat(annotation) if kind is not type(None)]
    if not kinds or not all(get_origin(kind) is Literal for kind in kinds):
        return ()
    return tuple(value for kind in kinds for value in get_args(kind))


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _name(kind: Any) -> str:
    (kind,) = _flat(kind) if get_origin(kind) is Annotated else (kind,)
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    return {int: "N", float: "X", Path: "PATH"}.get(kind, "TEXT")
