"""The help of a command: its options in groups, first those that people use first."""

import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
from pydantic import BaseModel

from mhimdist.config.fields import MISSING, Inline, Positional, Setting, settings_of

if TYPE_CHECKING:
    from mhimdist.config.command_line import OptionsCommand

MAX_WIDTH = 110
TERM_WIDTH = 24
"""Columns of an option's name; the text of a longer one begins on the next line."""
REST = "Options"
GENERAL = (
    ("-q, --quiet", "show results, warnings and errors, but no progress"),
    ("-v, --verbose", "show where an error came from"),
    ("-h, --help", "show this page"),
)


def help_page(command: "OptionsCommand", ctx: click.Context, *, shows_all: bool) -> str:
    """The help of a command for a terminal of this width.

    Args:
        command: the command, whose settings are known.
        ctx: of this call.
        shows_all: show all options, not only those in the `FIRST` of the class of settings.
    """
    columns = min(MAX_WIDTH, width())
    settings = [setting for setting in command.settings if not setting.mark(Inline)]
    first = first_of(command.options)
    shown = [each for each in settings if shows_all or not first or each.name in first or _is_needed(each)]
    parts = [command.get_usage(ctx), *_wrapped(command.about, columns)]
    for title, all_of_panel in panels(command.options, settings):
        if not (panel := [each for each in all_of_panel if each in shown]):
            continue
        parts.append("\n".join([f"{title}:", *rows([(_term(each), _text(each)) for each in panel], columns)]))
    left = len(settings) - len(shown)
    more = [("--help-all", f"show the other {left} options, too")] if left else []
    parts.append("\n".join(["Every command:", *rows([*more, *GENERAL], columns)]))
    if command.epilog:
        parts += _wrapped(command.epilog, columns)
    return "\n\n".join(parts)


def rows(pairs: Sequence[tuple[str, str]], columns: int) -> list[str]:
    """Lines of terms with their texts beside them, or below a term that is too long.

    Args:
        pairs: the terms and texts.
        columns: the width of the terminal.
    """
    indent = min(TERM_WIDTH, 3 + max(len(term) for term, _ in pairs))
    lines = []
    for term, text in pairs:
        head = f"  {term}"
        body = textwrap.wrap(text, columns - indent - 3, break_on_hyphens=False, break_long_words=False)
        if len(head) >= indent + 2:
            lines.append(head)
            head = ""
        lines += [f"{'' if i else head:<{indent + 2}}{line}" for i, line in enumerate(body or [""])]
    return lines


def _wrapped(text: str, columns: int) -> list[str]:
    """The paragraphs of a text."""
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
    return [textwrap.fill(part, columns - 1, break_on_hyphens=False) for part in paragraphs if part]


def width() -> int:
    """The width of the terminal in columns."""
    return shutil.get_terminal_size().columns


def first_of(model: type[BaseModel]) -> tuple[str, ...]:
    """The settings that `--help` shows, by their dotted names; empty if it shows all."""
    return getattr(model, "FIRST", ())


def panels(model: type[BaseModel], settings: Sequence[Setting]) -> Iterator[tuple[str, list[Setting]]]:
    """The settings in groups with titles: those of `PANELS`, then one for each group of settings.

    Args:
        model: the class.
        settings: its settings.
    """
    named: Mapping[str, tuple[str, ...]] = getattr(model, "PANELS", {})
    title_of = {name: title for title, names in named.items() for name in names}
    found: dict[str, list[Setting]] = {title: [] for title in named}
    descriptions = {each.name: each.description.partition(";")[0] for each in settings_of(model)}
    for setting in settings:
        if setting.mark(Positional):
            title = "Arguments"
            found = {title: found.get(title, []), **found}
        elif setting.name in title_of and not setting.is_group:
            title = title_of[setting.name]
        elif len(setting.named) == 1 and not setting.is_group:
            title = REST
        else:
            depth = 2 if len(setting.path) > 2 or (len(setting.path) == 2 and setting.is_group) else 1
            group = ".".join(setting.path[:depth])
            about = descriptions.get(group, "")
            title = f"{group}, {about}" if about else group
        found.setdefault(title, []).append(setting)
    for title, panel in found.items():
        order = named.get(title, ())
        yield title, sorted(panel, key=lambda each: order.index(each.name) if each.name in order else 0)


def _is_needed(setting: Setting) -> bool:
    return setting.is_required and len(setting.path) == 1


def _number_left(number: int) -> str:
    return f"show {number} more options" if number else "show this, too"


def _term(setting: Setting) -> str:
    if (place := setting.mark(Positional)) is not None:
        return f"{place.name}{'...' if setting.is_list else ''}"
    if setting.is_flag:
        return f"{setting.option} / --no-{setting.option[2:]}" if setting.default else setting.option
    if setting.choices and not setting.is_list:
        return f"{setting.option} {'|'.join(map(str, setting.choices))}"
    return f"{setting.option} {setting.metavar}"


def _text(setting: Setting) -> str:
    """What a setting means, its default and its range."""
    if setting.is_group:
        return "several of these at once"
    text = setting.description
    if setting.variants:
        text += f"; for {', '.join(setting.variants)}"
    default = _default(setting)
    if default and "(default:" not in text:
        text += f" (default: {default})"
    if setting.is_required and not setting.mark(Positional):
        text += " (required)"
    if setting.range:
        text += f", {setting.range}" if default else f" ({setting.range})"
    return text


def _default(setting: Setting) -> str:
    value: Any = setting.default
    if setting.is_group or value is MISSING or setting.mark(Positional):
        return ""
    if setting.is_flag:
        return "on" if value else ""
    if value is None:
        return "none" if "none:" in setting.description else ""
    if isinstance(value, tuple | list):
        return ",".join(map(str, value))
    if isinstance(value, dict):
        return ""
    return str(value)
