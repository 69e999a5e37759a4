"""The commands, by the headings under which they live; each module is imported when its command is asked for.

    preflight   init, check            configuration, secret and units of this host; what is wrong with them
    running     run                    the daemon
    asking      status, sessions, servers, nodes, restorations, ping, restore     what a running daemon knows and does
    telling     register, end          chats that a running daemon is to look after, or no more
    steering    consumers              who is told of what happens in chats
    logs        logs                   what happened, told in words
    planting    standin             a plant to rehearse with
    rehearsing  demo, rehearse      the whole story in a minute, the storm of one's own
    storing     store ...              copies of the store, an old one put back, another kind, an older asyncchatd
    completion  completion             what a shell needs to complete all this
    helping     help, version          of a command, and of the program

Exit status: 0 when it went well, 1 when it did not (one line on standard error says why), 2 for a wrong
option, 130 and 143 when stopped by Ctrl-C and SIGTERM.
"""

from __future__ import annotations

import click

from asyncchatd import __version__
from asyncchatd.cli.ends import Announced, Commands

ANNOUNCED = [
    Announced("check", "What is wrong with the configuration.", "asyncchatd.cli.commands.preflight:check"),
    Announced(
        "completion", "Lets the shell complete commands.", "asyncchatd.cli.commands.completion:completion"
    ),
    Announced(
        "consumers",
        "Who is told of events; pause or try again.",
        "asyncchatd.cli.commands.steering:consumers",
    ),
    Announced("demo", "The whole story in about a minute.", "asyncchatd.cli.commands.rehearsing:demonstrate"),
    Announced("end", "Stop looking after chats; GMS is told nothing.", "asyncchatd.cli.commands.telling:end"),
    Announced("help", "What a command does, and its options.", "asyncchatd.cli.commands.helping:show_help"),
    Announced(
        "init",
        "Write a configuration, its secrets and the units of this host.",
        "asyncchatd.cli.commands.preflight:init",
    ),
    Announced("logs", "What happened, told in words.", "asyncchatd.cli.commands.logs:logs"),
    Announced("nodes", "Which processes share the store.", "asyncchatd.cli.commands.asking:nodes"),
    Announced("ping", "Ping a session now.", "asyncchatd.cli.commands.asking:ping"),
    Announced(
        "register", "Look after chats, from a file or stdin.", "asyncchatd.cli.commands.telling:register"
    ),
    Announced(
        "rehearse",
        "Is max_rate right? Try it before the storm.",
        "asyncchatd.cli.commands.rehearsing:rehearse",
    ),
    Announced("restorations", "What was restored, and how.", "asyncchatd.cli.commands.asking:restorations"),
    Announced("restore", "Ping all sessions of a Chat Server.", "asyncchatd.cli.commands.asking:restore"),
    Announced("run", "The daemon.", "asyncchatd.cli.commands.running:run"),
    Announced("servers", "The Chat Servers it watches.", "asyncchatd.cli.commands.asking:servers"),
    Announced("sessions", "The chats it keeps alive.", "asyncchatd.cli.commands.asking:sessions"),
    Announced("standin", "A plant to rehearse with.", "asyncchatd.cli.commands.planting:stand_in"),
    Announced("status", "How the daemon is.", "asyncchatd.cli.commands.asking:status"),
    Announced(
        "store",
        "Copies of the store, another kind, going back to an older one.",
        "asyncchatd.cli.commands.storing:store",
    ),
    Announced("version", "Which asyncchatd this is.", "asyncchatd.cli.commands.helping:version"),
]
"""Every command: its name, what the help says of it, and where it is."""


@click.group(
    cls=Commands,
    commands=ANNOUNCED,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, prog_name="asyncchatd")
def main() -> None:
    """Keep Genesys asynchronous chats alive.

    Exit status: 0 when it went well, 1 when it did not (a line on standard error says why), 2 for a wrong
    option.

    \b
    Example:
      asyncchatd check --connect --config /etc/asyncchatd/asyncchatd.toml
      asyncchatd run --config /etc/asyncchatd/asyncchatd.toml
    """
