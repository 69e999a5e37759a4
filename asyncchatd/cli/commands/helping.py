"""The commands about the commands: `help` of one of them, and `version`."""

from __future__ import annotations

import platform

import click
from click.shell_completion import CompletionItem

from asyncchatd import __version__
from asyncchatd.cli.options import json_option
from asyncchatd.terminal import say, say_all, say_json


def _names(context: click.Context, _: click.Parameter, begun: str) -> list[CompletionItem]:
    """The commands that begin so, of the one that was named so far."""
    try:
        at = _at(context, context.params.get("names") or ())
    except click.UsageError:
        return []
    return at.command.shell_complete(at, begun) if isinstance(at.command, click.Group) else []


@click.command("help")
@click.argument("names", metavar="[COMMAND]...", nargs=-1, shell_complete=_names)
@click.pass_context
def show_help(context: click.Context, names: tuple[str, ...]) -> None:
    """Explain COMMAND as its --help does; without one, list them all.

    \b
    Example:
      asyncchatd help logs
      asyncchatd help store backup
    """
    say_all(_at(context, names).get_help())


def _at(context: click.Context, names: tuple[str, ...]) -> click.Context:
    """The context of the command of these names."""
    at = context.find_root()
    for name in names:
        if not isinstance(at.command, click.Group):
            raise click.UsageError(f"{at.command_path} has no further commands, and so no {name}", at)
        _, command, _ = at.command.resolve_command(at, [name])
        assert command is not None
        at = click.Context(command, info_name=name, parent=at)
    return at


@click.command()
@json_option
def version(as_json: bool) -> None:
    """Show the version of asyncchatd and the Python that runs it; a running daemon's is on the status page.

    \b
    Example:
      asyncchatd version --json
    """
    python = platform.python_version()
    if as_json:
        say_json({"version": __version__, "python": python})
    else:
        say(f"asyncchatd {__version__}, Python {python}")
