"""The command `mhimdist`: a group of commands, each of which loads what it needs when it is called."""

import importlib
import os
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import click
from click.shell_completion import get_completion_class, shell_complete

from mhimdist import __version__
from mhimdist.commands.table import GROUPS, TABLE, Entry
from mhimdist.config.nearest import did_you_mean
from mhimdist.config.parsing import general_options, parsed
from mhimdist.process import run

PROG = "mhimdist"
COMPLETES = "_MHIMDIST_COMPLETE"
SHELLS = ("bash", "zsh", "fish")
ABOUT = "Train, cross-validate and tune MHIM-MIL on whole-slide images."
EXIT_CODES = """\
Exit codes:
   0  done
   1  an error that one line on stderr explains
   2  the command line cannot be read: an unknown command or option, an option without its value
  75  saved after SIGTERM, which batch systems send: the same command resumes
 130  ended by Ctrl-C; what runs had saved stays, and the same command resumes
"""

Todo = Callable[[], Any]
"""What is left to do once the command line has been read."""


class Commands(click.Group):
    """Commands of a table, made when they are asked for."""

    def __init__(self, name: str, about: str, table: Mapping[str, Mapping[str, Any]]) -> None:
        """Make the group.

        Args:
            name: its name.
            about: what it is for.
            table: its commands by name, in panels by title.
        """
        params = [*general_options(), *(_whole_options() if name == PROG else [])]
        super().__init__(name, help=about, add_help_option=False, params=params)
        self.about, self.table = about, table

    @property
    def entries(self) -> dict[str, Entry | Mapping[str, Entry]]:
        """The commands by name."""
        return {name: entry for panel in self.table.values() for name, entry in panel.items()}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the commands; click calls this."""
        return list(self.entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A command by its name, None if there is none; click calls this."""
        entry = self.entries.get(cmd_name)
        if isinstance(entry, Entry):
            return command_of(cmd_name, entry)
        return None if entry is None else Commands(cmd_name, GROUPS[cmd_name], {"": entry})

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that is asked for; click calls this."""
        name = args[0]
        if name not in self.entries and not ctx.resilient_parsing:
            hint = did_you_mean(name, self.entries) or f"; valid: {', '.join(self.entries)}"
            raise click.UsageError(f"no command {name!r}{hint}", ctx)
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the words before the command's name; without any, show the help."""
        return super().parse_args(ctx, args or ["--help"])

    def get_usage(self, ctx: click.Context) -> str:
        """The line of usage."""
        return f"Usage: {ctx.command_path} COMMAND ..."

    def get_help(self, ctx: click.Context) -> str:
        """The list of commands, on one screen of 80 x 24."""
        lines = [self.get_usage(ctx), self.about]
        for title, panel in self.table.items():
            for number, (name, entry) in enumerate(panel.items()):
                about = entry.summary if isinstance(entry, Entry) else GROUPS[name]
                lines.append(f"{'' if number else title:<6}{name:<16}{about}")
        lines.append(f"{ctx.command_path} COMMAND --help explains one; -q: no progress, -v: traces")
        if self.name == PROG:
            lines.append("mhimdist --exit-codes, mhimdist --completion bash|zsh|fish, mhimdist --version")
        return "\n".join(lines)


def command_of(name: str, entry: Entry) -> click.Command:
    """The command of an entry, with its options."""
    from mhimdist.config.command_line import OptionsCommand
    from mhimdist.config.options import Options

    options = _loaded(entry.options)
    made: OptionsCommand
    if issubclass(options, Options):
        words = partial(_read_words, entry.kind) if entry.kind else None
        made = options.as_command(name, options.defaults_for, decided_by=options.DECIDED_BY, read_words=words)
    else:
        made = _loaded("data_prep.command_line:command_of")(options, name)
    read = made.run
    made.run = lambda tree, of_file: _todo(entry.action, read(tree, of_file))
    return made


def _todo(action: str, job: Any) -> Todo:
    return lambda: _loaded(action)(job)


def _loaded(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def _read_words(
    kind: str, words: Sequence[str], settings: Sequence[Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of a file of this kind, and those that override it; see `command_line.ReadWords`."""
    from mhimdist.commands.words import read_words

    return read_words(kind, words, settings)


def _whole_options() -> list[click.Parameter]:
    return [
        _said("--version", lambda ctx: f"mhimdist {__version__}"),
        _said("--exit-codes", lambda ctx: textwrap.dedent(EXIT_CODES).rstrip()),
        click.Option(
            ["--completion"],
            type=click.Choice(SHELLS),
            is_eager=True,
            expose_value=False,
            callback=_print_completion,
        ),
    ]


def _said(option: str, text: Callable[[click.Context], str]) -> click.Option:
    """An option that prints a text and ends the command."""

    def show(ctx: click.Context, param: click.Parameter, is_asked: bool) -> None:
        if is_asked and not ctx.resilient_parsing:
            click.echo(text(ctx))
            ctx.exit()

    return click.Option([option], is_flag=True, is_eager=True, expose_value=False, callback=show)


def _print_completion(ctx: click.Context, param: click.Parameter, shell: str | None) -> None:
    """Print the script that makes a shell complete this command."""
    if shell is None or ctx.resilient_parsing:
        return
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(ctx.command, {}, PROG, COMPLETES).source())
    ctx.exit()


def front() -> Commands:
    """The command `mhimdist`."""
    return Commands(PROG, ABOUT, TABLE)


def call(arguments: Sequence[str]) -> None:
    """Read a command line and do what it says.

    Raises:
        SystemExit: the help was shown, or the command line cannot be read.
        MhimdistError: whatever the command raises.
    """
    todo: Todo = parsed(front(), arguments, prog=PROG)
    todo()


def main() -> None:
    """Run the command of this process; see `mhimdist.process.run`."""
    if instruction := os.environ.get(COMPLETES):  # the shell asks for completions
        sys.exit(shell_complete(front(), {}, PROG, COMPLETES, instruction))
    run(lambda: call(sys.argv[1:]))
