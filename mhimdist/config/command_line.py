"""Settings as the options of a command: the one way from a class of settings to a command line.

Every setting is an option, with dotted names for groups: `--train.masking.high.start 0.03`. On and off are
`--x` and `--no-x`, several values `1,2,3`, no value `none`; a whole group is taken as JSON. Click splits the
command line and completes it in shells; pydantic checks the values; `help_page` explains them.
"""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any

import click
from click.shell_completion import CompletionItem
from pydantic import BaseModel, TypeAdapter, ValidationError

from mhimdist.config.fields import Inline, Positional, Repeated, Setting, Several, settings_of
from mhimdist.config.help_page import help_page
from mhimdist.config.nearest import did_you_mean
from mhimdist.config.parsing import general_options
from mhimdist.errors import ConfigError

Defaults = Callable[[Mapping[str, str]], Mapping[str, Any]]
"""Defaults of settings that depend on the texts that were given for some others."""

ReadWords = Callable[[Sequence[str], Sequence[Setting]], tuple[dict[str, Any], dict[str, Any]]]
"""Returns the settings of a file and those that override it."""

NO_VALUE = ("none", "null")
FILES = ("PATH", "DIR", "FILE", "TABLE", "FEATURES", "RUN", "DATA")
"""Names of values in help that a shell completes by the names of files."""


class _Text(click.ParamType):
    """The text of a value; pydantic makes the value of it."""

    name = "text"

    def __init__(self, setting: Setting, *, is_checked: bool) -> None:
        self.setting = setting
        whole = not (setting.mark(Several) or setting.mark(Repeated))
        self._checks = is_checked and whole and not (setting.mark(Positional) and setting.is_list)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The value as it is, or checked."""
        setting = self.setting
        if not self._checks or not isinstance(value, str):
            return value
        if setting.choices and value not in setting.choices:
            valid = ", ".join(map(repr, setting.choices))
            hint = did_you_mean(value, map(str, setting.choices))
            raise click.UsageError(
                f"argument {self._called}: invalid choice: {value!r}{hint} (choose from {valid})", ctx
            )
        try:
            return _adapter(setting).validate_python(value)
        except ValidationError as error:
            raise click.UsageError(f"argument {self._called}: {reason(error.errors()[0])}", ctx) from None

    @property
    def _called(self) -> str:
        mark = self.setting.mark(Positional)
        return str(mark.name) if mark else self.setting.option

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The choices, or the names of files where it names one."""
        if choices := [str(choice) for choice in self.setting.choices]:
            return [CompletionItem(choice) for choice in choices if choice.startswith(incomplete)]
        if self.setting.is_path or any(word in self.setting.metavar for word in FILES):
            return [CompletionItem(incomplete, type="file")]
        return []


class OptionsCommand(click.Command):
    """A command whose options are the settings of a class.

    Attributes:
        options: the class.
        about: the first lines of its help.
        run: what is done with the settings.
    """

    def __init__(
        self,
        name: str | None,
        options: type[BaseModel],
        run: Callable[[dict[str, Any], dict[str, Any]], Any],
        *,
        about: str,
        defaults: Defaults | Mapping[str, Any] | None = None,
        decided_by: Sequence[str] = (),
        epilog: str = "",
        is_checked: bool = False,
        read_words: ReadWords | None = None,
    ) -> None:
        """Describe the command; its options are made when it is used.

        Args:
            name: its name.
            options: the class of settings; its `FIRST` names those that `--help` shows, and its `PANELS`
                groups them.
            run: is given the settings of the command line as a tree, and those of a file that they override.
            about: the first lines of its help.
            defaults: defaults that differ from those of the class.
            decided_by: the settings on which `defaults`, if it is a function, depend.
            epilog: the last lines of its help.
            is_checked: check each value at once, so that a wrong one is an error of usage, and take unique
                beginnings of options, as the commands of `data_prep` always did.
            read_words: reads words that are no options: a file of settings, and `train.epochs=50`; None
                refuses them.
        """
        super().__init__(
            name, callback=None, help=about, epilog=epilog, add_help_option=False, no_args_is_help=False
        )
        self.options, self.about, self.run, self.is_checked = options, about, run, is_checked
        self._defaults, self._decided_by, self._read_words = defaults, decided_by, read_words
        self.settings: list[Setting] = []
        self.allow_interspersed_args = not getattr(options, "TAKES_REST", False)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the command line; click calls this."""
        defaults = self._defaults
        if callable(defaults):
            defaults = defaults(_texts(self._decided_by, args))
        self.settings = settings_of(self.options, defaults)
        self.params = self._params()
        args = self._spread(args)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            named = error.option_name
            hint = did_you_mean(named, [option for param in self.params for option in _names(param)])
            raise click.UsageError(f"unrecognized arguments: {named}{hint}", ctx) from None
        except click.MissingParameter as error:
            wanted = error.param
            name = wanted.opts[0] if isinstance(wanted, click.Option) else wanted and wanted.make_metavar(ctx)
            raise click.UsageError(f"the following arguments are required: {name}", ctx) from None

    def invoke(self, ctx: click.Context) -> Any:
        """Do what the command does; click calls this."""
        read_words, words = self._read_words, ctx.params.get("words")
        of_file, tree = read_words(words, self.settings) if read_words and words else ({}, {})
        return self.run(self._tree(ctx, tree), of_file)

    def get_usage(self, ctx: click.Context) -> str:
        """The line of usage."""
        places = [param.make_metavar(ctx) for param in self.params if isinstance(param, click.Argument)]
        words = [*places, "[OPTIONS]"] if self.allow_interspersed_args else ["[OPTIONS]", *places]
        return " ".join(["Usage:", ctx.command_path, *words])

    def get_help(self, ctx: click.Context) -> str:
        """The page of help: the options that people use first, or all."""
        return help_page(self, ctx, shows_all=False)

    def get_long_help(self, ctx: click.Context) -> str:
        """The page of help with all options."""
        return help_page(self, ctx, shows_all=True)

    def _params(self) -> list[click.Parameter]:
        params: list[click.Parameter] = []
        for number, setting in enumerate(self.settings):
            if setting.mark(Inline):
                continue
            kind, key = _Text(setting, is_checked=self.is_checked), f"s{number}"
            if (place := setting.mark(Positional)) is not None:
                params.append(
                    click.Argument(
                        [key],
                        type=kind,
                        nargs=-1 if setting.is_list else 1,
                        required=setting.is_required,
                        metavar=f"{place.name}..." if setting.is_list else place.name,
                    )
                )
            elif setting.is_flag:
                on, off = setting.option, f"--no-{setting.option[2:]}"
                params.append(click.Option([f"{on}/{off}", key], default=None))
            else:
                is_multiple = setting.mark(Several) or setting.mark(Repeated)
                if not self.is_checked and not setting.reads_text:
                    is_multiple = is_multiple or setting.is_list or setting.is_mapping
                params.append(
                    click.Option(
                        [setting.option, key],
                        type=kind,
                        multiple=bool(is_multiple),
                        required=setting.is_required and self.is_checked,
                    )
                )
        if self._read_words is not None:
            params.append(_Words(["words"], nargs=-1, required=False, metavar="[FILE] [SETTING=VALUE]..."))
        return [*params, *general_options()]

    def _spread(self, args: list[str]) -> list[str]:
        """The words, with an option's name before each of its values and abbreviations written out."""
        if not self.is_checked:
            return args
        options = [option for param in self.params for option in _names(param)]
        several = {setting.option for setting in self.settings if setting.mark(Several)}
        done: list[tuple[str, ...]] = []
        current, words = "", iter(args)
        for word in words:
            if not word.startswith("-") and current:
                done.append((current, word))
                continue
            name, equals, value = word.partition("=")
            if name.startswith("--") and name not in options:
                found = [option for option in options if option.startswith(name)]
                name = found[0] if len(found) == 1 else name
            current = name if name in several else ""
            if not current:
                done.append((f"{name}{equals}{value}",))
                continue
            done = [each for each in done if each[0] != name]  # the last one counts
            first = value if equals else next(words, None)
            done.append((name,) if first is None else (name, first))
        return [word for each in done for word in each]

    def _tree(self, ctx: click.Context, tree: dict[str, Any]) -> dict[str, Any]:
        """The settings that were given, as nested values, in addition to those in `tree`."""
        given: list[tuple[Setting, Any]] = []
        for number, setting in enumerate(self.settings):
            if ctx.params.get(f"s{number}") not in (None, ()):
                given.append((setting, ctx.params[f"s{number}"]))
        for setting, text in given:  # a group comes before what it holds
            value = text if self.is_checked else read(setting, text)
            *parents, leaf = setting.path
            node = tree
            for parent in parents:
                inner = node.get(parent)
                node[parent] = node = inner if isinstance(inner, dict) else {}
            if setting.is_group and isinstance(value, dict) and isinstance(node.get(leaf), dict):
                node[leaf] |= value
            else:
                node[leaf] = list(value) if isinstance(value, tuple) and self.is_checked else value
        return tree


class _Words(click.Argument):
    """The words of a command that are no options."""

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(incomplete, type="file")]


def read(setting: Setting, text: Any) -> Any:
    """The value of which pydantic makes a setting's, from the text of an option.

    Args:
        setting: the setting.
        text: the text; of several values, or of an option that was repeated, all texts; of a flag its state.

    Raises:
        ConfigError: the text is no value at all; one of a wrong kind is for pydantic to refuse.
    """
    if setting.is_flag or setting.reads_text:
        return text
    if setting.is_mapping:
        return {key: value for part in text for key, value in _pairs(setting, part).items()}
    if setting.is_optional and (text[-1] if isinstance(text, tuple) else text).lower() in NO_VALUE:
        return None
    if setting.is_list:
        if setting.mark(Positional):
            return list(text)
        return [value for part in text for value in _split(setting, part)]
    if setting.is_group:
        return _json(setting, text)
    return text


def _split(setting: Setting, text: str) -> list[Any]:
    """The values of a list: separated by commas, or JSON."""
    if text[:1] in ("[", "{"):
        values = _json(setting, text)
        return values if isinstance(values, list) else [values]
    try:
        rows = list(csv.reader([text], strict=True, skipinitialspace=True))
    except csv.Error as error:
        raise _unreadable(setting, text, str(error)) from None
    return rows[0] if rows else []


def _pairs(setting: Setting, text: str) -> dict[str, Any]:
    if text[:1] == "{":
        found = _json(setting, text)
        if isinstance(found, dict):
            return found
    name, equals, value = text.partition("=")
    if not equals:
        raise _unreadable(setting, text, "expected NAME=VALUE")
    with suppress(json.JSONDecodeError, RecursionError):
        if isinstance(found := json.loads(value), int | float):  # true and false are, too
            return {name: found}
    return {name: value}


def _json(setting: Setting, text: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        why = "it nests too deep" if isinstance(error, RecursionError) else f"expected JSON: {error}"
        raise _unreadable(setting, text, why) from None


def _unreadable(setting: Setting, text: str, why: str) -> ConfigError:
    shown = text if len(text) <= 40 else f"{text[:37]}..."
    return ConfigError(f"the options cannot be read: {setting.option} {shown!r}: {why}")


def reason(item: Any) -> str:
    """The text of one of pydantic's errors: what was expected and what was got."""
    if item["type"] == "value_error":
        return str(item["msg"]).removeprefix("Value error, ")
    expected = item["ctx"]["expected"] if item["type"] == "literal_error" else None
    return (
        f"expected {expected}, got {item['input']!r}" if expected else f"{item['msg']}, got {item['input']!r}"
    )


def _adapter(setting: Setting) -> TypeAdapter[Any]:
    field = setting.field
    kind: Any = field.annotation if not field.metadata else Annotated[field.annotation, *field.metadata]
    return TypeAdapter(kind)


def _names(param: click.Parameter) -> list[str]:
    return [*param.opts, *param.secondary_opts] if isinstance(param, click.Option) else []


def _texts(names: Sequence[str], args: Sequence[str]) -> dict[str, str]:
    """The texts that are given for a few settings; a flag that is given has the text "yes"."""
    found: dict[str, str] = {}
    for word, after in zip(args, [*args, ""][1:], strict=True):
        name, equals, value = word.partition("=")
        for each in names:
            if name == f"--{each.replace('_', '-')}":
                found[each] = value if equals else after
    return found
