"""YAML as a tree that knows its lines: what a file says, before anyone decides what it means.

PyYAML finds the tokens. Everything after that is stricter here: a tag, a second document, a key that comes
twice, deep nesting and text that no one sees are refused, and a plain word means what YAML 1.2 says, so that
`no` and `on` are words, `5e-4` is a number, and `010` and `1:30` are neither octal nor minutes.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from mhimdist.errors import ConfigError

MOST_BYTES = 2**18
MOST_DEPTH = 32
MOST_NODES = 20_000
"""Values of a file, each counted as often as aliases repeat it."""

_NULLS = ("", "~", "null", "Null", "NULL")
_SWITCHES = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
_NUMBER = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]{1,4})?")


@dataclass(frozen=True)
class Scalar:
    """One value.

    Attributes:
        text: as it is written, without quotes.
        is_plain: whether it is written without quotes.
        where: such as "line 12".
    """

    text: str
    is_plain: bool
    where: str

    size = 1

    @property
    def value(self) -> Any:
        """What a plain word means: None, a bool, an int or a float; otherwise its text."""
        if not self.is_plain:
            return self.text
        if self.text in _NULLS:
            return None
        if self.text in _SWITCHES:
            return _SWITCHES[self.text]
        if _WHOLE.fullmatch(self.text):
            return int(self.text)
        return float(self.text) if _NUMBER.fullmatch(self.text) else self.text

    @property
    def is_null(self) -> bool:
        """Whether there is no value."""
        return self.is_plain and self.text in _NULLS


@dataclass(frozen=True)
class Items:
    """A list of values."""

    items: tuple["Node", ...]
    where: str
    size: int


@dataclass(frozen=True)
class Group:
    """Values by key, in the order of the file.

    Attributes:
        items: the values by the text of their keys.
        keys: the keys themselves, by their text.
        where: such as "line 12".
        size: how many values there are inside.
    """

    items: dict[str, "Node"]
    keys: dict[str, Scalar]
    where: str
    size: int


Node = Scalar | Items | Group


def parse(content: bytes, name: str, where: str | None = None) -> Node:
    """The tree of a YAML text.

    Args:
        content: the text in UTF-8.
        name: of the file, for messages.
        where: what stands for the line in messages if the text is not a file's.

    Raises:
        ConfigError: it is not YAML in UTF-8, is too large or too deep, or holds what a file of settings must
            not hold: a tag, a second document, a key twice, a control character.
    """
    if len(content) > MOST_BYTES:
        raise ConfigError(f"{name}: expected at most {MOST_BYTES // 1024} KiB of settings, got more")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{name}, line {line}: expected UTF-8, got the byte 0x{content[error.start]:02x}: save the file "
            "as UTF-8"
        ) from None
    try:
        return _Builder(name, where).build(yaml.parse(text, Loader=yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = where or (f"line {mark.line + 1}" if mark else "a line")
        said = " ".join(filter(None, (error.context, error.problem)))
        raise ConfigError(f"{name}, {at}: not YAML: {said}") from None
    except yaml.reader.ReaderError as error:
        at = where or f"line {text.count(chr(10), 0, error.position) + 1}"
        raise ConfigError(f"{name}, {at}: not YAML: {error.reason}") from None
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        # PyYAML lets Python's own errors out for an escape such as "\UFFFFFFFF".
        raise ConfigError(f"{name}: not YAML: {' '.join(str(error).split())}") from None


class _Builder:
    """Makes the tree of PyYAML's events."""

    def __init__(self, name: str, where: str | None) -> None:
        self._name, self._where = name, where
        self._anchors: dict[str, Node] = {}

    def build(self, events: Iterator[Any]) -> Node:
        self._events = events
        root: Node | None = None
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                if root is not None:
                    raise self._error(event, "expected one document, got a second one behind ---")
                root = self._node(next(events), 0)
        return root or Scalar("", True, self._where or "line 1")

    def _node(self, event: Any, depth: int) -> Node:
        if depth > MOST_DEPTH:
            raise self._error(event, f"expected at most {MOST_DEPTH} levels of nesting, got more")
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._anchors:
                raise self._error(event, f"the alias *{event.anchor} has no anchor before it")
            return self._anchors[event.anchor]
        if event.tag is not None:
            raise self._error(
                event, f"expected a value without a tag, got {event.tag}: write the value itself"
            )
        made: Node
        if isinstance(event, yaml.ScalarEvent):
            made = self._scalar(event)
        elif isinstance(event, yaml.SequenceStartEvent):
            made = self._items(event, depth)
        else:
            made = self._group(event, depth)
        if event.anchor is not None:  # only now, so that nothing holds itself
            self._anchors[event.anchor] = made
        return made

    def _scalar(self, event: Any) -> Scalar:
        for letter in event.value:
            if unicodedata.category(letter) in ("Cc", "Cs") and letter not in "\n\t":
                raise self._error(event, f"expected visible text, got the character U+{ord(letter):04X}")
        return Scalar(event.value, event.style is None, self._at(event))

    def _items(self, start: Any, depth: int) -> Items:
        found: list[Node] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            found.append(self._node(event, depth + 1))
        return Items(tuple(found), self._at(start), self._size(start, found))

    def _group(self, start: Any, depth: int) -> Group:
        items: dict[str, Node] = {}
        keys: dict[str, Scalar] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._node(event, depth + 1)
            if not isinstance(key, Scalar):
                raise self._error(event, "expected a name before the colon, got a list or a group")
            if key.text == "<<" and key.is_plain:
                raise self._error(event, "merge keys (<<) are not read: write the settings themselves")
            if key.text in items:
                raise self._error(
                    event, f"{key.text} comes twice, first in {keys[key.text].where}: leave one of them"
                )
            keys[key.text] = key
            items[key.text] = self._node(next(self._events), depth + 1)
        return Group(items, keys, self._at(start), self._size(start, items.values()))

    def _size(self, event: Any, found: Any) -> int:
        size = 1 + sum(node.size for node in found)
        if size > MOST_NODES:
            raise self._error(event, f"expected at most {MOST_NODES:,} values, aliases included, got more")
        return size

    def _at(self, event: Any) -> str:
        return self._where or f"line {event.start_mark.line + 1}"

    def _error(self, event: Any, said: str) -> ConfigError:
        return ConfigError(f"{self._name}, {self._at(event)}: {said}")


def typed(node: Node) -> Any:
    """The plain Python value of a tree: dicts, lists, texts, numbers, bools and None."""
    if isinstance(node, Scalar):
        return node.value
    if isinstance(node, Items):
        return [typed(each) for each in node.items]
    return {key: typed(each) for key, each in node.items.items()}


def place(node: Node, path: Sequence[str | int]) -> str:
    """Where the last part of a path is that the tree holds, such as "line 12"."""
    where = node.where
    for part in path:
        if isinstance(node, Group) and str(part) in node.items:
            where = node.keys[str(part)].where
            node = node.items[str(part)]
        elif isinstance(node, Items) and isinstance(part, int) and part < len(node.items):
            node = node.items[part]
            where = node.where
        else:
            break
    return where
