"""Settings: the base class of what a command, and the function behind it, can be asked for.

A field is described once. `Settings.of` checks it for a call from Python; `command_line.command_of` shows
and checks it on a command line.
"""

import operator
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from mhimdist.config.command_line import reason
from mhimdist.errors import ConfigError


class Settings(BaseModel):
    """Base class of the settings of a command and of the function behind it.

    Attributes:
        FIRST: the options that people use first, which `--help` shows; empty: all.
        PANELS: the options in groups, by the titles of these in `--help`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    FIRST: ClassVar[tuple[str, ...]] = ()
    PANELS: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    @property
    def misuse(self) -> str:
        """Why a command line that says this is an error of usage; empty if it is none."""
        return ""

    @classmethod
    def of(cls, **values: Any) -> Self:
        """Build the settings; a wrong value raises an error of ours.

        Args:
            values: the fields by name.

        Raises:
            ConfigError: a value is not valid, or a name is not that of a field; the message says which.
        """
        known = {field.alias or name for name, field in cls.model_fields.items()}
        if unknown := sorted(values.keys() - known):
            raise ConfigError(
                f"unknown option {', '.join(unknown)}; expected one of {', '.join(cls.model_fields)}"
            )
        try:
            return cls(**values)
        except ValidationError as error:
            wrong = [f"{'.'.join(map(str, item['loc']))}: {reason(item)}" for item in error.errors()]
            raise ConfigError("; ".join(wrong)) from None


def whole(lowest: int | None = None) -> BeforeValidator:
    """Let a field take whole numbers, also as text; `lowest`, if given, is the smallest that it takes.

    Raises:
        ValueError: raised by the field if it is given anything else; pydantic names the field.
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
