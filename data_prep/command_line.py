"""Settings classes of this package, and the options that a command makes of their fields.

A field is described once: `Settings.of` checks it for a call from Python, `add_options` shows and checks it
on a command line. `mhimdist.config.options.Options` does the same for jobs, whose options are nested
settings and nothing else.
It makes the whole parser, so that a command could not put a positional argument or a `--repair`
of its own beside the settings, name a value `TABLE` in place of `Path`, or end with argparse's status 2.
"""

import argparse
import operator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeVar, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from mhimdist.errors import ConfigError
from mhimdist.process import Stopping


class Settings(BaseModel):
    """Base of what a command, and the function behind it, can be asked for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def of(cls, **values: Any) -> Self:
        """Make the settings; a wrong value ends in an error of ours.

        Args:
            values: the fields.

        Raises:
            ConfigError: a value is not valid, or no field has its name; the message names it.
        """
        if unknown := sorted(values.keys() - cls.model_fields.keys()):
            raise ConfigError(
                f"no option {', '.join(unknown)}; expected one of {', '.join(cls.model_fields)}"
            )
        try:
            return cls(**values)
        except ValidationError as error:
            wrong = [f"{'.'.join(map(str, item['loc']))}: {_reason(item)}" for item in error.errors()]
            raise ConfigError("; ".join(wrong)) from None


class Metavar(NamedTuple):
    """Names the value of an option in `--help`, as `Annotated[Path, Metavar("TABLE")]`."""

    name: str


AnySettings = TypeVar("AnySettings", bound=Settings)


def add_options(parser: argparse.ArgumentParser, settings: type[Settings]) -> None:
    """Add an option for every field of a settings class, and for those of the settings in it.

    Args:
        parser: of a command, which may have other options.
        settings: a field's name is the option's, its description the help, its type what a value must be.
    """
    for name, field in settings.model_fields.items():
        flag, about = f"--{name.replace('_', '-')}", _help(field)
        choices = _choices(field.annotation)
        if (inner := _settings_in(field)) is not None:
            add_options(parser, inner)
        elif field.annotation is bool:
            parser.add_argument(flag, action="store_true", help=about)
        elif choices is not None:
            parser.add_argument(flag, choices=choices, default=field.default, help=about)
        else:
            parser.add_argument(
                flag,
                type=partial(_parsed, _validator(field)),
                required=field.is_required(),
                default=None if field.is_required() else field.default,
                metavar=next((item.name for item in field.metadata if isinstance(item, Metavar)), None),
                help=about,
            )


def chosen(settings: type[AnySettings], options: argparse.Namespace) -> AnySettings:
    """The settings that a command line chose.

    Args:
        settings: the class whose fields `add_options` added.
        options: what the parser made of the command line.

    Raises:
        ConfigError: the values do not go together.
    """
    values: dict[str, Any] = {}
    for name, field in settings.model_fields.items():
        inner = _settings_in(field)
        values[name] = getattr(options, name) if inner is None else chosen(inner, options)
    return settings.of(**values)


def stoppable(out: Path | str) -> Stopping:
    """How SIGTERM and Ctrl-C end a command that makes `out`: with the same words whichever command it is."""
    return Stopping(f"{out} is not finished; the same command finishes it")


def whole(lowest: int | None = None) -> BeforeValidator:
    """Let a field take whole numbers, also as text; where `lowest` is given, only from it on.

    Raises:
        ValueError: by the field, it was given something else; pydantic names the field.
    """
    expected = "a whole number" if lowest is None else f"a whole number of at least {lowest}"

    def check(value: Any) -> int:
        try:
            number = int(value) if isinstance(value, str) else operator.index(value)
        except (TypeError, ValueError):
            number = None
        if number is None or (lowest is not None and number < lowest):
            raise ValueError(f"expected {expected}, got {value!r}")
        return number

    return BeforeValidator(check)


def _validator(field: FieldInfo) -> TypeAdapter[Any]:
    kind: Any = field.annotation if not field.metadata else Annotated[field.annotation, *field.metadata]
    return TypeAdapter(kind)


def _parsed(kind: TypeAdapter[Any], text: str) -> Any:
    """The value of an option, for argparse, which puts the option's name before the reason."""
    try:
        return kind.validate_python(text)
    except ValidationError as error:
        raise argparse.ArgumentTypeError(_reason(error.errors()[0])) from None


def _reason(item: Any) -> str:
    """What was expected and what was got, of one of pydantic's errors."""
    if item["type"] == "value_error":
        return str(item["msg"]).removeprefix("Value error, ")
    expected = item["ctx"]["expected"] if item["type"] == "literal_error" else None
    return (
        f"expected {expected}, got {item['input']!r}" if expected else f"{item['msg']}, got {item['input']!r}"
    )


def _help(field: FieldInfo) -> str:
    """A field's description, with its default where that is a value and not the lack of one."""
    about = (field.description or "").replace("%", "%%")
    is_value = not field.is_required() and field.default not in (None, "") and field.annotation is not bool
    return f"{about} (default: {field.default})" if is_value else about


def _choices(annotation: Any) -> tuple[str, ...] | None:
    literals = [kind for kind in (annotation, *get_args(annotation)) if get_origin(kind) is Literal]
    return get_args(literals[0]) if literals else None


def _settings_in(field: FieldInfo) -> type[Settings] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Settings) else None
