"""A storm rehearsed before it comes: is `restoration.max_rate` right?

A stand-in plant of the size asked for comes up, with a GMS of the capacity asked for; a real `asyncchatd run`
looks after its sessions with the settings to be tried, and Chat Servers are killed. How long customers were
without a server, what GMS saw, and what held the restoration up is measured and judged: by the plant, and by
what the daemon says of its requests in flight.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import aiohttp
from rich.console import Group
from rich.progress import MofNCompleteColumn, TextColumn
from rich.table import Table
from rich.text import Text

from asyncchatd.control import shapes
from asyncchatd.control.clients.calls import NoDaemon, read
from asyncchatd.control.clients.client import ControlClient
from asyncchatd.model import durations
from asyncchatd.rehearsing.bottleneck import Bounds, Measured, Sample, Second, Verdict, judge, measure
from asyncchatd.rehearsing.plot import MARGIN, WIDTH, Line, Mark, Picture, terminal
from asyncchatd.rehearsing.trial import (
    Daemon,
    Load,
    Story,
    TrialError,
    agents_writing,
    most_requests,
    register,
    rules,
    running_daemon,
)
from asyncchatd.rehearsing.tuning import Tuned
from asyncchatd.standin import (
    AfterWork,
    PlantSettings,
    Report,
    Rotation,
    Spoiling,
    StandIn,
    chat_servers,
)
from asyncchatd.terminal.screens import Screen, show

LEAD_SECONDS = 5.0
"""How long the load before the kill is shown."""
TAIL_SECONDS = 2.0
SAMPLE_SECONDS = 1.0
UP_SECONDS = 60.0
"""Until every Chat Server's page was read, at the longest intervals anybody would rehearse."""
OVERTIME_SECONDS = 5.0
"""After the last session, for the daemon to write its restoration off."""

STANDIN = PlantSettings()
"""What a plant is like when nobody says otherwise."""


@dataclass(frozen=True, slots=True)
class RehearsalPlan:
    """What is rehearsed. Durations are seconds."""

    sessions: int = 10_000
    servers: int = 4
    kill: int = 1
    """Chat Servers lost at once; fewer than there are, because another one must take the sessions."""
    gms_capacity: float | None = None
    """Plain requests per second the stand-in's GMS can serve; `None` is without limit."""
    restore_cost: float = STANDIN.restore_cost
    """Plain requests' worth of that capacity one restoration takes."""
    latency: float = STANDIN.latency
    """What GMS takes for any request."""
    window: float = 300.0
    """A lost server's session is lost when nothing restores it within this time."""
    messages_per_second: float = 5.0
    """Agents' messages: each is a push, and each push is acknowledged with a Refresh."""
    lost_answers: float = 0.001
    """Share of GMS' answers that are lost when the work is done."""
    redeploy: float = 10.0
    """For so long after the kill one of the GMS nodes answers 404: its container is up, its application is not."""
    tuned: Tuned = field(default_factory=Tuned)

    def plant(self) -> PlantSettings:
        """The plant; new tokens come as often as a client can bear."""
        return PlantSettings(
            servers=chat_servers(self.servers),
            gms_capacity=self.gms_capacity,
            restore_cost=self.restore_cost,
            latency=self.latency,
            restoration_window=self.window,
            rotate=Rotation.ALWAYS,
            rotate_every=3,
        )

    @property
    def killed(self) -> list[str]:
        """The names of the Chat Servers that are."""
        return [server.name for server in chat_servers(self.kill)]

    @property
    def bounds(self) -> Bounds:
        """What the restoration has to keep to."""
        restoration, watcher = self.tuned.restoration, self.tuned.watcher
        return Bounds(
            max_rate=restoration.max_rate,
            max_in_flight=restoration.max_in_flight,
            slow=self.tuned.gms.slow_after.total_seconds(),
            interval=watcher.interval.total_seconds(),
            fast_interval=watcher.fast_interval.total_seconds(),
            fall=watcher.fall,
            window=self.window,
            capacity=self.gms_capacity,
            restore_cost=self.restore_cost,
        )


@dataclass(frozen=True, slots=True)
class RehearsalResult:
    """What came of it."""

    plan: RehearsalPlan
    measured: Measured
    report: Report
    """The plant's, from shortly before the kill to the end."""
    seconds: Sequence[Second]
    samples: Sequence[Sample]
    restorations: Sequence[shapes.Restoration]
    exit_status: int

    @property
    def verdict(self) -> Verdict:
        """What held it up, and what to change."""
        return judge(self.measured)

    @property
    def well(self) -> bool:
        """Whether no customer was lost, no rule and no rate was broken, and the daemon stopped cleanly."""
        broken = self.report.wrong_key_requests + sum(rules(self.report).values())
        waiting = self.report.sessions_lost + self.report.sessions_without_server
        return not broken and not waiting and self.load.kept and self.exit_status == 0

    @property
    def load(self) -> Load:
        """Its busiest second."""
        return most_requests(self.report, self.plan.tuned.restoration.max_rate)

    @property
    def picture(self) -> Picture:
        """The load over time."""
        plan, bounds, measured = self.plan, self.plan.bounds, self.measured
        lines = [Line(bounds.max_rate, f"max_rate {bounds.max_rate:g}")]
        if bounds.capacity is not None:
            lines.append(Line(bounds.capacity, f"GMS capacity {bounds.capacity:g}"))
            if bounds.restore_cost != 1 and bounds.restorations_per_second is not None:
                bears = bounds.restorations_per_second
                lines.append(Line(bears, f"GMS restores {bears:.3g}"))
        marks = [Mark(0.0, "kill")]
        if measured.noticed is not None:
            marks.append(Mark(measured.noticed, f"noticed after {durations.measured(measured.noticed)}"))
        if measured.last is not None:
            marks.append(Mark(measured.last, f"last restored after {durations.measured(measured.last)}"))
        if measured.lost:
            marks.append(Mark(bounds.window, "end of the window"))
        lost = f"{plan.kill} of {plan.servers} Chat Servers lost, {measured.concerned:,} sessions"
        return Picture(f"Requests per second to GMS: {lost}", self.seconds, lines, marks)

    def shown(self) -> dict[str, object]:
        """For programs."""
        plan = {name: value for name, value in asdict(self.plan).items() if name != "tuned"}
        return {
            "well": self.well,
            "verdict": asdict(self.verdict),
            "plan": plan,
            "settings": self.plan.tuned.sections(),
            "measured": asdict(self.measured),
            "restorations": [shapes.fields_of(each) for each in self.restorations],
            "report": asdict(self.report),
            "seconds": [asdict(each) for each in self.seconds],
            "samples": [asdict(each) for each in self.samples],
            "exit_status": self.exit_status,
        }


async def rehearse(plan: RehearsalPlan, console: Screen, directory: Path) -> RehearsalResult:
    """Play it through and show what came of it; configuration, database and log go to `directory`.

    Raises `TrialError` when the daemon does not start or dies. Leaves no process behind, also when cancelled.
    """
    story = Story(console, "sessions")
    async with StandIn(plan.plant()) as plant:
        plant.plant.start_chats(plan.sessions)
        capacity = (
            "without limit" if plan.gms_capacity is None else f"good for {plan.gms_capacity:g} requests/s"
        )
        story.tells(
            f"A stand-in plant is up: {plan.servers} Chat Servers with {plan.sessions:,} chats, GMS {capacity}."
        )
        with _collected():
            async with running_daemon(plant, plan.tuned.sections(), directory) as daemon:
                story.tells(f"asyncchatd runs, process {daemon.pid}.")
                storm = await _storm(story, plan, plant, daemon)
        result = RehearsalResult(
            plan=plan,
            measured=storm.measured(plan),
            report=storm.report,
            seconds=storm.seconds,
            samples=storm.samples,
            restorations=storm.restorations,
            exit_status=daemon.exit_status,
        )
    show(console, shown(result, console.width))
    return result


def shown(result: RehearsalResult, width: int) -> Group:
    """Table, picture and verdict; the picture fits into `width` columns."""
    verdict = result.verdict
    said = Text.assemble(
        (f"Bottleneck: {verdict.bottleneck.value.replace('_', ' ')}\n", "bold"),
        f"{verdict.why}\n",
        (verdict.advice, "bold green" if result.well else "bold yellow"),
    )
    return Group(
        Text(),
        _table(result),
        Text(),
        terminal(result.picture, width=max(20, min(WIDTH, width - MARGIN))),
        Text(),
        said,
    )


# The scenes.


@dataclass(frozen=True, slots=True)
class _Storm:
    """What was seen of it."""

    concerned: int
    killed_at: float
    """By the clock both processes share."""
    report: Report
    seconds: Sequence[Second]
    samples: Sequence[Sample]
    restorations: Sequence[shapes.Restoration]

    def measured(self, plan: RehearsalPlan) -> Measured:
        """Noticed is when the loss of the last server was; from then on all of its sessions are due."""
        began = {
            each.server: shapes.read_time(each.started_at).timestamp() - self.killed_at
            for each in self.restorations
        }
        report = self.report
        return measure(
            plan.bounds,
            concerned=self.concerned,
            lost=report.lost_by_cause.get("restoration_window", 0),
            noticed=max(began.values()) if began.keys() >= set(plan.killed) else None,
            last=report.without_server_seconds.max,
            seconds=self.seconds,
            samples=self.samples,
            shed=report.requests_turned_away + report.requests_abandoned,
        )


async def _storm(story: Story, plan: RehearsalPlan, plant: StandIn, daemon: Daemon) -> _Storm:
    path = daemon.control.path
    assert path is not None
    async with (
        ControlClient(daemon.control) as control,
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(path)) as http,
    ):
        try:
            await register(story, control, plant)
            await _all_up(control, daemon)
            async with agents_writing(plant, plan.messages_per_second):
                return await _kill_and_watch(story, plan, plant, daemon, _Sampler(control, http))
        except (NoDaemon, aiohttp.ClientError) as error:
            raise TrialError(f"asyncchatd cannot be asked any more: {error}") from None


async def _all_up(control: ControlClient, daemon: Daemon) -> None:
    """Until the watcher has seen every Chat Server: one it never saw could not be lost."""
    deadline = time.monotonic() + UP_SECONDS
    while any(each.state != "up" for each in read(shapes.Servers, await control.servers()).servers):
        daemon.check()
        if time.monotonic() > deadline:
            raise TrialError(f"asyncchatd did not find all Chat Servers up within {UP_SECONDS:.0f} s")
        await asyncio.sleep(0.1)


async def _kill_and_watch(
    story: Story, plan: RehearsalPlan, plant: StandIn, daemon: Daemon, sampler: _Sampler
) -> _Storm:
    """A while of every day's load, the kill, and once a second a look until nobody waits any more."""
    logic = plant.plant
    logic.reset_report(timeline=True)
    began = logic.now()
    if plan.lost_answers:
        for node in plant.nodes:
            node.spoiling = Spoiling(AfterWork.HANG_UP, plan.lost_answers)
    await asyncio.sleep(LEAD_SECONDS)
    await sampler.look(0.0)
    concerned = sum(len(logic.servers[name].process.sessions) for name in plan.killed)
    killed, killed_at = logic.now(), time.time()
    for name in plan.killed:
        logic.servers.kill(name)
    plant.nodes[0].redeploy(plan.redeploy)
    names = plan.killed[0] if plan.kill == 1 else f"{plan.killed[0]} to {plan.killed[-1]}"
    story.tells(
        f"Killed: {names}. {concerned:,} chats have no Chat Server, and {plan.window:.0f} s to live.",
        style="bold red",
    )
    restorations: list[shapes.Restoration] = []
    counters = TextColumn("{task.fields[counters]}", style="dim", markup=False)
    over = None
    with story.progress(MofNCompleteColumn(), counters) as bar:
        task = bar.add_task("         restored", total=concerned, counters="not noticed yet")
        while True:
            await asyncio.sleep(SAMPLE_SECONDS)
            daemon.check()
            passed = logic.now() - killed
            sample = await sampler.look(passed)
            restorations = await sampler.restorations(plan.killed, killed_at)
            report = logic.report()
            counters_now = f"{logic.timeline.rows(logic.now())[-2][1]:,} requests/s"
            if len(restorations) < plan.kill:
                counters_now += ", not noticed yet"
            else:
                counters_now += f", {sample.in_flight} of {sample.limit} in flight"
            bar.update(task, completed=concerned - report.sessions_without_server, counters=counters_now)
            finished = len(restorations) >= plan.kill and all(each.finished_at for each in restorations)
            if over is None and report.sessions_without_server == 0:
                over = passed
            if over is not None and passed >= over + (TAIL_SECONDS if finished else OVERTIME_SECONDS):
                break
            if passed > plan.window + OVERTIME_SECONDS:
                break
    last = report.without_server_seconds.max
    story.tells(
        f"{report.restored:,} chats have a Chat Server again"
        + (f", the last after {durations.measured(last)}." if last is not None else "."),
        style="bold",
    )
    if report.sessions_lost:
        story.tells(f"{report.sessions_lost:,} chats are lost.", style="bold red")
    offset = killed - began
    rows = logic.timeline.rows(logic.now())[:-1]
    seconds = [Second(round(second - offset, 3), requests, restored) for second, requests, restored in rows]
    return _Storm(concerned, killed_at, report, seconds, sampler.samples[1:], restorations)


class _Sampler:
    """Looks at the daemon once in a while."""

    def __init__(self, control: ControlClient, http: aiohttp.ClientSession) -> None:
        self.samples: list[Sample] = []
        self._control = control
        self._http = http
        self._answers = (0, 0.0)

    async def look(self, at: float) -> Sample:
        """Its status and metrics, `at` seconds after the kill."""
        pings = read(shapes.Status, await self._control.status()).pings
        async with self._http.get("http://asyncchatd/metrics") as response:
            count, total = _answers(await response.text())
        known_count, known_total = self._answers
        self._answers = (count, total)
        answers = count - known_count
        mean = round((total - known_total) / answers, 6) if answers > 0 else None
        sample = Sample(round(at, 3), pings.in_flight, pings.in_flight_limit, answers, mean)
        self.samples.append(sample)
        return sample

    async def restorations(self, servers: Sequence[str], killed_at: float) -> list[shapes.Restoration]:
        """The first of each of these servers since the kill."""
        known = read(shapes.Restorations, await self._control.restorations()).restorations
        first = {
            each.server: each
            for each in known  # the newest come first
            if each.server in servers and shapes.read_time(each.started_at).timestamp() >= killed_at - 0.01
        }
        return list(first.values())


def _answers(metrics: str) -> tuple[int, float]:
    """How many pings came back so far, and how long they took together."""
    count, total = 0.0, 0.0
    for line in metrics.splitlines():
        name, _, value = line.rpartition(" ")
        if name.startswith("asyncchatd_ping_seconds_count"):
            count += float(value)
        elif name.startswith("asyncchatd_ping_seconds_sum"):
            total += float(value)
    return int(count), total


@contextmanager
def _collected() -> Iterator[None]:
    """The plant's sessions live as long as the rehearsal: looking at each again and again, the garbage
    collector would stop GMS for a while."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


# The end.


def _table(result: RehearsalResult) -> Table:
    plan, measured, report = result.plan, result.measured, result.report
    bounds, without = plan.bounds, report.without_server_seconds
    peak = str(result.load)
    busy = "without limit"
    if bounds.capacity is not None:
        peak += f"; capacity {bounds.capacity:g}"
        busy = f"{measured.gms_busy * 100:.0f} % of {bounds.capacity:g}; a restoration counts {bounds.restore_cost:g}"
    rows = (
        ("sessions of the lost Chat Servers", f"{measured.concerned:,} of {plan.sessions:,}"),
        ("sessions lost", f"{report.sessions_lost:,}"),
        (
            "without a Chat Server (p50, p95, last)",
            ", ".join(durations.measured(each) for each in (without.p50, without.p95, without.max)),
        ),
        ("from the kill until its notice", durations.measured(measured.noticed, "never")),
        (
            "from its notice to the last session",
            durations.measured(measured.restoring if measured.last else None),
        ),
        ("answers lost when the work was done", f"{report.answers_lost:,}"),
        ("404s of a GMS node that was redeployed", f"{report.requests_faulted:,}"),
        ("requests with a wrong key", f"{report.wrong_key_requests:,}"),
        ("requests that break another rule", f"{sum(rules(report).values()):,}"),
        ("most requests in any second", peak),
        ("requests per second while restoring", f"{measured.rate:,.0f}"),
        ("GMS busy while restoring", busy),
        ("its answers took, on average", durations.measured(measured.answer_seconds)),
        (
            "its in-flight limit",
            "never cut" if measured.limit_cut_to is None else f"cut to {measured.limit_cut_to}",
        ),
        ("requests it answered 503", f"{report.requests_turned_away:,}"),
        ("requests it served too late (time-outs)", f"{report.requests_abandoned:,}"),
        ("pushes acknowledged", f"{report.acknowledged:,}"),
    )
    table = Table(title="What customers and GMS would see", title_justify="left", title_style="bold")
    table.add_column("")
    table.add_column("", justify="right")
    for what, how in rows:
        table.add_row(what, how)
    table.show_header = False
    return table
