"""The command about those who are told of events: how far each is, and to pause one or try again.

consumers                                      how far each is behind
consumers retry|pause|resume|replay NAME       steer one
"""

from __future__ import annotations

from pathlib import Path

import click

from asyncchatd.cli import tables
from asyncchatd.cli.commands.asking import ask, print_answer
from asyncchatd.cli.options import config_option, json_option
from asyncchatd.control import shapes
from asyncchatd.control.clients.calls import VERBS, read


@click.command()
@click.argument("verb", type=click.Choice(VERBS), required=False)
@click.argument("name", required=False)
@config_option
@json_option
def consumers(verb: str | None, name: str | None, config: Path, as_json: bool) -> None:
    """List those who are told of events, and how far each is behind; or steer the one of this NAME.

    pause tells it nothing more, and keeps for it what happens. resume goes on. retry tries at once what its webhook did
    not take and waits for its next try. replay tries once more what its webhook refused for so long that it was put
    aside.

    \b
    Example:
      asyncchatd consumers
      asyncchatd consumers replay chat-app
    """
    if verb is None:
        answer = ask(config, lambda control: control.consumers())
        print_answer(answer if as_json else tables.consumers(read(shapes.Consumers, answer).consumers))
        return
    if name is None:
        raise click.UsageError(
            f"expected the name of a consumer behind {verb}; asyncchatd consumers lists them"
        )
    answer = ask(config, lambda control: control.steer(name, verb))
    print_answer(answer if as_json else tables.steered(read(shapes.Steered, answer), verb))
