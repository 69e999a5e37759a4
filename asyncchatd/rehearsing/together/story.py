"""Several nodes on one PostgreSQL, on real sockets: what customers notice of a node that is killed, and of one that
stands still, while a Chat Server dies.

A stand-in plant comes up, and nodes that share a database; a balancer spreads pushes and chat pages over them. A Chat
Server is killed, and when a part of its chats is restored, one node is killed and another one stopped. Every promise
is judged by what the plant and the pages saw, never by what a node says of itself.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

from rich.console import Group
from rich.progress import TextColumn
from rich.text import Text

from asyncchatd.config import RestorationSettings
from asyncchatd.control.clients.client import ControlClient
from asyncchatd.model import durations
from asyncchatd.rehearsing.customers import Customers, browsers
from asyncchatd.rehearsing.demo_plan import FAST_WATCH_SECONDS, GMS_SECONDS, KILLED, WATCH_SECONDS
from asyncchatd.rehearsing.demo_plan import HOLD_SECONDS as POLL_HOLD_SECONDS
from asyncchatd.rehearsing.together.balancer import Balancer
from asyncchatd.rehearsing.together.database import database
from asyncchatd.rehearsing.together.killing import kill
from asyncchatd.rehearsing.together.node import Node
from asyncchatd.rehearsing.together.plan import (
    HOLD_SECONDS,
    LEASE_SECONDS,
    RESEND_SECONDS,
    STOPPED_SECONDS,
    NodesPlan,
)
from asyncchatd.rehearsing.together.verdict import Failures, NodesResult, closing_table
from asyncchatd.rehearsing.trial import (
    GATEWAY_KEY_FILE,
    POLL_SECONDS,
    Sections,
    Story,
    agents_writing,
    meanwhile,
    overworked,
    register,
    until,
    write_secret,
)
from asyncchatd.rehearsing.verdict import verdict
from asyncchatd.standin import StandIn
from asyncchatd.terminal.screens import Screen, show

IN_THE_MIDDLE = 0.25
"""When this share of the lost Chat Server's chats is restored, nodes fail."""

ROOM_SECONDS = 20.0
"""So much longer than it should take is waited for what does not come."""


async def tell(plan: NodesPlan, console: Screen, directory: Path, postgres: str | None) -> NodesResult:
    """Tell the story; configurations and logs go to `directory`. `postgres` is the URL of a database; without one it
    has a server of its own.

    Raises `TrialError` when a node does not start, or no database is there. Leaves no process behind, also when
    cancelled.
    """
    story = Story(console)
    async with AsyncExitStack() as stack:
        url, where = await stack.enter_async_context(database(postgres))
        settings = replace(plan.plant(), resend_delay=RESEND_SECONDS)
        plant = await stack.enter_async_context(StandIn(settings))
        plan.start_chats(plant.plant)
        story.tells(
            f"A stand-in plant is up, with {len(plant.nodes)} GMS nodes, {plan.servers} Chat Servers and"
            f" {plan.sessions:,} chats;",
            f"and {where}.",
        )
        nodes = _nodes(plan, plant, directory, url)
        for node in nodes:
            stack.push_async_callback(node.stop)
        await nodes[0].start()  # it makes the tables
        await asyncio.gather(*(node.start() for node in nodes[1:]))
        story.tells(
            f"{plan.nodes} nodes share it: "
            + ", ".join(f"{node.name}, process {node.pid}" for node in nodes)
            + "."
        )
        result = await _told(story, plan, plant, nodes)
    result = replace(result, exit_statuses=tuple(node.exit_status for node in nodes), seconds=story.seconds)
    doubt = overworked(result.plant, GMS_SECONDS, left=RestorationSettings().max_in_flight)
    show(console, Group(Text(), closing_table(result), Text(), verdict(result, doubt)))
    return result


def _nodes(plan: NodesPlan, plant: StandIn, directory: Path, url: str) -> list[Node]:
    key_file = directory / GATEWAY_KEY_FILE
    write_secret(key_file, secrets.token_hex(32))
    sections: Sections = {
        "store": {"url": f"{url}&hold={HOLD_SECONDS:.0f}s"},
        "gms": {"timeout": f"{GMS_SECONDS:g}s"},
        "ping": {"interval": f"{plan.interval:.0f}s"},
        "restoration": {"max_rate": plan.rate, "lease": f"{LEASE_SECONDS:g}s"},
        "watcher": {
            "interval": f"{WATCH_SECONDS:g}s",
            "fast_interval": f"{FAST_WATCH_SECONDS:g}s",
            "timeout": "1s",
        },
        "gateway": {
            "listen": "127.0.0.1:0",
            "key_file": str(key_file),
            "node_group": "gms",
            "hold": f"{POLL_HOLD_SECONDS * 1000:.0f}ms",
        },
    }
    return [Node(number, directory, plant, sections) for number in range(plan.nodes)]


async def _told(story: Story, plan: NodesPlan, plant: StandIn, nodes: list[Node]) -> NodesResult:
    balancer = Balancer(nodes)
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(browsers())
        await stack.enter_async_context(balancer.running())
        plant.plant.change({"push_url": balancer.push_url})
        control = await stack.enter_async_context(ControlClient(nodes[0].control))
        await register(story, control, plant)
        customers = Customers(plant, http, balancer.gateway, plan.customers)
        await customers.open()
        story.tells(
            f"{len(customers)} customers chat with agents by pages that know nothing of asyncchatd. A balancer gives"
            " their requests",
            "and GMS' pushes to the nodes that are ready, and all nodes together keep one rate.",
        )
        async with customers.looking():
            async with agents_writing(plant, plan.messages_per_second), customers.talking():
                await _all_is_well(story, plan, plant)
                failures = await _failures(story, plan, plant, nodes)
            if not await until(
                lambda: plant.plant.report().pushes_unacknowledged == 0, RESEND_SECONDS + ROOM_SECONDS
            ):
                story.tells("Some pushes were not acknowledged.", style="bold red")
            await until(lambda: customers.account().complete, ROOM_SECONDS)
        return NodesResult(
            plan=plan,
            failures=failures,
            plant=plant.plant.report(),
            customers=customers.account(),
            refused_pushes=balancer.refused_pushes,
            refused_pages=balancer.refused_pages,
            exit_statuses=(),
            seconds=0.0,
        )


async def _all_is_well(story: Story, plan: NodesPlan, plant: StandIn) -> None:
    story.tells(
        f"All is well: each chat is pinged within {plan.interval:.0f} s (in production 30 min), and agents write,"
        f" {plan.messages_per_second:.0f} messages/s, each a push."
    )
    began = time.monotonic()
    with story.progress(TextColumn("{task.fields[counters]}", style="dim", markup=False)) as bar:
        task = bar.add_task("         keeping alive", total=plan.seconds, counters="")
        while (passed := time.monotonic() - began) < plan.seconds:
            report = plant.plant.report()
            bar.update(
                task,
                completed=passed,
                counters=f"{report.requests:,} requests, {report.acknowledged:,} messages acknowledged",
            )
            await asyncio.sleep(POLL_SECONDS)
    report = plant.plant.report()
    story.tells(
        f"{report.requests:,} requests by all nodes, {report.acknowledged:,} pushes acknowledged,"
        f" half of them within {durations.measured(report.acknowledgement_seconds.p50)}."
    )


async def _failures(story: Story, plan: NodesPlan, plant: StandIn, nodes: list[Node]) -> Failures:
    """A Chat Server dies, and two nodes fail while its chats are restored; then these two are there again."""
    left, killed, frozen = nodes[0], nodes[1], nodes[2]
    chats = len(plant.plant.servers[KILLED].process.sessions)
    at = time.monotonic()

    def restored() -> int:
        return plant.plant.report().restored

    plant.plant.servers.kill(KILLED)
    story.tells(
        f"{KILLED} is killed. {chats:,} chats have no Chat Server and {plan.window:.0f} s to live.",
        style="bold red",
    )
    noticed = await until(lambda: restored() > 0, ROOM_SECONDS)
    noticed_seconds = time.monotonic() - at if noticed else None
    if noticed:
        story.tells(f"{durations.measured(noticed_seconds)} later the first of them has another one.")
    await until(lambda: restored() >= IN_THE_MIDDLE * chats, ROOM_SECONDS)
    before = restored()
    story.tells(
        f"{before:,} are restored; now {killed.name} is killed (SIGKILL), and {frozen.name} stands still (SIGSTOP).",
        style="bold red",
    )
    frozen.pause()
    begins, killed_at = left.log.stat().st_size, time.monotonic()
    doubtful = await kill(killed, plant.plant)
    gone: list[float] = []
    async with meanwhile(_gone(story, left, killed, begins, killed_at, gone)):
        await asyncio.sleep(max(0.0, killed_at + STOPPED_SECONDS - time.monotonic()))
        story.tells(
            f"{left.name} alone: {restored():,} of {chats:,} are restored. {frozen.name} goes on, and {killed.name} is"
            " started again.",
            style="bold",
        )
        frozen.go_on()
        await killed.start()
        over = await until(
            lambda: plant.plant.report().sessions_without_server == 0,
            at + plan.window - time.monotonic() + 5.0,
        )
    restored_seconds = plant.plant.report().without_server_seconds.max if over else None
    if restored_seconds is not None and noticed_seconds is not None:
        story.tells(
            f"All have a Chat Server again. The last one had none for {durations.measured(restored_seconds)}.",
            style="bold green",
        )
        restored_seconds -= min(restored_seconds, noticed_seconds)
    else:
        story.tells(f"{plant.plant.report().sessions_without_server:,} chats still wait.", style="bold red")
    return Failures(
        server=KILLED,
        chats=chats,
        restored_before=before,
        noticed_seconds=noticed_seconds,
        restored_seconds=restored_seconds,
        doubtful=doubtful,
        gone_seconds=gone[0] if gone else None,
    )


async def _gone(
    story: Story, left: Node, killed: Node, begins: int, killed_at: float, seconds: list[float]
) -> None:
    """Until a node says that another one is gone; how long that took goes to `seconds`."""
    if not await until(
        lambda: any(line["peer"] == killed.name for line in left.said("node_gone", begins)), ROOM_SECONDS
    ):
        return
    seconds.append(time.monotonic() - killed_at)
    story.tells(
        f"{left.name}, {durations.measured(seconds[0])} after the kill: {killed.name} is gone; what it had claimed is"
        f" free {LEASE_SECONDS:.0f} s after it was.",
    )
