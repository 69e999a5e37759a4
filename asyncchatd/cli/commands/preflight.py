"""The commands before the daemon flies: `check` a configuration, and `init` writes one."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import click
from click.core import ParameterSource

from asyncchatd import log, preflight
from asyncchatd.cli import checklist
from asyncchatd.cli.loops import new_runner, until_stopped
from asyncchatd.cli.numbers import Number
from asyncchatd.cli.options import USUAL_FILES, config_option, json_option
from asyncchatd.config import Settings, load
from asyncchatd.model import Finding, Level
from asyncchatd.preflight import area, checks, extras, installing
from asyncchatd.terminal import say, say_all, say_json
from asyncchatd.terminal.screens import screen, show


@click.command()
@config_option
@click.option(
    "--connect",
    is_flag=True,
    help="Also try the hosts, health pages, webhooks, directories and addresses it names.",
)
@click.option(
    "--wait-for-push",
    is_flag=True,
    help="Then say what to set in GMS, and wait until a push comes; whatever is refused meanwhile is told. With"
    " --connect.",
)
@click.option(
    "--timeout", type=Number(min=1), default=600.0, metavar="SECONDS", show_default=True,
    help="How long --wait-for-push waits.",
)  # fmt: skip
@json_option
@click.pass_context
def check(
    context: click.Context, config: Path, connect: bool, wait_for_push: bool, timeout: float, as_json: bool
) -> None:
    """Say what is wrong with the configuration, and what is probably not meant.

    Errors make the exit status 1, warnings do not. --connect changes nothing and touches no chat; each webhook gets a
    signed batch of type test, without events.

    --wait-for-push asks the daemon that runs. Without one it listens in its place and keeps nothing: pushes are
    answered with 503.

    \b
    Example:
      asyncchatd check --connect --config /etc/asyncchatd/asyncchatd.toml
      asyncchatd check --connect --wait-for-push --timeout 900
    """
    if wait_for_push and not connect:
        raise click.UsageError("expected --connect together with --wait-for-push")
    if _says(context, "timeout") and not wait_for_push:
        raise click.UsageError("expected --wait-for-push together with --timeout")
    found = checks.check(config)
    valid = not _wrong(found)
    if connect and valid:
        log.configure("critical", "console", output=sys.stderr.buffer)  # what is found is told here
        with screen(stderr=True).status("connecting") as waiting, new_runner() as runner:
            found += runner.run(preflight.connecting.connect(load(config)))
            waiting.stop()
    if not as_json:
        show(screen(), checklist.findings(found))
    if wait_for_push and valid and not _hindered(found):
        found += _first_push(load(config), timeout, as_json)
    elif wait_for_push and not as_json:
        say("no push is waited for before these errors are corrected", error=True)
    if as_json:
        say_json([{"area": area(finding), **asdict(finding)} for finding in found])
    if _wrong(found):
        raise SystemExit(1)


def _hindered(found: Sequence[Finding]) -> bool:
    """Whether an error keeps pushes from coming, or from being seen: one of the address where they come, or of the
    control API, which tells of them."""
    return any(
        finding.level is Level.ERROR and finding.key.startswith(("receiver.", "control."))
        for finding in found
    )


def _first_push(settings: Settings, seconds: float, as_json: bool) -> list[Finding]:
    """The findings until the first push, each told as it comes."""
    console = screen()
    if not as_json:
        say_all(f"\nPoint GMS at it. {preflight.first_push.steps(settings)}\n")

    async def waited() -> list[Finding]:
        found = []
        async for finding in preflight.first_push.wait(settings, seconds):
            found.append(finding)
            if not as_json:
                show(console, checklist.lines([finding]))
        return found

    return until_stopped(waited())


def _named_url(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    pairs = [text.partition("=") for text in given]
    if wrong := [name for name, equals, url in pairs if not (name and equals and url)]:
        raise click.BadParameter(f"expected NAME=URL, such as chat-1=http://chat-1:4001/, not {wrong[0]}")
    return tuple((name, url) for name, _, url in pairs)


def _extras(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> tuple[str, ...]:
    names = [name.strip() for text in given for name in text.split(",") if name.strip()]
    for name in names:
        if name not in extras.EXTRAS:
            raise click.BadParameter(f"expected some of {', '.join(extras.EXTRAS)}, not {name}")
    return tuple(dict.fromkeys(names))


@click.command()
@click.option(
    "--dir", "directory", type=click.Path(path_type=Path, file_okay=False, readable=False),
    default=USUAL_FILES[0].parent, show_default=True, help="Where to.",
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
    "--metrics", metavar="ADDRESS",
    help="Where Prometheus scrapes, without a token; default with --systemd: 127.0.0.1:8095.",
)  # fmt: skip
@click.option(
    "--gateway", metavar="ADDRESS",
    help="With a gateway, where chat clients come to instead of to GMS, such as 127.0.0.1:8090.",
)  # fmt: skip
@click.option(
    "--origin", "origins", metavar="ORIGIN", multiple=True,
    help="Whose pages the gateway serves, such as https://www.example.com; once for each.",
)  # fmt: skip
@click.option("--node-group", metavar="NAME", help="Name of the GMS cluster, for the gateway.")
@click.option(
    "--systemd/--no-systemd", default=os.path.isdir("/run/systemd/system"),
    help="For a service, or to be started by hand; default: a service where systemd runs.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Overwrite what is there; never the push secret and the keys.")
@click.option(
    "--with", "wanted", metavar="NAME,...", multiple=True, callback=_extras,
    help=f"Also write files that belong to it: {', '.join(extras.EXTRAS)}.",
)  # fmt: skip
@click.option("--list", "listing", is_flag=True, help="Say what --with can write, and do nothing.")
@click.option(
    "--runbook", metavar="URL", help="Where alerts link to; default: the file that --with alerts writes."
)
@click.pass_context
def init(
    context: click.Context,
    directory: Path,
    gms: tuple[str, ...],
    service: str | None,
    chat_servers: tuple[tuple[str, str], ...],
    listen: str,
    metrics: str | None,
    gateway: str | None,
    origins: tuple[str, ...],
    node_group: str | None,
    systemd: bool,
    force: bool,
    wanted: tuple[str, ...],
    listing: bool,
    runbook: str | None,
) -> None:
    """Write a commented configuration, a push secret and keys of its own, and the systemd units of this
    host; then say what is left to do here and in GMS.

    --with writes files beside them, such as alert rules. Where there is a configuration already, and nothing but --dir,
    --with, --runbook and --force is said, it writes these alone. One that is there and differs stays without --force.

    \b
    Example:
      asyncchatd init --with alerts,prometheus,dashboard
      asyncchatd init --gms http://gms-1:8080/genesys --chat-server chat-1=http://chat-1:4001/ --listen :8091
    """
    if listing:
        say_all("\n".join(extras.listed()))
        return
    if runbook is not None and "alerts" not in wanted:
        raise click.UsageError("expected --with alerts together with --runbook")
    alone = wanted and (directory / installing.CONFIG).exists() and not _says_more(context)
    if gateway is None and (origins or node_group):
        raise click.UsageError("expected --gateway together with --origin and --node-group")
    directory, program = directory.absolute(), installing.this_program()
    choices = installing.Choices(
        directory=directory,
        program=program,
        systemd=systemd,
        packaged=systemd and installing.packaged(directory, program),
        nodes=gms,
        service=service,
        listen=listen,
        chat_servers=chat_servers,
        metrics=metrics or (installing.METRICS if systemd else None),
        gateway=gateway,
        origins=origins,
        node_group=node_group,
    )
    try:
        text = None if alone else installing.configuration(choices)
        beside = extras.planned(wanted, choices.directory, config=text, runbook=runbook)
        if not force:
            extras.refuse_others(beside)
        if alone:
            say_all(_told_of_extras(beside, extras.write(beside)))
            return
        written = [*installing.install(choices, force=force), *extras.write(beside)]
    except installing.InitError as error:
        raise click.ClickException(str(error)) from None
    say_all(installing.next_steps(choices, written))


def _says_more(context: click.Context) -> bool:
    """Whether something is said about the configuration itself."""
    beside = {"directory", "wanted", "runbook", "force", "listing"}
    return any(_says(context, name) for name in context.params if name not in beside)


def _says(context: click.Context, name: str) -> bool:
    """Whether somebody gave this parameter, even with the value of its default."""
    return context.get_parameter_source(name) is not ParameterSource.DEFAULT


def _told_of_extras(beside: Mapping[Path, str], written: Sequence[Path]) -> str:
    kept = [path for path in beside if path not in written]
    parts = [("Written:", written), ("There already, as they should be:", kept)]
    return "\n".join(
        line for words, paths in parts if paths for line in (words, *(f"  {path}" for path in paths))
    )


def _wrong(found: Sequence[Finding]) -> bool:
    return any(finding.level is Level.ERROR for finding in found)
