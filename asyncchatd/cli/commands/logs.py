"""The command `logs`: what happened, told in words."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from asyncchatd.cli.numbers import Whole
from asyncchatd.cli.options import FILE, server_names
from asyncchatd.story import LogsError, moment, telling
from asyncchatd.terminal import say


@click.command()
@click.argument("files", nargs=-1, type=FILE)
@click.option(
    "--chat", "chat_id", metavar="ID", help="The story of this one chat, and why it ended or waits."
)
@click.option("--server", metavar="NAME", shell_complete=server_names, help="The story of this Chat Server.")
@click.option("--restoration", metavar="N", type=Whole(min=1), help="The story of this restoration.")
@click.option(
    "--summary", is_flag=True, help="What happened, in numbers; of today, when it reads the journal."
)
@click.option(
    "--since", metavar="TIME", help="Not before: 2h (ago), today, yesterday, 14:30, or an ISO time."
)
@click.option("--until", metavar="TIME", help="Not after.")
@click.option("--follow", "-f", is_flag=True, help="Go on with what is written from now on, until Ctrl-C.")
@click.option(
    "--full", is_flag=True, help="A sentence for each event; else runs of the same are drawn together."
)
@click.option(
    "--unit", metavar="UNIT", default="asyncchatd", show_default=True, help="Of the journal, without FILES."
)
@click.option(
    "--config",
    type=FILE,
    envvar="ASYNCCHATD_CONFIG",
    show_envvar=True,
    metavar="FILE",
    help="Where the names of Chat Servers are, for --server; the log itself is read without.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, a line for each sentence and the verdict.")
@click.pass_context
def logs(
    context: click.Context,
    files: tuple[Path, ...],
    chat_id: str | None,
    server: str | None,
    restoration: int | None,
    summary: bool,
    since: str | None,
    until: str | None,
    follow: bool,
    full: bool,
    unit: str,
    config: Path | None,
    as_json: bool,
) -> None:
    """Tell from the log what happened: to one chat, a Chat Server, in a restoration, or today.

    Reads FILES (also .gz, in any order), standard input when something is piped in or a file is called -, else
    the journal of --unit. Exit status 1 when the log does not speak of what was asked for, or of that time.

    \b
    Example:
      asyncchatd logs --chat 00048aAPEQJ8000U
      asyncchatd logs --summary --since yesterday --until today
      asyncchatd logs --server chat-1 --since 2h /var/log/asyncchatd.log*
    """
    if sum((chat_id is not None, server is not None, restoration is not None, summary)) > 1:
        raise click.UsageError("give only one of --chat, --server, --restoration and --summary")
    if summary and follow:
        raise click.UsageError("--summary looks back; leave --follow away, or see asyncchatd status --follow")
    asked = telling.Asked(
        files=files,
        unit=unit,
        since=_moment(since, "--since"),
        until=_moment(until, "--until"),
        follow=follow,
        full=full,
        as_json=as_json,
    )
    try:
        if summary:
            if not telling.summarize(asked):
                raise SystemExit(1)
            return
        known = telling.tell(asked, chat_id=chat_id, server=server, restoration=restoration)
    except LogsError as error:
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:
        return
    if not known:
        names = server_names(context, context.command.params[0], "") if server is not None else []
        if names and server not in names:
            say(f"No Chat Server of this name is configured, but {', '.join(names)}.", error=True)
        raise SystemExit(1)


def _moment(text: str | None, option: str) -> datetime | None:
    try:
        return None if text is None else moment(text, datetime.now(UTC))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=option) from None
