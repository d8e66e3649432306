"""A class of settings as a flat list: path, kind, default, range and meaning of each setting.

Command lines and their help read it, and so do files, their schema and the page of settings.
"""

import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo

from mhimdist.config import setting_words

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
class NotInFile:
    """Marks an option that a file does not have, because the file states what it chooses."""


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
        owner: the class that has it.
        default: its default; `MISSING` if it must be given.
        named: its names on a command line, which leave out those of `Inline` groups.
        variants: the names of the variants, such as bag models, that have it; empty if all have it.
        choices: the values that it takes, if these are few.
    """

    path: tuple[str, ...]
    field: FieldInfo
    owner: type[BaseModel]
    default: Any
    named: tuple[str, ...]
    variants: tuple[str, ...] = ()
    choices: tuple[Any, ...] = ()

    @property
    def name(self) -> str:
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
        return tuple(kind for kind in members_of(self.field.annotation) if kind is not type(None))

    @property
    def is_optional(self) -> bool:
        """Whether it may be None."""
        return type(None) in members_of(self.field.annotation)

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
        return " and ".join(filter(None, setting_words.bounds(setting_words.number_of(self._schema))))

    @property
    def meaning(self) -> str:
        """What it means, in the words of a file."""
        return setting_words.meaning(self.description)

    @property
    def default_text(self) -> str:
        """Its default in words, where it depends on the machine; otherwise empty."""
        return setting_words.default_text(self.description)

    @property
    def allowed(self) -> str:
        """Its type and range, such as "a whole number, at least 1"."""
        return setting_words.allowed(self._schema)

    @property
    def unit(self) -> str:
        """What its number counts; empty if it has none."""
        return setting_words.UNITS.get(self.path[-1], "") if "number" in self.allowed else ""

    @property
    def _schema(self) -> Mapping[str, Any]:
        return _properties(self.owner).get(self.path[-1], {})


@cache
def _properties(owner: type[BaseModel]) -> dict[str, Any]:
    properties: dict[str, Any] = owner.model_json_schema()["properties"]
    return properties


def settings_of(model: type[BaseModel], defaults: Mapping[str, Any] | None = None) -> list[Setting]:
    """The settings of a class for a command line, depth first; a group comes before what it holds.

    What several variants of a group have is listed once.

    Args:
        model: the class.
        defaults: defaults that differ from those of the class, by name.
    """
    walk = _Walk(Hidden, lambda path, variants, names: [(variants, ())])
    return list(walk.of({"": model}, None, defaults=defaults or {}))


def file_settings_of(model: type[BaseModel], chosen: Mapping[str, str] | None = None) -> list[Setting]:
    """The settings of a class for a file, without the groups themselves.

    Each variant of a group has its own, those of the default first.

    Args:
        model: the class.
        chosen: the name of the variant to list, by the path of the group; None: all.
    """

    def apart(path: tuple[str, ...], variants: Variants, names: tuple[str, ...]) -> list[_Part]:
        if "" in variants:
            return [(variants, names)]
        if chosen is not None:
            name = chosen.get(".".join(path), next(iter(variants)))
            variants = {name: variants[name]}
        classes = dict.fromkeys(variants.values())
        parts = [{name: each for name, each in variants.items() if each is one} for one in classes]
        return [(part, tuple(part)) for part in parts]

    walk = _Walk(NotInFile, apart)
    return [each for each in walk.of({"": model}, None) if not each.is_group]


def file_fields(model: type[BaseModel]) -> list[str]:
    """The names of a class's own fields that a file has."""
    return [name for name, field in model.model_fields.items() if not _has(field, NotInFile)]


def variants_of(field: FieldInfo) -> "Variants":
    """The classes of a group of settings, by the names that choose among them; the default's comes first.

    A group without a choice has the name ""; a field of one value has none.
    """
    models = [kind for kind in members_of(field.annotation) if _is_model(kind)]
    if len(models) < 2:
        return {"": models[0]} if models else {}
    tag = str(field.discriminator)
    found = {name: model for model in models for name in get_args(model.model_fields[tag].annotation)}
    default = chosen_by_default(field)
    return {default: found[default], **found}


def chosen_by_default(field: FieldInfo) -> str:
    """The name of the variant that a field holds if nobody chooses; "" if there is no choice."""
    return getattr(field.default, str(field.discriminator)) if field.discriminator else ""


Variants = dict[str, type[BaseModel]]
_Part = tuple[Variants, tuple[str, ...]]
"""Variants that are listed together, and the names of those to which their settings belong; none: all."""


@dataclass(frozen=True)
class _Walk:
    """The way through a class of settings.

    Attributes:
        left_out: the mark of the settings that are left out.
        split: divides the variants of the group at a path, whose own names are given, into parts.
    """

    left_out: type
    split: Callable[[tuple[str, ...], Variants, tuple[str, ...]], list[_Part]]

    def of(
        self,
        models: Variants,
        instance: BaseModel | None,
        *,
        path: tuple[str, ...] = (),
        named: tuple[str, ...] = (),
        variants: tuple[str, ...] = (),
        defaults: Mapping[str, Any] | None = None,
    ) -> Iterator[Setting]:
        """The settings of one class, or of several variants of a group, each once."""
        own = next(iter(models.values()))
        if instance is not None and isinstance(instance, tuple(models.values())):
            own = type(instance)
        everyone = [own, *(model for model in dict.fromkeys(models.values()) if model is not own)]
        for name in dict.fromkeys(name for model in everyone for name in model.model_fields):
            holder = next(model for model in everyone if name in model.model_fields)
            field = holder.model_fields[name]
            if _has(field, self.left_out):
                continue
            default = field.get_default(call_default_factory=True)
            if isinstance(instance, holder):
                default = getattr(instance, name)
            same = {tag: m.model_fields[name] for tag, m in models.items() if name in m.model_fields}
            choices = (value for each in same.values() for value in _choices(each.annotation))
            called = field.alias or name
            setting = Setting(
                path=(*path, called),
                field=field,
                owner=holder,
                default=default if defaults is None else defaults.get(name, default),
                named=(*named, called),
                variants=variants if len(same) == len(models) else tuple(same),
                choices=tuple(dict.fromkeys(choices)),
            )
            yield setting
            if setting.is_group:
                yield from self._inside(setting)

    def _inside(self, group: Setting) -> Iterator[Setting]:
        instance = group.default if isinstance(group.default, BaseModel) else None
        named = group.named[:-1] if group.mark(Inline) else group.named
        for models, variants in self.split(group.path, variants_of(group.field), group.variants):
            yield from self.of(models, instance, path=group.path, named=named, variants=variants)


def _has(field: FieldInfo, mark: type) -> bool:
    return any(isinstance(item, mark) for item in field.metadata)


def members_of(annotation: Any) -> tuple[Any, ...]:
    """The types that an annotation unites, without their conditions."""
    if get_origin(annotation) is Annotated:
        return members_of(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(kind for part in get_args(annotation) for kind in members_of(part))
    return (annotation,)


def choices_of(annotation: Any) -> tuple[Any, ...]:
    """The words that an annotation lists."""
    literals = [kind for kind in members_of(annotation) if get_origin(kind) is Literal]
    return tuple(value for kind in literals for value in get_args(kind))


def _choices(annotation: Any) -> tuple[Any, ...]:
    """The values of a setting that has no others."""
    kinds = [kind for kind in members_of(annotation) if kind is not type(None)]
    return choices_of(annotation) if all(get_origin(kind) is Literal for kind in kinds) else ()


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _name(kind: Any) -> str:
    (kind,) = members_of(kind) if get_origin(kind) is Annotated else (kind,)
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    return {int: "N", float: "X", Path: "PATH"}.get(kind, "TEXT")
