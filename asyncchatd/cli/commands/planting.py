"""The command `standin`: a plant to rehearse with."""

from __future__ import annotations

import errno
from dataclasses import replace
from urllib.parse import urlsplit

import click
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from asyncchatd import standin
from asyncchatd.cli.loops import until_stopped
from asyncchatd.cli.numbers import Number, Whole
from asyncchatd.cli.options import json_option
from asyncchatd.standin import HealthFormat
from asyncchatd.terminal import say_json
from asyncchatd.terminal.screens import screen, show

REHEARSAL_PUSH_URL = "http://127.0.0.1:8091/push/change-me"
"""Fits the shipped etc/asyncchatd.toml."""


@click.command(name="standin")
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
        until_stopped(standin.serve(settings, ports, ready=ready))
    except (standin.SettingError, OSError, OverflowError) as error:
        said = str(error) or type(error).__name__
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
    secrets = 'secrets = ["change-me"]'
    if push_url != REHEARSAL_PUSH_URL:
        secrets = 'secrets_file = "push-secrets"   # its only line is the last part of --push-url; chmod 600'
    servers = "".join(
        f'\n[[chat_server]]\nname = "{name}"\nhealth_url = "{url}"'
        for name, url in running.health_urls.items()
    )
    snippet = f"""
# A configuration for asyncchatd:

[receiver]
listen = "{push.netloc}"
{secrets}
[gms]
nodes = [{", ".join(f'"{url}"' for url in running.gms_urls)}]
service = "{running.plant.settings.service}"{servers}

# Then register the chats that are there, start more, and see what the plant suffers. Where control listens
# elsewhere, or asks for a token: asyncchatd register --config FILE in the place of the second curl.
curl -sS {running.control_url}/sessions | curl -sS --data-binary @- http://127.0.0.1:8092/v1/sessions

curl -sS -d '{{"count": 100}}' {running.control_url}/chats |
    curl -sS --data-binary @- http://127.0.0.1:8092/v1/sessions
curl -sS -X POST {running.control_url}/servers/{next(iter(running.health_urls))}/kill
curl -sS {running.control_url}/report
"""
    return Group(parts, Text(snippet))
