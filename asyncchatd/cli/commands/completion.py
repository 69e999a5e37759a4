"""The command `completion`: what a shell needs to complete all the others."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from asyncchatd.terminal import say_all


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what SHELL needs to complete commands, options, files and names of Chat Servers.

    \b
    Example:
      asyncchatd completion bash > /etc/bash_completion.d/asyncchatd
      asyncchatd completion zsh > /usr/local/share/zsh/site-functions/_asyncchatd
      asyncchatd completion fish > ~/.config/fish/completions/asyncchatd.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    say_all(kind(context.find_root().command, {}, "asyncchatd", "_ASYNCCHATD_COMPLETE").source())
