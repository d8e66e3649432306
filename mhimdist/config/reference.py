"""The page of settings: tables of every setting with its meaning, unit, range and default."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mhimdist.config.commented import written
from mhimdist.config.fields import Setting, file_settings_of
from mhimdist.config.option_groups import GROUPS
from mhimdist.config.options import Options

_INTRODUCTION = """\
# Settings

Every setting of a [file](files.md), with its meaning, unit, range and default. On a command line, a setting
has two dashes before it and dashes between its words: `train.bags_per_step` is `--train.bags-per-step`. The
settings of training are the same for all commands and come first.

This page is made from the settings themselves: `mhimdist config settings > docs/settings.md`.
"""


class Part(NamedTuple):
    """Options of one or several commands.

    Attributes:
        title: the heading.
        options: the class.
        commands: the commands in words.
    """

    title: str
    options: type[Options]
    commands: str


def reference(parts: Sequence[Part]) -> str:
    """The page in Markdown."""
    lines = [_INTRODUCTION, "## Training", ""]
    every = file_settings_of(parts[0].options)
    training = [each for each in every if each.path[0] == "train"]
    for title, settings in _by_group(training).items():
        lines += [f"### {title}", "", *_table(settings), ""]
    for part in parts:
        lines += [f"## {part.title}", "", f"Options of {part.commands}.", ""]
        found = {each.name: each for each in file_settings_of(part.options)}
        for title, names in GROUPS.items():
            here = [found[name] for name in names if name in found]
            if here:
                lines += [f"### {part.title}: {title[0].lower()}{title[1:]}", "", *_table(here), ""]
    return "\n".join(lines).rstrip() + "\n"


def _by_group(settings: Iterable[Setting]) -> dict[str, list[Setting]]:
    """Settings by heading: the run itself first, then each group, and each choice of a group."""
    found: dict[str, list[Setting]] = {"train": []}
    for each in settings:
        group = each.path[1] if len(each.path) > 2 else ""
        title = "train" if not group else f"train.{group}"
        title += f": {' or '.join(each.variants)}" if each.variants else ""
        found.setdefault(title, []).append(each)
    return found


def _table(settings: Iterable[Setting]) -> list[str]:
    return [
        "| setting | meaning | value | unit | default |",
        "| --- | --- | --- | --- | --- |",
        *(f"| {' | '.join(_row(each))} |" for each in settings),
    ]


def _row(setting: Setting) -> tuple[str, ...]:
    if setting.default_text:
        default = setting.default_text
    elif setting.is_required:
        default = "must be given"
    else:
        default = f"`{written(setting.default)}`"
    return tuple(
        each.replace("|", "\\|")
        for each in (f"`{setting.name}`", setting.meaning, setting.allowed, setting.unit, default)
    )
