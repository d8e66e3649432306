"""Writes options as a YAML file for people: every setting with its meaning, range and default.

What differs from its default is live, and so is what people change first. The rest is there with a `#` before
it: remove the `#`, and the line counts.
"""

import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from mhimdist.config.fields import Setting, chosen_by_default, file_fields, file_settings_of, variants_of
from mhimdist.config.option_groups import GROUPS
from mhimdist.config.options import Options

WIDTH = 100
_WHOLE_WORDS: Any = {"break_long_words": False, "break_on_hyphens": False}
_END = "(a group ends)"
"""Stands where a blank line separates a group from what follows."""


class Commented:
    """Writes one file.

    Attributes:
        options: the options to write.
        first: dotted paths of settings that are live even with their defaults.
    """

    def __init__(self, options: Options, *, first: Collection[str] = ()) -> None:
        self.options, self.first = options, first
        chosen = {".".join(path): name for path, name in _choices(options)}
        self._choosing = {f"{path}.name" for path in chosen}
        self._settings = {each.name: each for each in file_settings_of(type(options), chosen)}
        self._told: set[tuple[str, str]] = set()

    def lines(self, sections: Mapping[str, Sequence[str]] | None = None) -> list[str]:
        """The file's lines without its head.

        Args:
            sections: lines of parts that are no options, by the heading that they follow.
        """
        fields = file_fields(type(self.options))
        lines: list[str] = []
        for title, names in GROUPS.items():
            if here := [name for name in names if name in fields]:
                lines += heading(title)
                for name in here:
                    lines += self._field(self.options, name, (name,), 0)
                lines = [line for line in lines if line != _END]
            lines += (sections or {}).get(title, ())
        return lines

    def _field(self, owner: BaseModel, name: str, path: tuple[str, ...], depth: int) -> list[str]:
        field, value = type(owner).model_fields[name], getattr(owner, name)
        if isinstance(value, BaseModel):
            return self._group(value, field, path, depth)
        return self._one(self._settings[".".join(path)], value, depth)

    def _group(self, value: BaseModel, field: Any, path: tuple[str, ...], depth: int) -> list[str]:
        indent = "  " * depth
        lines = ["", *self._comment(_sentence(field.description or ""), depth), f"{indent}{path[-1]}:"]
        if len(names := variants_of(field)) > 1:
            lines += self._comment(
                f"One of {', '.join(names)}. Each has its own settings, see docs/settings.md.", depth + 1
            )
            self._told.add((type(value).model_fields["name"].description or "", "name"))
        for name in type(value).model_fields:
            if lines[-1] == _END:
                lines[-1] = ""
            inner = self._field(value, name, (*path, name), depth + 1)
            lines += inner[1:] if inner[0] == "" and lines[-1] in ("", f"{indent}{path[-1]}:") else inner
        return [*lines, _END] if lines[-1] != _END else lines

    def _one(self, setting: Setting, value: Any, depth: int) -> list[str]:
        indent, key = "  " * depth, setting.path[-1]
        told = (setting.description, key)
        is_default = value == setting.default
        lines = []
        if told not in self._told:
            lines = self._comment(explained(setting, names_default=not is_default), depth)
        self._told.add(told)
        if lines and depth == 0:
            lines = ["", *lines]
        is_live = not is_default or setting.name in self.first or setting.name in self._choosing
        shown = "~/mhimdist" if key == "home" and is_default else written(value)
        return [*lines, f"{indent}{'' if is_live else '#'}{key}: {shown}"]

    def _comment(self, text: str, depth: int) -> list[str]:
        return comment(text, "  " * depth)


def comment(text: str, indent: str = "") -> list[str]:
    """A text as lines of a comment."""
    return [f"{indent}# {line}" for line in textwrap.wrap(text, WIDTH - 2 - len(indent), **_WHOLE_WORDS)]


def explained(setting: Setting, *, names_default: bool) -> str:
    """A setting's meaning, and in brackets its type, range and unit.

    Args:
        setting: the setting.
        names_default: whether the default is in the brackets too.
    """
    facts = [setting.allowed, setting.unit]
    if setting.default_text or names_default:
        facts.append(f"default {setting.default_text or written(setting.default)}")
    return f"{_sentence(setting.meaning)} [{'; '.join(filter(None, facts))}]"


def written(value: Any) -> str:
    """A value as YAML that every reader of YAML 1.1 and 1.2 reads as the same value."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return number(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str | Path):
        return word(str(value))
    if isinstance(value, Mapping):
        inner = (f"{word(str(key))}: {_item(each)}" for key, each in value.items())
        return f"{{{', '.join(inner)}}}"
    return f"[{', '.join(map(_item, value))}]"


def _item(value: Any) -> str:
    return "null" if value is None else written(value)


def number(value: float) -> str:
    """A number with a point before its exponent, without which YAML 1.1 reads a text."""
    text = repr(value)
    mantissa, e, exponent = text.partition("e")
    return f"{mantissa if '.' in mantissa else f'{mantissa}.0'}e{exponent}" if e else text


def word(text: str) -> str:
    """A text, in quotes where it would otherwise be read as something else."""
    if text in ("none", "None"):  # a choice in some settings; in the others it stands for nothing
        return text
    quoted = yaml.safe_dump(text, allow_unicode=True, width=10**9, default_flow_style=True)
    line = quoted.removesuffix("\n").removesuffix("\n...")
    if "\n" in line or (any(letter in line for letter in ",[]{}") and not line.startswith(("'", '"'))):
        line = yaml.safe_dump(text, default_style='"', width=10**9).removesuffix("\n")
    return line


def _choices(value: BaseModel, above: tuple[str, ...] = ()) -> Iterable[tuple[tuple[str, ...], str]]:
    for name, field in type(value).model_fields.items():
        inner = getattr(value, name)
        if isinstance(inner, BaseModel):
            if chosen_by_default(field):
                yield (*above, name), getattr(inner, str(field.discriminator))
            yield from _choices(inner, (*above, name))


def _sentence(text: str) -> str:
    if not text.partition(" ")[0].endswith(":"):  # the name of a choice
        text = text[:1].upper() + text[1:]
    return text if text.endswith(".") else f"{text}."


def heading(title: str) -> list[str]:
    """The line above a group of options."""
    return ["", f"# ---- {title} ".ljust(WIDTH, "-")]


def head(title: str, usage: Sequence[str], schema: str) -> list[str]:
    """The first lines of a file: what it is, how it is used, and the schema for editors."""
    return [
        f"# yaml-language-server: $schema={schema}",
        "",
        *comment(title),
        "#",
        *(f"#     {line}" for line in usage),
    ]
