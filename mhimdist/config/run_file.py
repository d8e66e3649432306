"""Reads a file of settings: nested keys in YAML, each checked, with overrides such as `train.epochs=50`.

Every error names the file, the line, the setting and what would be right.
"""

import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from mhimdist.config.fields import (
    choices_of,
    chosen_by_default,
    file_fields,
    file_settings_of,
    members_of,
    variants_of,
)
from mhimdist.config.file_overrides import apply, in_order
from mhimdist.config.nearest import did_you_mean
from mhimdist.config.options import Options
from mhimdist.config.schedules import Schedule
from mhimdist.config.setting_words import allowed
from mhimdist.config.train import ConfigWarning, TrainConfig, owners
from mhimdist.config.yaml_nodes import MOST_BYTES, Group, Items, Node, Scalar, parse, place, typed
from mhimdist.errors import ConfigError
from mhimdist.foreign_text import one_line

Path_ = tuple[str | int, ...]
Section = Callable[[Any], object]
"""Checks the plain values of a part of a file that is not options; raises `SettingError`."""

_MOST_SHOWN = 8
_MOST_LISTED = 12
_ODD_NUMBER = re.compile(r"[-+]?0([0-9_]+|[xXoObB][0-9a-fA-F_]+)")
_NOT_FINITE = re.compile(r"[-+]?\.?(inf|infinity|nan)", re.IGNORECASE)


class SettingError(ConfigError):
    """A setting of a file is wrong.

    Attributes:
        path: of the setting, below the section that was checked.
        reason: what was expected, and what was got.
    """

    def __init__(self, path: Path_, reason: str) -> None:
        super().__init__(f"{dotted(path)}: {reason}")
        self.path, self.reason = path, reason


def dotted(path: Iterable[str | int]) -> str:
    """A path as messages and overrides write it."""
    return ".".join(map(str, path))


def read(
    path: Path | str,
    overrides: Sequence[str] = (),
    options: type[Options] = Options,
    *,
    sections: Mapping[str, Section] | None = None,
) -> dict[str, Any]:
    """Read the settings that a file and overrides give.

    Args:
        path: of the file.
        overrides: texts such as `train.epochs=50` or `seeds=1,2,3`; they win over the file.
        options: the class that says which settings there are.
        sections: other parts of the file by their key, and what checks each.

    Returns:
        The given settings, nested as in the file, with values of the types that the class has; and the
        sections in plain values. `options.model_validate` makes the options of the settings.

    Raises:
        ConfigError: the file cannot be read, or a setting is unknown, wrong or given twice.
    """
    name = str(path)
    try:
        with Path(path).open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    return read_text(content, overrides, options, name=name, sections=sections)


def read_text(
    content: bytes,
    overrides: Sequence[str],
    options: type[Options],
    *,
    name: str,
    sections: Mapping[str, Section] | None = None,
) -> dict[str, Any]:
    """Read the settings that a text gives, see `read`.

    Args:
        content: the text in UTF-8.
        overrides, options, sections: as in `read`.
        name: of the file, for messages.

    Raises:
        ConfigError: as in `read`.
    """
    root = parse(content, name)
    if isinstance(root, Scalar) and root.is_null:
        root = Group({}, {}, "line 1", 1)
    if not isinstance(root, Group):
        raise ConfigError(f"{name}, {root.where}: expected settings, such as `name: first`, got {said(root)}")
    for changed in in_order(overrides):
        root = apply(root, changed)
    return _Check(name, root, options, sections or {}).settings()


class _Check:
    """Turns a tree into settings, and collects what is wrong with it."""

    def __init__(
        self,
        name: str,
        root: Group,
        options: type[Options],
        sections: Mapping[str, Section],
    ) -> None:
        self._name, self._root, self._options = name, root, options
        self._sections = sections
        self._problems: dict[Path_, list[str]] = {}
        self._got: dict[Path_, Any] = {}

    def settings(self) -> dict[str, Any]:
        root = self._root
        own = {key: node for key, node in root.items.items() if key not in self._sections}
        tree = self._group(Group(own, root.keys, root.where, root.size), self._options, ())
        parts = {key: self._section(key) for key in self._sections if key in root.items}
        self._raise_problems()
        try:
            made = self._options.model_validate(tree)
        except ValidationError as error:
            self._add(error)
        except ConfigError as error:
            self._problem((), str(error))
        except RecursionError:
            self._problem((), "its settings nest too deep")
        self._raise_problems()
        for key, value in made:
            for what in value.without_effect() if isinstance(value, TrainConfig) else ():
                warnings.warn(f"{self._name}: no effect: {key}.{what}", ConfigWarning, stacklevel=4)
        return _given(tree, made) | parts

    def _section(self, key: str) -> Any:
        values = typed(self._root.items[key])
        try:
            self._sections[key](values)
        except SettingError as error:
            self._problem((key, *error.path), error.reason)
        return values

    def _group(self, node: Group, cls: type[BaseModel], path: Path_) -> dict[str, Any]:
        known = file_fields(cls)
        tree: dict[str, Any] = {}
        for key, each in node.items.items():
            if key not in known:
                self._problem((*path, key), self._unknown(key, cls, path))
                continue
            field = cls.model_fields[key]
            groups = variants_of(field)
            if not groups:
                tree[key] = self._value(each, field.annotation, (*path, key), cls)
            elif isinstance(each, Scalar) and each.is_null:
                continue  # its settings are all commented out
            elif isinstance(each, Group):
                tree[key] = self._chosen(each, field, groups, (*path, key))
            elif isinstance(each, Scalar) and issubclass(next(iter(groups.values())), Schedule):
                tree[key] = {"start": self._number(each, (*path, key))}
            else:
                self._problem((*path, key), f"expected settings below it, got {said(each)}")
        return tree

    def _chosen(self, node: Group, field: Any, groups: Mapping[str, type[BaseModel]], path: Path_) -> Any:
        if "" in groups:
            return self._group(node, groups[""], path)
        tag = node.items.get(field.discriminator)
        name = tag.text if isinstance(tag, Scalar) else chosen_by_default(field)
        if name not in groups:
            close = did_you_mean(name, groups)
            self._problem(
                (*path, field.discriminator), f"no {path[-1]} {name!r}{close}; valid: {', '.join(groups)}"
            )
            return {}
        return {field.discriminator: name} | self._group(node, groups[name], path)

    def _unknown(self, key: str, cls: type[BaseModel], path: Path_) -> str:
        valid = [*file_fields(cls), *(() if path else self._sections)]
        leaf = key.rpartition(".")[2].replace("-", "_")
        every = [] if path else [each.name for each in file_settings_of(self._options)]
        deeper = [name for name in every if name == key or name.endswith(f".{leaf}")]
        if deeper:
            return f"unknown key here (did you mean {deeper[0]}, each part on its own level?)"
        below = list(map(str, path[1:])) if path[:1] == ("train",) else []
        if elsewhere := owners(below, key):
            return f"unknown key (it belongs to {elsewhere})"
        close = did_you_mean(key, valid)
        listed = "" if close and len(valid) > _MOST_LISTED else f"; valid here: {', '.join(sorted(valid))}"
        return f"unknown key{close}{listed}"

    def _number(self, node: Scalar, path: Path_) -> Any:
        return self._value(node, float, path, None)

    def _value(self, node: Node, annotation: Any, path: Path_, owner: type[BaseModel] | None) -> Any:
        members = members_of(annotation)
        if isinstance(node, Scalar):
            return self._scalar(node, annotation, members, path)
        if Any in members:
            return typed(node)
        inner = next((each for each in members if get_origin(each) in (tuple, list)), None)
        if isinstance(node, Items) and inner is not None:
            kind = get_args(inner)[0]
            return [self._value(each, kind, (*path, at), None) for at, each in enumerate(node.items)]
        if isinstance(node, Group) and (by_name := [each for each in members if get_origin(each) is dict]):
            kind = get_args(by_name[0])[1]
            return {key: self._value(each, kind, (*path, key), None) for key, each in node.items.items()}
        wanted = allowed(owner.model_json_schema()["properties"][path[-1]]) if owner else "one value"
        self._problem(path, f"expected {wanted}, got {said(node)}")
        return None

    def _scalar(self, node: Scalar, annotation: Any, members: Sequence[Any], path: Path_) -> Any:
        choices = choices_of(annotation)
        text, is_number = node.text, any(each in members for each in (int, float))
        if Any in members:
            return node.value
        is_none = node.is_null or (node.is_plain and text in ("none", "None") and "none" not in choices)
        if type(None) in members and is_none:
            return None
        if inner := next((each for each in members if get_origin(each) is tuple), None):
            kind, texts = get_args(inner)[0], text.strip("[] ").split(",") if text.strip("[] ") else []
            return [
                self._value(Scalar(each.strip(), True, node.where), kind, (*path, at), None)
                for at, each in enumerate(texts)
            ]
        if node.is_null:
            self._problem(path, "expected a value, got nothing")
        elif str in members:
            return node.value if is_number or bool in members else text
        elif is_number and node.is_plain and _ODD_NUMBER.fullmatch(text):
            self._problem(path, f"expected a number in decimal digits without leading zeros, got {text}")
        elif float in members and _NOT_FINITE.fullmatch(text):
            self._problem(path, f"expected a finite number, got {text}")
        elif any(get_origin(each) is dict for each in members):
            self._problem(path, f"expected settings by name, got {said(node)}")
        elif Path in members and text.startswith("~"):
            return _expanded(text)
        elif isinstance(node.value, bool) and not is_number:
            return node.value
        return text

    def _add(self, error: ValidationError) -> None:
        for item in error.errors():
            path = self._path_of(item["loc"], keeps_last=item["type"] == "missing")
            self._problem(path, item["msg"].removeprefix("Value error, "))
            if item["type"] not in ("value_error", "missing") and not _is_secret(self._options, path):
                self._got[path] = item["input"]

    def _path_of(self, loc: Sequence[str | int], *, keeps_last: bool) -> Path_:
        """The path of pydantic's location, without the names of the groups and types that it chose."""
        path: list[str | int] = []
        node: Node | None = self._root
        for at, part in enumerate(loc):
            if isinstance(node, Group) and str(part) in node.items:
                node = node.items[str(part)]
            elif isinstance(node, Items) and isinstance(part, int) and part < len(node.items):
                node = node.items[part]
            elif not (keeps_last and at == len(loc) - 1):
                continue
            path.append(part)
        return tuple(path)

    def _problem(self, path: Path_, reason: str) -> None:
        self._problems.setdefault(path, []).append(reason)

    def _raise_problems(self) -> None:
        if not self._problems:
            return
        lines = []
        for path, reasons in list(self._problems.items())[:_MOST_SHOWN]:
            where = place(self._root, path) if path else ""
            at = where if where.startswith("override") else f"{self._name}{', ' if where else ''}{where}"
            field = f" {one_line(dotted(path), 120)}:" if path else ""
            got = f", got {one_line(self._got[path], 60)}" if path in self._got else ""
            lines.append(f"{at}:{field} {', or '.join(dict.fromkeys(reasons))}{got}")
        if (more := len(self._problems) - _MOST_SHOWN) > 0:
            lines.append(f"and {more} more")
        raise ConfigError("; ".join(lines)) from None


def said(node: Node) -> str:
    """A value in a message."""
    if isinstance(node, Scalar):
        return one_line(repr(node.value), 60)
    return "a list" if isinstance(node, Items) else "settings below it"


def _expanded(text: str) -> Path | str:
    try:
        return Path(text).expanduser()
    except (RuntimeError, ValueError):  # no such user
        return text


def _is_secret(options: type[BaseModel], path: Path_) -> bool:
    field = options.model_fields.get(str(path[0])) if path else None
    return field is not None and not field.repr


def _given(tree: Mapping[str, Any], made: BaseModel) -> dict[str, Any]:
    """The settings of a tree, with the values that the options made of them."""
    found: dict[str, Any] = {}
    for key in tree:
        value = getattr(made, key)
        if isinstance(value, BaseModel):
            value = _given(tree[key], value)
        found[key] = value
    return found
