"""The help of a command: its options in groups, first those that people use first."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
from pydantic import BaseModel

from mhimdist.config.fields import MISSING, Inline, Positional, Setting

if TYPE_CHECKING:
    from mhimdist.config.command_line import OptionsCommand

MAX_WIDTH = 110
TERM_WIDTH = 30
"""Columns of an option's name; the text of a longer one begins on the next line."""
REST = "Options"
GENERAL = (
    ("-q, --quiet", "show results, warnings and errors, but no progress"),
    ("-v, --verbose", "show where an error came from"),
)


def help_page(command: "OptionsCommand", ctx: click.Context, *, shows_all: bool) -> str:
    """The help of a command for a terminal of this width.

    Args:
        command: the command, whose settings are known.
        ctx: of this call.
        shows_all: show all options, not only those in the `FIRST` of the class of settings.
    """
    formatter = click.HelpFormatter(max_width=min(MAX_WIDTH, width() - 1))
    formatter.write(f"{command.get_usage(ctx)}\n\n")
    formatter.write_text(command.about)
    settings = [setting for setting in command.settings if not setting.mark(Inline)]
    first = first_of(command.options)
    shown = [each for each in settings if shows_all or not first or each.dotted in first or _is_needed(each)]
    for title, panel in panels(command.options, shown):
        with formatter.section(title):
            formatter.write_dl([(_term(each), _text(each)) for each in panel], col_max=TERM_WIDTH)
    with formatter.section("Every command"):
        more = [] if shows_all else [("--help-all", _number_left(len(settings) - len(shown)))]
        formatter.write_dl([*more, *GENERAL], col_max=TERM_WIDTH)
    if command.epilog:
        formatter.write_paragraph()
        formatter.write_text(command.epilog)
    return formatter.getvalue().rstrip("\n")


def width() -> int:
    """The width of the terminal in columns."""
    import shutil

    return shutil.get_terminal_size().columns


def first_of(model: type[BaseModel]) -> tuple[str, ...]:
    """The settings that `--help` shows, by their dotted names; empty if it shows all."""
    return getattr(model, "FIRST", ())


def panels(model: type[BaseModel], settings: Sequence[Setting]) -> Iterator[tuple[str, list[Setting]]]:
    """The settings in groups with titles: those that the class names in `PANELS`, then one per group of settings.

    Args:
        model: the class.
        settings: those of its settings that are shown.
    """
    named: Mapping[str, tuple[str, ...]] = getattr(model, "PANELS", {})
    title_of = {name: title for title, names in named.items() for name in names}
    found: dict[str, list[Setting]] = {title: [] for title in named}
    descriptions = {setting.dotted: setting.description for setting in settings}
    for setting in settings:
        if setting.mark(Positional):
            title = "Arguments"
            found = {title: found.get(title, []), **found}
        elif setting.dotted in title_of:
            title = title_of[setting.dotted]
        elif len(setting.named) == 1:
            title = REST
        else:
            group = ".".join(setting.path[: 2 if len(setting.path) > 2 else 1])
            about = descriptions.get(group, "")
            title = f"{group}: {about}" if about else group
        found.setdefault(title, []).append(setting)
    for title, panel in found.items():
        if panel:
            yield title, panel


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
        return "on" if value else "off"
    if value is None:
        return "none" if "none:" in setting.description else ""
    if isinstance(value, tuple | list):
        return ",".join(map(str, value))
    if isinstance(value, dict):
        return ""
    return str(value)
