"""Command-line options from a settings class: every field an option, its description the help."""

from copy import copy
from typing import Any, Self

from pydantic import ValidationError, create_model
from pydantic_settings import (
    BaseSettings,
    CliApp,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from mhimdist.config import explain
from mhimdist.errors import ConfigError


class Options(BaseSettings):
    """Base of what a job can be asked for; nested settings become dotted options."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        cli_avoid_json=True,
        cli_hide_none_type=True,
        cli_implicit_flags=True,
        cli_kebab_case=True,
        nested_model_default_partial_update=True,
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only the command line speaks: an environment variable called NAME must not name a sweep."""
        return (init_settings,)

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
        fields: dict[str, Any] = {}
        for name, default in defaults.items():
            field = copy(cls.model_fields[name])
            field.default, field.default_factory = default, None
            fields[name] = (field.annotation, field)
        job = create_model(cls.__name__, __base__=cls, __doc__=about or cls.__doc__, **fields)
        source: CliSettingsSource[Any] = CliSettingsSource(job)
        try:
            return CliApp.run(job, cli_args=arguments, cli_settings_source=source)
        except ValidationError as error:
            raise ConfigError("; ".join(explain(item) for item in error.errors())) from None
