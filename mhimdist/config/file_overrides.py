"""Overrides of a file's settings: texts such as `train.epochs=50` or `space.loss.alpha.log=true`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mhimdist.config.yaml_nodes import MOST_DEPTH, Group, Items, Node, Scalar, parse
from mhimdist.errors import ConfigError
from mhimdist.foreign_text import one_line

_NAMES = (("model", "name"), ("task", "name"))
"""The settings that choose a group; a change drops the settings of the old one."""


@dataclass(frozen=True)
class Override:
    """One override.

    Attributes:
        text: as it was given.
        path: the parts of its name.
        value: what it sets.
    """

    text: str
    path: tuple[str, ...]
    value: Node

    @property
    def chooses(self) -> bool:
        """Whether it chooses a model or a task."""
        return self.path[-2:] in _NAMES


def in_order(texts: Sequence[str]) -> list[Override]:
    """The overrides that texts state; those that choose a model or a task come first.

    Raises:
        ConfigError: a text is not an override, or two set the same.
    """
    found: dict[tuple[str, ...], Override] = {}
    for text in texts:
        each = _of(text)
        if each.path in found:
            raise ConfigError(
                f"override {one_line(text, 80)}: {found[each.path].text} sets the same: leave one of them"
            )
        found[each.path] = each
    return sorted(found.values(), key=lambda each: not each.chooses)


def _of(text: str) -> Override:
    name, equals, value = text.partition("=")
    path = tuple(part.strip() for part in name.strip().split("."))
    if not equals or not all(path):
        raise ConfigError(
            f"override {one_line(text, 80)!r}: expected a setting and its value, such as train.epochs=50"
        )
    if len(path) > MOST_DEPTH:
        raise ConfigError(f"override {one_line(text, 80)}: its name has too many parts")
    where = f"override {one_line(text, 80)}"
    value = value.strip()
    if value[:1] in ("[", "{", '"', "'"):
        node = parse(value.encode("utf-8", "replace"), where, where)
    else:  # a plain word, whatever its letters mean in YAML
        node = Scalar(value, True, where)
    return Override(text, path, node)


def apply(root: Group, override: Override) -> Group:
    """The tree with the value of an override.

    Raises:
        ConfigError: something above it is one value, or a list has no such place.
    """
    changed = _set(root, override.path, override, ())
    assert isinstance(changed, Group), "a path has at least one part, and a group stays one"
    return changed


def _set(node: Node, path: tuple[str, ...], override: Override, above: tuple[str, ...]) -> Node:
    if not path:
        return override.value
    where = override.value.where
    if isinstance(node, Items):
        at = int(path[0]) if path[0].isascii() and path[0].isdigit() and len(path[0]) < 7 else None
        if at is None or at >= len(node.items):
            raise ConfigError(
                f"{where}: {'.'.join(above)} is a list of {len(node.items)}, numbered from 0; it has no "
                f"{one_line(path[0], 40)}"
            )
        items = list(node.items)
        items[at] = _set(items[at], path[1:], override, (*above, path[0]))
        return replace(node, items=tuple(items))
    if isinstance(node, Scalar):
        if not node.is_null:
            raise ConfigError(
                f"{where}: {'.'.join(above)} is one value, {one_line(node.text, 40)} ({node.where}), with "
                "nothing below it"
            )
        node = Group({}, {}, where, 1)
    key, rest = _next(node, path)
    inner = node.items.get(key, Scalar("", True, where))
    items_of, keys = dict(node.items), dict(node.keys)
    if override.chooses and not rest and key == "name" and _text(inner) != _text(override.value):
        items_of, keys = {}, {}
    items_of[key] = _set(inner, rest, override, (*above, key))
    if key not in keys or not rest:
        keys[key] = Scalar(key, True, where)
    return replace(node, items=items_of, keys=keys)


def _next(node: Group, path: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """The key that a path names next, which may hold dots, and the rest of the path."""
    for length in range(len(path), 0, -1):
        for key in (".".join(path[:length]), ".".join(path[:length]).replace("-", "_")):
            if key in node.items:
                return key, path[length:]
    return path[0].replace("-", "_"), path[1:]


def _text(node: Node) -> str | None:
    return node.text if isinstance(node, Scalar) else None
