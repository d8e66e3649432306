"""`Options`: settings as command-line options; every field is an option, its description the help text."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from mhimdist.config.command_line import Defaults, OptionsCommand
from mhimdist.config.parsing import parsed, program
from mhimdist.config.train import TrainConfig, explain
from mhimdist.errors import ConfigError


class Options(BaseModel):
    """Base class of a job's options; nested settings become dotted options.

    Attributes:
        FIRST: the options that people use first, by dotted names, which `--help` shows; empty: all.
        PANELS: the options of the class itself in groups, by the titles of these in `--help`; a name that the
            class does not have is passed over.
        DECIDED_BY: options that decide the defaults of others.
        TAKES_REST: whether all words after the first that is no option belong to another command.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    FIRST: ClassVar[tuple[str, ...]] = ()
    PANELS: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    DECIDED_BY: ClassVar[tuple[str, ...]] = ()
    TAKES_REST: ClassVar[bool] = False

    @classmethod
    def defaults_for(cls, given: Mapping[str, str]) -> Mapping[str, Any]:
        """The defaults of the command `mhimdist ...` that differ from those of the class.

        Args:
            given: the texts that are given for the options in `DECIDED_BY`.
        """
        return {}

    @classmethod
    def from_command_line(
        cls, arguments: list[str] | None = None, *, about: str | None = None, **defaults: Any
    ) -> Self:
        """Parse the options of this process (or `arguments`); `--help` explains them and exits.

        Args:
            arguments: the arguments to parse; None parses those of this process.
            about: the first lines of `--help`; None takes the first paragraph of the class's docstring.
            defaults: values for fields that the command line does not set.

        Raises:
            ConfigError: a value is invalid; the message names the option.
        """
        return cls.read_command_line(arguments, defaults, about=about)

    @classmethod
    def read_command_line(
        cls,
        arguments: Sequence[str] | None,
        defaults: Defaults | Mapping[str, Any],
        *,
        decided_by: Sequence[str] = (),
        about: str | None = None,
    ) -> Self:
        """Do what `from_command_line` does where defaults depend on what is given.

        Args:
            arguments, about: as in `from_command_line`.
            defaults: defaults of fields, or a function that returns them for the texts of some options.
            decided_by: these options.

        Raises:
            ConfigError: see `from_command_line`.
        """
        command = cls.as_command(None, defaults, decided_by=decided_by, about=about)
        given = sys.argv[1:] if arguments is None else arguments
        job: Self = parsed(command, given, prog=program())
        return job

    @classmethod
    def as_command(
        cls,
        name: str | None,
        defaults: Defaults | Mapping[str, Any],
        *,
        about: str | None = None,
        **more: Any,
    ) -> OptionsCommand:
        """The command whose options are the fields, and which returns an instance.

        Args:
            name: its name.
            defaults: see `read_command_line`.
            about: see `from_command_line`.
            more: see `OptionsCommand`.
        """
        decided: dict[str, Any] = {}

        def decide(texts: Mapping[str, str]) -> Mapping[str, Any]:
            decided.clear()
            decided.update(defaults(texts) if callable(defaults) else defaults)
            return decided

        about = about or (cls.__doc__ or "").partition("\n\n")[0]
        return OptionsCommand(
            name,
            cls,
            lambda tree, of_file: cls.of_tree(tree, of_file or decided),  # a file says it all
            about=about,
            defaults=decide,
            **more,
        )

    @classmethod
    def of_tree(cls, tree: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> Self:
        """An instance from nested settings, as a command line or a file has them.

        Args:
            tree: the settings; of a configuration those that differ from its default.
            defaults: values of fields that the tree does not set.

        Raises:
            ConfigError: a value is invalid; the message names the setting.
        """
        given, defaults = dict(tree), defaults or {}
        for name in given:
            field = cls.model_fields.get(name)
            default = defaults.get(name, field.default if field else None)
            if isinstance(default, TrainConfig) and isinstance(given[name], Mapping):
                try:
                    given[name] = default.override(dict(leaves(given[name])))
                except ConfigError as error:
                    raise ConfigError(f"{name}.{error}") from None
        try:
            made = cls.model_validate({**defaults, **given})
        except ValidationError as error:
            raise ConfigError("; ".join(map(_explain, error.errors()))) from None
        made.model_fields_set.difference_update(defaults.keys() - given.keys())
        return made


def _explain(item: Any) -> str:
    """One of pydantic's errors in one line, with the option to give where one is needed."""
    is_needed = item["type"] == "missing" and len(item["loc"]) == 1
    hint = f": give --{str(item['loc'][0]).replace('_', '-')}" if is_needed else ""
    return explain(item) + hint


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted path and the value of every setting in a tree."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
