"""Writes the file that repeats a run: every setting with its value, so that later defaults change nothing.

What differs from its default says so. Secrets are never in it.
"""

from collections.abc import Iterator, Mapping, Sequence

from pydantic import BaseModel

from mhimdist.config.commented import comment, heading, written
from mhimdist.config.fields import Setting, file_fields, file_settings_of
from mhimdist.config.option_groups import GROUPS
from mhimdist.config.options import Options

REPEAT_FILE = "repeat.yaml"

LEFT_OUT = {
    "fresh": "fresh was on, and is not repeated: it would delete this folder",
    "insecure": "insecure was on, and is not repeated: whoever repeats the run decides that",
}
"""Options that are not repeated where they are on, and why."""


def repeated(
    options: Options,
    kind: str,
    *,
    shown: Mapping[str, str] | None = None,
    sections: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """The text of the file that repeats a run.

    Args:
        options: of the run.
        kind: the command that runs it.
        shown: texts to write instead of values that may hold a secret, by the option's name.
        sections: lines of parts that are no options, by the heading that they follow.
    """
    lines = [
        *comment(
            f"The settings of the {_NOUNS[kind]} in this folder, all of them. Give it another name to repeat "
            "it in another folder; in this one, it resumes:"
        ),
        "#",
        f"#     mhimdist {kind} {REPEAT_FILE} name=again",
        "",
        f"kind: {kind}",
    ]
    settings = {each.name: each for each in file_settings_of(type(options), _Chosen(options))}
    fields = file_fields(type(options))
    writer = _Writer(settings, shown or {})
    for title, names in GROUPS.items():
        here = [name for name in names if name in fields]
        if here:
            lines += [*heading(title), *(line for name in here for line in writer.lines(options, (name,), 0))]
        lines += (sections or {}).get(title, ())
    return "\n".join(lines) + "\n"


_NOUNS = {"train": "run", "cross-validate": "cross-validation", "tune": "sweep"}


class _Chosen(dict[str, str]):
    """The name of the group that each setting holds, by the path of the setting."""

    def __init__(self, options: BaseModel) -> None:
        super().__init__(_names(options, ()))


def _names(value: BaseModel, above: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for name, field in type(value).model_fields.items():
        inner = getattr(value, name)
        if isinstance(inner, BaseModel):
            if field.discriminator:
                yield ".".join((*above, name)), getattr(inner, str(field.discriminator))
            yield from _names(inner, (*above, name))


class _Writer:
    def __init__(self, settings: Mapping[str, Setting], shown: Mapping[str, str]) -> None:
        self._settings, self._shown = settings, shown

    def lines(self, owner: BaseModel, path: tuple[str, ...], depth: int) -> Iterator[str]:
        value, indent = getattr(owner, path[-1]), "  " * depth
        if isinstance(value, BaseModel):
            yield f"{indent}{path[-1]}:"
            for name in type(value).model_fields:
                yield from self.lines(value, (*path, name), depth + 1)
            return
        setting = self._settings[".".join(path)]
        if not setting.field.repr:
            if value is not None:
                yield f"# {path[-1]} is not written, because it may hold a password"
            return
        if value and setting.name in LEFT_OUT:
            yield f"# {LEFT_OUT[setting.name]}"
            return
        if self._shown.get(setting.name, value) != value:
            value = self._shown[setting.name]
            yield f"# {path[-1]} without what may be secret in it: complete it"
        default = setting.default_text or written(setting.default)
        note = "" if value == setting.default else f"  # default {default}"
        yield f"{indent}{path[-1]}: {written(value)}{note}"
