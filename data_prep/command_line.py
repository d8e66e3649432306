"""What the commands share: the way from settings to a command, `--workers`, and how SIGTERM ends it."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import click

from data_prep.settings import Settings, whole
from data_prep.writing.parallel import num_cores
from mhimdist.config.command_line import OptionsCommand
from mhimdist.config.fields import Metavar
from mhimdist.config.parsing import parsed
from mhimdist.process import Stopping

AnySettings = TypeVar("AnySettings", bound=Settings)

Workers = Annotated[int, whole(1), Metavar("N")]
"""A number of workers: by default one per core."""
ONE_PER_CORE = num_cores()


def command_of(settings: type[Settings], name: str | None = None) -> OptionsCommand:
    """The command whose options are the fields of a class, and which returns an instance.

    Unlike the options of jobs, every value is checked at once, a wrong one is an error of usage, and an
    option may be cut short while its beginning is unique.

    Args:
        settings: the class; the first paragraph of its docstring begins the help, the rest ends it.
        name: the name of the command.
    """
    about, _, more = (settings.__doc__ or "").partition("\n\n")

    def made(tree: dict[str, Any], of_file: dict[str, Any]) -> Settings:
        chosen = settings.of(**of_file, **tree)
        if chosen.misuse:
            raise click.UsageError(chosen.misuse, click.get_current_context())
        return chosen

    return OptionsCommand(name, settings, made, about=about, epilog=more, is_checked=True)


def read(settings: type[AnySettings], arguments: Sequence[str] | None, prog: str) -> AnySettings:
    """The settings on the command line of this process, or in `arguments`.

    Args:
        settings: their class.
        arguments: the command line; None takes that of this process.
        prog: the command, as its help names it.

    Raises:
        SystemExit: an option was refused, and named, or the help was shown.
        ConfigError: the options do not fit together.
    """
    given = sys.argv[1:] if arguments is None else arguments
    found: AnySettings = parsed(command_of(settings), given, prog=prog)
    return found


def stoppable(out: Path | str) -> Stopping:
    """How SIGTERM and Ctrl-C end a command that makes `out`: with the same words in every command."""
    return Stopping(f"{out} is not finished; the same command finishes it")
