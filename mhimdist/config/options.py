"""Command-line options from a settings class: every field an option, its description the help."""

import sys
from collections.abc import Iterator, Mapping
from copy import copy
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic_settings import CliSettingsSource

from mhimdist.config.train import TrainConfig, explain
from mhimdist.errors import ConfigError


class Options(BaseModel):
    """Base of what a job can be asked for; nested settings become dotted options."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def from_command_line(
        cls, arguments: list[str] | None = None, *, about: str | None = None, **defaults: Any
    ) -> Self:
        """The options of this process (or of `arguments`); `--help` prints them all and exits.

        Args:
            arguments: instead of this process's.
            about: the first lines of `--help`, instead of the class's own docstring.
            defaults: values of fields that are not given on the command line.

        Raises:
            ConfigError: a value is not valid; the message names the option.
        """
        about = about or cls.__doc__ or ""
        fields: dict[str, Any] = {}
        for name, default in defaults.items():
            field = copy(cls.model_fields[name])
            field.default, field.default_factory = default, None
            fields[name] = (field.annotation, field)
            if isinstance(default, TrainConfig):
                # Of a model's settings, argparse can only show the default of one model of several.
                own = leaves(default.model_dump(exclude_unset=True))
                about += f" Unless told otherwise, {name} sets {', '.join(f'{k} {v}' for k, v in own)}."
        job = create_model(cls.__name__, __base__=cls, __doc__=about, **fields)
        given = CliSettingsSource[
            Any
        ](
            job,  # type: ignore[arg-type]  # any model will do
            cli_parse_args=sys.argv[1:] if arguments is None else arguments,
            cli_avoid_json=True,
            cli_hide_none_type=True,
            cli_implicit_flags=True,
            cli_kebab_case=True,
        )()
        for name, field in job.model_fields.items():
            if name in given and isinstance(field.default, TrainConfig):
                try:
                    given[name] = field.default.override(dict(leaves(given[name])))
                except ConfigError as error:
                    raise ConfigError(f"{name}.{error}") from None
        try:
            return job(**given)
        except ValidationError as error:
            raise ConfigError("; ".join(explain(item) for item in error.errors())) from None


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted path and value of every setting of a tree."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
