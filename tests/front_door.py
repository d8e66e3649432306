"""The commands of `mhimdist`, for tests."""

import click

from mhimdist.commands.main import PROG, Commands, front
from mhimdist.config.help_page import help_page


def all_commands() -> list[tuple[str, ...]]:
    """The words of every command, such as `("cluster", "local")`."""
    found = []
    group = front()
    with click.Context(group) as ctx:
        for name in group.list_commands(ctx):
            command = group.get_command(ctx, name)
            if isinstance(command, Commands):
                found += [(name, inner) for inner in command.list_commands(ctx)]
            else:
                found.append((name,))
    return found


def command_of(words: tuple[str, ...]) -> tuple[click.Command, click.Context]:
    """A command, and a context in which its settings are known."""
    command: click.Command = front()
    ctx = click.Context(command, info_name=PROG)
    for word in words:
        assert isinstance(command, Commands)
        command = command.get_command(ctx, word)
        ctx = click.Context(command, info_name=word, parent=ctx, resilient_parsing=True)
    command.parse_args(ctx, [])
    return command, ctx


def long_help(words: tuple[str, ...]) -> str:
    """The help of a command with all its options."""
    command, ctx = command_of(words)
    return help_page(command, ctx, shows_all=True)
