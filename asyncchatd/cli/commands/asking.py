"""The commands that ask a running daemon: what it knows, and to ping or restore."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import click
from rich.console import Group, RenderableType
from rich.text import Text

from asyncchatd.cli import tables
from asyncchatd.cli.numbers import Number, Whole
from asyncchatd.cli.options import config_option, json_option, server_names
from asyncchatd.config import ConfigError, load_contact
from asyncchatd.control import shapes
from asyncchatd.control.clients.blocking import BlockingClient
from asyncchatd.control.clients.calls import ClientError, DaemonError, Json, read
from asyncchatd.model import SessionState, durations
from asyncchatd.terminal import say, say_json
from asyncchatd.terminal.screens import screen, show

T = TypeVar("T")

POLL_SECONDS = 0.1
WAITING = "waiting for it"


@click.command()
@config_option
@click.option("--follow", "-f", is_flag=True, help="Go on until Ctrl-C; with --json a line each time.")
@click.option(
    "--every",
    type=Number(min=0.1),
    default=1.0,
    metavar="SECONDS",
    show_default=True,
    help="How often --follow looks.",
)
@json_option
def status(config: Path, follow: bool, every: float, as_json: bool) -> None:
    """Show how the daemon is: sessions, what is due, pings, GMS nodes, Chat Servers, restorations.

    \b
    Example:
      asyncchatd status --follow
    """
    if follow:
        with suppress(KeyboardInterrupt):
            ask(config, lambda control: _follow(control, every, as_json))
        return
    answer = ask(config, lambda control: control.status())
    print_answer(answer if as_json else tables.status(read(shapes.Status, answer)))


def _follow(control: BlockingClient, every: float, as_json: bool) -> None:
    """Once reached, a daemon that goes away is waited for: it may be restarting."""
    from rich.live import Live

    console = screen()
    answers = _answers(control, every)
    if as_json or not console.is_terminal:
        _follow_by_lines(answers, as_json)
        return
    with Live(Text(), console=console, auto_refresh=False) as live:
        for answer in answers:
            if isinstance(answer, ClientError):
                live.update(Text(f"{answer}\n{WAITING}", style="red"), refresh=True)
            else:
                live.update(tables.status(read(shapes.Status, answer)), refresh=True)


def _follow_by_lines(answers: Iterator[Json | ClientError], as_json: bool) -> None:
    away = False
    for answer in answers:
        if isinstance(answer, ClientError):
            if not away:
                say(f"{answer}; {WAITING}", error=True)
        elif as_json:
            say_json(answer, line=True)
        else:
            show(screen(), Group(tables.status(read(shapes.Status, answer)), Text()))
        away = isinstance(answer, ClientError)


def _answers(control: BlockingClient, every: float) -> Iterator[Json | ClientError]:
    """What the daemon says each time, or why it says nothing. The first time it must, and what it refuses it goes on to
    refuse: that is raised."""
    yield control.status()
    while True:
        time.sleep(every)
        answer: Json | ClientError
        try:
            answer = control.status()
        except ClientError as error:
            if isinstance(error, DaemonError) and error.status < 500:
                raise
            answer = error
        yield answer


@click.command()
@config_option
@click.option("--alias", help="Only those of the Chat Server with this app_dbid.")
@click.option(
    "--state", type=click.Choice([state.value for state in SessionState]), help="Only those in this state."
)
@click.option("--limit", type=Whole(min=1), default=100, show_default=True, help="At most so many.")
@click.option("--chat", "chat_id", metavar="CHAT_ID", help="All of this one session.")
@json_option
def sessions(
    config: Path, alias: str | None, state: str | None, limit: int, chat_id: str | None, as_json: bool
) -> None:
    """List sessions, or show one. Secure keys are never shown.

    \b
    Example:
      asyncchatd sessions --alias 117 --state live --limit 20
      asyncchatd sessions --chat 00048aAPEQJ8000U
    """
    if chat_id is not None:
        one = ask(config, lambda control: control.session(chat_id))
        print_answer(one if as_json else tables.session(read(shapes.Session, one)))
    else:
        some = ask(config, lambda control: control.sessions(alias=alias, state=state, limit=limit))
        print_answer(some if as_json else tables.sessions(read(shapes.SessionPage, some)))


@click.command()
@config_option
@json_option
def servers(config: Path, as_json: bool) -> None:
    """List the Chat Servers: state, process, sessions.

    \b
    Example:
      asyncchatd servers
    """
    answer = ask(config, lambda control: control.servers())
    print_answer(answer if as_json else tables.servers(read(shapes.Servers, answer)))


@click.command()
@config_option
@json_option
def nodes(config: Path, as_json: bool) -> None:
    """List the nodes that share the store, where it is PostgreSQL: state, version, since when, last seen, claims.

    A node is an asyncchatd process. Of one that is silent nobody has heard for 3 s: it is paused, cut off, or just
    starting, which passes within seconds. One that is gone ended without taking leave; it is listed for an hour, or
    until one of its name comes.

    \b
    Example:
      asyncchatd nodes
    """
    answer = ask(config, lambda control: control.status())
    print_answer({"nodes": answer.get("nodes", [])} if as_json else tables.nodes(read(shapes.Status, answer)))


@click.command()
@config_option
@click.option("--limit", type=Whole(1, 10_000), default=20, show_default=True, help="At most so many.")
@json_option
def restorations(config: Path, limit: int, as_json: bool) -> None:
    """List the restorations, the newest first: cause, duration, counts.

    \b
    Example:
      asyncchatd restorations --limit 5
    """
    answer = ask(config, lambda control: control.restorations(limit))
    print_answer(answer if as_json else tables.restorations(read(shapes.Restorations, answer)))


@click.command()
@click.argument("chat_id")
@config_option
@click.option("--wait", is_flag=True, help="Until GMS answered; exit status 1 when the chat is over.")
@click.option(
    "--timeout",
    type=Number(min=0, min_open=True),
    default=60.0,
    metavar="SECONDS",
    show_default=True,
    help="How long to wait.",
)
@json_option
def ping(chat_id: str, config: Path, wait: bool, timeout: float, as_json: bool) -> None:
    """Ping a session now, or as soon as the rate allows.

    \b
    Example:
      asyncchatd ping 00048aAPEQJ8000U --wait
    """
    answer = ask(config, lambda control: _pinged(control, chat_id, wait, timeout))
    print_answer(answer if as_json else tables.session(read(shapes.Session, answer)))


def _pinged(control: BlockingClient, chat_id: str, wait: bool, patience: float) -> Json:
    before = read(shapes.Session, control.session(chat_id)).answered_at
    answer = control.ping(chat_id)
    view = read(shapes.Session, answer)
    deadline = time.monotonic() + patience
    while wait and view.answered_at == before:
        if view.end_cause is not None:
            raise click.ClickException(f"the chat {chat_id} is over ({view.end_cause})")
        if view.reason == "keepalive" and view.last_trouble:
            said = view.trouble_detail or view.last_trouble
            raise click.ClickException(f"GMS refused the ping: {said}")
        if time.monotonic() > deadline:
            trouble = f" ({view.last_trouble})" if view.last_trouble else ""
            raise click.ClickException(
                f"no answer within {durations.in_words(patience)}{trouble}; it stays due"
            )
        time.sleep(POLL_SECONDS)
        answer = control.session(chat_id)
        view = read(shapes.Session, answer)
    return answer


@click.command()
@click.argument("server", shell_complete=server_names)
@config_option
@click.option("--wait", is_flag=True, help="Until every session was answered for; 1 when some were refused.")
@click.option(
    "--timeout",
    type=Number(min=0, min_open=True),
    default=3600.0,
    metavar="SECONDS",
    show_default=True,
    help="How long to wait.",
)
@json_option
def restore(server: str, config: Path, wait: bool, timeout: float, as_json: bool) -> None:
    """Ping all sessions of a Chat Server, as if it had been lost. SERVER is its name.

    \b
    Example:
      asyncchatd restore chat-1 --wait
    """
    answer = ask(config, lambda control: _restored(control, server, wait, timeout))
    view = read(shapes.Restoration, answer)
    print_answer(answer if as_json else tables.restorations(shapes.Restorations(restorations=[view])))
    if wait and view.refused:
        raise click.ClickException(
            f"{view.refused:,} of the sessions were left without an answer; see ping_refused in the log"
        )


def _restored(control: BlockingClient, server: str, wait: bool, patience: float) -> Json:
    from asyncchatd.terminal.bars import progress

    answer = control.restore(server)
    view = read(shapes.Restoration, answer)
    deadline = time.monotonic() + patience
    with progress(screen(stderr=True), "sessions") as bar:
        task = bar.add_task(f"restoring {server}")
        while wait and view.finished_at is None:
            bar.update(task, total=view.sessions, completed=view.sessions - view.waiting)
            if time.monotonic() > deadline:
                raise click.ClickException(
                    f"{view.waiting:,} sessions still wait after {durations.in_words(patience)};"
                    " the restoration goes on"
                )
            time.sleep(POLL_SECONDS)
            answer = _restoration(control, view.id)
            view = read(shapes.Restoration, answer)
    return answer


def _restoration(control: BlockingClient, number: int) -> Json:
    found = (control.restorations(1_000)).get("restorations")
    for each in found if isinstance(found, list) else []:
        if isinstance(each, dict) and each.get("id") == number:
            return each
    raise click.ClickException(f"restoration #{number} is not known any more")


def ask(config: Path, question: Callable[[BlockingClient], T]) -> T:
    """Ask the daemon that this configuration belongs to."""
    try:
        return question(BlockingClient.of(load_contact(config)))
    except (ConfigError, ClientError) as error:
        unknown = isinstance(error, DaemonError) and error.status == 404
        advice = WHERE_ELSE.get(click.get_current_context().info_name or "", "") if unknown else ""
        raise click.ClickException(f"{error}{advice}") from None


WHERE_ELSE = dict.fromkeys(
    ("sessions", "ping", "end"),
    "; asyncchatd logs --chat ID tells what became of it, as far as the log goes back",
) | {"restore": "; asyncchatd servers lists them", "consumers": "; asyncchatd consumers lists them"}
"""What to do next when the daemon does not know what a command asks for."""


def print_answer(shown: Json | RenderableType) -> None:
    """An answer of the daemon as JSON, anything else as what people see."""
    if isinstance(shown, dict):
        say_json(shown)
    else:
        show(screen(), shown)
