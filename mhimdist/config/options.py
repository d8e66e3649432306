"""`Options`: settings as command-line options; every field is an option, its description the help text."""

import sys
from collections.abc import Iterator, Mapping
from copy import copy
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic_settings import CliSettingsSource, SettingsError

from mhimdist.config.train import TrainConfig, explain
from mhimdist.errors import ConfigError


class Options(BaseModel):
    """Base class of a job's options; nested settings become dotted options."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def from_command_line(
        cls, arguments: list[str] | None = None, *, about: str | None = None, **defaults: Any
    ) -> Self:
        """Parse the options of this process (or `arguments`); `--help` prints all of them and exits.

        Args:
            arguments: the arguments to parse; None parses those of this process.
            about: the first lines of `--help`; None takes the first paragraph of the class's docstring.
            defaults: values for fields that the command line does not set.

        Raises:
            ConfigError: a value is invalid; the message names the option.
        """
        about = about or (cls.__doc__ or "").partition("\n\n")[0]
        fields: dict[str, Any] = {}
        for name, default in defaults.items():
            field = copy(cls.model_fields[name])
            field.default, field.default_factory = default, None
            fields[name] = (field.annotation, field)
            if isinstance(default, TrainConfig):
                # argparse shows the defaults of only one of the models.
                own = leaves(default.model_dump(exclude_unset=True))
                about += f" By default, {name} sets {', '.join(f'{k} {v}' for k, v in own)}."
        job = create_model(cls.__name__, __base__=cls, __doc__=about, **fields)
        try:
            given = CliSettingsSource[
                Any
            ](
                job,  # type: ignore[arg-type]  # any pydantic model works
                cli_parse_args=sys.argv[1:] if arguments is None else arguments,
                cli_avoid_json=True,
                cli_hide_none_type=True,
                cli_implicit_flags=True,
                cli_kebab_case=True,
            )()
        except SettingsError as error:
            cause = str(error.__cause__ or "")
            why = str(error) if cause in str(error) else f"{error}: {cause}"
            raise ConfigError(f"the options cannot be read: {why}") from None
        except RecursionError:
            raise ConfigError("the options cannot be read: a value nests too deep") from None
        for name, field in job.model_fields.items():
            if name in given and isinstance(field.default, TrainConfig):
                try:
                    given[name] = field.default.override(dict(leaves(given[name])))
                except ConfigError as error:
                    raise ConfigError(f"{name}.{error}") from None
        try:
            made = job(**given)
        except ValidationError as error:
            raise ConfigError("; ".join(explain(item) for item in error.errors())) from None
        # Other processes know `cls`, and not the class that was made for these defaults.
        return cls.model_construct(  # type: ignore[return-value]  # pydantic's plugin forgets Self here
            made.model_fields_set, **{name: getattr(made, name) for name in cls.model_fields}
        )


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted path and the value of every setting in a tree."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
