"""The whole story in a minute, on real sockets: what asyncchatd is for, shown and judged.

Two stand-in plants with the same chats come up. One is kept alive by a real `asyncchatd run`, the other
by nobody. Agents write, pushes go out and are acknowledged, and what was written is delivered to a chat
application; then the same Chat Server is killed in both. What each plant suffered stands side by side at
the end, and every promise is judged by what the plant saw, never by what the daemon says of itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Group
from rich.progress import TextColumn
from rich.table import Table
from rich.text import Text

from asyncchatd.control import shapes
from asyncchatd.control.client import ControlClient, NoDaemon, read
from asyncchatd.model import durations
from asyncchatd.rehearsing.chat_app import ChatApp, Delivery
from asyncchatd.rehearsing.trial import (
    POLL_SECONDS,
    Daemon,
    Sections,
    Story,
    TrialError,
    agents_writing,
    most_requests,
    register,
    rules,
    running_daemon,
    until,
)
from asyncchatd.standin import (
    ALL_FORMS,
    AfterWork,
    HealthFormat,
    PlantSettings,
    Report,
    Rotation,
    Spoiling,
    StandIn,
    chat_servers,
)
from asyncchatd.terminal.screens import Screen, show

WATCH_SECONDS = 2.0
FAST_WATCH_SECONDS = 0.5
SLOWEST_NOTICE_SECONDS = 1.1 * (WATCH_SECONDS + 2 * FAST_WATCH_SECONDS) + 0.5
"""The longest a loss goes unnoticed here: one interval, two fast ones, their jitter, and some room."""

GMS_SECONDS = 2.0
"""`gms.timeout`: so long a chat is left alone after a lost answer. The field's 10 s are to its window of minutes what
this is to the seconds here."""

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


@dataclass(frozen=True, slots=True)
class DemoPlan:
    """What the options ask for, and what follows from it."""

    sessions: int = 3000
    servers: int = 4
    rate: float = 200.0
    """Requests per second to GMS, `restoration.max_rate`."""
    seconds: float = 20.0
    """How long all is well."""

    @property
    def interval(self) -> float:
        """`ping.interval` in seconds: keepalives take half of the rate."""
        return max(5.0, self.sessions / (0.5 * self.rate))

    @property
    def messages_per_second(self) -> float:
        """Agents write often enough for every form a push may have, but their pushes take no more than a
        fifth of the rate: acknowledgements go before everything else."""
        return min(max(20.0, 1.2 * len(ALL_FORMS) / self.seconds), 0.2 * self.rate)

    @property
    def window(self) -> float:
        """The plants' restoration window in seconds, rather more than noticing and restoring takes when
        acknowledgements and overdue keepalives get their share. The field's is minutes; nobody wants to
        wait them out."""
        restoring = self.sessions / self.servers / (0.7 * self.rate)
        return max(8.0, round(1.6 * (SLOWEST_NOTICE_SECONDS + restoring)))

    def plant(self) -> PlantSettings:
        """A plant as hard on its clients as the documents allow, with health pages of every format."""
        formats = list(HealthFormat)
        servers = chat_servers(self.servers)
        return PlantSettings(
            servers=tuple(
                replace(server, health=formats[n % len(formats)]) for n, server in enumerate(servers)
            ),
            restoration_window=self.window,
            rotate=Rotation.ALWAYS,
            rotate_every=1,
        )


@dataclass(frozen=True, slots=True)
class Promise:
    """One thing asyncchatd promises, and what was measured."""

    text: str
    kept: bool
    measured: str


@dataclass(frozen=True, slots=True)
class Failure:
    """What happened after the kill, by the clock that both processes share."""

    server: str
    chats: int
    """Those it served in the guarded plant."""
    noticed_seconds: float | None
    """From the kill to the beginning of the restoration; `None` when it was not noticed."""
    restoration: shapes.Restoration | None


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What both plants suffered, and the verdict."""

    plan: DemoPlan
    failure: Failure
    guarded: Report
    unguarded: Report
    delivery: Delivery
    exit_status: int
    seconds: float

    @property
    def push_forms(self) -> int:
        """How many of the forms a push may have were sent; the plant uses them in turn."""
        return min(len(ALL_FORMS), self.guarded.pushes_sent)

    @property
    def kept(self) -> bool:
        """Whether every promise was."""
        return all(promise.kept for promise in self.promises)

    @property
    def promises(self) -> list[Promise]:
        """Each judged by the plant's report; the daemon's word counts for its own clock and exit only."""
        with_, plan, failure, delivery = self.guarded, self.plan, self.failure, self.delivery
        restoration = failure.restoration
        finished = restoration is not None and restoration.finished_at is not None
        load = most_requests(with_, plan.rate)
        broken = {name.removesuffix("_requests"): count for name, count in rules(with_).items() if count}
        return [
            Promise("no session is lost", with_.sessions_lost == 0, f"{with_.sessions_lost} lost"),
            Promise(
                "every session has a Chat Server again",
                finished and with_.sessions_without_server == 0,
                f"{with_.sessions_without_server} without, restoration {'finished' if finished else 'unfinished'}",
            ),
            Promise(
                "no request carries a wrong key, but for those that only a lost answer told",
                with_.wrong_key_requests == 0,
                f"{with_.wrong_key_requests} of {with_.requests}",
            ),
            Promise(
                "no other rule of the Chat API is broken",
                not broken,
                ", ".join(f"{count} {name}" for name, count in broken.items()) or "0 requests",
            ),
            Promise(
                "a closed chat is refreshed once at most",
                with_.refreshes_of_closed_chats_max <= 1,
                f"{with_.refreshes_of_closed_chats_max} at most",
            ),
            Promise(
                "the rate is never passed, in no second",
                load.kept,
                str(load),
            ),
            Promise(
                "every push is taken and acknowledged",
                with_.pushes_failed == 0 and with_.pushes_unacknowledged == 0 and with_.acknowledged > 0,
                f"{with_.pushes_failed} failed, {with_.pushes_unacknowledged} unacknowledged",
            ),
            Promise(
                "every message of an agent was delivered, in order",
                delivery.kept,
                f"{delivery.delivered} of {delivery.written}, {delivery.disordered} chats out of order,"
                f" {delivery.unsigned} not signed",
            ),
            Promise("it stops cleanly", self.exit_status == 0, f"exit status {self.exit_status}"),
        ]

    def shown(self) -> dict[str, object]:
        """For programs."""
        restoration = self.failure.restoration
        return {
            "kept": self.kept,
            "promises": [asdict(promise) for promise in self.promises],
            "plan": asdict(self.plan),
            "restoration_window_seconds": self.plan.window,
            "server_killed": self.failure.server,
            "chats_on_it": self.failure.chats,
            "noticed_seconds": self.failure.noticed_seconds,
            "restoration": None if restoration is None else shapes.fields_of(restoration),
            "push_forms": self.push_forms,
            "with_asyncchatd": asdict(self.guarded),
            "without_asyncchatd": asdict(self.unguarded),
            "delivery": asdict(self.delivery),
            "seconds": round(self.seconds, 1),
        }


async def tell(plan: DemoPlan, console: Screen, directory: Path) -> DemoResult:
    """Tell the story; configuration, database and log of the daemon go to `directory`.

    Raises `TrialError` when the daemon does not start or dies. Leaves no process behind, also when cancelled.
    """
    story = Story(console)
    async with (
        StandIn(plan.plant()) as guarded,
        StandIn(plan.plant()) as unguarded,
        ChatApp(directory) as app,
    ):
        for plant in (guarded, unguarded):
            plant.plant.start_chats(plan.sessions)
        story.tells(
            f"Two stand-in plants are up, each with {len(guarded.nodes)} GMS nodes, {plan.servers} Chat Servers",
            f"and {plan.sessions:,} chats. One is asyncchatd's to look after, the other one nobody's.",
        )
        async with running_daemon(guarded, _sections(plan), directory, [app.consumer]) as daemon:
            story.tells(f"asyncchatd runs, process {daemon.pid}, SQLite in {directory}.")
            async with ControlClient(daemon.control) as control:
                try:
                    await register(story, control, guarded)
                    _close_some(plan, guarded, unguarded)
                    await _a_message_arrives(story, guarded, app)
                    async with agents_writing(guarded, plan.messages_per_second):
                        await _all_is_well(story, plan, guarded, daemon)
                        failure, killed = await _lose_a_server(story, plan, control, guarded, unguarded)
                    await _acknowledged(story, guarded)
                    await _delivered(story, guarded, app)
                except NoDaemon as error:
                    raise TrialError(f"asyncchatd is gone: {error}") from None
            await _wait_for_the_window(story, plan, unguarded, killed)
        story.tells(f"asyncchatd was stopped, exit status {daemon.exit_status}.")
        result = DemoResult(
            plan=plan,
            failure=failure,
            guarded=guarded.plant.report(),
            unguarded=unguarded.plant.report(),
            delivery=app.delivery(guarded.plant),
            exit_status=daemon.exit_status,
            seconds=story.seconds,
        )
    show(console, Group(Text(), _closing_table(result), Text(), _verdict(result)))
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
    }


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
    story: Story, plan: DemoPlan, control: ControlClient, guarded: StandIn, unguarded: StandIn
) -> tuple[Failure, float]:
    """Kill the same Chat Server in both plants; what asyncchatd does, and the loop's time of the kill."""
    name = "chat-2"
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
    deadline = killed + plan.window + 5
    restoration = await _noticed(story, control, name, killed_at, deadline)
    if restoration is None:
        story.tells("The loss was not noticed.", style="bold red")
        return Failure(name, chats, None, None), killed
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
    return Failure(name, chats, noticed, restoration), killed


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


# The end.


def _closing_table(result: DemoResult) -> Table:
    failure, with_, without = result.failure, result.guarded, result.unguarded
    restoration, plan, delivery = failure.restoration, result.plan, result.delivery
    acknowledged = with_.acknowledgement_seconds
    table = Table(
        title=f"What the plants suffered: {failure.server} killed", title_justify="left", title_style="bold"
    )
    table.add_column("")
    table.add_column("with asyncchatd", justify="right")
    table.add_column("without", justify="right")
    rows: Sequence[tuple[str, str, str]] = (
        ("sessions lost", f"{with_.sessions_lost:,}", f"{without.sessions_lost:,}"),
        ("sessions restored", f"{with_.restored:,}", f"{without.restored:,}"),
        (
            "longest time without a Chat Server",
            durations.measured(with_.without_server_seconds.max, "never"),
            f"for ever: lost after {plan.window:.0f} s",
        ),
        ("from the kill to its notice", durations.measured(failure.noticed_seconds, "never"), "-"),
        (
            "from its notice to the last chat restored",
            durations.measured(restoration.took_seconds if restoration else None, "never"),
            "-",
        ),
        ("answers of GMS nodes that hung up after the work", f"{with_.answers_lost:,}", "-"),
        ("of these, told a new key that nobody can know", f"{with_.forgiven_key_requests:,}", "-"),
        ("404s of a GMS node that was redeployed", f"{with_.requests_faulted:,}", "-"),
        ("wrong-key requests", f"{with_.wrong_key_requests:,}", "-"),
        ("requests that break another rule", f"{sum(rules(with_).values()):,}", "-"),
        (
            "refreshes of closed chats",
            f"{with_.refreshes_of_closed_chats:,}, at most {with_.refreshes_of_closed_chats_max} of one",
            "-",
        ),
        ("most requests in any second", str(most_requests(with_, plan.rate)), "-"),
        (
            "pushes acknowledged",
            f"{with_.acknowledged:,} of {with_.acknowledged + with_.pushes_unacknowledged:,}",
            "-",
        ),
        ("pushes that the redeployed node did not send", f"{with_.pushes_swallowed:,}", "-"),
        ("forms these pushes had", f"{result.push_forms} of {len(ALL_FORMS)}", "-"),
        (
            "their acknowledgement took (p50, p95, longest)",
            ", ".join(map(durations.measured, (acknowledged.p50, acknowledged.p95, acknowledged.max))),
            "-",
        ),
        (
            "agents' messages delivered to the chat app",
            f"{delivery.delivered:,} of {delivery.written:,}",
            "-",
        ),
        (
            "from an agent's hand to there (median, longest)",
            f"{durations.measured(delivery.p50)}, {durations.measured(delivery.longest)}",
            "-",
        ),
        ("events that came twice", f"{delivery.twice:,}", "-"),
    )
    for what, there, here in rows:
        table.add_row(what, there, here)
    return table


def _verdict(result: DemoResult) -> Text:
    broken = [promise for promise in result.promises if not promise.kept]
    if not broken:
        return Text(
            f"All {len(result.promises)} promises kept, in {result.seconds:.0f} s.", style="bold green"
        )
    verdict = Text("Broken promises:", style="bold red")
    for promise in broken:
        verdict.append(f"\n  {promise.text}: {promise.measured}")
    return verdict
