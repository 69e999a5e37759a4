"""The commands.

    init                   configuration, secret and units for this host
    run                    the daemon
    check                  what is wrong with a configuration
    status, sessions, servers, restorations        what a running daemon knows
    logs                   what happened, told in words
    ping, restore          what it is asked to do
    standin, demo          a plant to rehearse with, and the whole story in a minute
    rehearse               the storm with settings of your own: is max_rate right?
    store backup, distrust copies of the store, and an old one put back
    completion             what a shell needs to complete all this

Exit status: 0 when it went well, 1 when it did not (one line on standard error says why), 2 for a wrong
option, 130 and 143 when stopped by Ctrl-C and SIGTERM.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import signal
import tomllib
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import click
from click.shell_completion import get_completion_class
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from asyncchatd import __version__, standin
from asyncchatd.cli import storing, tables
from asyncchatd.config import ConfigError, load, load_control
from asyncchatd.control.client import (
    ClientError,
    ControlClient,
    Json,
    Refused,
    RestorationsView,
    RestorationView,
    ServersView,
    SessionsView,
    SessionView,
    StatusView,
    Unreachable,
)
from asyncchatd.daemon import run as daemon
from asyncchatd.listening import ListenError
from asyncchatd.log import events as log
from asyncchatd.model import SessionState
from asyncchatd.preflight import checks, installing
from asyncchatd.rehearsing import demo, plot, rehearsal, trial
from asyncchatd.stores import StoreError
from asyncchatd.story import LogsError, moment, telling
from asyncchatd.terminal import Commands, Number, Whole, progress, say, say_all, say_json, screen, show
from asyncchatd.wire import HealthFormat

USUAL_FILES = (Path("/etc/asyncchatd/asyncchatd.toml"), Path("etc/asyncchatd.toml"))
"""Where the configuration is looked for when nobody says where it is."""

REHEARSAL_PUSH_URL = "http://127.0.0.1:8091/push/change-me"
"""Fits the shipped etc/asyncchatd.toml."""

POLL_SECONDS = 0.1

T = TypeVar("T")


def _usual(_: click.Context, __: click.Parameter, given: Path | None) -> Path:
    found = given or next((path for path in USUAL_FILES if os.path.isfile(path)), None)
    if found is None:
        tried = " nor ".join(map(str, USUAL_FILES))
        raise click.ClickException(
            f"no configuration: there is neither {tried}; name one with --config or $ASYNCCHATD_CONFIG,"
            " or write one: asyncchatd init"
        )
    return found


def _server_names(context: click.Context, parameter: click.Parameter, begun: str) -> list[str]:
    """Names of Chat Servers that begin so, as far as a configuration tells. Never fails: it runs while
    somebody types."""
    try:
        named = context.params.get("config") or os.environ.get("ASYNCCHATD_CONFIG")
        path = named or _usual(context, parameter, None)
        tables = tomllib.loads(Path(path).read_text(encoding="utf-8")).get("chat_server", [])
        names = [str(table.get("name", "")) for table in tables]
    except Exception:
        return []
    return [name for name in names if name.startswith(begun)]


config_option = click.option(
    "--config",
    type=click.Path(path_type=Path),
    callback=_usual,
    envvar="ASYNCCHATD_CONFIG",
    show_envvar=True,
    metavar="FILE",
    help=f"The configuration; default {USUAL_FILES[0]}, else {USUAL_FILES[1]}.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
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


# The daemon.


@main.command(short_help="The daemon.")
@config_option
def run(config: Path) -> None:
    """Run the daemon until SIGTERM or SIGINT; a second one stops it at once.

    \b
    Example:
      asyncchatd run --config /etc/asyncchatd/asyncchatd.toml
    """
    try:
        settings = load(config)
    except ConfigError as error:
        log.configure()
        raise _cannot_start(error) from None
    for secret in settings.secret_values():
        log.redact(secret)
    log.configure(settings.log.level, settings.log.format)
    for finding in checks.check(config):
        if finding.level is checks.Level.WARNING:
            log.get_logger().warning(
                log.Event.CONFIG_WARNING, key=finding.key, message=finding.message, advice=finding.advice
            )
    stop = asyncio.Event()
    try:
        with _runner() as runner:
            runner.run(daemon.run(settings, stop=stop))
    except Exception as error:
        if stop.is_set():  # it ran; its own event daemon_failed tells the rest
            log.leave_if_nobody_reads()
            raise click.ClickException(f"a part of the daemon failed: {log.scrub(repr(error))}") from None
        if isinstance(error, StoreError | ListenError | OSError):
            raise _cannot_start(
                error, f"asyncchatd check --connect --config {config} looks at all it needs"
            ) from None
        log.leave_if_nobody_reads()
        raise


def _cannot_start(error: Exception, advice: str = "") -> click.ClickException:
    cause = log.scrub(_said(error))
    log.get_logger().critical(log.Event.DAEMON_FAILED, part="start", cause=cause)
    log.leave_if_nobody_reads()
    return click.ClickException(f"{cause} ({advice})" if advice else cause)


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__


@main.command(short_help="What is wrong with the configuration.")
@config_option
@click.option(
    "--connect", is_flag=True, help="Also try the hosts, health pages, directories and addresses it names."
)
@json_option
def check(config: Path, connect: bool, as_json: bool) -> None:
    """Say what is wrong with the configuration, and what is probably not meant.

    Errors make the exit status 1, warnings do not.

    \b
    Example:
      asyncchatd check --connect --config /etc/asyncchatd/asyncchatd.toml
    """
    found = checks.check(config)
    if connect and not _wrong(found):
        with screen(stderr=True).status("connecting") as waiting, _runner() as runner:
            found += runner.run(checks.connect(load(config)))
            waiting.stop()
    if as_json:
        names = ("level", "area", "key", "message", "advice")
        say_json([{name: getattr(finding, name) for name in names} for finding in found])
    else:
        show(screen(), tables.findings(found))
    if _wrong(found):
        raise SystemExit(1)


def _named_url(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    pairs = [text.partition("=") for text in given]
    if wrong := [name for name, equals, url in pairs if not (name and equals and url)]:
        raise click.BadParameter(f"expected NAME=URL, such as chat-1=http://chat-1:4001/, not {wrong[0]}")
    return tuple((name, url) for name, _, url in pairs)


@main.command(short_help="Write a configuration, its secrets and the units of this host.")
@click.option(
    "--dir", "directory", type=click.Path(path_type=Path, file_okay=False), default=USUAL_FILES[0].parent,
    show_default=True, help="Where to.",
)  # fmt: skip
@click.option("--gms", metavar="URL", multiple=True, help="Base address of a GMS node; once for each.")
@click.option("--service", metavar="NAME", help="Name of the chat service in GMS.")
@click.option(
    "--chat-server", "chat_servers", metavar="NAME=URL", multiple=True, callback=_named_url,
    help="A Chat Server and the address of its health page; once for each.",
)  # fmt: skip
@click.option(
    "--listen", default="127.0.0.1:8091", metavar="ADDRESS", show_default=True,
    help="Where GMS pushes to; :8091 for every interface.",
)  # fmt: skip
@click.option(
    "--systemd/--no-systemd", default=os.path.isdir("/run/systemd/system"),
    help="For a service, or to be started by hand; default: a service where systemd runs.",
)  # fmt: skip
@click.option(
    "--force", is_flag=True, help="Overwrite what is there; never the push secret and the store key."
)
def init(
    directory: Path,
    gms: tuple[str, ...],
    service: str | None,
    chat_servers: tuple[tuple[str, str], ...],
    listen: str,
    systemd: bool,
    force: bool,
) -> None:
    """Write a commented configuration, a push secret and a store key of its own, and the systemd units of this
    host; then say what is left to do here and in GMS.

    \b
    Example:
      asyncchatd init --gms http://gms-1:8080/genesys --chat-server chat-1=http://chat-1:4001/ --listen :8091
    """
    choices = installing.Choices(
        directory=directory.absolute(),
        program=installing.this_program(),
        systemd=systemd,
        nodes=gms,
        service=service,
        listen=listen,
        chat_servers=chat_servers,
    )
    try:
        written = installing.install(choices, force=force)
    except installing.InitError as error:
        raise click.ClickException(str(error)) from None
    say_all(installing.next_steps(choices, written))


def _wrong(found: Sequence[checks.Finding]) -> bool:
    return any(finding.level is checks.Level.ERROR for finding in found)


# What a running daemon knows.


@main.command(short_help="How the daemon is.")
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
            _ask(config, lambda control: _follow(control, every, as_json))
        return
    answer = _ask(config, lambda control: control.status())
    _print(answer if as_json else tables.status(StatusView.of(answer)))


async def _follow(control: ControlClient, every: float, as_json: bool) -> None:
    """Once reached, a daemon that goes away is waited for: it may be restarting."""
    console = screen()
    answer = await control.status()
    if as_json or not console.is_terminal:
        while True:
            if as_json:
                say_json(answer, line=True)
            else:
                show(console, Group(tables.status(StatusView.of(answer)), Text()))
            await asyncio.sleep(every)
            answer = await control.status()
    with Live(tables.status(StatusView.of(answer)), console=console, auto_refresh=False) as live:
        while True:
            await asyncio.sleep(every)
            try:
                shown = tables.status(StatusView.of(await control.status()))
            except Unreachable as error:
                shown = Text(f"{error}\nwaiting for it", style="red")
            live.update(shown, refresh=True)


@main.command(short_help="The chats it keeps alive.")
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
        one = _ask(config, lambda control: control.session(chat_id))
        _print(one if as_json else tables.session(SessionView.of(one)))
    else:
        some = _ask(config, lambda control: control.sessions(alias=alias, state=state, limit=limit))
        _print(some if as_json else tables.sessions(SessionsView.of(some)))


@main.command(short_help="The Chat Servers it watches.")
@config_option
@json_option
def servers(config: Path, as_json: bool) -> None:
    """List the Chat Servers: state, process, sessions.

    \b
    Example:
      asyncchatd servers
    """
    answer = _ask(config, lambda control: control.servers())
    _print(answer if as_json else tables.servers(ServersView.of(answer)))


@main.command(short_help="What was restored, and how.")
@config_option
@click.option("--limit", type=Whole(1, 10_000), default=20, show_default=True, help="At most so many.")
@json_option
def restorations(config: Path, limit: int, as_json: bool) -> None:
    """List the restorations, the newest first: cause, duration, counts.

    \b
    Example:
      asyncchatd restorations --limit 5
    """
    answer = _ask(config, lambda control: control.restorations(limit))
    _print(answer if as_json else tables.restorations(RestorationsView.of(answer)))


@main.command(short_help="What happened, told in words.")
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--chat", "chat_id", metavar="ID", help="The story of this one chat, and why it ended or waits."
)
@click.option("--server", metavar="NAME", shell_complete=_server_names, help="The story of this Chat Server.")
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
    type=click.Path(path_type=Path),
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
    the journal of --unit. Exit status 1 when the log does not speak of what was asked for.

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
            telling.summarize(asked)
            return
        known = telling.tell(asked, chat_id=chat_id, server=server, restoration=restoration)
    except LogsError as error:
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:
        return
    if not known:
        names = _server_names(context, context.command.params[0], "") if server is not None else []
        if names and server not in names:
            say(f"No Chat Server of this name is configured, but {', '.join(names)}.", error=True)
        raise SystemExit(1)


def _moment(text: str | None, option: str) -> datetime | None:
    try:
        return None if text is None else moment(text, datetime.now(UTC))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=option) from None


# What it is asked to do.


@main.command(short_help="Ping a session now.")
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
    answer = _ask(config, lambda control: _pinged(control, chat_id, wait, timeout))
    _print(answer if as_json else tables.session(SessionView.of(answer)))


async def _pinged(control: ControlClient, chat_id: str, wait: bool, patience: float) -> Json:
    before = SessionView.of(await control.session(chat_id)).answered_at
    answer = await control.ping(chat_id)
    view = SessionView.of(answer)
    deadline = asyncio.get_running_loop().time() + patience
    while wait and view.answered_at == before:
        if view.end_cause is not None:
            raise click.ClickException(f"the chat {chat_id} is over ({view.end_cause})")
        if view.reason == "keepalive" and view.last_trouble:
            said = view.trouble_detail or view.last_trouble
            raise click.ClickException(f"GMS refused the ping: {said}")
        if asyncio.get_running_loop().time() > deadline:
            trouble = f" ({view.last_trouble})" if view.last_trouble else ""
            raise click.ClickException(f"no answer within {tables.span(patience)}{trouble}; it stays due")
        await asyncio.sleep(POLL_SECONDS)
        answer = await control.session(chat_id)
        view = SessionView.of(answer)
    return answer


@main.command(short_help="Ping all sessions of a Chat Server.")
@click.argument("server", shell_complete=_server_names)
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
    answer = _ask(config, lambda control: _restored(control, server, wait, timeout))
    view = RestorationView.of(answer)
    _print(answer if as_json else tables.restorations(RestorationsView(restorations=[view])))
    if wait and view.refused:
        raise click.ClickException(
            f"{view.refused:,} of the sessions were left without an answer; see ping_refused in the log"
        )


async def _restored(control: ControlClient, server: str, wait: bool, patience: float) -> Json:
    answer = await control.restore(server)
    view = RestorationView.of(answer)
    deadline = asyncio.get_running_loop().time() + patience
    with progress(screen(stderr=True), "sessions") as bar:
        task = bar.add_task(f"restoring {server}")
        while wait and view.finished_at is None:
            bar.update(task, total=view.sessions, completed=view.sessions - view.waiting)
            if asyncio.get_running_loop().time() > deadline:
                raise click.ClickException(
                    f"{view.waiting:,} sessions still wait after {tables.span(patience)}; the restoration goes on"
                )
            await asyncio.sleep(POLL_SECONDS)
            answer = await _restoration(control, view.id)
            view = RestorationView.of(answer)
    return answer


async def _restoration(control: ControlClient, number: int) -> Json:
    found = (await control.restorations(1_000)).get("restorations")
    for each in found if isinstance(found, list) else []:
        if isinstance(each, dict) and each.get("id") == number:
            return each
    raise click.ClickException(f"restoration #{number} is not known any more")


# Rehearsing.


@main.command(name="standin", short_help="A plant to rehearse with.")
@click.option(
    "--gms-nodes",
    metavar="N",
    type=Whole(1, 100),
    default=2,
    show_default=True,
    help="How many GMS nodes.",
)
@click.option(
    "--servers",
    metavar="N",
    type=Whole(1, 1000),
    default=3,
    show_default=True,
    help="How many Chat Servers.",
)
@click.option(
    "--sessions",
    metavar="N",
    type=Whole(0, 1_000_000),
    default=0,
    show_default=True,
    help="Chats to start with.",
)
@click.option("--service", default="customer-support", show_default=True, help="Their service name.")
@click.option(
    "--gms-port", metavar="PORT", type=Whole(0, 65535), default=8080, show_default=True,
    help="Port of the first GMS node, the next ones follow; 0 for any free ones.",
)  # fmt: skip
@click.option(
    "--health-port", metavar="PORT", type=Whole(0, 65535), default=4001, show_default=True,
    help="The same for the health pages.",
)  # fmt: skip
@click.option(
    "--control-port", metavar="PORT", type=Whole(0, 65535), default=8093, show_default=True,
    help="The stand-in's own control port: faults and report.",
)  # fmt: skip
@click.option(
    "--push-url", default=REHEARSAL_PUSH_URL, show_default=True, metavar="URL",
    help="Where pushes go, on loopback; it ends in the daemon's push secret.",
)  # fmt: skip
@click.option(
    "--health", "formats", multiple=True, metavar="FORMAT",
    type=click.Choice([each.value for each in (*HealthFormat, *standin.SickPage)]),
    default=[HealthFormat.JSON.value], show_default=True,
    help="Format of the health pages; give several and the servers take them in turn: "
    f"{', '.join(each.value for each in (*HealthFormat, *standin.SickPage))}.",
)  # fmt: skip
@click.option(
    "--capacity", type=Number(min=0, min_open=True), metavar="PER_SECOND",
    help="Requests per second GMS can serve; default without limit.",
)  # fmt: skip
@click.option(
    "--latency", type=Number(0, 3600), default=0.002, show_default=True, metavar="SECONDS",
    help="Time GMS takes for any request.",
)  # fmt: skip
@click.option(
    "--rotate", type=click.Choice([each.value for each in standin.Rotation]), default="never",
    show_default=True, help="When user id and secure key change.",
)  # fmt: skip
@click.option(
    "--rotate-every", type=Whole(1), default=10, show_default=True, metavar="N",
    help="With refresh and always: at every N-th refresh of a session.",
)  # fmt: skip
@click.option(
    "--resend/--no-resend", default=True, show_default=True, help="Resend pushes until a Refresh comes."
)
@click.option(
    "--resend-delay", type=Number(min=0, min_open=True), default=15.0, show_default=True,
    metavar="SECONDS", help="Time between two of them.",
)  # fmt: skip
@click.option(
    "--resend-attempts", metavar="N", type=Whole(0), default=10, show_default=True, help="How many."
)
@click.option(
    "--restoration-window", type=Number(min=0), default=600.0, show_default=True,
    metavar="SECONDS", help="A lost server's sessions are lost when no Refresh comes for so long.",
)  # fmt: skip
@json_option
def stand_in(
    gms_nodes: int,
    servers: int,
    sessions: int,
    service: str,
    gms_port: int,
    health_port: int,
    control_port: int,
    push_url: str,
    formats: tuple[str, ...],
    capacity: float | None,
    latency: float,
    rotate: str,
    rotate_every: int,
    resend: bool,
    resend_delay: float,
    resend_attempts: int,
    restoration_window: float,
    as_json: bool,
) -> None:
    """Run a stand-in plant on loopback: GMS nodes and Chat Servers to rehearse with, faults included.

    Prints where everything listens and a configuration for asyncchatd, then runs until Ctrl-C. Its control
    port kills, hangs and slows its parts and reports what it suffered: see docs/standin.md.

    \b
    Example:
      asyncchatd standin --servers 4 --sessions 1000 --capacity 300 --rotate always
    """
    readers: dict[str, HealthFormat | standin.SickPage] = {
        each.value: each for each in (*HealthFormat, *standin.SickPage)
    }
    chat_servers = tuple(
        replace(server, health=readers[formats[number % len(formats)]])
        for number, server in enumerate(standin.chat_servers(servers))
    )
    ports = standin.Ports(
        control=control_port,
        gms=tuple(gms_port and gms_port + number for number in range(gms_nodes)),
        health={server.name: health_port and health_port + n for n, server in enumerate(chat_servers)},
    )

    def ready(running: standin.StandIn) -> None:
        running.plant.start_chats(sessions)
        if as_json:
            where = {"gms": running.gms_urls, "health": running.health_urls, "control": running.control_url}
            say_json(where, line=True)
        else:
            show(screen(), _plant(running, push_url))

    try:
        settings = standin.PlantSettings(
            servers=chat_servers,
            gms_nodes=gms_nodes,
            service=service,
            push_url=push_url,
            resend=resend,
            resend_delay=resend_delay,
            resend_attempts=resend_attempts,
            restoration_window=restoration_window,
            rotate=standin.Rotation(rotate),
            rotate_every=rotate_every,
            latency=latency,
            gms_capacity=capacity,
        )
        _until_stopped(standin.serve(settings, ports, ready=ready))
    except (standin.SettingError, OSError, OverflowError) as error:
        said = _said(error)
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            said = (
                "one of its ports is in use; give others with --gms-port, --health-port and --control-port, or 0"
                " to each for any free ones"
            )
        raise click.ClickException(said) from None


def _plant(running: standin.StandIn, push_url: str) -> RenderableType:
    """Where the stand-in listens, what to configure, and how to register its chats."""
    parts = Table.grid(padding=(0, 2))
    for url in running.gms_urls:
        parts.add_row("GMS node", url)
    for name, url in running.health_urls.items():
        parts.add_row(f"Chat Server {name}", url)
    parts.add_row("control port", running.control_url)
    push = urlsplit(push_url)
    # The secret of a real configuration is not repeated on a screen.
    secret = '"change-me"]' if push_url == REHEARSAL_PUSH_URL else '"<the last part of --push-url>"]'
    servers = "".join(
        f'\n[[chat_server]]\nname = "{name}"\nhealth_url = "{url}"'
        for name, url in running.health_urls.items()
    )
    snippet = f"""
# A configuration for asyncchatd:

[receiver]
listen = "{push.netloc}"
secrets = [{secret}
[gms]
nodes = [{", ".join(f'"{url}"' for url in running.gms_urls)}]
service = "{running.plant.settings.service}"{servers}

# Then register the chats that are there, start more, and see what the plant suffers:
curl -sS {running.control_url}/sessions | curl -sS --data-binary @- http://127.0.0.1:8092/v1/sessions

curl -sS -d '{{"count": 100}}' {running.control_url}/chats |
    curl -sS --data-binary @- http://127.0.0.1:8092/v1/sessions
curl -sS -X POST {running.control_url}/servers/{next(iter(running.health_urls))}/kill
curl -sS {running.control_url}/report
"""
    return Group(parts, Text(snippet))


@main.command(name="demo", short_help="The whole story in about a minute.")
@click.option(
    "--sessions",
    metavar="N",
    type=Whole(10, 200_000),
    default=3000,
    show_default=True,
    help="Chats.",
)
@click.option("--servers", metavar="N", type=Whole(2, 20), default=4, show_default=True, help="Chat Servers.")
@click.option(
    "--rate", type=Number(1, 2000), default=200.0, show_default=True, metavar="PER_SECOND",
    help="Requests per second asyncchatd may send to GMS.",
)  # fmt: skip
@click.option(
    "--seconds", type=Number(1, 3600), default=20.0, show_default=True, metavar="SECONDS",
    help="How long all is well before a Chat Server is killed.",
)  # fmt: skip
@click.option("--keep", is_flag=True, help="Keep the directory with configuration, database and log.")
@json_option
def demonstrate(sessions: int, servers: int, rate: float, seconds: float, keep: bool, as_json: bool) -> None:
    """Show the whole story on real sockets, in about a minute, and judge it.

    A stand-in plant, a daemon of its own beside it, thousands of chats; then a Chat Server is killed. A second
    plant suffers the same without asyncchatd. Exit status 1 when a promise was broken.

    \b
    Example:
      asyncchatd demo --sessions 3000 --rate 200
    """
    console = screen(quiet=as_json)
    plan = demo.Plan(sessions=sessions, servers=servers, rate=rate, seconds=seconds)
    directory = trial.new_directory("demo")
    outcome = _tried(demo.tell(plan, console, directory), directory, keep)
    keep = keep or not outcome.kept
    _discard(directory, keep)
    if as_json:
        say_json({**outcome.shown(), "directory": str(directory) if keep else None})
    elif keep:
        console.print(_where_the_log_is(directory))
    if not outcome.kept:
        raise SystemExit(1)


@main.command(name="rehearse", short_help="Is max_rate right? Try it before the storm.")
@click.option(
    "--sessions", metavar="N", type=Whole(1, 1_000_000), default=10_000, show_default=True,
    help="Chats.",
)  # fmt: skip
@click.option(
    "--servers", metavar="N", type=Whole(2, 100), default=4, show_default=True, help="Chat Servers."
)
@click.option(
    "--kill", metavar="N", type=Whole(1), default=1, show_default=True,
    help="How many of them are lost at once.",
)  # fmt: skip
@click.option(
    "--gms-capacity", type=Number(0), default=0.0, show_default=True, metavar="PER_SECOND",
    help="Requests per second the stand-in GMS can serve; 0 without limit.",
)  # fmt: skip
@click.option(
    "--restore-cost", type=Number(0, min_open=True), metavar="REQUESTS", show_default=True,
    default=rehearsal.STANDIN.restore_cost,
    help="Of that capacity, what one restoration takes.",
)  # fmt: skip
@click.option(
    "--latency", type=Number(min=0), metavar="SECONDS", show_default=True,
    default=rehearsal.STANDIN.latency, help="Time GMS takes for any request.",
)  # fmt: skip
@click.option(
    "--window", type=Number(1), default=300.0, show_default=True, metavar="SECONDS",
    help="A lost server's sessions are lost when no Refresh comes for so long.",
)  # fmt: skip
@click.option(
    "--messages-per-second", type=Number(0), default=5.0, show_default=True, metavar="N",
    help="What agents write meanwhile; each message is pushed and acknowledged.",
)  # fmt: skip
@click.option(
    "--lost-answers", type=Number(0, 1), default=0.001, show_default=True, metavar="SHARE",
    help="Of GMS' answers, those lost when the work is done: a node or a proxy hangs up.",
)  # fmt: skip
@click.option(
    "--redeploy", type=Number(0), default=10.0, show_default=True, metavar="SECONDS",
    help="How long one of the two GMS nodes answers 404 after the kill.",
)  # fmt: skip
@click.option(
    "--config", type=click.Path(path_type=Path), metavar="FILE",
    help="Rehearse with the ping, restoration and watcher settings, and the time-outs of GMS, of this"
    " configuration; default: the daemon's defaults.",
)  # fmt: skip
@click.option(
    "--max-rate", type=Number(0, min_open=True), metavar="PER_SECOND",
    help="restoration.max_rate, in its place.",
)  # fmt: skip
@click.option("--max-in-flight", type=Whole(1), metavar="N", help="restoration.max_in_flight, in its place.")
@click.option("--ping-interval", metavar="DURATION", help='ping.interval, in its place: "30m", or "90s".')
@click.option(
    "--svg", type=click.Path(path_type=Path, dir_okay=False, writable=True), metavar="FILE",
    help="Also draw the load there.",
)  # fmt: skip
@click.option("--keep", is_flag=True, help="Keep the directory with configuration, database and log.")
@json_option
def rehearse(
    sessions: int,
    servers: int,
    kill: int,
    gms_capacity: float,
    restore_cost: float,
    latency: float,
    window: float,
    messages_per_second: float,
    lost_answers: float,
    redeploy: float,
    config: Path | None,
    max_rate: float | None,
    max_in_flight: int | None,
    ping_interval: str | None,
    svg: Path | None,
    keep: bool,
    as_json: bool,
) -> None:
    """Lose Chat Servers before you lose them: how long would customers wait, and what should be changed?

    A daemon with your settings beside a stand-in plant of your size; then servers are killed. Shows how long
    sessions were without a server, the load GMS saw, and which setting was the bottleneck. Exit status 1 when
    sessions were lost. See docs/rehearsal.md.

    \b
    Example:
      asyncchatd rehearse --sessions 20000 --servers 8 --gms-capacity 200 --restore-cost 1 --max-rate 100
      asyncchatd rehearse --config /etc/asyncchatd/asyncchatd.toml --sessions 100000 --servers 8 --kill 2
    """
    if kill >= servers:
        raise click.BadParameter(
            "expected fewer than --servers: somebody must take their sessions", param_hint="--kill"
        )
    options: dict[str, dict[str, object]] = {
        "ping": {"interval": ping_interval},
        "restoration": {"max_rate": max_rate, "max_in_flight": max_in_flight},
    }
    given = {
        name: {key: value for key, value in keys.items() if value is not None}
        for name, keys in options.items()
    }
    try:
        plan = rehearsal.Plan(
            sessions=sessions,
            servers=servers,
            kill=kill,
            gms_capacity=gms_capacity or None,
            restore_cost=restore_cost,
            latency=latency,
            window=window,
            messages_per_second=messages_per_second,
            lost_answers=lost_answers,
            redeploy=redeploy,
            tuned=rehearsal.tuned(config, given),
        )
    except ConfigError as error:
        raise click.ClickException(str(error)) from None
    if svg is not None and not os.access(svg.parent, os.W_OK):
        raise click.ClickException(f"{svg} cannot be written; name a file in a directory that is there")
    console = screen(quiet=as_json)
    directory = trial.new_directory("rehearsal")
    outcome = _tried(rehearsal.rehearse(plan, console, directory), directory, keep)
    keep = keep or outcome.exit_status != 0
    _discard(directory, keep)
    if as_json:
        say_json({**outcome.shown(), "directory": str(directory) if keep else None})
    elif keep:
        console.print(_where_the_log_is(directory))
    if svg is not None:
        try:
            svg.write_text(plot.svg(outcome.picture), encoding="utf-8")
        except OSError as error:
            raise click.ClickException(f"{svg} cannot be written: {error.strerror}") from None
    if not outcome.well:
        raise SystemExit(1)


def _tried(story: Coroutine[object, object, T], directory: Path, keep: bool) -> T:
    """Let a daemon and a plant play a story; when it fails, the directory stays for its log."""
    try:
        return _until_stopped(story)
    except Exception as error:
        if isinstance(error, trial.TrialError):
            raise click.ClickException(f"{error}; see {directory / trial.LOG_FILE}") from None
        raise
    except BaseException:
        _discard(directory, keep)
        raise


def _where_the_log_is(directory: Path) -> Text:
    path = directory / trial.LOG_FILE
    return Text(f"\nasyncchatd's log: {path}; in words: asyncchatd logs --summary {path}")


def _discard(directory: Path, keep: bool) -> None:
    if not keep:
        shutil.rmtree(directory, ignore_errors=True)


# For the shell.


@main.command(short_help="Lets the shell complete commands.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what SHELL needs to complete commands, options, files and names of Chat Servers.

    \b
    Example:
      asyncchatd completion bash > /etc/bash_completion.d/asyncchatd
      asyncchatd completion zsh > /usr/local/share/zsh/site-functions/_asyncchatd
      asyncchatd completion fish > ~/.config/fish/completions/asyncchatd.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    say_all(kind(main, {}, "asyncchatd", "_ASYNCCHATD_COMPLETE").source())


# What they share.


storing.add_to(main, config_option, json_option)


def _ask(config: Path, question: Callable[[ControlClient], Awaitable[T]]) -> T:
    """Ask the daemon that this configuration belongs to."""

    async def asked() -> T:
        async with ControlClient.of(load_control(config)) as control:
            return await question(control)

    try:
        return asyncio.run(asked())
    except (ConfigError, ClientError) as error:
        unknown = isinstance(error, Refused) and error.status == 404
        advice = _WHERE_ELSE.get(click.get_current_context().info_name or "", "") if unknown else ""
        raise click.ClickException(f"{error}{advice}") from None


_WHERE_ELSE = dict.fromkeys(
    ("sessions", "ping"), "; asyncchatd logs --chat ID tells what became of it, as far as the log goes back"
) | {"restore": "; asyncchatd servers lists them"}
"""What to do next when the daemon does not know what a command asks for."""


def _until_stopped(life: Coroutine[object, object, T]) -> T:
    """Run until it ends. Ctrl-C, SIGTERM and a closed terminal cancel it, so that it cleans up."""
    stopped: list[signal.Signals] = []

    async def cancellable() -> T:
        task = asyncio.current_task()
        assert task is not None

        def stop(number: signal.Signals) -> None:
            stopped.append(number)
            task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_IGN:
                continue  # whoever started us said so: a background job, nohup
            asyncio.get_running_loop().add_signal_handler(number, stop, number)
        return await life

    with _runner() as runner:
        try:
            return runner.run(cancellable())
        except asyncio.CancelledError:
            say("stopped", error=True)
            raise SystemExit(128 + stopped[0] if stopped else 1) from None


def _runner() -> asyncio.Runner:
    """With uvloop's event loop where it is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.Runner()
    return asyncio.Runner(loop_factory=uvloop.new_event_loop)


def _print(shown: Json | RenderableType) -> None:
    """An answer of the daemon as JSON, anything else as what people see."""
    if isinstance(shown, dict):
        say_json(shown)
    else:
        show(screen(), shown)
