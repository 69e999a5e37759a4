"""The whole story in a minute, on real sockets: what asyncchatd is for, shown and judged.

Two stand-in plants with the same chats come up. One is kept alive by a real `asyncchatd run`, the other
by nobody. Agents write, pushes go out and are acknowledged, and what was written is delivered to a chat
application; customers talk to agents by chat pages that know nothing of asyncchatd, here through its gateway and there
straight at GMS; then the same Chat Server is killed in both. What each plant suffered stands side by side at the end,
and every promise is judged by what the plant and the pages saw, never by what the daemon says of itself.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from rich.console import Group
from rich.progress import TextColumn
from rich.text import Text

from asyncchatd.control import shapes
from asyncchatd.control.clients.calls import NoDaemon, read
from asyncchatd.control.clients.client import ControlClient
from asyncchatd.model import durations
from asyncchatd.rehearsing.chat_app import ChatApp
from asyncchatd.rehearsing.chat_page import PAUSE_SECONDS
from asyncchatd.rehearsing.customers import Customers, browsers
from asyncchatd.rehearsing.demo_plan import (
    FAST_WATCH_SECONDS,
    GMS_SECONDS,
    HOLD_SECONDS,
    KILLED,
    WATCH_SECONDS,
    DemoPlan,
)
from asyncchatd.rehearsing.trial import (
    POLL_SECONDS,
    Daemon,
    Sections,
    Story,
    TrialError,
    agents_writing,
    meanwhile,
    overworked,
    register,
    running_daemon,
    until,
)
from asyncchatd.rehearsing.verdict import DemoResult, Failure, closing_table, verdict
from asyncchatd.standin import ALL_FORMS, AfterWork, Spoiling, StandIn
from asyncchatd.terminal.screens import Screen, show

LOSING_SHARE = 0.1
"""Share of the answers that GMS nodes lose: they hang up when the work is done."""

REDEPLOYED_SECONDS = 5.0
"""How long one of them answers 404 after the kill: its container is up, its application is not."""

REPEATED_SECONDS = 10.0
"""So long after Chat Server's repetition a push is acknowledged at the latest."""

ENDED_SHARE = 100
"""One chat in so many is closed by its agent."""

NEWS = "Hello, your parcel is here"
"""What the first agent writes. The texts of the demo are its own, so it may show them."""

DELIVERY_SECONDS = 10.0
"""So long a message may take at most, a lost answer of GMS included."""

THROWN_OUT_SECONDS = 8.0
"""So long after the kill the customers of the other plant are watched."""


async def tell(plan: DemoPlan, console: Screen, directory: Path) -> DemoResult:
    """Tell the story; configuration, database and log of the daemon go to `directory`.

    Raises `TrialError` when the daemon does not start or dies. Leaves no process behind, also when cancelled.
    """
    story = Story(console)
    async with (
        StandIn(plan.plant()) as guarded,
        StandIn(plan.other_plant()) as unguarded,
        ChatApp(directory) as app,
        browsers() as http,
    ):
        for plant in (guarded, unguarded):
            plan.start_chats(plant.plant)
        story.tells(
            f"Two stand-in plants are up, each with {len(guarded.nodes)} GMS nodes, {plan.servers} Chat Servers",
            f"and {plan.sessions:,} chats. One is asyncchatd's to look after, the other one nobody's.",
        )
        async with running_daemon(guarded, _sections(plan), directory, [app.consumer]) as daemon:
            story.tells(f"asyncchatd runs, process {daemon.pid}, SQLite in {directory}.")
            async with ControlClient(daemon.control) as control:
                customers = Customers(guarded, http, daemon.gateway, plan.customers)
                others = Customers(unguarded, http, unguarded.gms_urls[0], plan.customers)
                try:
                    await register(story, control, guarded)
                    await _customers_come(story, customers, others)
                    _close_some(plan, guarded, unguarded)
                    async with customers.looking(), others.looking():
                        await _a_message_arrives(story, guarded, app)
                        async with (
                            agents_writing(guarded, plan.messages_per_second),
                            customers.talking(),
                            others.talking(),
                        ):
                            await _all_is_well(story, plan, guarded, daemon)
                            failure, killed = await _lose_a_server(
                                story, plan, control, guarded, unguarded, others
                            )
                        await _acknowledged(story, guarded)
                        await _delivered(story, guarded, app)
                        await _shown(story, customers)
                except NoDaemon as error:
                    raise TrialError(f"asyncchatd cannot be asked any more: {error}") from None
            await _wait_for_the_window(story, plan, unguarded, killed)
        story.tells(f"asyncchatd was stopped, exit status {daemon.exit_status}.")
        result = DemoResult(
            plan=plan,
            failure=failure,
            guarded=guarded.plant.report(),
            unguarded=unguarded.plant.report(),
            delivery=app.delivery(guarded.plant),
            customers=customers.account(),
            others=others.account(),
            exit_status=daemon.exit_status,
            seconds=story.seconds,
        )
    doubt = overworked(result.guarded, GMS_SECONDS)
    show(console, Group(Text(), closing_table(result), Text(), verdict(result, doubt)))
    return result


# The scenes.


def _sections(plan: DemoPlan) -> Sections:
    return {
        "gms": {"timeout": f"{GMS_SECONDS:g}s"},
        "ping": {"interval": f"{plan.interval:.0f}s"},
        "restoration": {"max_rate": plan.rate},
        "watcher": {
            "interval": f"{WATCH_SECONDS:g}s",
            "fast_interval": f"{FAST_WATCH_SECONDS:g}s",
            "timeout": "1s",
        },
        "gateway": {"node_group": "gms", "hold": f"{HOLD_SECONDS * 1000:.0f}ms"},
    }


async def _customers_come(story: Story, customers: Customers, others: Customers) -> None:
    """Customers open chat pages, as many in both plants."""
    for each in (customers, others):
        await each.open()
    story.tells(
        f"Customers begin to chat, {len(customers)} through the gateway, {len(others)} straight at the other plant.",
        f"Their pages know nothing of asyncchatd, poll every {PAUSE_SECONDS:.0f} s, and keep their first key for ever.",
    )


def _close_some(plan: DemoPlan, *plants: StandIn) -> None:
    """Agents close some chats."""
    for each in plants:
        each.plant.end_chats(each.plant.chats.some(max(1, plan.sessions // ENDED_SHARE)))


async def _a_message_arrives(story: Story, plant: StandIn, app: ChatApp) -> None:
    """One message, from the agent's hand to the chat application."""
    [session] = plant.plant.chats.some(1)
    story.tells(f'An agent writes: "{NEWS}"')
    plant.plant.say(session, NEWS)
    message = await app.shows(session.chat_id, NEWS, DELIVERY_SECONDS)
    if message is None:
        story.tells("It did not come to the chat application.", style="bold red")
    else:
        story.tells(
            f'The chat application shows it, {durations.measured(message.after)} later: "{message.text}"',
            style="bold green",
        )


async def _all_is_well(story: Story, plan: DemoPlan, plant: StandIn, daemon: Daemon) -> None:
    """Keepalives, and messages whose pushes are acknowledged."""
    story.tells(
        f"All is well: each chat is pinged within {plan.interval:.0f} s (in production 30 min), and agents write,"
        f" {plan.messages_per_second:.0f} messages/s.",
        f"Each message is a push, and each push takes the next of {len(ALL_FORMS)} forms the documents leave open.",
        "Half of the time GMS nodes hang up on every tenth request when its work is done; the answer had a new key.",
    )
    began = time.monotonic()
    counters = TextColumn("{task.fields[counters]}", style="dim", markup=False)
    with story.progress(counters) as bar:
        task = bar.add_task("         keeping alive", total=plan.seconds, counters="")
        while (passed := time.monotonic() - began) < plan.seconds:
            report = plant.plant.report()
            half = passed >= plan.seconds / 2
            for node in plant.nodes:
                node.spoiling = Spoiling(AfterWork.HANG_UP, LOSING_SHARE) if half else None
            bar.update(
                task,
                completed=passed,
                counters=f"{report.requests:,} Refreshes, {report.acknowledged:,} of"
                f" {report.acknowledged + report.pushes_unacknowledged:,} messages acknowledged",
            )
            await asyncio.sleep(0.2)
            daemon.check()
    for node in plant.nodes:
        node.spoiling = None
    report = plant.plant.report()
    story.tells(
        f"{report.requests:,} ping Refreshes, {report.acknowledged:,} pushes acknowledged,"
        f" half of them within {durations.measured(report.acknowledgement_seconds.p50)}."
    )


async def _lose_a_server(
    story: Story,
    plan: DemoPlan,
    control: ControlClient,
    guarded: StandIn,
    unguarded: StandIn,
    others: Customers,
) -> tuple[Failure, float]:
    """Kill the same Chat Server in both plants; what asyncchatd does, and the loop's time of the kill."""
    name = KILLED
    chats = len(guarded.plant.servers[name].process.sessions)
    killed_at, killed = time.time(), time.monotonic()
    for plant in (guarded, unguarded):
        plant.plant.servers.kill(name)
    await guarded.settled()
    guarded.nodes[0].redeploy(REDEPLOYED_SECONDS)
    story.tells(
        f"{name} is killed, in both plants. {chats:,} chats have no Chat Server and {plan.window:.0f} s to live.",
        style="bold red",
    )
    story.tells(
        f"At the same time a GMS node is redeployed: it answers 404 for {REDEPLOYED_SECONDS:.0f} s and pushes nothing;",
        f"what it should have pushed Chat Server repeats after {guarded.plant.settings.resend_delay:.0f} s.",
    )
    async with meanwhile(_thrown_out(story, others, killed)):
        return await _survived(story, plan, control, chats, killed_at, killed), killed


async def _survived(
    story: Story, plan: DemoPlan, control: ControlClient, chats: int, killed_at: float, killed: float
) -> Failure:
    """What asyncchatd does about it. `killed_at` is the time of day, `killed` that of the loop."""
    name, deadline = KILLED, killed + plan.window + 5
    restoration = await _noticed(story, control, name, killed_at, deadline)
    if restoration is None:
        story.tells("The loss was not noticed.", style="bold red")
        return Failure(name, chats, None, None)
    noticed = shapes.read_time(restoration.started_at).timestamp() - killed_at
    story.tells(f"Noticed after {durations.measured(noticed)}: all its chats are due now.", style="bold")
    restoration = await _restored(story, control, restoration, deadline)
    if restoration.took_seconds is None:
        story.tells(f"{restoration.waiting:,} chats still wait.", style="bold red")
    else:
        story.tells(
            f"{durations.measured(restoration.took_seconds)} later all have a Chat Server again:"
            f" {restoration.sessions:,} by this restoration,",
            f"{max(0, chats - restoration.sessions):,} by a keepalive or an acknowledgement that came before it.",
            style="bold green",
        )
    return Failure(name, chats, noticed, restoration)


async def _thrown_out(story: Story, others: Customers, killed: float) -> None:
    """What becomes of the customers of the other plant."""
    ended = await others.thrown_out(THROWN_OUT_SECONDS)
    if ended is not None:
        story.tells(
            f"The other plant, {durations.measured(ended - killed)} after the kill:"
            " its customers are thrown out, all of them.",
            "Each chat was restored by its page's first request, which changed the key; the next one had the old key.",
            style="bold red",
        )


async def _noticed(
    story: Story, control: ControlClient, server: str, killed_at: float, deadline: float
) -> shapes.Restoration | None:
    """Until a restoration of this server began; says when the watcher becomes suspicious and when sure."""
    told = "up"
    while time.monotonic() < deadline:
        for each in read(shapes.Servers, await control.servers()).servers:
            if each.name == server and each.state != told and each.since is not None:
                told = each.state
                after = shapes.read_time(each.since).timestamp() - killed_at
                story.tells(f"The watcher, {durations.measured(after)} after the kill: {server} is {told}.")
        for begun in read(shapes.Restorations, await control.restorations()).restorations:
            if begun.server == server and told == "down":
                return begun
        await asyncio.sleep(POLL_SECONDS)
    return None


async def _restored(
    story: Story, control: ControlClient, restoration: shapes.Restoration, deadline: float
) -> shapes.Restoration:
    with story.progress() as bar:
        task = bar.add_task("         restoring", total=restoration.sessions)
        while restoration.finished_at is None and time.monotonic() < deadline:
            await asyncio.sleep(POLL_SECONDS)
            known = read(shapes.Restorations, await control.restorations()).restorations
            restoration = next(each for each in known if each.id == restoration.id)
            bar.update(task, total=restoration.sessions, completed=restoration.sessions - restoration.waiting)
    return restoration


async def _acknowledged(story: Story, plant: StandIn) -> None:
    """The agents are silent now; the last pushes get their acknowledgement, also those that Chat Server had to
    repeat."""
    patience = plant.plant.settings.resend_delay + REPEATED_SECONDS
    if not await until(lambda: plant.plant.report().pushes_unacknowledged == 0, patience):
        story.tells("Some pushes were not acknowledged.", style="bold red")


async def _delivered(story: Story, plant: StandIn, app: ChatApp) -> None:
    """And their messages come to the chat application."""
    if await until(lambda: app.delivery(plant.plant).complete, DELIVERY_SECONDS):
        story.tells(
            f"All {app.delivery(plant.plant).written:,} messages of agents came to the chat application."
        )
    else:
        story.tells("Some messages did not come to the chat application.", style="bold red")


async def _shown(story: Story, customers: Customers) -> None:
    """And those of the gateway's customers are on their pages."""
    if await until(lambda: customers.account().kept, DELIVERY_SECONDS):
        account = customers.account()
        story.tells(
            f"Those to customers of the gateway, {account.agents_seen:,}, are on their pages, once and in order.",
            f"GMS changed the keys of {account.rekeyed:,} of {account.pages:,} chats, and no page noticed.",
            style="bold green",
        )
    else:
        story.tells("Some messages did not come to the pages of customers, or from there.", style="bold red")


async def _wait_for_the_window(story: Story, plan: DemoPlan, unguarded: StandIn, killed: float) -> None:
    """The other plant's chats hold out as long as its restoration window lasts."""
    story.tells(f"The other plant: its chats wait for the end of their {plan.window:.0f} s.")
    with story.progress(TextColumn("{task.fields[counters]}", style="dim", markup=False)) as bar:
        task = bar.add_task("         without asyncchatd", total=plan.window, counters="")

        def over() -> bool:
            report = unguarded.plant.report()
            bar.update(
                task,
                completed=time.monotonic() - killed,
                counters=f"{report.sessions_without_server:,} without a Chat Server",
            )
            return report.sessions_without_server == 0

        await until(over, killed + plan.window + 5 - time.monotonic())
    story.tells(f"{unguarded.plant.report().sessions_lost:,} chats lost there.", style="bold red")
