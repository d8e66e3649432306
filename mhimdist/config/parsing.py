"""What every command has: the options of help and of how much it says, and one way to read a command line."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import click


@runtime_checkable
class LongHelp(Protocol):
    """A command whose help comes in two lengths."""

    def get_long_help(self, ctx: click.Context) -> str:
        """The longer one."""


def general_options() -> list[click.Parameter]:
    """The options that every command has: help, and how much it says."""
    acts = {
        ("-h", "--help"): _show(shows_all=False),
        ("--help-all",): _show(shows_all=True),
        ("-q", "--quiet"): _quiet,
        ("-v", "--verbose"): _verbose,
    }
    return [
        click.Option(names, is_flag=True, is_eager=True, expose_value=False, callback=act)
        for names, act in acts.items()
    ]


def _show(*, shows_all: bool) -> Callable[[click.Context, click.Parameter, bool], None]:
    def show(ctx: click.Context, param: click.Parameter, is_asked: bool) -> None:
        if not is_asked or ctx.resilient_parsing:
            return
        command = ctx.command
        click.echo(
            command.get_long_help(ctx) if shows_all and isinstance(command, LongHelp) else ctx.get_help()
        )
        ctx.exit()

    return show


def _quiet(ctx: click.Context, param: click.Parameter, is_asked: bool) -> None:
    if is_asked:
        from mhimdist import terminal  # rich takes a moment to import

        terminal.be_quiet()


def _verbose(ctx: click.Context, param: click.Parameter, is_asked: bool) -> None:
    if is_asked:
        from mhimdist import process

        process.be_verbose()


def program() -> str:
    """The words that start this process, as its usage shows them."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.name.removesuffix('.__main__')}" if spec else Path(sys.argv[0]).name


def parsed(command: click.Command, args: Sequence[str], *, prog: str) -> Any:
    """What a command returns for a command line; help and errors of usage end the process as they should.

    Raises:
        SystemExit: the help was shown (status 0), or the command line cannot be read (status 2).
        ConfigError: a value is invalid.
    """
    try:
        with command.make_context(prog, list(args)) as ctx:
            return command.invoke(ctx)
    except click.exceptions.Exit as done:
        raise SystemExit(done.exit_code) from None
    except click.UsageError as error:
        error.show()
        raise SystemExit(error.exit_code) from None
