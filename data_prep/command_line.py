"""What the commands share: options made from settings, `--workers`, and how SIGTERM ends a command.

`mhimdist.config.options.Options` does the same for jobs, which take nested settings and nothing else. It
builds the whole parser. A command built with it could not add a positional argument or `--repair` to its
settings, name a value `TABLE` instead of `Path`, or end with argparse's status 2.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from data_prep.settings import Metavar, Settings, Several, reason, whole
from data_prep.writing.parallel import num_cores
from mhimdist.process import Stopping

AnySettings = TypeVar("AnySettings", bound=Settings)


def add_options(parser: argparse.ArgumentParser, settings: type[Settings]) -> None:
    """Add an option for every field of a settings class, and of the settings nested in it.

    Args:
        parser: the command's parser; it may have other options.
        settings: the name of a field names the option, its description is the help, its type is the check.
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
        elif any(isinstance(item, Several) for item in field.metadata):
            parser.add_argument(
                flag, nargs="+", required=field.is_required(), metavar=_metavar(field), help=about
            )
        else:
            parser.add_argument(
                flag,
                type=partial(_parsed, _validator(field)),
                required=field.is_required(),
                default=None if field.is_required() else field.default,
                metavar=_metavar(field),
                help=about,
            )


def add_workers(parser: argparse.ArgumentParser, what: str) -> None:
    """Add `--workers`: a whole number of at least 1, by default one worker per core.

    Args:
        parser: the command's parser.
        what: what the number counts, for `--help`.
    """
    parser.add_argument(
        "--workers",
        type=partial(_parsed, TypeAdapter(Annotated[int, whole(1)])),
        default=num_cores(),
        metavar="N",
        help=f"{what} (default: one per core, %(default)s)",
    )


def chosen(settings: type[AnySettings], options: argparse.Namespace) -> AnySettings:
    """Build the settings that a command line chose.

    Args:
        settings: the class that `add_options` was given.
        options: the parsed command line.

    Raises:
        ConfigError: the values do not fit together.
    """
    values: dict[str, Any] = {}
    for name, field in settings.model_fields.items():
        inner = _settings_in(field)
        values[name] = getattr(options, name) if inner is None else chosen(inner, options)
    return settings.of(**values)


def stoppable(out: Path | str) -> Stopping:
    """How SIGTERM and Ctrl-C end a command that makes `out`: with the same words in every command."""
    return Stopping(f"{out} is not finished; the same command finishes it")


def _validator(field: FieldInfo) -> TypeAdapter[Any]:
    kind: Any = field.annotation if not field.metadata else Annotated[field.annotation, *field.metadata]
    return TypeAdapter(kind)


def _parsed(kind: TypeAdapter[Any], text: str) -> Any:
    """Parse an option's value for argparse, which puts the option's name before the reason."""
    try:
        return kind.validate_python(text)
    except ValidationError as error:
        raise argparse.ArgumentTypeError(reason(error.errors()[0])) from None


def _metavar(field: FieldInfo) -> str | None:
    return next((item.name for item in field.metadata if isinstance(item, Metavar)), None)


def _help(field: FieldInfo) -> str:
    """A field's description, followed by its default unless the default means "not given"."""
    about = (field.description or "").replace("%", "%%")
    is_value = not field.is_required() and field.default not in (None, "") and field.annotation is not bool
    return f"{about} (default: {field.default})" if is_value else about


def _choices(annotation: Any) -> tuple[str, ...] | None:
    literals = [kind for kind in (annotation, *get_args(annotation)) if get_origin(kind) is Literal]
    return get_args(literals[0]) if literals else None


def _settings_in(field: FieldInfo) -> type[Settings] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Settings) else None
