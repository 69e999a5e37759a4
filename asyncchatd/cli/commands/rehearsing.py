"""The commands that rehearse: `demo` plays the whole story, `rehearse` a storm of one's own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Coroutine, Mapping, Set
from pathlib import Path
from typing import Protocol, TypeVar

import click
from click.core import ParameterSource
from rich.text import Text

from asyncchatd import rehearsing
from asyncchatd.cli.loops import until_stopped
from asyncchatd.cli.numbers import Number, Whole
from asyncchatd.cli.options import FILE, json_option
from asyncchatd.config import ConfigError
from asyncchatd.rehearsing import DemoPlan, NodesPlan, demo, plot, rehearsal, together, trial, tuning
from asyncchatd.terminal import say_json
from asyncchatd.terminal.screens import Screen, screen

T = TypeVar("T")

PAGES = rehearsing.pollers.PollersPlan()
"""As they are rehearsed when nobody says otherwise."""

OF_PAGES = frozenset({"poll_interval", "seconds"})
"""Options of `rehearse` that are of no use without `--pollers`."""

OF_A_STORM = frozenset(
    {
        *("sessions", "kill", "gms_capacity", "restore_cost", "latency", "window"),
        *("lost_answers", "redeploy", "svg"),
    }
)
"""Those that are of no use with it."""


@click.command(name="demo")
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
@click.option(
    "--nodes", metavar="N", type=Whole(3, 9),
    help="Another story: so many nodes on one PostgreSQL, of which one is killed and one stopped meanwhile.",
)  # fmt: skip
@click.option(
    "--postgres", metavar="URL",
    help="Of a database for --nodes, as in store.url; a schema of its own is made there, and dropped. Default: a"
    " server of its own, by the programs that are installed.",
)  # fmt: skip
@click.option("--keep", is_flag=True, help="Keep the directory with configuration, database and log.")
@json_option
def demonstrate(
    sessions: int,
    servers: int,
    rate: float,
    seconds: float,
    nodes: int | None,
    postgres: str | None,
    keep: bool,
    as_json: bool,
) -> None:
    """Show the whole story on real sockets, in about a minute, and judge it.

    A stand-in plant, a daemon of its own beside it, thousands of chats, and customers with plain chat pages;
    then a Chat Server is killed. A second plant suffers the same without asyncchatd. Exit status 1 when a promise
    was broken.

    \b
    Example:
      asyncchatd demo --sessions 3000 --rate 200
      asyncchatd demo --nodes 3
    """
    console = screen(quiet=as_json)
    if nodes is not None:
        several = NodesPlan(sessions=sessions, servers=servers, rate=rate, seconds=seconds, nodes=nodes)
        _demonstrate_nodes(several, console, postgres, keep=keep, as_json=as_json)
        return
    if postgres is not None:
        raise click.UsageError("--postgres has no effect without --nodes: leave it away")
    plan = DemoPlan(sessions=sessions, servers=servers, rate=rate, seconds=seconds)
    directory = trial.new_directory("demo")
    result = _tried(demo.tell(plan, console, directory), directory, keep)
    keep = keep or not result.kept
    _told(result, console, directory, keep=keep, as_json=as_json)
    if not result.kept:
        raise SystemExit(1)


def _demonstrate_nodes(
    plan: NodesPlan, console: Screen, postgres: str | None, *, keep: bool, as_json: bool
) -> None:
    directory = trial.new_directory("demo")
    logs = directory / "node-*" / trial.LOG_FILE
    result = _tried(together.tell(plan, console, directory, postgres), directory, keep, logs)
    keep = keep or not result.kept
    _told(result, console, directory, keep=keep, as_json=as_json, log=logs)
    if not result.kept:
        raise SystemExit(1)


@click.command(name="rehearse")
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
    "--config", type=FILE, metavar="FILE",
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
    "--svg", type=click.Path(path_type=Path, dir_okay=False, writable=True, readable=False), metavar="FILE",
    help="Also draw the load there.",
)  # fmt: skip
@click.option(
    "--pollers", type=Whole(1, 1_000_000), metavar="N",
    help="Rehearse so many customers' pages that poll through the gateway, in the place of a storm; the size of the"
    " storm and what GMS can bear are of no use then.",
)  # fmt: skip
@click.option(
    "--poll-interval", type=Number(0.05, 600), default=PAGES.pause, show_default=True, metavar="SECONDS",
    help="Between an answer and the next poll of a page.",
)  # fmt: skip
@click.option(
    "--seconds", type=Number(2, 86_400), default=PAGES.seconds, show_default=True, metavar="SECONDS",
    help="How long the pages are watched.",
)  # fmt: skip
@click.option("--keep", is_flag=True, help="Keep the directory with configuration, database and log.")
@json_option
@click.pass_context
def rehearse(
    context: click.Context,
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
    pollers: int | None,
    poll_interval: float,
    seconds: float,
    keep: bool,
    as_json: bool,
) -> None:
    """Lose Chat Servers before you lose them: how long would customers wait, and what should be changed?

    A daemon with your settings beside a stand-in plant of your size; then servers are killed. Shows how long
    sessions were without a server, the load GMS saw, and which setting was the bottleneck. Exit status 1 when
    sessions were lost. With --pollers: will this host carry the polls of so many pages? See docs/rehearsal.md.

    \b
    Example:
      asyncchatd rehearse --sessions 20000 --servers 8 --gms-capacity 200 --restore-cost 1 --max-rate 100
      asyncchatd rehearse --config /etc/asyncchatd/asyncchatd.toml --sessions 100000 --servers 8 --kill 2
      asyncchatd rehearse --pollers 20000
    """
    said = _said(context)
    _check_options(said, OF_A_STORM if pollers is not None else OF_PAGES, pollers)
    options: dict[str, dict[str, object]] = {
        "ping": {"interval": ping_interval},
        "restoration": {"max_rate": max_rate, "max_in_flight": max_in_flight},
    }
    given = {
        name: {key: value for key, value in keys.items() if value is not None}
        for name, keys in options.items()
    }
    if pollers is not None:
        try:
            pages = rehearsing.pollers.PollersPlan(
                pages=pollers,
                pause=poll_interval,
                seconds=seconds,
                messages_per_second=messages_per_second if "messages_per_second" in said else None,
                servers=servers,
                tuned=tuning.tuned(config, given),
                gateway=tuning.of_gateway(config),
            )
        except ConfigError as error:
            raise click.ClickException(str(error)) from None
        _rehearse_pages(pages, keep=keep, as_json=as_json)
        return
    if kill >= servers:
        raise click.BadParameter(
            "expected fewer than --servers: somebody must take their sessions", param_hint="--kill"
        )
    try:
        plan = rehearsal.RehearsalPlan(
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
            tuned=tuning.tuned(config, given),
        )
    except ConfigError as error:
        raise click.ClickException(str(error)) from None
    if svg is not None and not os.access(svg.parent, os.W_OK):
        raise click.ClickException(f"{svg} cannot be written; name a file in a directory that is there")
    console = screen(quiet=as_json)
    directory = trial.new_directory("rehearsal")
    result = _tried(rehearsal.rehearse(plan, console, directory), directory, keep)
    keep = keep or result.exit_status != 0
    _told(result, console, directory, keep=keep, as_json=as_json)
    if svg is not None:
        try:
            svg.write_text(plot.svg(result.picture), encoding="utf-8")
        except OSError as error:
            raise click.ClickException(f"{svg} cannot be written: {error.strerror}") from None
    if not result.well:
        raise SystemExit(1)


def _said(context: click.Context) -> dict[str, str]:
    """The options that were given, each as it is written."""
    return {
        each.name: each.opts[0]
        for each in context.command.params
        if each.name and context.get_parameter_source(each.name) is not ParameterSource.DEFAULT
    }


def _check_options(said: Mapping[str, str], strange: Set[str], pollers: int | None) -> None:
    """Raises `UsageError` for an option of the other rehearsal, which would be without effect."""
    for name, option in said.items():
        if name in strange:
            how = "without" if pollers is None else "with"
            raise click.UsageError(f"{option} has no effect {how} --pollers: leave it away")


def _tried(story: Coroutine[object, object, T], directory: Path, keep: bool, log: Path | None = None) -> T:
    """Let a daemon and a plant play a story; when it fails, the directory stays for its log."""
    try:
        return until_stopped(story)
    except Exception as error:
        if isinstance(error, trial.TrialError):
            if not any(directory.iterdir()):  # nothing was begun
                _discard(directory, keep)
                raise click.ClickException(str(error)) from None
            raise click.ClickException(f"{error}; see {log or directory / trial.LOG_FILE}") from None
        raise
    except BaseException:
        _discard(directory, keep)
        raise


class _Played(Protocol):
    """What came of a story."""

    def shown(self) -> dict[str, object]:
        """For programs."""


def _told(
    played: _Played,
    console: Screen,
    directory: Path,
    *,
    keep: bool,
    as_json: bool,
    log: Path | None = None,
) -> None:
    """Keep the directory or not, and say what there is left to say."""
    _discard(directory, keep)
    if as_json:
        say_json({**played.shown(), "directory": str(directory) if keep else None})
    elif keep:
        console.print(_where_the_log_is(log or directory / trial.LOG_FILE))


def _where_the_log_is(path: Path) -> Text:
    return Text(f"\nasyncchatd's log: {path}; in words: asyncchatd logs --summary {path}")


def _discard(directory: Path, keep: bool) -> None:
    if not keep:
        shutil.rmtree(directory, ignore_errors=True)


def _rehearse_pages(plan: rehearsing.pollers.PollersPlan, *, keep: bool, as_json: bool) -> None:
    try:
        rehearsing.pollers.check_room(plan)
    except trial.TrialError as error:
        raise click.ClickException(str(error)) from None
    console = screen(quiet=as_json)
    directory = trial.new_directory("rehearsal")
    result = _tried(rehearsing.pollers.rehearse(plan, console, directory), directory, keep)
    keep = keep or result.exit_status != 0
    _told(result, console, directory, keep=keep, as_json=as_json)
    if not result.well:
        raise SystemExit(1)
